"""The latest events of a service and what was done about each, as text: for `headstart status --events`, and for bugs.

What is kept is short and plain: names, numbers, the beginning of a key. No source, and nothing that a worker sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from headstart.wire import Happened

KEPT = 1000  # events
_TOLD = (
    *("worker", "client", "ticket", "key", "job", "kind", "suffix"),
    *("status", "stage", "limit", "kill", "why", "evidence"),
)
_LONGEST = 120  # characters of a value
_SHORT = 12  # digits of a key


class History:
    """A bounded log. What only says how it is (time has passed, a farm has room) is in it if something was done."""

    def __init__(self, kept: int = KEPT) -> None:
        self._lines: deque[Happened] = deque(maxlen=kept)

    def note(self, now: float, event: object, actions: Sequence[object]) -> None:
        """Write down an event, and what the scheduler said."""
        if actions or type(event).__name__ not in ("Ticked", "Offered"):
            self._lines.append(Happened(now, _text(event), [_text(action) for action in actions]))

    def latest(self, most: int = KEPT) -> list[Happened]:
        """The latest events, oldest first."""
        return list(self._lines)[-most:]


def lines(history: Iterable[Happened], now: float) -> list[str]:
    """For people: one line an event, with its age in seconds."""
    return [
        f"{now - each.at:9.3f} s ago  {each.event}" + (f"  ->  {', '.join(each.actions)}" if each.actions else "")
        for each in history
    ]


def _text(what: object) -> str:
    values = vars(what)
    told = [f"{name} {_short(name, values[name])}" for name in _TOLD if name in values]
    return " ".join([type(what).__name__, *told, *_outcome(values.get("outcome"))])


def _short(name: str, value: Any) -> str:
    if name in ("key", "suffix"):
        return str(value)[:_SHORT]
    if name == "job":
        return str(value.key)[:_SHORT]
    if name == "ticket":
        return f"{value.client}/{value.number}"
    if name == "kind":
        return f"{hash(value) & 0xFFFF:04x}{' confined' if value.confined else ''}"
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _outcome(outcome: object) -> list[str]:
    if outcome is None:
        return []
    kind = getattr(outcome, "kind", "")
    return [type(outcome).__name__ + (f" ({kind})" if kind else "")]
