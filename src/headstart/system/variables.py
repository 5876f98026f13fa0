"""headstart's environment variables: which there are, what `HEADSTART` says, and how one is told that is misspelt."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping

from headstart.errors import UsageError

# Every variable that a user may set, and what it is for.
KNOWN = {
    "HEADSTART": "on, off, or require: stepping aside is an error",
    "HEADSTART_CACHE_DIR": "where everything that stays is",
    "HEADSTART_CACHE_LIMIT": "what the store may grow to",
    "HEADSTART_COMPILE_TIMEOUT": "seconds that one compile may take",
    "HEADSTART_CONFIG_DIR": "where keys are that sign bundles, and those that are trusted",
    "HEADSTART_EARLY_CUTOFF": "whether configurations that become the same are one compile from there on",
    "HEADSTART_FARM": "ray, or the address of a Ray cluster whose machines compile as well",
    "HEADSTART_KEEP_RUNS": "how many runs' logs are kept, for headstart report; 0: none is written",
    "HEADSTART_MEMORY_LIMIT": "what one compile may use",
    "HEADSTART_PATIENCE": "seconds that torch.compile waits for a first answer",
    "HEADSTART_REMOTE": "stores that hosts share, as URLs separated by blanks",
    "HEADSTART_REMOTE_DEADLINE": "seconds that a compile waits for them",
    "HEADSTART_REMOTE_KEY": "which key of yours signs what goes there",
    "HEADSTART_REMOTE_TRUST": "signed, or all: entries from there count that nobody trusted has signed",
    "HEADSTART_SERVICE": "auto, private, shared, or the path of a service's socket",
    "HEADSTART_TRUST_CACHE_DIR": "whether a cache folder that others can write is used",
    "HEADSTART_WORKERS": "compiles that may run at once",
}
_INTERNAL = frozenset({"HEADSTART_RUN"})  # what `headstart run` tells the program's processes
_ON = frozenset({"1", "true", "yes", "on"})
_OFF = frozenset({"0", "false", "no", "off"})


class Mode(enum.Enum):
    """What `HEADSTART` says to the adapters."""

    ON = "on"
    OFF = "off"
    REQUIRE = "require"  # stepping aside is an error


def mode() -> Mode:
    """`HEADSTART`; the same for every command and for the library.

    Raises:
        UsageError: it is not valid.
    """
    text = _text("HEADSTART")
    if not text or text in _ON:
        return Mode.ON
    if text in _OFF:
        return Mode.OFF
    if text == "require":
        return Mode.REQUIRE
    raise UsageError(f"HEADSTART: expected on, off or require (or 1, 0, true, false, yes, no), got {text!r}")


def required() -> bool:
    """Whether `HEADSTART` says that stepping aside is an error."""
    return _text("HEADSTART") == "require"


def switch(name: str, text: str) -> bool:
    """Whether a setting is on or off; off where it is not set.

    Args:
        name: of the setting, for the message.
        text: what it says.

    Raises:
        UsageError: it is neither.
    """
    text = text.strip().lower()
    if text and text not in _ON | _OFF:
        raise UsageError(f"{name}: expected 1 or 0 (or true, false, yes, no, on, off), got {text!r}")
    return text in _ON


def misspelt(variables: Mapping[str, str] | None = None) -> list[str]:
    """A sentence for each variable that begins like ours and is none; `variables` is by default the environment."""
    names = os.environ if variables is None else variables
    strange = sorted(
        name for name in names if name.upper().startswith("HEADSTART_") and name not in KNOWN and name not in _INTERNAL
    )
    return [_sentence(name) for name in strange]


def _sentence(name: str) -> str:
    import difflib  # hardly ever needed

    # What they all begin with says nothing.
    known = [each.removeprefix("HEADSTART_") for each in KNOWN if each.startswith("HEADSTART_")]
    near = difflib.get_close_matches(name.upper().removeprefix("HEADSTART_"), known, n=1)
    shown = name if name.isprintable() else ascii(name)
    meant = f"; did you mean HEADSTART_{near[0]}?" if near else f"; there are {', '.join(KNOWN)}"
    return f"{shown} is no variable of headstart's, and is ignored{meant}"


def _text(name: str) -> str:
    return os.environ.get(name, "").strip().lower()
