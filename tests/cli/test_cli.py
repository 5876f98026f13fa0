"""The `headstart` command: what it prints, what it returns, and what it says about bad input.

Most tests put a compiler of their own in place of `AsyncCompile`; those marked `triton` compile.
"""

from __future__ import annotations

import concurrent.futures
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import headstart
from headstart.artifacts.bundle import Bundle, BundleWriter
from headstart.artifacts.entry import MAGIC as ENTRY_MAGIC
from headstart.artifacts.entry import Entry, pack_entry
from headstart.cli import COMMANDS, human_bytes, main
from headstart.cli import build as build_module
from headstart.cli import doctor as doctor_module
from headstart.cli import status as status_module
from headstart.cli.build_job import in_flight
from headstart.cli.progress import LiveProgress, PlainProgress, Tally, make_progress
from headstart.cli.time_left import TimeLeft, words
from headstart.client.future import LambdaFuture
from headstart.errors import CompileError, ServiceError, UsageError
from headstart.model.request import CompileRequest
from headstart.stores.disk import DiskStore
from headstart.system.folders import cache_dir

JSON_FIELDS = {
    "requested",
    "compiled",
    "cached",
    "remote",
    "farm",
    "deduplicated",
    "failed",
    "failed_as_recorded",
    "wall_s",
    "cpu_s",
    "longest_s",
    "bound_s",
    "workers",
    "targets",
    "bundle",
    "published",
    "unpublished",
}

KERNEL = textwrap.dedent(
    """
    import triton
    import triton.language as tl

    @triton.jit
    def scale(x, n, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + i, tl.load(x + i, mask=i < n) * FACTOR, mask=i < n)
    """
)


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(tmp_path / "cache é"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("__headstart_plan__", None)


def run(*arguments: object, **settings: Any) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], **settings)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def plan(text: str, name: str = "plan.py") -> str:
    path = Path(name)
    path.write_text("from headstart import KernelSpec\n" + textwrap.dedent(text), encoding="utf-8")
    return str(path)


def specs(*names: str, target: str | None = None) -> str:
    """A plan that yields a kernel for each name; the fake compiler goes by names."""
    return plan(
        f"""
        def kernels():
            for name in {names!r}:
                yield KernelSpec("source of " + name, name=name, signature="*fp32", target={target!r})
        """
    )


def entry_of(name: str, target: str = "cuda:90", digit: str = "a") -> Entry:
    parts = pack_entry(
        key=digit * 64,
        name=name,
        request_digest="c" * 64,
        toolchain="d" * 64,
        target=target,
        components=[("name", name)],
        metadata={"num_warps": 4},
        artifacts={"ptx": b"// ptx", "cubin": b"\x7fELF"},
        compile_wall_s=0.1,
        compile_cpu_s=0.1,
        triton_version="3.9.0",
        request=b"",
        output="",
    )
    return Entry.from_bytes(b"".join(parts))


class FakeCompile:
    """Stands for AsyncCompile: kernels called `bad…` fail, `wrong…` are refused, everything else is there at once."""

    def __init__(self, workers: int | None) -> None:
        self.workers = workers or 2
        self.requests: list[tuple[str, str]] = []
        self.submitted: list[CompileRequest] = []
        self.vouched: list[bool] = []  # of what was submitted
        self.futures: dict[tuple[str, str], LambdaFuture[Any]] = {}
        self.written: list[Path] = []
        settings = SimpleNamespace(remote="", workers=self.workers)
        self.client = SimpleNamespace(settings=settings, in_flight=list)
        self.bundler = SimpleNamespace(begin_compile=lambda: None, end_compile=lambda: None, collect=self.collect)
        self.statistics = SimpleNamespace(
            requested=0,
            compiled=0,
            cached=0,
            deduplicated=0,
            remote=0,
            farm=0,
            failed=0,
            cpu_s=0.0,
            longest_s=0.0,
            workers=self.workers,
        )

    def __enter__(self) -> FakeCompile:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, request: CompileRequest, *, vouched: bool) -> LambdaFuture[Any]:
        self.submitted.append(request)
        self.vouched.append(vouched)
        return self.triton(request.name, request.source, target=request.target)

    def triton(self, name: str, source: str, *, target: str, **_: Any) -> LambdaFuture[Any]:
        if name.startswith("wrong"):
            raise UsageError("signature: expected a mapping")
        self.requests.append((name, target))
        self.statistics.requested += 1
        if (name, target) in self.futures:
            self.statistics.deduplicated += 1
            return self.futures[name, target]
        answer: concurrent.futures.Future[object] = concurrent.futures.Future()
        if name.startswith("bad"):
            self.statistics.failed += 1
            error = CompileError("no such type", kernel=name, target=target, stage="ttir", detail="line 3: oops")
            answer.set_exception(error)
        elif name.startswith("unserved"):
            self.statistics.failed += 1
            answer.set_exception(ServiceError("the service cannot be started"))
        elif name.startswith("kept"):
            self.statistics.cached += 1
            answer.set_result(None)
        else:
            self.statistics.compiled += 1
            self.statistics.cpu_s += 1.5
            self.statistics.longest_s = 1.5
            answer.set_result(None)
        pending = SimpleNamespace(answer=answer, is_running=False, want=lambda: None, withdraw=lambda: None)
        self.futures[name, target] = LambdaFuture(name, pending, lambda _: None)
        return self.futures[name, target]

    def collect(self, path: Path) -> Path:
        path.write_bytes(ENTRY_MAGIC)
        self.written.append(path)
        return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeCompile]:
    """The compilers that were opened."""
    opened: list[FakeCompile] = []

    def open_fake(workers: int | None, vouched: bool, *, is_plan: bool, quiet: bool) -> FakeCompile:
        opened.append(FakeCompile(workers))
        return opened[-1]

    monkeypatch.setattr(build_module, "_open", open_fake)
    monkeypatch.setattr(build_module, "unavailable", lambda: "")
    return opened


