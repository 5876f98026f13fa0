"""Errors say what happened to which kernel and what to do, and survive being handed on."""

from __future__ import annotations

import ast
import copy
import errno
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import headstart
from headstart import errors
from headstart.errors import (
    COMPILE_ERRORS,
    CannotTravel,
    CompileError,
    CompileErrors,
    CompilerCrashed,
    CompileTimeout,
    DamagedError,
    FutureVersionError,
    HeadstartError,
    OutOfResources,
    ServiceError,
    SourceError,
    StoreUnavailable,
    UsageError,
)

PACKAGE = Path(headstart.__file__).parent


def every_class(base: type[Exception] = HeadstartError) -> Iterator[type[Exception]]:
    yield base
    for derived in base.__subclasses__():
        yield from every_class(derived)


def crashed(kind: type[CompileError] = CompilerCrashed) -> CompileError:
    return kind(
        "the compiler process was ended by SIGABRT, 2 times",
        kernel="matmul_kernel",
        target="cuda:90",
        options={"num_warps": 8, "allow": "tf32"},
        stage="llir",
        detail="Traceback:\n  line 3",
        output="\nAssertion `isa' failed\n",
        reproduce="headstart build failed.py",
        advice="report it",
    )


def one_of_each() -> list[HeadstartError]:
    return [
        *(crashed(kind) for kind in COMPILE_ERRORS.values()),
        CompileErrors([crashed(), crashed(SourceError)]),
        UsageError("a bad signature"),
        CannotTravel("package.kernel", "CONFIG", "a dict", "kernels.py:3"),
        ServiceError("no Triton"),
        StoreUnavailable("/cache", OSError(errno.ENOSPC, "No space left on device")),
        DamagedError("/cache/x.hse", "truncated"),
        FutureVersionError("/cache/x.hse", "format 9"),
    ]


# The tree


def test_every_kind_of_compile_error_is_known_by_its_name() -> None:
    ours = {cls for cls in every_class(CompileError) if cls.__module__ == errors.__name__}
    assert set(COMPILE_ERRORS.values()) == ours
    assert {cls.kind: cls for cls in ours} == COMPILE_ERRORS


def test_every_kind_of_failure_that_a_process_reports_has_its_error() -> None:
    kinds = {
        node.args[0].value
        for path in (PACKAGE / "service").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "attr", None) or getattr(node.func, "id", None)) == "Failure"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert {"crash", "timeout", "source", "service"} <= kinds
    # A worker says "space", which its service acts on and never passes on (`test_scheduler_failures.py`).
    assert kinds <= {*COMPILE_ERRORS, "service", "space"}


def test_the_tree_at_the_top_of_the_module_names_every_class() -> None:
    ours = {cls.__name__ for cls in every_class() if cls.__module__ == errors.__name__}
    assert {name for name in ours if name in str(errors.__doc__)} == ours


@pytest.mark.parametrize("cls", [SourceError, OutOfResources, CompilerCrashed, CompileTimeout])
def test_a_kernels_failures_are_compile_errors(cls: type[CompileError]) -> None:
    assert issubclass(cls, CompileError)


def test_the_callers_mistake_the_machines_and_a_kernels_failure_are_different_classes() -> None:
    for cls in (UsageError, CompileError, CompileErrors, ServiceError, StoreUnavailable, DamagedError):
        assert cls.__bases__ == (HeadstartError,)
    assert issubclass(FutureVersionError, DamagedError)
    assert not issubclass(HeadstartError, (OSError, TimeoutError))


# What they say


def test_a_compile_error_says_all_that_is_known() -> None:
    assert str(crashed()) == (
        "matmul_kernel (cuda:90, allow='tf32', num_warps=8) failed in stage llir: "
        "the compiler process was ended by SIGABRT, 2 times\n"
        "  what happened:\n"
        "    Traceback:\n"
        "      line 3\n"
        "  the compiler's last words:\n"
        "    Assertion `isa' failed\n"
        "  what to do: report it\n"
        "  reproduce: headstart build failed.py"
    )


def test_a_compile_error_does_not_speak_of_what_is_not_known() -> None:
    error = CompileError("it failed", kernel="add", target="hip:gfx942", output=" \n")
    assert str(error) == "add (hip:gfx942) failed: it failed"


def test_several_errors_are_counted_and_told_one_by_one() -> None:
    first, second = crashed(), crashed(SourceError)
    text = str(CompileErrors([first, second]))
    assert text.startswith("2 kernels failed; all others are in place\n\n")
    assert text.count(str(first)) == 2
    assert str(CompileErrors([first])).startswith("1 kernel failed;")


def test_a_store_that_cannot_be_written_says_where_and_why() -> None:
    error = StoreUnavailable(Path("/cache"), OSError(errno.ENOSPC, "No space left on device"))
    assert str(error) == "cannot write /cache: No space left on device"
    assert (error.path, error.errno) == ("/cache", errno.ENOSPC)
    assert "/cache: just so" in str(StoreUnavailable("/cache", OSError("just so")))


def test_a_damaged_file_is_named() -> None:
    error = DamagedError(Path("/cache/x.hse"), "truncated")
    assert (str(error), error.path, error.reason) == ("/cache/x.hse: truncated", "/cache/x.hse", "truncated")


# Handing on


def through_pickle(error: HeadstartError) -> HeadstartError:
    sent: HeadstartError = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    return sent


@pytest.mark.parametrize("error", one_of_each(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("again", [copy.copy, through_pickle])
def test_an_error_can_be_copied_and_sent_to_another_process(
    error: HeadstartError, again: Callable[[HeadstartError], HeadstartError]
) -> None:
    copied = again(error)
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert copied.__dict__.keys() == error.__dict__.keys()


def test_a_copied_compile_error_keeps_every_field() -> None:
    error = crashed()
    assert through_pickle(error).__dict__ == error.__dict__


@pytest.mark.parametrize("kind", COMPILE_ERRORS.values())
def test_a_fresh_error_is_the_same_without_the_traceback(kind: type[CompileError]) -> None:
    with pytest.raises(CompileError) as raised:
        raise crashed(kind)
    error = raised.value
    fresh = error.fresh()
    assert fresh is not error
    assert type(fresh) is kind
    assert str(fresh) == str(error)
    assert fresh.__traceback__ is None
    assert error.__traceback__ is not None


def test_options_belong_to_their_error() -> None:
    options = {"num_warps": 4}
    error = CompileError("it failed", kernel="add", target="cuda:90", options=options)
    fresh = error.fresh()
    options["num_warps"] = 8
    fresh.options["num_warps"] = 16
    assert error.options == {"num_warps": 4}
