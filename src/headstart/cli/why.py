"""`headstart why`: why a kernel was compiled, and not found."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from headstart.artifacts import runs
from headstart.artifacts.run_records import Head
from headstart.cli import BadInput, Failure, count, json_line, printable
from headstart.cli.run_facts import Facts, Library, explain, nearest
from headstart.errors import UsageError
from headstart.model.parameters import configuration_of
from headstart.system.folders import cache_dir

COMPILED = ("worker", "failed", "pending")  # origins of what had to be compiled
_SHOWN = 40  # kernels, without --all
_COMPARED = 500  # kernels of a name, of which the nearest is told


class Reason(NamedTuple):
    """Why one kernel was compiled.

    Attributes:
        kernel, head: of the run.
        lines: at least one.
        before: what it is compared with, for people; empty: with nothing.
    """

    kernel: runs.Kernel
    head: Head
    lines: list[str]
    before: str

    def fields(self) -> dict[str, Any]:
        """What `--json` prints."""
        kernel = self.kernel
        return {
            "name": kernel.name,
            "label": kernel.label,
            "target": kernel.target,
            "origin": kernel.origin,
            "asked_by": kernel.where,
            "compile_s": round(kernel.compile_s, 4),
            "key": kernel.key,
            "run": self.head.run,
            "reasons": self.lines,
            "compared_with": self.before,
        }


@click.command(short_help="Say why a kernel was compiled.")
@click.argument("kernel", required=False, default="")
@click.option("--last", is_flag=True, help="Everything that the last run compiled.")
@click.option(
    "--run", "run_name", metavar="ID", default="", help="Look at this run; headstart report --list names them."
)
@click.option("--all", "every", is_flag=True, help=f"Name all, and not the first {_SHOWN}.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per kernel.")
def why(kernel: str, last: bool, run_name: str, every: bool, as_json: bool) -> None:
    """Say why KERNEL was compiled: how it differs from the nearest one of its name that was there before.

    KERNEL is a kernel's name, or what its key begins with. It is looked for in the latest run that compiled it. Before
    means: in an earlier run of this machine, in the bundle that the run was given, or in the program's record.

    Exit code: 0; 1 there is no such run, or nothing of that name was compiled in it; 2 bad usage.
    """
    if bool(kernel) == last and not run_name:
        raise UsageError("name a kernel, or say --last for all that the last run compiled")
    if last and run_name:
        raise UsageError("--last and --run exclude each other")
    folder = cache_dir()
    run = _run(folder, run_name, kernel)
    found = [
        (each, process.head)
        for process in run.processes
        for each in process.kernels.values()
        if each.origin in COMPILED and (not kernel or _is_meant(each, kernel))
    ]
    if not found:
        what = f"a kernel named {printable(kernel)}" if kernel else "a kernel"
        raise Failure(
            f"no run that is kept compiled {what}" if kernel and not run_name else _nothing(run, what, kernel)
        )
    shown = found if every or as_json else found[:_SHOWN]
    explained = reasons(folder, run, shown)
    if as_json:
        for reason in explained:
            click.echo(json_line(reason.fields()))
        return
    for _, alike in itertools.groupby(explained, key=lambda each: (each.kernel.name, each.kernel.where, each.lines)):
        click.echo(_text(list(alike)))
    if len(shown) < len(found):
        click.echo(f"… and {len(found) - len(shown)} more; --all names them", err=True)


def reasons(folder: Path, run: runs.Run, kernels: list[tuple[runs.Kernel, Head]]) -> Iterator[Reason]:
    """Why these kernels of a run were compiled.

    Args:
        folder: the cache folder.
    """
    library = Library(folder)
    before = _Before(folder, run, library, {kernel.name for kernel, _ in kernels})
    for kernel, head in kernels:
        yield before.reason(kernel, head)


class _Earlier(NamedTuple):
    """A kernel of another run, and when that had its answer, seconds since 1970."""

    answered: float
    kernel: runs.Kernel
    head: Head


class _Before:
    """What was there before a run, of some names."""

    def __init__(self, folder: Path, run: runs.Run, library: Library, names: set[str]) -> None:
        self._library = library
        self._earlier: dict[str, list[_Earlier]] = {}
        self._facts: dict[str, list[tuple[float, Facts]]] = {}
        self._run = run
        latest = max((_when(each.last, each.head) for each in run.processes), default=0.0)
        for each in runs.runs(folder):
            if each.name != run.name and each.head.began < latest:
                for process in each.processes:
                    for kernel in process.kernels.values():
                        if kernel.name in names and kernel.answered is not None and kernel.origin != "cancelled":
                            answered = _when(kernel.answered, process.head)
                            self._earlier.setdefault(kernel.name, []).append(_Earlier(answered, kernel, process.head))

    def reason(self, kernel: runs.Kernel, head: Head) -> Reason:
        """Why it was compiled."""
        asked = _when(kernel.asked, head)
        earlier = [each for each in self._earlier.get(kernel.name, []) if each.answered <= asked]
        same = _same(kernel, earlier)
        facts = self._library.facts(kernel, head)
        if facts is not None and facts.request is not None and not kernel.label:
            # Of a source of torch.compile's the log knows the names only.
            kernel.label, kernel.target = configuration_of(facts.request), facts.request.target
        if same is not None and (line := self._again(kernel, asked, same)):
            return Reason(kernel, head, [line], f"run {same.head.run}")
        if facts is None:
            if not earlier:
                return Reason(kernel, head, [self._first(kernel)], "")
            return Reason(kernel, head, ["what it was made of is not known any more: its entry is gone"], "")
        candidates = [
            each
            for there, each in self._candidates(kernel.name, head)
            if there <= asked and each.components != facts.components
        ][:_COMPARED]
        if (other := self._other_toolchain(candidates, facts)) is not None:
            return Reason(kernel, head, explain(other, facts), _told(other))
        closest = nearest(candidates, facts)
        if closest is None:
            return Reason(kernel, head, [self._first(kernel)], "")
        return Reason(kernel, head, explain(closest, facts) or [self._first(kernel)], _told(closest))

    def _first(self, kernel: runs.Kernel) -> str:
        return f"first seen: nothing before this run has a kernel named {kernel.name}"

    def _again(self, kernel: runs.Kernel, asked: float, same: _Earlier) -> str:
        """The very same was asked for before; empty: by another toolchain."""
        before, run = same.kernel, same.head.run
        if before.origin == "failed":
            return f"the same was compiled in run {run}, where it failed: {before.error}"
        if before.key and kernel.key and before.key != kernel.key:
            return ""
        if before.origin == "bundle":
            return f"the same came from a bundle in run {run}, which this run was not given, or which lacks it"
        there = self._library.there_since(kernel.key or before.key)
        if there is not None and there < asked:
            if kernel.origin == "pending":
                return f"the same was there in run {run}, and is in the cache: no answer had come when the log ended"
            return (
                f"the same was there in run {run}, and is in the cache, which was not to be used, or could not be read"
            )
        return f"the same was there in run {run}, and is in the cache no more: evicted, removed, or not kept"

    @staticmethod
    def _other_toolchain(candidates: list[Facts], facts: Facts) -> Facts | None:
        return next((each for each in candidates if each.digest == facts.digest and each.entry is not None), None)

    def _candidates(self, name: str, head: Head) -> list[tuple[float, Facts]]:
        """The nearest in time first, and since when they were there: the run's bundle, earlier runs, the record."""
        if name not in self._facts:
            own = {kernel.digest for kernel in self._run.kernels if kernel.origin in COMPILED}
            found = [(0.0, each) for each in self._library.bundled(head, name)]
            first: dict[tuple[str, str], _Earlier] = {}  # many runs ask for the same
            for each in self._earlier.get(name, []):
                what = (each.kernel.key, each.kernel.digest)
                if what not in first or each.answered < first[what].answered:
                    first[what] = each
            found += [
                (each.answered, facts)
                for each in first.values()
                if (facts := self._library.facts(each.kernel, each.head)) is not None
            ]
            found += [(0.0, each) for each in self._library.recorded(head, name) if each.digest[:32] not in own]
            self._facts[name] = found
        return self._facts[name]


