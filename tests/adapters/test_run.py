"""`headstart run`: the program is what it would be without, its children take part, and the next start is ahead of it.

Kernels are compiled in dry runs, since there is no GPU here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE, client_environment, descendants, lasting
from headstart.adapters.bundle_use import UseTally, report
from headstart.adapters.recording import record_path, script_program
from headstart.adapters.run import STARTUP, VARIABLE, RunConfig, find_module
from headstart.artifacts.bundle import Bundle
from headstart.artifacts.manifest import Manifest
from headstart.client.use import BundleUse

DRY = ("--dry-run", "--target", "cuda:90")
COMMAND = (sys.executable, "-m", "headstart", "run")

KERNELS = """
import json, os, sys, time
import triton
import triton.language as tl
from triton.runtime.jit import MockTensor

@triton.jit
def scale(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, tl.load(x + i, mask=i < n) * {factor}, mask=i < n)

def warm_up(*blocks):
    return [scale.warmup(MockTensor(tl.float32), 100, BLOCK=block, grid=(1,)) for block in blocks]

def report():
    from headstart.adapters import process as enabling
    adapter = enabling.current().jit
    spans = [(s.name, s.origin, s.kicked_off, s.finished) for s in adapter.compiler.timeline]
    print(json.dumps({{
        "counts": adapter.counts, "spans": spans, "services": adapter.compiler.services_started,
    }}))
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Path]:
    """Writes a program."""

    def write(text: str, name: str = "app.py", *, factor: float | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kernels = "" if factor is None else KERNELS.format(factor=factor)
        path.write_text(kernels + textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def start(*arguments: object, command: tuple[str, ...] = COMMAND, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **client_environment(), "TRITON_DEFAULT_FP_FUSION": "1", **variables}
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def run(*arguments: object, status: int = 0, **how: Any) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, **how)
    try:
        output, errors = process.communicate(timeout=PATIENCE * 2)
    finally:
        process.kill()
    assert process.returncode == status, errors
    return subprocess.CompletedProcess(process.args, status, output, errors)


def said(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.splitlines()[-1])


def record_of(app: Path) -> Path:
    return record_path(script_program(app))


def forget_tritons_cache() -> None:
    """A machine on which Triton's own cache is empty."""
    subprocess.run(["rm", "-rf", os.environ["TRITON_CACHE_DIR"]], check=True)


# The program is what it would be without


SELF = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "name": __name__, "file": __file__, "package": __package__,
    "main": sys.modules["__main__"].__dict__ is globals(), "spec": __spec__ is not None and __spec__.name,
    "modules": sorted(name for name in sys.modules if name.split(".")[0] in ("click", "rich", "runpy", "msgspec")),
    "flags": list(sys.flags), "executable": sys.executable, "prefix": sys.prefix,
}))
"""


def test_a_script_sees_what_it_would_see_under_python(program: Callable[..., Path]) -> None:
    app = program(SELF)
    arguments = (app, "one", "--two", "-v", "--", "--record")
    assert said(run(*arguments)) == said(run(*arguments, command=(sys.executable,)))


def test_a_module_sees_what_it_would_see_under_python(
    program: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program(SELF, "package/module.py")
    program(SELF, "package/__main__.py")
    for name in ("package.module", "package"):
        arguments = ("-m", name, "--lr", "3", "-m")
        assert said(run(*arguments)) == said(run(*arguments, command=(sys.executable,)))


def test_options_of_the_interpreter_hold_for_the_program(program: Callable[..., Path]) -> None:
    app = program(SELF)
    command = (sys.executable, "-W", "error", "-X", "utf8", "-O", "-B")
    assert said(run(app, command=(*command, "-m", "headstart", "run"))) == said(run(app, command=command))


def test_an_interpreter_that_shuts_the_environment_out_is_refused(program: Callable[..., Path]) -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; from headstart.cli import main; main()"
    done = run("run", program(SELF), command=(sys.executable, "-E", "-c", code), status=2)
    assert "without -E" in done.stderr


@pytest.mark.parametrize(
    ("ending", "status"),
    [("sys.exit(7)", 7), ("os._exit(8)", 8), ("os.kill(os.getpid(), 15)", -15), ("raise SystemExit('no')", 1)],
)
def test_it_ends_as_the_program_ends(program: Callable[..., Path], ending: str, status: int) -> None:
    run(program(f"import os, sys\n{ending}\n"), status=status)


def test_a_traceback_is_pythons_own(program: Callable[..., Path]) -> None:
    app = program("def f():\n    raise ValueError('mine')\nf()\n")
    assert run(app, status=1).stderr == run(app, status=1, command=(sys.executable,)).stderr


def test_a_program_that_is_not_there_is_pythons_error(tmp_path: Path) -> None:
    assert "can't open file" in run(tmp_path / "none.py", status=2).stderr
    assert "No module named" in run("-m", "no_such_module_anywhere", status=1).stderr


@pytest.mark.parametrize("user", ["print('mine')", "import nowhere", "raise ValueError('mine')"])
def test_the_users_own_sitecustomize_runs_as_before(program: Callable[..., Path], user: str) -> None:
    site = program(user, "site/sitecustomize.py").parent
    app = program(
        """
        import os, sys
        print(getattr(sys.modules.get("sitecustomize"), "__file__", None))
        from headstart.adapters import process as enabling
        print(enabling.current() is not None or "HEADSTART_RUN" not in os.environ)
        """
    )
    path = os.pathsep.join([str(site), client_environment()["PYTHONPATH"]])
    python = (sys.executable,)
    ordered = {VARIABLE: RunConfig(0, str(app)).encode(), "PYTHONPATH": os.pathsep.join([STARTUP, path])}
    ours, pythons = run(app, command=python, **ordered), run(app, command=python, PYTHONPATH=path)
    if user.startswith("print"):
        assert ours.stdout == pythons.stdout
        assert str(site) in ours.stdout
    assert ours.stdout.splitlines()[-1] == "True"
    assert ours.stderr == pythons.stderr


def test_off_means_that_nothing_is_there(program: Callable[..., Path]) -> None:
    app = program(
        "import os, sys\nprint([n for n in sys.modules if n.startswith('headstart')], 'HEADSTART_RUN' in os.environ)\n"
    )
    for off in ("off", "0", "false", "No"):
        assert run(app, HEADSTART=off).stdout == "[] False\n"
    assert "HEADSTART: expected on, off or require" in run(app, HEADSTART="maybe", status=2).stderr
    assert run(app, HEADSTART="off", HEADSTART_RUN="{}").stdout == "[] True\n"


def test_a_program_without_triton_pays_for_little(program: Callable[..., Path]) -> None:
    app = program(
        "import sys, threading, psutil\n"
        "print([n for n in sys.modules if n in ('msgspec', 'triton', 'torch', 'headstart.client.async_compile')],"
        " threading.active_count(), psutil.Process().children())\n"
    )
    assert run(app).stdout == "[] 1 []\n"
    assert not record_of(app).exists()


def test_a_python_without_headstart_is_left_alone(program: Callable[..., Path]) -> None:
    app = program(
        """
        import os, subprocess, sys
        path = os.environ["PYTHONPATH"].split(os.pathsep)[0]
        bare = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run([sys.executable, "-S", "-c", "import sitecustomize, sys; print(sys.path)"],
                              env=bare, capture_output=True, text=True)
        print(done.returncode, done.stderr, path in done.stdout)
        """
    )
    assert run(app).stdout == "0  False\n"


def test_orders_of_another_version_are_not_understood() -> None:
    orders = RunConfig(1, "app.py", record="/r", workers=3)
    assert RunConfig.decode(orders.encode()) == orders
    for text in ("", "{}", "[]", '{"version": 99, "pid": 1}', '{"version": 1, "colour": 2}'):
        assert RunConfig.decode(text) is None


def test_trouble_of_ours_is_one_line_and_the_program_runs(program: Callable[..., Path]) -> None:
    app = program("print('ran')")
    path = os.pathsep.join([STARTUP, client_environment()["PYTHONPATH"]])
    bad = RunConfig(0, str(app), workers="three").encode().replace('"record": null', '"record": 3')
    done = run(app, command=(sys.executable,), PYTHONPATH=path, **{VARIABLE: bad})
    assert done.stdout == "ran\n"


@pytest.mark.parametrize(
    "options",
    [
        ("--record", "f", "--no-record"),
        ("--dry-run",),
        ("--target", "cuda:90"),
        ("--dry-run", "--target", "tpu:1"),
        ("--manifest", "none.manifest"),
    ],
)
def test_options_that_make_no_sense_are_refused(program: Callable[..., Path], options: tuple[str, ...]) -> None:
    done = run(*options, program("print('ran')"), status=2)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_modules_are_found_without_being_imported(
    program: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = program("raise AssertionError", "somebodys/inner/tool.py")
    main = program("raise AssertionError", "somebodys/__main__.py")
    program("raise AssertionError", "somebodys/__init__.py")
    assert find_module("somebodys.inner.tool") == str(module)
    assert find_module("somebodys") == str(main)
    assert find_module("somebodys.none") is None
    assert find_module("none.at.all") is None
    assert find_module("json.tool") == __import__("json.tool").tool.__file__


# Record and replay


@pytest.mark.triton
def test_the_first_run_records_and_the_second_is_ahead_of_the_program(program: Callable[..., Path]) -> None:
    app = program(
        """
        if __name__ == "__main__":
            began = time.monotonic()
            deadline = began + 30
            from headstart.adapters import process as enabling
            while "--wait" in sys.argv and time.monotonic() < deadline:
                adapter = enabling.current().jit
                if adapter and len(adapter.compiler.timeline) == 3 and not adapter.compiler.in_flight():
                    if all(span.finished for span in adapter.compiler.timeline):
                        break
                time.sleep(0.01)
            asked = time.monotonic()
            warm_up(32, 64, 128)
            report()
            print(json.dumps([began, asked]))
        """,
        factor=2.0,
    )
    first = run(*DRY, app)
    assert json.loads(first.stdout.splitlines()[0])["counts"]["in_process"] == 0
    manifest = Manifest.open(record_of(app))
    assert len(manifest.specializations) == 3
    assert {each.request.target for each in manifest.specializations.values()} == {"cuda:90"}
    assert manifest.origins[0].program == script_program(app)
    forget_tritons_cache()
    subprocess.run(["rm", "-rf", str(Path(os.environ["HEADSTART_CACHE_DIR"], "store"))], check=True)

    second = run("-v", *DRY, app, "--wait")
    told, (_, asked) = (json.loads(line) for line in second.stdout.splitlines())
    assert [origin for _, origin, _, _ in told["spans"]] == ["worker"] * 3
    assert all(finished < asked for *_, finished in told["spans"])
    assert told["counts"]["kicked_off"] == 0  # by the program: all had been
    assert "3 recorded, 3 prefetched, 3 used, 0 not used" in second.stderr


@pytest.mark.triton
def test_what_tritons_own_cache_had_is_not_said_to_be_used(program: Callable[..., Path]) -> None:
    app = program("warm_up(16, 32)\nreport()\n", factor=2.0)
    run(*DRY, app)
    again = run("-v", *DRY, app)
    assert said(again)["counts"]["from_cache"] == 2
    assert "2 prefetched, 0 used, 2 not used (2 were in Triton's own cache)" in again.stderr


@pytest.mark.triton
def test_a_bundle_that_lacks_one_kernel_is_told_by_what_was_really_there(
    program: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "app.bundle"
    app = program("warm_up(*map(int, sys.argv[1:]))\nreport()\n", factor=2.0)
    run("--bundle", bundle, *DRY, app, 16)
    run(*DRY, app, 32)
    forget_tritons_cache()
    subprocess.run(["rm", "-rf", str(Path(os.environ["HEADSTART_CACHE_DIR"], "store"))], check=True)
    again = run("-v", "--bundle", bundle, "--manifest", record_of(app), "--trust", *DRY, app, 16, 32)
    assert sorted(origin for _, origin, _, _ in said(again)["spans"]) == ["bundle", "worker"]
    assert "2 prefetched, 2 used, 0 not used" in again.stderr


@pytest.mark.triton
def test_what_has_changed_since_is_compiled_in_vain_and_said(program: Callable[..., Path]) -> None:
    body = "warm_up(32)\nreport()\n"
    app = program(body, factor=2.0)
    run(*DRY, app)
    program(body, factor=3.0)
    done = run("-v", *DRY, app)
    assert said(done)["counts"]["kicked_off"] == 1
    assert "1 recorded, 1 prefetched, 0 used, 1 not used" in done.stderr
    assert len(Manifest.open(record_of(app)).specializations) == 2


@pytest.mark.triton
def test_nothing_is_recorded_or_replayed_unless_wanted(program: Callable[..., Path], tmp_path: Path) -> None:
    app = program("warm_up(32)\nreport()\n", factor=2.0)
    run("--no-record", *DRY, app)
    assert not record_of(app).exists()
    own = tmp_path / "own.manifest"
    run("--record", own, *DRY, app)
    assert not record_of(app).exists()
    assert len(Manifest.open(own).specializations) == 1
    done = run("-v", "--manifest", own, "--trust", "--no-record", *DRY, app)
    assert "1 prefetched" in done.stderr
    done = run("-v", "--no-prefetch", "--record", own, *DRY, app)
    assert "prefetched" not in done.stderr


@pytest.mark.triton
def test_kernels_of_another_target_are_not_compiled_in_a_dry_run(program: Callable[..., Path]) -> None:
    app = program("warm_up(32)\nreport()\n", factor=2.0)
    run("--dry-run", "--target", "cuda:80", app)
    assert "0 recorded, 0 prefetched" in run("-v", *DRY, app).stderr


@pytest.mark.triton
def test_with_a_bundle_nothing_is_compiled_and_no_service_starts(program: Callable[..., Path], tmp_path: Path) -> None:
    app = program("warm_up(32, 64)\nreport()\n", factor=2.0)
    run(*DRY, app)
    bundle = tmp_path / "app.bundle"
    build = (sys.executable, "-m", "headstart", "build")
    run(record_of(app), "-o", bundle, "--quiet", "--trust", command=build)
    before = bundle.read_bytes()
    for folder in ("TRITON_CACHE_DIR", "HEADSTART_CACHE_DIR"):
        subprocess.run(["rm", "-rf", os.environ[folder]], check=True)
    done = run("--bundle", bundle, *DRY, app)
    assert "kernels from" not in done.stderr  # which is no terminal
    told = said(done)
    assert told["services"] == 0
    assert [origin for _, origin, *_ in told["spans"]] == ["bundle"] * 2
    assert told["counts"]["in_process"] == 0
    assert bundle.read_bytes() == before


def without_times(line: str) -> str:
    """Seconds are told on a machine where it takes one."""
    said, _, _ = line.removesuffix(" (headstart report)").partition(";")
    assert line.endswith(" (headstart report)")
    return said


@pytest.mark.triton
def test_what_of_a_bundle_was_used_is_said_at_the_end(program: Callable[..., Path], tmp_path: Path) -> None:
    app = program("warm_up(32, 64)\nreport()\n", factor=2.0)
    bundle = tmp_path / "app.bundle"
    told = [run("-v", "--bundle", bundle, "--no-record", *DRY, app).stderr]
    for folder in ("TRITON_CACHE_DIR", "HEADSTART_CACHE_DIR"):
        subprocess.run(["rm", "-rf", os.environ[folder]], check=True)
    told.append(run("-v", "--bundle", bundle, "--no-record", *DRY, app).stderr)
    app.write_text(app.read_text().replace("warm_up(32, 64)", "warm_up(32, 64, 128)"))
    subprocess.run(["rm", "-rf", os.environ["TRITON_CACHE_DIR"]], check=True)
    told.append(run("-v", "--bundle", bundle, "--no-record", *DRY, app).stderr)
    bundle.unlink()
    subprocess.run(["rm", "-rf", os.environ["TRITON_CACHE_DIR"]], check=True)
    told.append(run("-v", "--bundle", bundle, "--no-record", *DRY, app).stderr)
    said = [without_times(line) for text in told for line in text.splitlines() if "kernels from app.bundle" in line]
    assert said == [
        "headstart: 0 of 2 kernels from app.bundle, 2 compiled",
        "headstart: 2 of 2 kernels from app.bundle, 0 compiled",
        "headstart: 2 of 3 kernels from app.bundle, 1 compiled",
        "headstart: 0 of 3 kernels from app.bundle, 2 compiled, 1 from headstart's cache",
    ]


@pytest.mark.triton
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_what_children_took_from_a_bundle_is_said_by_the_program_and_counted_once(
    program: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    app = program(CHILD.format(method=method), factor=2.0)
    bundle = tmp_path / "app.bundle"
    said = []
    for _ in range(2):
        errors = run("-v", "--bundle", bundle, "--no-record", *DRY, app).stderr
        said += [without_times(line) for line in errors.splitlines() if "from app.bundle" in line]
        for folder in ("TRITON_CACHE_DIR", "HEADSTART_CACHE_DIR"):
            subprocess.run(["rm", "-rf", os.environ[folder]], check=True)
    assert said == [
        "headstart: 0 of 2 kernels from app.bundle, 2 compiled",
        "headstart: 2 of 2 kernels from app.bundle, 0 compiled",
    ]


def test_a_program_that_asks_for_no_kernel_is_told_that_its_bundle_was_not_used(
    program: Callable[..., Path], tmp_path: Path
) -> None:
    errors = run("-v", "--bundle", tmp_path / "app.bundle", program("print(1)\n")).stderr
    assert "app.bundle was not used: no kernel was asked for" in errors


def test_a_child_that_outlives_the_program_writes_into_no_file_of_others(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("theirs")
    with other.open("a") as file:
        report(f"/proc/{os.getpid()}/fd/{file.fileno()}", "1 2", BundleUse(1, 1, 1, 1.0))
    report("/proc/0/fd/3", "1 2", BundleUse(1, 1, 1, 1.0))
    assert other.read_text() == "theirs"


def test_a_program_that_closed_all_files_reads_none_of_its_own_as_a_tally(tmp_path: Path) -> None:
    tally = UseTally()
    report(tally.path, "1 2", BundleUse(2, 1, 4, 0.5))
    assert tally.total(BundleUse(1, 0, 0, 0.25)) == BundleUse(3, 1, 4, 0.75)
    other = tmp_path / "other"
    other.write_text('{"kernels": 5}')
    with other.open() as file:
        number = int(tally.path.rpartition("/")[2])
        os.dup2(file.fileno(), number)
        assert tally.total(BundleUse(1, 0, 0, 0.25)) == BundleUse(1, 0, 0, 0.25)
        os.close(number)


@pytest.mark.triton
def test_on_a_terminal_the_use_of_a_bundle_is_said_unless_it_is_to_be_quiet(
    program: Callable[..., Path], tmp_path: Path
) -> None:
    import pty

    app = program("warm_up(32)\n", factor=2.0)
    for option, lines in ((), 1), (("--quiet",), 0):
        ours, theirs = pty.openpty()
        command = [
            sys.executable,
            "-m",
            "headstart",
            "run",
            *option,
            "--bundle",
            str(tmp_path / "app.bundle"),
            *DRY,
            app,
        ]
        environment = {**os.environ, **client_environment()}
        done = subprocess.run(command, stderr=theirs, stdout=subprocess.PIPE, env=environment, timeout=PATIENCE)
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
            while part := os.read(ours, 1 << 16):
                said += part
        os.close(ours)
        assert done.returncode == 0, said
        assert said.decode().count("kernels from app.bundle") == lines


@pytest.mark.triton
@pytest.mark.parametrize("lost", [[], ["HEADSTART_CACHE_DIR"]])
def test_a_bundle_is_written_though_triton_s_own_cache_has_the_kernels(
    program: Callable[..., Path], tmp_path: Path, lost: list[str]
) -> None:
    app = program("warm_up(32, 64)\nreport()\n", factor=2.0)
    run("--no-record", *DRY, app)
    for folder in lost:
        subprocess.run(["rm", "-rf", os.environ[folder]], check=True)
    bundle = tmp_path / "app.bundle"
    done = run("-v", "--bundle", bundle, *DRY, app)
    assert said(done)["counts"]["from_cache"] == 2, done.stderr
    assert bundle.exists(), done.stderr
    assert len(Bundle.open(bundle)) == 2
    before = bundle.read_bytes()
    assert said(run("-v", "--bundle", bundle, *DRY, app))["services"] == 0
    assert bundle.read_bytes() == before


@pytest.mark.triton
def test_a_bundle_grows_by_what_was_missing(program: Callable[..., Path], tmp_path: Path) -> None:
    app = program("warm_up(*map(int, sys.argv[1:]))\nreport()\n", factor=2.0)
    bundle = tmp_path / "app.bundle"
    run("--bundle", bundle, *DRY, app, 32)
    run("--bundle", bundle, *DRY, app, 64)
    assert len(Bundle.open(bundle)) == 2


@pytest.mark.triton
def test_a_dry_run_needs_no_gpu_and_launches_nothing(program: Callable[..., Path]) -> None:
    app = program(
        """
        tuned = triton.autotune([triton.Config({"BLOCK": block}) for block in (32, 64)], key=["n"])(scale)
        tuned[(1,)](MockTensor(tl.float32), 100)
        target = triton.runtime.driver.active.get_current_target()
        print(json.dumps([target.backend, target.arch, target.warp_size]))
        """,
        factor=2.0,
    )
    assert said(run(*DRY, app)) == ["cuda", 90, 32]
    manifest = Manifest.open(record_of(app))
    assert len(manifest.specializations) == 2
    assert not manifest.tunings
    assert not any(each.winner for each in manifest.specializations.values())


# Children


CHILD = """
def child(block):
    warm_up(block)
    report()

