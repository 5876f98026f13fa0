"""How a build shows on stderr: live on a terminal, a line now and then when piped, nothing when quiet.

What a build has come to is in a `Tally`; a display reads it from a thread of its own, at its own pace, so that
showing progress never holds a compile up. Numbers may be a moment old and need no lock.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from headstart.cli import printable
from headstart.cli.time_left import TimeLeft, words

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REFRESH = 0.25  # seconds between two frames on a terminal
PLAIN_INTERVAL = 5.0  # seconds between two lines when piped
SHOWN = 8  # kernels in flight that a terminal shows
LONG = 60.0  # seconds after which a compile is pointed out

InFlight = Callable[[], "list[tuple[str, float]]"]  # what each is, and time.monotonic() of its start


@dataclass
class Tally:
    """What a build has come to.

    Attributes:
        requested: kernels kicked off so far.
        unseen: futures with an answer that the building thread has not looked at; the client's thread puts them here.
        seen: answers it has looked at.
        failed: those of them that were errors.
        complete: the plan has yielded everything, `requested` is final.
        started: `time.monotonic()`.
        time_left: guesses when it will end; None: nobody does.
    """

    requested: int = 0
    unseen: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    seen: int = 0
    failed: int = 0
    complete: bool = False
    started: float = field(default_factory=time.monotonic)
    time_left: TimeLeft | None = None

    @property
    def done(self) -> int:
        """Kernels that have an answer, good or bad."""
        return self.seen + self.unseen.qsize()

    def line(self, running: Sequence[tuple[str, float]] = ()) -> str:
        """One line, as `"12/40 done, 1 failed, 3 s, about 9 s left"`; a total that is still growing ends in `+`."""
        failed = f", {self.failed} failed" if self.failed else ""
        total = f"{self.requested}{'' if self.complete else '+'}"
        text = f"{self.done}/{total} done{failed}, {time.monotonic() - self.started:.0f} s"
        if self.time_left is None or self.done >= self.requested:
            return text
        now = time.monotonic()
        left = self.time_left.left([(label.partition(" ")[0], now - started) for label, started in running])
        return text if left is None else f"{text}, {words(left)}"


class Counted(Protocol):
    """What a display shows: see `Tally`."""

    @property
    def requested(self) -> int: ...

    @property
    def done(self) -> int: ...

    @property
    def failed(self) -> int: ...

    def line(self, running: Sequence[tuple[str, float]] = ()) -> str:
        """One line that says how far it is."""


class Progress:
    """Shows nothing: `--quiet`, and the interface of those that show something. Used as a context manager."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop showing. Whatever is printed afterwards stands below."""

    def failure(self, message: str) -> None:
        """A kernel failed; `message` is the whole report, of which the first line says which and why."""


class PlainProgress(Progress):
    """Lines for a log file: every few seconds, at each failure, and at the end."""

    def __init__(self, tally: Counted, in_flight: InFlight, stream: TextIO, interval: float = PLAIN_INTERVAL) -> None:
        self._tally = tally
        self._in_flight = in_flight
        self._stream = stream
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="headstart-progress", daemon=True)

    def __enter__(self) -> Progress:
        with contextlib.suppress(RuntimeError):  # no more threads: then only failures and the end are shown
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        if kind is None and self._tally.requested:
            self._print(self._tally.line())

    def failure(self, message: str) -> None:
        self._print(message.partition("\n")[0])

    def _tick(self) -> None:
        while not self._stop.wait(self._interval):
            running = sorted(self._in_flight(), key=lambda item: item[1])
            line, longest = self._tally.line(running), ""
            if running:
                name, started = running[0]
                age = time.monotonic() - started
                longest = f"; {len(running)} in flight, longest {printable(name)} for {age:.0f} s"
            self._print(line + longest)

    def _print(self, line: str) -> None:
        # One write a line, so that lines of two threads do not mix. Nobody may read them: the work goes on.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"headstart: {line}\n")
            self._stream.flush()


class LiveProgress(Progress):
    """A bar, and the kernels that have been in flight for longest, redrawn in place; failures stay above it."""

    def __init__(self, tally: Counted, in_flight: InFlight, console: Console) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        self._tally = tally
        self._in_flight = in_flight
        self._console = console
        self._bar = Bar(
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8, max_width=40)),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", total=None)
        self._live = Live(
            get_renderable=self.render,
            console=console,
            refresh_per_second=1 / REFRESH,
            transient=True,
            # Lines that a plan prints go above the display, unless they are on their way to a file.
            redirect_stdout=sys.stdout.isatty(),
        )

    def __enter__(self) -> Progress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def failure(self, message: str) -> None:
        from rich.text import Text

        self._console.print(Text(message.partition("\n")[0], style="red"), soft_wrap=True)

    def render(self) -> RenderableType:
        """One frame."""
        from rich.console import Group
        from rich.text import Text

        tally = self._tally
        running = sorted(self._in_flight(), key=lambda item: item[1])
        self._bar.update(
            self._task, total=max(tally.requested, 1), completed=tally.done, description=tally.line(running)
        )
        now = time.monotonic()
        rows = [
            Text(
                f"  {now - started:6.1f} s  {printable(label)}",
                style="yellow" if now - started > LONG else "",
                no_wrap=True,
                overflow="ellipsis",
            )
            for label, started in running[:SHOWN]
        ]
        if len(running) > SHOWN:
            rows.append(Text(f"  … and {len(running) - SHOWN} more in flight", style="dim"))
        return Group(self._bar.get_renderable(), *rows)


def make_progress(tally: Counted, in_flight: InFlight, *, quiet: bool) -> Progress:
    """The display that fits stderr."""
    if quiet or sys.stderr is None:
        return Progress()
    if not sys.stderr.isatty():
        return PlainProgress(tally, in_flight, sys.stderr)
    from rich.console import Console

    console = Console(stderr=True)
    # A dumb terminal cannot redraw in place.
    return (
        LiveProgress(tally, in_flight, console)
        if console.is_interactive
        else PlainProgress(tally, in_flight, sys.stderr)
    )
