"""The kernels of a run as the page of `headstart report` shows them: lanes, stalls, reasons, sweeps. Plain data."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from headstart.artifacts import cubin, runs
from headstart.cli import count
from headstart.cli.run_facts import Facts, Library, source_of
from headstart.cli.run_times import Compiles, total_s, union
from headstart.cli.why import COMPILED, reasons
from headstart.errors import HeadstartError
from headstart.model.parameters import configuration_of

STAGES = ("front end", "ttgir", "llir", "ptx", "assembler", "other")
_STALLS = 10
_MAX_SOURCES = 3 << 20  # characters of all sources in a page
_EXPLAINED = 1000  # kernels of which it is looked up why they were compiled
_AT_ONCE = 0.01  # seconds between asking for a kernel and waiting for it that are none
_FRONT_END = ("ir_initialization", "ttir")
_ASSEMBLER = ("cubin", "hsaco")
_NOT_GIVEN = "default"
_COULD_NOT_RUN = 1e9  # milliseconds: an autotuner says infinity


class Page:
    """Collects what is shown, process by process."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.processes: list[dict[str, Any]] = []
        self.kernels: list[dict[str, Any]] = []
        self.sources: list[str] = []
        self.lanes: list[dict[str, Any]] = []
        self.sweeps: list[dict[str, Any]] = []
        self.fell_back: list[dict[str, Any]] = []
        self.missed: list[dict[str, Any]] = []
        self._compiles = Compiles()
        self._numbers: dict[tuple[int, int], int] = {}  # places in `kernels`, by process and number there
        self._source_places: dict[str, int] = {}
        self._source_size = 0

    def add(self, process: runs.Process, offset: float) -> None:
        """One more process, which began `offset` seconds after the run."""
        number, head = len(self.processes), process.head
        self.processes.append(
            {
                "pid": head.pid,
                "rank": head.rank,
                "host": head.host,
                "parent": head.parent,
                "state": process.state,
                "damage": process.damage,
                "lost": process.lost,
                "workers": head.workers,
                "end": round(offset + process.last, 4),
            }
        )
        lanes: dict[str, list[list[Any]]] = {}
        for kernel in process.kernels.values():
            self._numbers[number, kernel.number] = place = len(self.kernels)
            fields = self._kernel(kernel, head, number, offset)
            fields["shared_compile"] = bool(kernel.compile_s) and not self._compiles.told(kernel, head)[1]
            self.kernels.append(fields)
            self._draw(kernel, place, offset, offset + process.last, lanes, is_shared=fields["shared_compile"])
        named = f"rank {head.rank} " if head.rank else f"{head.pid} " if len(self.processes) > 1 else ""
        for name in sorted(lanes, key=lambda lane: (not lane.startswith("thread "), len(lane), lane)):
            kind, _, shown = name.partition(" ")
            label = f"{named}{shown if kind == 'thread' else name}"
            self.lanes.append({"label": label, "kind": kind, "process": number, "bars": lanes[name]})
        self.fell_back += [{"name": name, "why": why, "process": number} for name, why in process.fell_back]
        self.sweeps += [found for sweep in process.sweeps if (found := self._sweep(sweep, number)) is not None]

    def misses(self, folder: Path, run: runs.Run) -> None:
        """Why kernels were compiled; those with the same reason together."""
        compiled = [
            (number, kernel, process.head)
            for number, process in enumerate(run.processes)
            for kernel in process.kernels.values()
            if kernel.origin in COMPILED
        ][:_EXPLAINED]
        groups: dict[tuple[str, ...], list[int]] = {}
        found = reasons(folder, run, [(kernel, head) for _, kernel, head in compiled])
        for (number, kernel, _), reason in zip(compiled, found, strict=True):
            place = self._numbers[number, kernel.number]
            self.kernels[place]["why"] = reason.lines
            groups.setdefault(tuple(reason.lines), []).append(place)
        ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
        self.missed = [{"why": list(lines), "kernels": places} for lines, places in ranked]

    def queue(self) -> dict[str, list[list[float]]]:
        """How many kernels waited for a worker, and how many were being compiled, over time."""
        waiting: Counter[float] = Counter()
        running: Counter[float] = Counter()
        end = max((process["end"] for process in self.processes), default=0.0)
        for kernel in self.kernels:
            if kernel["origin"] == "bundle":
                continue
            until = kernel["answered"] if kernel["answered"] is not None else end
            began = kernel["began"]
            waiting[kernel["asked"]] += 1
            waiting[max(kernel["asked"], until if began is None else began)] -= 1
            if began is not None and not kernel["shared_compile"]:
                running[began] += 1
                running[max(began, until)] -= 1
        return {"waiting": _steps(waiting), "running": _steps(running)}

    def stalls(self) -> list[dict[str, Any]]:
        """The longest waits, and what would have hidden each."""
        found = [
            {
                "kernel": place,
                "thread": thread,
                "at": at,
                "seconds": seconds,
                "advice": self._advice(kernel, at, seconds),
            }
            for place, kernel in enumerate(self.kernels)
            for at, seconds, thread in kernel["waits"]
        ]
        return sorted(found, key=lambda stall: -stall["seconds"])[:_STALLS]

    def _advice(self, kernel: dict[str, Any], at: float, seconds: float) -> str:
        lead, began, end = at - kernel["asked"], kernel["began"], at + seconds
        if kernel["origin"] == "failed":
            return "It failed: nothing hides a failure, but a bundle that knows of it has it raised at once."
        if kernel["origin"] == "pending":
            return self._unanswered(kernel)
        if kernel["origin"] == "cancelled":
            return "Nobody wanted it any more: it was cancelled."
        if kernel["origin"] != "worker" and began is None:
            return "It was there already; what was waited for is the service and the answer, not a compile."
        queued = 0.0 if began is None else max(0.0, min(began, end) - at)
        workers = self.processes[kernel["process"]]["workers"]
        earliest = min((each["began"] for each in self.kernels if each["began"] is not None), default=None)
        ahead = "when" if lead < _AT_ONCE else f"{seconds_text(lead)} before"
        asked = f"asked for {ahead} it was needed"
        if began is not None and began == earliest and queued > seconds / 2:
            return (
                f"{seconds_text(queued)} of it went by until the first worker was ready: begin earlier, with "
                "headstart run, or headstart.enable() before the imports."
            )
        if queued > seconds / 2:
            return (
                f"{seconds_text(queued)} of it went by in the queue, with {count(workers, 'worker')}: more workers, or "
                f"an earlier kick-off; it was {asked}."
            )
        compile_s = kernel["compile_s"]
        stood = 0.0 if began is None else began - kernel["asked"]
        if stood > max(compile_s, seconds / 2):
            return (
                f"It was {asked}, and stood in the queue for {seconds_text(stood)} behind others, with "
                f"{count(workers, 'worker')}: more workers, a farm or another host's store; a bundle has it ready."
            )
        took = f"its compile takes {seconds_text(compile_s)}" if compile_s else "it was not compiled yet"
        return f"It was {asked}, and {took}: a record kicks it off at the start of the program, a bundle has it ready."

    def _unanswered(self, kernel: dict[str, Any]) -> str:
        process = self.processes[kernel["process"]]
        began = kernel["began"]
        until = process["end"]
        compiled = (
            "no worker had begun it" if began is None else f"a worker was at it for {seconds_text(until - began)}"
        )
        if process["state"] == "running":
            return f"There is no answer yet: so far {compiled}. headstart status shows what workers do now."
        if process["state"] == "killed":
            return (
                f"There was no answer before the process was killed; {compiled}, or longer: when it was killed is not "
                "in its log. headstart build of the kernel alone shows whether its compile ends."
            )
        return f"There was no answer before the process ended; {compiled}."

    def _kernel(self, kernel: runs.Kernel, head: Any, process: int, offset: float) -> dict[str, Any]:
        end = kernel.answered
        fields: dict[str, Any] = {
            "process": process,
            "name": kernel.name,
            "label": kernel.label,
            "target": kernel.target,
            "origin": kernel.origin,
            "background": kernel.background,
            "asked": round(offset + kernel.asked, 4),
            "began": None if kernel.began is None else round(offset + kernel.began, 4),
            "answered": None if end is None else round(offset + end, 4),
            "worker": kernel.worker,
            "compile_s": round(kernel.compile_s, 4),
            "cpu_s": round(kernel.cpu_s, 4),
            "saved_s": round(kernel.saved_s, 4),
            "stages": [[name, round(seconds, 4)] for name, seconds in stages_of(kernel)],
            "waits": [[round(offset + at, 4), round(took, 4), thread] for at, took, thread in kernel.waits],
            "waited_s": round(total_s(union((at, at + took) for at, took, _ in kernel.waits)), 4),
            "where": kernel.where,
            "error": kernel.error,
            "failed_as": kernel.kind,
            "failed_in": kernel.stage,
            "key": kernel.key,
            "why": [],
        }
        fields["commands"] = self._library.commands(kernel, head)
        facts = self._library.facts(kernel, head)
        if facts is None:
            return fields | {"source": None}
        if facts.entry is not None and kernel.origin not in COMPILED:
            took = facts.entry.header.compile_wall_s  # of a bundle that anybody may have made
            fields["saved_s"] = fields["saved_s"] or (round(took, 4) if math.isfinite(took) else 0.0)
        if facts.request is not None:  # of a source of torch.compile's the log knows the names only
            fields["label"] = kernel.label or configuration_of(facts.request)
            fields["target"] = kernel.target or facts.request.target
        return fields | self._made_of(facts)

    def _made_of(self, facts: Facts) -> dict[str, Any]:
        components = dict(facts.components)
        told: dict[str, Any] = {
            group: {
                name.removeprefix(f"{group}."): value
                for name, value in components.items()
                if name.startswith(f"{group}.")
            }
            for group in ("constants", "options", "signature")
        }
        told["found_in"] = facts.found_in
        told["toolchain"] = components.get("toolchain", "")
        told["source"] = None if facts.request is None else self._source(source_of(facts.request))
        if facts.request is not None and not told["signature"]:
            told["signature"] = {"": components.get("signature", "")}
        if (entry := facts.entry) is not None:
            told["path"] = "" if entry.path is None else str(entry.path)
            shared = entry.metadata.get("shared")
            told["shared"] = shared if isinstance(shared, int) else None
            if "cubin" in entry.artifact_names:
                try:
                    code = entry.artifact("cubin")
                except (HeadstartError, OSError):
                    return told
                name = str(entry.metadata.get("name", facts.name))
                told["registers"] = cubin.registers(code, name)
                told["local_bytes"] = cubin.local_bytes(code, name)
        return told

    def _source(self, text: str) -> int | None:
        if text not in self._source_places:
            if self._source_size + len(text) > _MAX_SOURCES:
                return None
            self._source_size += len(text)
            self._source_places[text] = len(self.sources)
            self.sources.append(text)
        return self._source_places[text]

    @staticmethod
    def _draw(
        kernel: runs.Kernel,
        place: int,
        offset: float,
        end: float,
        lanes: dict[str, list[list[Any]]],
        *,
        is_shared: bool,
    ) -> None:
        """Bars: from, to, kernel, and what it is. `is_shared`: the compile is shown with another process."""

        def bar(lane: str, begun: float, until: float, what: str) -> None:
            lanes.setdefault(lane, []).append([round(begun, 4), round(max(begun, until), 4), place, what])

        for at, took, thread in kernel.waits:
            bar(f"thread {thread}", offset + at, offset + at + took, "waiting")
        bar(f"thread {kernel.thread}", offset + kernel.asked, offset + kernel.asked, "kick-off")
        if kernel.began is None or kernel.worker < 0 or is_shared:
            return
        at = offset + kernel.began
        lane = f"worker {kernel.worker}"
        for stage, seconds in stages_of(kernel):
            bar(lane, at, at + seconds, stage)
            at += seconds
        if not kernel.stages:
            until = end if kernel.answered is None else offset + kernel.answered
            bar(lane, at, until, "failed" if kernel.origin == "failed" else "other")

    def _sweep(self, sweep: runs.Sweep, process: int) -> dict[str, Any] | None:
        """A sweep over the two constants or options that vary most."""
        cells = [
            (self._numbers[process, number], milliseconds, _values(self.kernels[self._numbers[process, number]]))
            for number, milliseconds in sweep.times.items()
            if (process, number) in self._numbers
        ]
        names = dict.fromkeys(name for _, _, values in cells for name in values)
        varying = {name: {values.get(name, _NOT_GIVEN) for _, _, values in cells} for name in names}
        axes = sorted((name for name in names if len(varying[name]) > 1), key=lambda name: -len(varying[name]))[:2]
        if not axes:
            return None
        ordered = [sorted(varying[axis], key=_as_number) for axis in axes] + [[""]]
        best: dict[tuple[int, ...], list[Any]] = {}
        for place, milliseconds, values in cells:
            at = [ordered[n].index(values.get(axis, _NOT_GIVEN)) for n, axis in enumerate(axes)]
            x, y = (*at, 0)[:2]
            # Where several have the same place, the fastest stands for them.
            if (x, y) not in best or milliseconds < (best[x, y][2] or math.inf):
                best[x, y] = [x, y, milliseconds if milliseconds < _COULD_NOT_RUN else None, place]
        return {
            "name": sweep.name,
            "x": axes[0],
            "y": (*axes, "")[1],
            "xs": ordered[0],
            "ys": ordered[1],
            "cells": list(best.values()),
            "configurations": len(cells),
            "winner": self._numbers.get((process, sweep.winner)),
        }


def _values(kernel: dict[str, Any]) -> dict[str, str]:
    """Constants and options; of a kernel that was not found anywhere, those that the log has in its label."""
    if "constants" in kernel:
        return {**kernel["constants"], **kernel["options"]}
    words = (word.partition("=") for word in kernel["label"].split(" "))
    return {name: value for name, _, value in words if value}


def stages_of(kernel: runs.Kernel) -> list[tuple[str, float]]:
    """Stages as they are shown: in order, and as long together as the compile."""
    found: dict[str, float] = {}
    for name, seconds in kernel.stages:
        shown = "front end" if name in _FRONT_END else "assembler" if name in _ASSEMBLER else name
        shown = shown if shown in STAGES else "other"
        found[shown] = found.get(shown, 0.0) + seconds
    rest = kernel.compile_s - sum(found.values())
    if rest > 0.001 or "other" in found:
        found["other"] = found.pop("other", 0.0) + max(0.0, rest)
    return list(found.items())


def _steps(changes: Counter[float]) -> list[list[float]]:
    level = 0
    steps: list[list[float]] = []
    for at in sorted(changes):
        level += changes[at]
        steps.append([at, level])
    return steps


def _as_number(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def seconds_text(seconds: float) -> str:
    """For people."""
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