if __name__ == "__main__":
    import multiprocessing
    warm_up(16)
    context = multiprocessing.get_context({method!r})
    process = context.Process(target=child, args=(64,))
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.triton
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_children_of_multiprocessing_take_part(program: Callable[..., Path], method: str) -> None:
    app = program(CHILD.format(method=method), factor=2.0)
    told = said(run(*DRY, app))
    assert told["counts"]["in_process"] == 0
    blocks = {each.request.constants["#2"] for each in Manifest.open(record_of(app)).specializations.values()}
    assert blocks == {16, 64}


POOL = """
def child(block):
    warm_up(block)
    return block

if __name__ == "__main__":
    import multiprocessing
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        print(pool.map(child, [16, 64], chunksize=1))
"""


@pytest.mark.triton
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_of_a_pool_that_is_terminated_are_recorded(program: Callable[..., Path], method: str) -> None:
    app = program(POOL.format(method=method), factor=2.0)
    assert "[16, 64]" in run(*DRY, app).stdout
    record = record_of(app)
    blocks = {each.request.constants["#2"] for each in Manifest.open(record).specializations.values()}
    assert blocks == {16, 64}
    assert not list(record.parent.glob(".*.journal"))


@pytest.mark.triton
def test_ranks_that_record_at_once_end_in_one_record(program: Callable[..., Path]) -> None:
    app = program(
        """
        import subprocess
        if len(sys.argv) == 1:
            ranks = [subprocess.Popen([sys.executable, __file__, str(16 << rank)]) for rank in range(3)]
            sys.exit(max(rank.wait() for rank in ranks))
        warm_up(16, 16 << int(sys.argv[1]).bit_length() - 5)
        """,
        factor=2.0,
    )
    run("--workers", 1, *DRY, app)
    assert len(Manifest.open(record_of(app)).specializations) == 3