def outcome(result: Result) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert set(fields) == JSON_FIELDS
    parts = sum(fields[what] for what in ("compiled", "cached", "deduplicated", "failed", "failed_as_recorded"))
    assert parts == fields["requested"]
    return fields


# The command as a whole


def test_help_lists_the_commands_as_they_describe_themselves() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name, line in COMMANDS.items():
        assert (
            f"{name:8}{line}" in result.stdout.replace("  ", " ").replace(f"{name} ", f"{name:8}", 1)
            or line in result.stdout
        )
        command = main.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.short_help == line


def test_help_loads_nothing_but_click() -> None:
    script = (
        "import sys\nfrom headstart.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(m for m in ('rich', 'msgspec', 'triton', 'headstart.stores.disk') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version() -> None:
    assert headstart.__version__ in run("--version").stdout


def test_an_unknown_command_is_bad_usage() -> None:
    assert run("compile").exit_code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**50, "1024.0 TiB")],
)
def test_sizes_read_well(size: int, text: str) -> None:
    assert human_bytes(size) == text


# headstart build


def test_everything_that_a_plan_yields_is_built(fake: list[FakeCompile]) -> None:
    result = run("build", specs("a", "b", "kept"), "--target", "cuda:90", "--workers", 3, "--json", "-o", "out.bundle")
    assert result.exit_code == 0
    assert fake[0].requests == [("a", "cuda:90"), ("b", "cuda:90"), ("kept", "cuda:90")]
    fields = outcome(result)
    assert (fields["requested"], fields["compiled"], fields["cached"], fields["failed"]) == (3, 2, 1, 0)
    assert (fields["workers"], fields["targets"], fields["bundle"]) == (3, ["cuda:90"], "out.bundle")
    assert fields["bound_s"] == max(fields["cpu_s"] / 3, fields["longest_s"]) == 1.5


def test_the_bundle_is_named_for_its_plan_and_lies_here(fake: list[FakeCompile], tmp_path: Path) -> None:
    elsewhere = tmp_path / "models.v2.py"
    Path(specs("a")).rename(elsewhere)
    assert outcome(run("build", elsewhere, "--target", "cuda:90", "--json"))["bundle"] == "models.v2.bundle"
    Path("package").mkdir()
    Path("package/__init__.py").touch()
    Path(specs("a")).rename("package/some_plan.py")
    assert outcome(run("build", "package.some_plan", "--target", "cuda:90", "--json"))["bundle"] == "some_plan.bundle"
    assert fake[0].written == [Path("models.v2.bundle")]


def test_several_targets_build_every_spec_that_has_none(fake: list[FakeCompile]) -> None:
    path = plan(
        """
        def kernels():
            yield KernelSpec("a", name="free", signature="")
            yield KernelSpec("a", name="bound", signature="", target="cuda:80")
        """
    )
    result = run("build", path, "--target", "cuda:90", "--target", "hip:gfx942", "--target", "cuda:90", "--json")
    assert fake[0].requests == [("free", "cuda:90"), ("free", "hip:gfx942"), ("bound", "cuda:80")]
    assert outcome(result)["targets"] == ["cuda:90", "hip:gfx942", "cuda:80"]


def test_a_spec_with_a_target_needs_no_option(fake: list[FakeCompile]) -> None:
    assert run("build", specs("a", target="hip:gfx942")).exit_code == 0
    assert fake[0].requests == [("a", "hip:gfx942")]


def test_no_target_at_all_says_how_to_pass_one(fake: list[FakeCompile]) -> None:
    result = run("build", specs("a"))
    assert result.exit_code == 2
    assert "--target cuda:90" in result.stderr


def test_the_same_kernel_twice_is_deduplicated(fake: list[FakeCompile]) -> None:
    fields = outcome(run("build", specs("a", "a", "a"), "--target", "cuda:90", "--json"))
    assert (fields["requested"], fields["compiled"], fields["deduplicated"]) == (3, 1, 2)


def test_failures_are_reported_whole_and_the_rest_is_bundled(fake: list[FakeCompile]) -> None:
    result = run("build", specs("a", "bad", "bad", "b"), "--target", "cuda:90", "--json")
    assert result.exit_code == 1
    fields = outcome(result)
    assert (fields["compiled"], fields["failed"], fields["deduplicated"]) == (2, 1, 1)
    assert fields["bundle"] == "plan.bundle"
    report = "bad (cuda:90) failed in stage ttir: no such type\n  what happened:\n    line 3: oops"
    assert result.stderr.count(report) == 1


def test_a_request_that_is_refused_at_once_fails_alone(fake: list[FakeCompile]) -> None:
    result = run("build", specs("wrong", "a"), "--target", "cuda:90", "--json")
    assert result.exit_code == 1
    fields = outcome(result)
    assert (fields["requested"], fields["compiled"], fields["failed"]) == (2, 1, 1)
    assert "wrong (cuda:90) failed: signature: expected a mapping" in result.stderr


