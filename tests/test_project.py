"""What users and contributors rely on: the public names, the commands in the documents, what an import costs."""

from __future__ import annotations

import graphlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import grimp
import pytest

import headstart
from headstart.cli import main

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

ROOT = Path(__file__).parent.parent
PACKAGE = Path(headstart.__file__).parent
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
)

PUBLIC = {
    "AsyncCompile",
    "BundleUse",
    "CannotTravel",
    "CompileError",
    "CompileErrors",
    "CompileOutOfMemory",
    "CompileTimeout",
    "CompiledKernel",
    "CompiledTritonKernels",
    "CompilerCrashed",
    "DamagedError",
    "FutureVersionError",
    "HeadstartError",
    "KernelSpec",
    "LambdaFuture",
    "OutOfResources",
    "PastVersionError",
    "ServiceError",
    "SourceError",
    "Span",
    "Statistics",
    "StoreUnavailable",
    "Target",
    "TritonBundler",
    "UsageError",
    "as_completed",
    "cache_dir",
    "disable",
    "enable",
    "keys",
    "report",
}


def test_the_public_names_are_these() -> None:
    assert set(headstart.__all__) == PUBLIC
    assert set(headstart.__all__) <= set(dir(headstart))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(headstart, name)
    assert value.__doc__
    assert value.__name__.rpartition(".")[2] == name


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'AsyncCompiler'"):
        headstart.AsyncCompiler  # noqa: B018


def test_every_exception_is_a_headstart_error() -> None:
    ending = ("Error", "Errors", "Timeout", "Memory", "Crashed", "Resources", "Unavailable")
    exceptions = [getattr(headstart, name) for name in PUBLIC if name.endswith(ending)]
    assert len(exceptions) == 14
    assert all(issubclass(exception, headstart.HeadstartError) for exception in exceptions)


def test_the_package_carries_its_types() -> None:
    assert (PACKAGE / "py.typed").is_file()


def rooms() -> list[set[str]]:
    """The folders and modules at the top, lowest layer first, as import-linter holds the code to them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [
        each for each in project["tool"]["importlinter"]["contracts"] if each["name"] == "Imports point down the rooms"
    ]
    return [{name.strip() for name in layer.split("|")} for layer in reversed(contract["layers"])]


def test_the_maps_name_the_rooms_in_the_order_that_imports_are_held_to() -> None:
    public = {"captured", "inductor", "keys", "request", "values", "__main__"}
    layers = [layer - public for layer in rooms() if layer - public]
    found = set().union(*layers)
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("## The rooms")[2]
    mapped = re.findall(r"^\| `(\w+)` \|", table.partition("\n## ")[0], re.M)
    order = [next(number for number, layer in enumerate(layers) if room in layer) for room in mapped]
    assert order == sorted(order)
    assert set(mapped) == found
    assert found | public <= set(re.findall(r"\w+", headstart.__doc__ or ""))
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - {"__init__"} == found | public


def test_no_modules_import_each_other_in_a_circle_imports_for_types_counted() -> None:
    graph = grimp.build_graph("headstart", cache_dir=None)
    needs = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(needs).prepare()  # it raises if there is a circle, and names it


@pytest.mark.parametrize("folder", ["system", "model", "wire", "stores", "artifacts", "describe", "worker", "service"])
def test_every_room_says_what_it_is_for(folder: str) -> None:
    assert len((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")) > 40


def fresh_python(script: str) -> str:
    """What a Python that has imported nothing prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_loads_neither_triton_nor_torch_nor_any_module_of_ours() -> None:
    script = (
        "import sys, headstart\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('triton', 'torch', 'msgspec', 'click', 'rich')"
        " or m.startswith('headstart.')])"
    )
    assert fresh_python(script) == "[]"


def test_the_client_imports_neither_triton_nor_torch() -> None:
    script = (
        "import sys, headstart\n"
        "headstart.AsyncCompile, headstart.KernelSpec, headstart.as_completed, headstart.model.keys\n"
        "print([m for m in ('triton', 'torch') if m in sys.modules])"
    )
    assert fresh_python(script) == "[]"


def test_importing_takes_under_30_ms() -> None:
    # Of the process's own time, since others may have the machine; the best of a few.
    script = "import time; t = time.process_time(); import headstart; print(time.process_time() - t)"
    assert min(float(fresh_python(script)) for _ in range(5)) < 0.030


# The documents


def code_blocks(document: str, *languages: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [body for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if language in languages]


def shell_lines(document: str) -> Iterator[str]:
    """Commands in the shell blocks of a document, prompts and comments left out."""
    for block in code_blocks(document, "", "sh", "bash", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.partition(" #")[0].strip().removeprefix("$ ")


def check_command(line: str) -> None:
    """Whether `headstart …` names a command, and options that it has."""
    words = shlex.split(re.sub(r"[\[\]|…]|\.\.\.", " ", line))[1:]
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"there is no command in: {line}"
        command = found
        # "list|verify|extract BUNDLE" was taken apart above: the first one stands for all.
        if not isinstance(command, click.Group):
            break
    if command.name == "run" and "-m" in words:
        words = words[: words.index("-m") + 2]  # the rest is the module's own
    options = {option for parameter in command.params for option in parameter.opts} | {"--help", "--version"}
    used = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert used <= options, f"there is no option {used - options} in: {line}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_the_documents_exist(document: str) -> None:
    for line in shell_lines(document):
        if line.startswith("headstart "):
            check_command(line)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_in_the_documents_exist(document: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    text = (ROOT / document).read_text(encoding="utf-8")
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.M)) <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_in_the_documents_parses(document: str) -> None:
    for block in code_blocks(document, "python", "py"):
        compile(block, document, "exec")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_the_documents_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), f"{document}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([\w/-]+\.md)\)", index))


def test_the_readme_shows_the_commands() -> None:
    shown = "\n".join(shell_lines("README.md"))
    for command in ("headstart build", "make demo", "make test"):
        assert command in shown


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    check_command("headstart build PLAN [--target cuda:90]... [--workers N] [-o OUT.bundle] [--json] [--quiet]")
    check_command("headstart bundle list|verify|extract BUNDLE")
    check_command("headstart cache info|prune|clear")
    with pytest.raises(AssertionError, match="no command"):
        check_command("headstart compile plan.py")
    with pytest.raises(AssertionError, match="no option"):
        check_command("headstart build plan.py --fast")


# The project


def test_ci_checks_and_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.index("make check") < script.index("make test") < script.index("make test-remote")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("target", ["demo", "test", "test-remote", "chaos", "fuzz", "check", "bench", "clean"])
def test_the_makefile_has_what_it_promises(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