def test_a_nested_run_has_its_own_orders(program: Callable[..., Path]) -> None:
    inner = program("import os\nprint(os.environ['HEADSTART_RUN'], os.environ['PYTHONPATH'].count('startup'))", "in.py")
    outer = program(
        f"import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-m', 'headstart', 'run', '--no-record', {str(inner)!r}], check=True)\n"
    )
    text = run(outer).stdout
    assert '"record": null' in text
    assert text.endswith(" 1\n")


# Bad ends


@pytest.mark.triton
def test_a_program_that_is_killed_leaves_no_process_and_no_half_written_record(
    program: Callable[..., Path], runtime_folder: Path
) -> None:
    app = program(
        """
        warm_up(32)
        from headstart.adapters import process as enabling
        adapter = enabling.current().jit
        adapter.recorder.save()
        with adapter.prefetching():
            for block in (64, 128, 256, 512):
                warm_up(block)
        print("here", flush=True)
        time.sleep(60)
        """,
        factor=2.0,
    )
    process = start(*DRY, app)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert lasting(lambda: descendants(runtime_folder), PATIENCE) == []
    assert len(Manifest.open(record_of(app)).specializations) == 1
    assert not list(record_of(app).parent.glob(".*.tmp"))
    assert len(entries(Path(os.environ["HEADSTART_CACHE_DIR"]))) >= 1