def test_where_nothing_can_be_compiled_it_is_said_once(fake: list[FakeCompile]) -> None:
    result = run("build", specs("unserved1", "unserved2"), "--target", "cuda:90", "--json", "--quiet")
    assert result.exit_code == 1
    assert result.stderr.count("the service cannot be started") == 1
    assert outcome(result)["bundle"] is None


def test_no_bundle_replaces_another_when_nothing_was_built(fake: list[FakeCompile]) -> None:
    Path("plan.bundle").write_bytes(ENTRY_MAGIC + b"earlier")
    result = run("build", specs("bad"), "--target", "cuda:90")
    assert result.exit_code == 1
    assert "no bundle was written" in result.stdout
    assert Path("plan.bundle").read_bytes() == ENTRY_MAGIC + b"earlier"


def test_a_bundle_that_cannot_be_written_fails_the_build(
    fake: list[FakeCompile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: FakeCompile, path: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FakeCompile, "collect", full)
    result = run("build", specs("a"), "--target", "cuda:90", "--json")
    assert result.exit_code == 1
    assert "cannot write plan.bundle: No space left on device" in result.stderr
    assert outcome(result)["bundle"] is None


def test_a_plan_that_raises_half_way_keeps_what_it_yielded(fake: list[FakeCompile]) -> None:
    path = plan(
        """
        def kernels():
            yield KernelSpec("a", name="a", signature="")
            raise RuntimeError("half-way")
        """
    )
    result = run("build", path, "--target", "cuda:90", "--json")
    assert result.exit_code == 1
    assert (outcome(result)["compiled"], outcome(result)["bundle"]) == (1, "plan.bundle")
    assert "RuntimeError: half-way" in result.stderr
    assert 'plan.py", line 5, in kernels' in result.stderr
    assert "headstart/spec.py" not in result.stderr


def test_a_plan_that_raises_at_once_failed(fake: list[FakeCompile]) -> None:
    result = run("build", plan("def kernels():\n    raise RuntimeError('at once')\n    yield\n"), "--target", "cuda:90")
    assert result.exit_code == 1
    assert "RuntimeError: at once" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def kernels(:", "does not parse"),
        ("x = 1", "has no kernels()"),
        ("def kernels(): return 3", "must yield"),
        ("def kernels(): yield 3", "yielded int (3)"),
        ("def kernels(): yield from ()", "yields no kernels"),
    ],
)
def test_a_bad_plan_is_bad_usage(text: str, said: str, fake: list[FakeCompile]) -> None:
    result = run("build", plan(text + "\n"), "--target", "cuda:90", "--json")
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_a_wrong_thing_yielded_late_keeps_what_came_before(fake: list[FakeCompile]) -> None:
    path = plan("def kernels():\n    yield KernelSpec('a', name='a', signature='')\n    yield 3\n")
    result = run("build", path, "--target", "cuda:90", "--json")
    assert result.exit_code == 2
    assert outcome(result)["compiled"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such_plan.py", "--target", "cuda:90"], "No such file"),
        (["plan.py", "--target", "gpu:90"], "unknown target 'gpu:90'"),
        (["plan.py", "--workers", "0"], "--workers"),
        (["plan.py", "-o", "no/such/folder/out.bundle"], "there is no folder"),
        (["plan.py", "-o", "."], "is a directory"),
        ([], "Missing argument 'PLAN'"),
    ],
)
def test_bad_usage(arguments: list[str], said: str, fake: list[FakeCompile]) -> None:
    specs("a")
    result = run("build", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_no_service_is_a_failure_not_bad_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(workers: int | None, vouched: bool, *, is_plan: bool, quiet: bool) -> FakeCompile:
        raise ServiceError("no Triton to compile with")

    monkeypatch.setattr(build_module, "_open", nothing)
    result = run("build", specs("a"), "--target", "cuda:90")
    assert (result.exit_code, result.stderr) == (1, "headstart: no Triton to compile with\n")


def test_quiet_prints_failures_only(fake: list[FakeCompile]) -> None:
    result = run("build", specs("a"), "--target", "cuda:90", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    result = run("build", specs("bad"), "--target", "cuda:90", "--quiet")
    assert result.stdout == ""
    assert result.stderr.strip().startswith("bad (cuda:90) failed")


def test_people_get_a_summary(fake: list[FakeCompile]) -> None:
    result = run("build", specs("a", "b", "kept", "a"), "--target", "cuda:90")
    assert "4 kernels for cuda:90 in" in result.stdout
    assert "2 compiled, 1 from the cache, 1 deduplicated\n" in result.stdout
    assert "plan.bundle: 8 bytes" in result.stdout


def test_ctrl_c_is_one_line_and_130(fake: list[FakeCompile]) -> None:
    path = plan(
        """
        def kernels():
            yield KernelSpec("a", name="a", signature="")
            raise KeyboardInterrupt
        """
    )
    result = run("build", path, "--target", "cuda:90", "--quiet")
    assert result.exit_code == 130
    assert result.stderr.count("\n") == 1
    assert "1 of 1 kernel done" in result.stderr


# Progress


def test_a_tally_reads_well() -> None:
    tally = Tally(requested=3, seen=1)
    tally.unseen.put("future")
    assert tally.line() == "2/3+ done, 0 s"
    tally.complete, tally.failed = True, 1
    assert tally.line() == "2/3 done, 1 failed, 0 s"


def test_when_piped_progress_is_lines() -> None:
    stream = io.StringIO()
    tally = Tally(requested=2)
    started = time.monotonic()
    in_flight = [("young", started - 1), ("old", started - 5)]
    with PlainProgress(tally, lambda: in_flight, stream, interval=0.01) as progress:
        while "in flight" not in stream.getvalue():
            assert time.monotonic() - started < 10
            time.sleep(0.01)
        progress.failure("k (cuda:90) failed: why\n  more")
        tally.seen, tally.complete = 2, True
    lines = stream.getvalue().splitlines()
    assert lines[0] == "headstart: 0/2+ done, 0 s; 2 in flight, longest old for 5 s"
    assert "headstart: k (cuda:90) failed: why" in lines
    assert lines[-1] == "headstart: 2/2 done, 0 s"


def test_a_guess_follows_what_is_on_record_and_what_was_compiled_meanwhile() -> None:
    left = TimeLeft(workers=2)
    assert left.left([]) is None
    left.asked(1, "matmul", 8.0)
    left.asked(2, "matmul", 4.0)
    left.asked(3, "softmax", 2.0)
    assert left.left([]) == 8.0  # the longest bounds it
    assert left.left([("matmul", 3.0)]) == pytest.approx((14.0 - 3.0) / 2)
    left.answered(1, 10.0)
    assert left.left([]) == 4.0
    for number in range(4, 10):
        left.asked(number, "matmul")
    assert left.left([]) == pytest.approx((6.0 + 6 * 10.0) / 2)
    for number in range(10, 30):
        left.asked(number, "unknown")
    assert left.left([]) is None


def test_a_guess_heeds_that_this_machine_is_slower_than_the_one_that_recorded() -> None:
    left = TimeLeft(workers=1)
    for number in range(4):
        left.asked(number, f"kernel{number}", 2.0)
    left.answered(0, 6.0)
    left.answered(1, 6.0)
    assert left.left([]) == 12.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.3, "a moment"),
        (3.2, "about 3 s"),
        (17, "about 17 s"),
        (44, "about 40 s"),
        (89, "about 90 s"),
        (200, "about 3 min"),
    ],
)
def test_a_guess_reads_well(seconds: float, text: str) -> None:
    assert words(seconds) == f"{text} left"