def _when(at: float, head: Head) -> float:
    """Seconds since 1970."""
    return head.began + at


def _same(kernel: runs.Kernel, earlier: list[_Earlier]) -> _Earlier | None:
    """By key, which says more than the digest, and is all that is known of kernels of torch.compile."""
    by_key = (each for each in earlier if kernel.key and each.kernel.key == kernel.key)
    by_digest = (each for each in earlier if kernel.digest and each.kernel.digest == kernel.digest)
    return next(by_key, None) or next(by_digest, None)


def _told(facts: Facts) -> str:
    label = ""
    if facts.request is not None:
        label = configuration_of(facts.request)
    return f"{label or facts.digest[:12]} in {facts.found_in}"


def _is_meant(kernel: runs.Kernel, asked: str) -> bool:
    is_key = len(asked) >= 6 and set(asked) <= set("0123456789abcdef")
    return kernel.name == asked or (is_key and kernel.key.startswith(asked[:32]))


def _run(folder: Path, name: str, kernel: str) -> runs.Run:
    if name:
        found = runs.open_run(folder, name)
        if found is None:
            raise BadInput(f"there is no run {printable(name)}; headstart report --list names them")
        return found
    latest: runs.Run | None = None
    for run in runs.runs(folder):
        latest = latest or run
        if not kernel or any(each.origin in COMPILED and _is_meant(each, kernel) for each in run.kernels):
            return run
    if latest is None:
        raise Failure("there is no run yet: headstart run app.py makes one (HEADSTART_KEEP_RUNS=0 keeps none)")
    return latest


def _nothing(run: runs.Run, what: str, kernel: str) -> str:
    if kernel and not any(_is_meant(each, kernel) for each in run.kernels):
        return f"run {run.name} asked for no {what.removeprefix('a ')}"
    meant = [each for each in run.kernels if not kernel or _is_meant(each, kernel)]
    told = f"of {count(len(meant), 'kernel')}" if len(meant) != 1 else "of the one"
    wanted = "all were there" if all(each.origin != "cancelled" for each in meant) else "none had to be"
    return f"run {run.name} compiled no {what.removeprefix('a ')}: {told} that it asked for, {wanted}"


def _text(alike: list[Reason]) -> str:
    """Of kernels of one name that were compiled for the same reason."""
    lines = []
    for kernel in (reason.kernel for reason in alike):
        took = f"{kernel.compile_s:.2f} s" if kernel.compile_s else kernel.origin
        lines.append(printable(f"{kernel.name}  {kernel.label}  {kernel.target}  {took}"))
    first = alike[0]
    if first.kernel.where:
        lines.append(f"    asked for at {printable(first.kernel.where)}")
    lines += [f"    {printable(line)}" for line in first.lines]
    if first.before and not first.before.startswith("run "):
        lines.append(f"    nearest: {printable(first.before)}")
    return "\n".join(lines)