def entries(cache: Path) -> list[Path]:
    return list(cache.glob("store/v2/*/*.hse"))


@pytest.mark.triton
def test_a_program_that_ends_while_compiles_are_in_flight_leaves_nothing(
    program: Callable[..., Path], runtime_folder: Path
) -> None:
    app = program(
        """
        from headstart.adapters import process as enabling
        with enabling.current().jit.prefetching():
            warm_up(64, 128, 256)
        """,
        factor=2.0,
    )
    run(*DRY, app)
    # The service that a run's processes share ends when it hears that the last of them is gone.
    assert lasting(lambda: descendants(runtime_folder), PATIENCE) == []


@pytest.mark.triton
def test_a_program_goes_on_when_nothing_can_be_recorded(program: Callable[..., Path]) -> None:
    app = program(
        """
        import resource
        warm_up(32)
        # As on a full disk: from here on every write fails.
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        """,
        factor=2.0,
    )
    done = run(*DRY, app)
    assert "cannot record" in done.stderr
    assert "Traceback" not in done.stderr
    assert not record_of(app).exists()
    assert not list(record_of(app).parent.glob(".*.tmp"))


@pytest.mark.triton
def test_a_damaged_record_is_begun_anew(program: Callable[..., Path]) -> None:
    app = program("warm_up(32)\nreport()\n", factor=2.0)
    record_of(app).parent.mkdir(parents=True)
    record_of(app).write_bytes(b"\x89HSM\r\n\x1a\n\2\0nonsense")
    done = run(*DRY, app)
    assert "truncated" in done.stderr
    assert "begun anew" in done.stderr
    assert len(Manifest.open(record_of(app)).specializations) == 1


@pytest.mark.triton
def test_children_of_one_run_share_one_service(program: Callable[..., Path]) -> None:
    app = program(
        """
        import multiprocessing

        def service(block):
            warm_up(block)
            from headstart.adapters import process as enabling
            return enabling.current().jit.compiler.client._connection.service.pid

        if __name__ == "__main__":
            found = {service(16)}
            for method, blocks in (("spawn", [32, 64]), ("fork", [128, 256])):
                with multiprocessing.get_context(method).Pool(1) as pool:
                    found.update(pool.map(service, blocks))
            print(json.dumps(sorted(found)))
        """,
        factor=2.0,
    )
    (pid,) = said(run(*DRY, app))
    assert pid
    assert not lasting(lambda: [pid] if Path(f"/proc/{pid}").exists() else [], PATIENCE), "it outlives the run"