def test_the_time_left_is_in_the_line_while_there_is_any() -> None:
    left = TimeLeft(workers=1)
    tally = Tally(requested=2, seen=1, time_left=left)
    assert tally.line() == "1/2+ done, 0 s"
    left.asked(1, "matmul", 8.0)
    assert tally.line([("matmul BLOCK=64", time.monotonic())]) == "1/2+ done, 0 s, about 8 s left"
    tally.seen = 2
    assert tally.line() == "2/2+ done, 0 s"


@pytest.mark.parametrize("width", [20, 60, 200])
def test_progress_fits_the_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    left = TimeLeft(workers=1)
    left.asked(1, "matmul", 300.0)
    now = time.monotonic()
    label = "matmul BLOCK_M=128 BLOCK_N=256 BLOCK_K=64 warps=8 stages=4 ALLOW_TF32=True"
    progress = LiveProgress(
        Tally(requested=120, seen=60, failed=1, time_left=left), lambda: [(label, now - 5)], console
    )
    console.print(progress.render())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 2
    assert all(len(line) <= width for line in lines)
    if width >= 60:
        assert "60/120+ done, 1 failed, 0 s, about 5 min left" in lines[0]
        assert "━" in lines[0]
        assert re.search(r"[5-9]\.\d s  matmul BLOCK_M=128 BLOCK_N=256", lines[1])


def test_failures_stay_above_the_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with LiveProgress(Tally(requested=2), list, console) as progress:
        progress.failure("k (cuda:90) failed in stage ttir: no such [type]\n  more")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "k (cuda:90) failed in stage ttir: no such [type]" in shown
    assert "more" not in shown


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with LiveProgress(Tally(requested=2, failed=1), list, console) as progress:
        progress.failure("k failed")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert not re.search(r"\x1b\[[\d;]*3\d", shown)


def test_kernels_in_flight_are_told_apart() -> None:
    def asked(warps: int, block: int) -> SimpleNamespace:
        request = CompileRequest.make(
            "scale",
            KERNEL,
            signature="*fp32, i32, 2, " + str(block),
            target="cuda:90",
            options={"num_warps": warps, "debug": True},
        )
        return SimpleNamespace(name="scale", request=request, started=1.0)

    several = [asked(4, 64), asked(8, 64), SimpleNamespace(name="a source", request=None, started=None)]
    assert in_flight(SimpleNamespace(in_flight=lambda: several)) == [  # type: ignore[arg-type]
        ("scale FACTOR=2 BLOCK=64 warps=4", 1.0),
        ("scale FACTOR=2 BLOCK=64 warps=8", 1.0),
        ("a source", 0.0),
    ]


