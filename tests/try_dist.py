"""Try what `make dist` has built as somebody would who has nothing else: `python tests/try_dist.py dist`.

The source distribution has every file of the repository that it should have, and what the wheel is called and says of
itself is right. The wheel goes into a new environment, in a folder where nothing else is; there the README's first
commands run, its types are read by mypy, and an extra is added to what is installed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEFT_OUT = {".gitignore"}  # hatchling decides that by itself


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    """What a command prints; it must succeed, and is shown."""
    print("$", *command, flush=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HEADSTART", "PYTHON"))}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_sdist(sdist: Path, folder: Path) -> Path:
    """Unpack it, and compare it with what is tracked, where that is known. Returns its folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    there = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert not [name for name in there if name.startswith(("site/", ".venv", "dist/")) or name.endswith(".pyc")]
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
        assert tracked - there <= LEFT_OUT, f"missing in {sdist.name}: {sorted(tracked - there - LEFT_OUT)}"
    return unpacked


def check_metadata(wheel: Path, version: str) -> None:
    """What a package index would show."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    assert {"headstart/py.typed", f"headstart-{version}.dist-info/licenses/LICENSE"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "docs", "examples", "benchmarks"))]
    assert f"\nVersion: {version}\n" in text
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links, "README has links to other places"
    assert all(link.startswith("https://") for link in links), links


def try_wheel(wheel: Path, sources: Path, folder: Path, version: str) -> None:
    """In a new environment."""
    run(sys.executable, "-m", "venv", folder / "environment", folder=folder)
    programs = folder / "environment" / "bin"
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, f"{wheel}[triton]", folder=folder)
    work = folder / "work"
    work.mkdir()
    own = {"HEADSTART_CACHE_DIR": str(folder / "cache"), "PATH": f"{programs}:{os.environ['PATH']}"}

    assert version in run("headstart", "--version", folder=work, **own)
    findings = json.loads(run("headstart", "doctor", "--json", folder=work, **own))
    assert findings
    app = sources / "examples" / "kernels" / "app.py"
    run(
        *("headstart", "run", "--dry-run", "--target", "cuda:90", "--record", "app.manifest", app, "softmax", "rotary"),
        folder=work,
        **own,
    )
    built = run("headstart", "build", "app.manifest", "--target", "cuda:90", "-o", "app.bundle", folder=work, **own)
    assert "40 compiled" in built, built
    assert "softmax" in run("headstart", "bundle", "list", "app.bundle", folder=work, **own)

    (program,) = re.findall(r"```python\n(import headstart\n\nSOURCE.*?)```", (sources / "README.md").read_text(), re.S)
    (work / "generator.py").write_text(program)
    for compiled in ("1", "0"):
        name, size, count = run(programs / "python", "generator.py", folder=work, **own).split()
        assert (name, int(size) > 0, count) == ("scale", True, compiled)

    example = sources / "tests" / "typing_example.py"
    run(
        *(sys.executable, "-m", "mypy", "--strict", "--python-executable", programs / "python", example),
        folder=work,
        **own,
    )
    # As errors advise where an extra is missing: pip takes the headstart that is there.
    run(*pip, "headstart[sign]", folder=work)
    assert version in run("headstart", "--version", folder=work, **own)
    run("headstart", "key", "new", "ours", folder=work, HEADSTART_CONFIG_DIR=str(folder / "keys"), **own)


def main(dist: Path) -> None:
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    version = re.fullmatch(r"headstart-(.+)-py3-none-any\.whl", wheel.name)
    assert version is not None, wheel.name
    assert sdist.name == f"headstart-{version[1]}.tar.gz"
    with tempfile.TemporaryDirectory(prefix="headstart-dist-") as folder:
        (Path(folder) / "sources").mkdir()
        sources = check_sdist(sdist, Path(folder, "sources"))
        check_metadata(wheel, version[1])
        try_wheel(wheel.resolve(), sources, Path(folder), version[1])
    print(f"{sdist.name} and {wheel.name} are complete and work")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
