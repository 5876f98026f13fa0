"""How far the transfer of a bundle is: a bar on a terminal, a line now and then when piped, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from headstart.cli import human_bytes, printable
from headstart.cli.progress import PLAIN_INTERVAL

Transferred = Callable[[int, int], None]  # told how many bytes there are by now, and how many there will be


@contextmanager
def transferring(what: str, *, quiet: bool) -> Iterator[Transferred]:
    """Show on stderr how far it is, until the context ends.

    Args:
        what: is transferred, as `"pulling oci://…"`.
    """
    if quiet or sys.stderr is None:
        yield lambda done, total: None
        return
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_interactive:  # a dumb terminal cannot redraw in place
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=console, transient=True) as bar:
                task = bar.add_task(printable(what), total=None)
                yield lambda done, total: bar.update(task, completed=done, total=total)
            return
    said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        if (now := time.monotonic()) - said >= PLAIN_INTERVAL and done < total:
            said = now
            with suppress(OSError, ValueError):  # nobody may read it
                sys.stderr.write(f"headstart: {printable(what)}: {human_bytes(done)} of {human_bytes(total)}\n")

    yield tell