def test_on_a_terminal_the_longest_running_kernels_are_shown() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    now = time.monotonic()
    in_flight = [(f"kernel_{age}", now - age) for age in range(1, 13)]
    progress = LiveProgress(Tally(requested=20, seen=5), lambda: in_flight, console)
    with progress:
        console.print(progress.render())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "5/20+ done" in shown
    assert re.search(r"1[2-9]\.\d s  kernel_12", shown)
    assert "kernel_4" not in shown
    assert "… and 4 more in flight" in shown


def test_the_display_fits_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally()
    assert type(make_progress(tally, list, quiet=True)).__name__ == "Progress"
    assert type(make_progress(tally, list, quiet=False)).__name__ == "PlainProgress"
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True, write=len, flush=lambda: None))
    monkeypatch.setenv("TERM", "xterm")
    assert type(make_progress(tally, list, quiet=False)).__name__ == "LiveProgress"
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_progress(tally, list, quiet=False)).__name__ == "PlainProgress"


# headstart bundle


@pytest.fixture
def bundle() -> Path:
    with BundleWriter("some.bundle") as writer:
        writer.add(entry_of("add", digit="a"))
        writer.add(entry_of("mul", "hip:gfx942", digit="b"))
    return Path("some.bundle")


def test_list_shows_every_kernel(bundle: Path) -> None:
    result = run("bundle", "list", bundle)
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["a" * 12, "cuda:90", *human_bytes(entry_of("add").size).split(), "add"],
        ["b" * 12, "hip:gfx942", *human_bytes(entry_of("mul", "hip:gfx942").size).split(), "mul"],
    ]
    assert "2 kernels" in result.stderr
    lines = [json.loads(line) for line in run("bundle", "list", "--json", bundle).stdout.splitlines()]
    assert [line["name"] for line in lines] == ["add", "mul"]


def test_a_name_cannot_speak_to_the_terminal() -> None:
    with BundleWriter("evil.bundle") as writer:
        writer.add(entry_of("\x1b]0;owned\x07"))
    assert "\x1b" not in run("bundle", "list", "evil.bundle").output


def test_verify_says_what_is_damaged(bundle: Path) -> None:
    assert "2 kernels, all good" in run("bundle", "verify", bundle).stdout
    data = bytearray(bundle.read_bytes())
    data[data.index(b"// ptx")] ^= 1
    bundle.write_bytes(data)
    result = run("bundle", "verify", bundle)
    assert result.exit_code == 1
    assert "1 of 2 kernels damaged" in result.stderr


@pytest.mark.parametrize("command", ["list", "verify", "extract"])
@pytest.mark.parametrize("content", [b"", b"no bundle at all", None])
def test_what_is_no_bundle_is_refused(command: str, content: bytes | None, bundle: Path) -> None:
    bundle.write_bytes(bundle.read_bytes()[:-5] if content is None else content)
    result = run("bundle", command, bundle)
    # That a bundle is cut short is what `verify` is asked for; elsewhere it is bad input, as a file that is not there.
    assert result.exit_code == (1 if command == "verify" and content is None else 2)
    assert result.stderr.startswith("headstart: ")
    assert run("bundle", command, "no_such.bundle").exit_code == 2


def test_extract_writes_files_of_the_kernels_asked_for(bundle: Path) -> None:
    assert run("bundle", "extract", bundle).exit_code == 0
    assert sorted(path.name for path in Path("some").glob("*/*")) == sorted(
        ["add.ptx", "add.cubin", "metadata.json", "mul.ptx", "mul.cubin", "metadata.json"]
    )
    assert run("bundle", "extract", bundle, "mul", "-o", "by name").exit_code == 0
    assert run("bundle", "extract", bundle, "bbb", "mul", "-o", "by key").exit_code == 0
    assert len(list(Path("by name").iterdir())) == len(list(Path("by key").iterdir())) == 1
    result = run("bundle", "extract", bundle, "div")
    assert result.exit_code == 2
    assert "no kernel 'div'" in result.stderr


def test_extract_does_not_write_over_the_bundle(bundle: Path) -> None:
    plain = bundle.rename("plain")
    assert run("bundle", "extract", plain).exit_code == 0
    assert Path("plain.files").is_dir()


def test_merge_puts_bundles_together(bundle: Path) -> None:
    with BundleWriter("other.bundle") as writer:
        writer.add(entry_of("add", digit="a"))
        writer.add(entry_of("sub", digit="c"))
    result = run("bundle", "merge", bundle, bundle, "other.bundle")
    assert "3 kernels of 2 bundles" in result.stdout
    assert {item.name for item in Bundle.open(bundle)} == {"add", "mul", "sub"}
    assert run("bundle", "merge", "only_out.bundle").exit_code == 2


def test_a_listing_may_be_cut_short(bundle: Path) -> None:
    command = f'"{sys.executable}" -c "from headstart.cli import main; main()" bundle list "{bundle}" | true'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


# headstart cache


def fill_store(count: int) -> DiskStore:
    store = DiskStore(cache_dir())
    for index in range(count):
        digit = f"{index:x}"
        store.publish(digit * 64, [entry_of("k", digit=digit).raw()])
    return store


def recipe_parts(key: str) -> list[bytes]:
    nothing: dict[str, Any] = dict.fromkeys(("toolchain", "target", "triton_version", "output"), "")
    times = {"compile_wall_s": 0.0, "compile_cpu_s": 0.0}
    more = {"components": [], "metadata": {}, "artifacts": {"recipe": b""}, "request": b"", "name": "k"}
    return pack_entry(key=key, kind="recipe", request_digest=key, **nothing, **times, **more)


def test_info_says_where_and_how_much() -> None:
    assert run("cache", "info").stdout.startswith("0 kernels, 0 bytes (limit 10.0 GiB) in ")
    size = fill_store(2).info().bytes
    assert "2 kernels" in run("cache", "info").stdout
    assert json.loads(run("cache", "info", "--json").stdout) == {
        "path": str(DiskStore(cache_dir()).folder),
        "entries": 2,
        "bytes": size,
        "limit": 10 * 2**30,
        "kinds": {"kernel": 2},
    }
    DiskStore(cache_dir()).publish("ab" * 32, recipe_parts("ab" * 32))
    assert run("cache", "info").stdout.startswith("2 kernels, 1 recipe, ")
    assert "(no limit)" in run("cache", "info", env={"HEADSTART_CACHE_LIMIT": "none"}).stdout


def test_prune_leaves_what_fits() -> None:
    store = fill_store(3)
    size = store.info().bytes // 3
    result = run("cache", "prune", "--max-size", f"{size}B")
    assert "removed 2 kernels" in result.stdout
    assert store.info().entries == 1


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["buld"], "Did you mean 'build' or 'bundle'?"), (["xyz"], "'xyz'.")],
)
def test_a_command_that_there_is_not_names_the_one_that_may_have_been_meant(words: list[str], meant: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr.strip().endswith(meant)


def test_status_is_one_object_as_json_whatever_runs() -> None:
    result = run("status", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"services": [], "private": []})
    result = run("status")
    assert result.exit_code == 1
    assert result.stderr.startswith("headstart: no service runs; headstart serve starts one at ")


def test_watching_says_that_nothing_runs_and_ends_on_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def interrupt(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(status_module.time, "sleep", interrupt)
    result = run("status", "--watch")
    assert result.exit_code == 0
    assert result.stdout.count("no service runs") == 2


def test_prune_needs_a_size() -> None:
    assert run("cache", "prune").exit_code == 2
    for wrong in ("plenty", "none", "10"):
        result = run("cache", "prune", "--max-size", wrong)
        assert result.exit_code == 2
        assert f"'{wrong}' is not a size" in result.stderr


def test_clear_asks_first() -> None:
    store = fill_store(2)
    result = run("cache", "clear", input="n\n")
    assert result.exit_code == 1
    assert "Remove 2 kernels" in result.stdout
    assert result.stderr.endswith("headstart: nothing was done\n")
    assert store.info().entries == 2
    assert run("cache", "clear", input="y\n").exit_code == 0
    assert store.info().entries == 0
    fill_store(1)
    assert "removed 1 kernel (" in run("cache", "clear", "--yes").stdout


def test_a_cache_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache é").write_text("a file")
    result = run("cache", "info")
    assert result.exit_code in (0, 1)
    assert "0 kernels" in result.stdout or result.stderr.startswith("headstart: ")


# headstart doctor


def checks(*expected_exit: int) -> dict[str, dict[str, str]]:
    result = run("doctor", "--json")
    assert result.exit_code in (expected_exit or (0,))
    return {check["name"]: check for check in json.loads(result.stdout)}


@pytest.mark.triton
def test_all_is_well_where_the_tests_run() -> None:
    found = checks()
    assert {check["status"] for check in found.values()} <= {"ok", "warn"}
    assert "cuda:90" in found["targets"]["found"]
    assert "hip:gfx942" in found["targets"]["found"]
    assert found["ptxas"]["status"] == "ok"
    assert "remedy" not in found["ptxas"]


@pytest.mark.parametrize(("version", "status"), [("2.13.0+cpu", "ok"), ("2.12.1", "warn")])
def test_doctor_says_whether_torch_is_one_that_the_suite_has_run_on(
    version: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('doctor imports no torch')")
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = {version!r}")
    monkeypatch.syspath_prepend(str(tmp_path))
    (check,) = doctor_module.check_torch()
    assert (check.status, version in check.found) == (status, True)
    assert bool(check.remedy) == (status == "warn")


def test_doctor_does_not_import_triton() -> None:
    script = (
        "import sys\nfrom headstart.cli import main\n"
        "try:\n    main(['doctor'])\nexcept SystemExit:\n    pass\n"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


def test_no_triton_is_a_failure_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.model.toolchain.find_spec", lambda name: None)
    found = checks(1)
    assert found["triton"]["status"] == "fail"
    assert "pip install 'headstart[triton]'" in found["triton"]["remedy"]
    result = run("doctor")
    assert "FAIL  triton" in result.stdout
    assert "→ pip install" in result.stdout


def fake_toolchain(folder: Path, version: str = "3.7.1") -> Any:
    backend = folder / "backends" / "nvidia"
    backend.mkdir(parents=True)
    (backend / "compiler.py").touch()
    return SimpleNamespace(python=sys.executable, triton_dir=str(folder), triton_version=version)


def test_a_version_that_headstart_does_not_know_is_a_warning(tmp_path: Path) -> None:
    assert doctor_module.check_triton(fake_toolchain(tmp_path / "a")).status == "ok"
    check = doctor_module.check_triton(fake_toolchain(tmp_path / "b", "3.10.0"))
    assert (check.status, check.remedy) == ("warn", "use Triton 3.6 to 3.9")


def test_an_assembler_that_is_missing_or_broken_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    toolchain = fake_toolchain(tmp_path)
    assert [check.status for check in doctor_module.check_ptxas(toolchain)] == ["fail"]
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/no/such/ptxas")
    (check,) = doctor_module.check_ptxas(toolchain)
    assert check.status == "fail"
    assert "unset TRITON_PTXAS_PATH" in check.remedy
    assert doctor_module.check_targets(toolchain).found.startswith("cuda:70")
    assert "hip" not in doctor_module.check_targets(toolchain).found


def test_a_cache_folder_that_cannot_be_used_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    for unusable in ("file", "file/below", "/proc/headstart"):
        monkeypatch.setenv("HEADSTART_CACHE_DIR", unusable)
        check = checks(1)["cache folder"]
        assert check["status"] == "fail"
        assert "HEADSTART_CACHE_DIR" in check["remedy"]


def test_a_runtime_folder_too_long_for_a_socket_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    check = checks(0, 1)["runtime folder"]
    assert check["status"] == "warn"
    assert "107" in check["found"]
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/no/such/folder")
    check = checks(0)["runtime folder"]
    assert check["status"] == "ok"  # of what is not there nothing is expected
    assert "/no/such/folder" not in check["found"]
    (tmp_path / "headstart").mkdir()
    (tmp_path / "headstart").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    check = checks(1)["runtime folder"]
    assert check["status"] == "fail"
    assert "XDG_RUNTIME_DIR" in check["remedy"]


def test_a_setting_that_is_not_valid_is_a_failure() -> None:
    result = run("doctor", env={"HEADSTART_WORKERS": "many"})
    assert result.exit_code == 1
    assert "HEADSTART_WORKERS: expected a number from 1 to 1024, got 'many'" in result.stdout


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HEADSTART", "off"),
        ("TRITON_INTERPRET", "1"),
        ("TRITON_ALWAYS_COMPILE", "1"),
        ("TRITON_KERNEL_OVERRIDE", "1"),
        ("TRITON_KERNEL_DUMP", "1"),
        ("TORCHINDUCTOR_COMPILE_THREADS", "1"),
        ("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1"),
    ],
)
def test_variables_that_make_headstart_step_aside_are_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    check = checks(0, 1)["environment"]
    assert check["status"] == "warn"
    assert check["found"].startswith(f"{variable}={value}: ")
    assert f"unset {variable}" in check["remedy"]


def test_processes_that_cannot_be_made_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_PROCESS_TRIAL", "raise OSError('Operation not permitted')")
    check = doctor_module.check_processes()
    assert check.status == "fail"
    assert "Operation not permitted" in check.found
    monkeypatch.setattr(sys, "executable", "")
    assert doctor_module.check_processes().status == "fail"


# With the real compiler


def real_plan(body: str, name: str = "plan.py") -> str:
    return plan(f"SOURCE = {KERNEL!r}\n" + textwrap.dedent(body), name)


SCALES = """
SIGNATURE = {"x": "*fp32", "n": "i32"}

def kernels():
    for factor in (2, 3, 2):
        constants = {"FACTOR": factor, "BLOCK": 64}
        yield KernelSpec(SOURCE, name="scale", signature=SIGNATURE, constants=constants, attrs={"x": 16})
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from headstart.cli import main; main()", *arguments]


@pytest.mark.triton
def test_a_plan_becomes_a_bundle_and_the_next_time_nothing_is_compiled() -> None:
    path = real_plan(SCALES)
    arguments = ["build", path, "--target", "cuda:90", "--target", "cuda:80", "--workers", "2", "--json"]
    first = outcome(run(*arguments, "-o", "first.bundle"))
    assert (first["requested"], first["compiled"], first["deduplicated"], first["failed"]) == (6, 4, 2, 0)
    assert first["cpu_s"] > first["longest_s"] > 0
    second = outcome(run(*arguments, "-o", "second.bundle"))
    assert (second["compiled"], second["cached"], second["deduplicated"]) == (0, 4, 2)
    keys = [{item.key for item in Bundle.open(name)} for name in ("first.bundle", "second.bundle")]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 4
    assert run("bundle", "verify", "second.bundle").exit_code == 0


@pytest.mark.triton
def test_a_jit_function_of_the_plan_itself_is_built() -> None:
    path = plan(
        KERNEL
        + textwrap.dedent(
            """
            def kernels():
                yield KernelSpec(scale, signature="*fp32:16, i32, 2, 64")
            """
        )
    )
    result = run("build", path, "--target", "cuda:90", "--json")
    assert outcome(result)["compiled"] == 1, result.stderr


@pytest.mark.triton
def test_a_kernel_that_fails_is_explained_and_the_others_are_built() -> None:
    path = real_plan(
        """
        def kernels():
            yield KernelSpec(SOURCE, name="scale", signature="*fp32, i32, 2, 64")
            yield KernelSpec(SOURCE, name="scale", signature="*fp32, i32, 2")
            yield KernelSpec(SOURCE, name="no_such_function", signature="*fp32")
            yield KernelSpec("def broken(:", name="broken", signature="*fp32")
        """
    )
    result = run("build", path, "--target", "cuda:90", "--json")
    assert result.exit_code == 1
    assert (outcome(result)["compiled"], outcome(result)["failed"]) == (1, 3)
    for said in ("4 parameters", "no_such_function", "broken (cuda:90) failed"):
        assert said in result.stderr
    assert len(Bundle.open("plan.bundle")) == 1


@pytest.mark.triton
def test_the_installed_command_prints_json_last_and_progress_on_stderr() -> None:
    path = real_plan("print('a plan may print')\n" + SCALES)
    done = subprocess.run(
        command("build", path, "--target", "cuda:90", "--json"), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "a plan may print"
    assert json.loads(lines[-1])["compiled"] == 2
    assert "headstart: 3/3 done" in done.stderr


@pytest.mark.triton
def test_ctrl_c_ends_a_build_promptly() -> None:
    path = real_plan(
        """
        import time

        def kernels():
            yield KernelSpec(SOURCE, name="scale", signature="*fp32, i32, 2, 64")
            print("yielded", flush=True)
            for _ in range(600):
                time.sleep(0.1)  # a signal that comes just before it does not cut it short
        """
    )
    process = subprocess.Popen(
        command("build", path, "--target", "cuda:90", "--quiet"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "yielded\n"
    asked = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - asked < 5
    assert said.count("\n") == 1
    assert said.startswith("headstart: interrupted")


@pytest.mark.triton
def test_the_command_that_reproduces_a_failure_fails_again() -> None:
    path = real_plan("def kernels(): yield KernelSpec(SOURCE, name='scale', signature='*fp99, i32, 2, 64')\n")
    result = run("build", path, "--target", "cuda:90", "--quiet")
    assert result.exit_code == 1
    command_line = result.stderr.rpartition("reproduce: ")[2].strip()
    program, *arguments = shlex.split(command_line)
    assert program == "headstart"
    again = run(*arguments, "--json")
    assert (again.exit_code, outcome(again)["failed"]) == (1, 1)
    assert "'*fp99' of parameter 'x'" in again.stderr


@pytest.mark.triton
def test_a_cache_folder_that_cannot_be_written_costs_nothing_but_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_DIR", "/proc/headstart")
    result = run("build", real_plan(SCALES), "--target", "cuda:90", "--json")
    assert result.exit_code == 0, result.stderr
    assert outcome(result)["compiled"] == 2
    assert len(Bundle.open("plan.bundle")) == 2


# What may fail


@pytest.mark.parametrize(
    ("allowed", "code"),
    [
        ([], 1),
        (["2"], 0),
        (["1"], 1),
        (["bad1", "bad2"], 0),
        (["bad1"], 1),
        (["1", "bad1"], 0),
        (["0"], 1),
        (["good"], 1),
    ],
)
def test_kernels_that_may_fail_do_not_fail_the_build(allowed: list[str], code: int, fake: list[FakeCompile]) -> None:
    options = [word for each in allowed for word in ("--allow-failures", each)]
    result = run("build", specs("good", "bad1", "bad2"), "--target", "h100", "--json", *options)
    assert result.exit_code == code
    assert outcome(result)["failed"] == 2
    assert "bad1 (cuda:90) failed in stage ttir" in result.stderr
    assert ("headstart: 2 failures: as --allow-failures allows" in result.stderr) is (code == 0)


@pytest.mark.parametrize("name", ["unserved", "full"])
def test_a_machine_that_compiles_nothing_is_not_among_what_may_fail(
    name: str, fake: list[FakeCompile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: FakeCompile, path: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FakeCompile, "collect", full)
    result = run("build", specs(name), "--target", "h100", "--allow-failures", "9", "--allow-failures", name)
    assert result.exit_code == 1


def test_a_plan_that_raises_fails_whatever_may_fail(fake: list[FakeCompile]) -> None:
    text = "def kernels():\n    yield KernelSpec('a', name='bad', signature='')\n    raise RuntimeError\n"
    assert run("build", plan(text), "--target", "h100", "--allow-failures", "9").exit_code == 1


def test_two_numbers_of_failures_are_bad_usage(fake: list[FakeCompile]) -> None:
    assert run("build", specs("a"), "--allow-failures", "1", "--allow-failures", "2").exit_code == 2


@pytest.mark.parametrize("text", ["", "10%", "-3", "1.5"])
def test_what_may_fail_is_a_number_or_a_kernel_s_name(text: str) -> None:
    result = run("build", specs("a"), f"--allow-failures={text}")
    assert result.exit_code == 2
    assert "expected a number or a kernel's name" in result.stderr


def test_a_build_of_which_everything_failed_is_none_whatever_is_allowed(fake: list[FakeCompile]) -> None:
    result = run("build", specs("bad1"), "--target", "h100", "--allow-failures", "9")
    assert result.exit_code == 1  # else an earlier bundle would pass for what was built


@pytest.mark.triton
def test_what_compiles_print_is_shown_unless_quiet() -> None:
    printing = KERNEL.replace("    i =", "    tl.static_print('said by the kernel')\n    i =")
    text = f"SOURCE = {printing!r}\ndef kernels(): yield KernelSpec(SOURCE, signature='*fp32, i32, 2, 64')\n"
    for options, is_shown in ((["--quiet"], False), ([], True)):
        done = subprocess.run(
            command("build", plan(text), "--target", "h100", *options), capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        assert ("headstart: compiling scale printed:" in done.stderr) is is_shown
        assert ("said by the kernel" in done.stderr) is is_shown
        if not is_shown:
            assert (done.stdout, done.stderr) == ("", "")
        DiskStore(cache_dir()).clear()
