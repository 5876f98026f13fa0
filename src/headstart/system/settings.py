"""What the user set: arguments first, then `HEADSTART_*` variables, then configuration files, then defaults."""

from __future__ import annotations

import os
import re
from fractions import Fraction
from pathlib import Path

import msgspec

from headstart.errors import UsageError
from headstart.system.configuration import lookup, origin, warn
from headstart.system.folders import cache_dir as default_cache_dir
from headstart.system.machine import usable_cpus
from headstart.system.places import expanded
from headstart.system.variables import switch

DEFAULT_STORE_LIMIT = 10 << 30  # bytes
DEFAULT_PATIENCE = 10.0  # seconds
DEFAULT_KEEP_RUNS = 100
MAX_KEEP_RUNS = 10_000

MAX_WORKERS = 1024  # more than there are cores, and few enough to be looked at one by one

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Settings(msgspec.Struct, frozen=True):
    """What holds for one client.

    Attributes:
        cache_dir: where everything that stays is.
        workers: compiles that may run at once.
        time_limit: seconds that one compile may take; None: no limit.
        store_limit: bytes that the store may grow to; None: no limit.
        memory_limit: bytes that one compile may use, its tools included; None: no limit.
        service: `"auto"`, `"private"`, `"shared"`, or the absolute path of a service's socket.
        early_cutoff: whether configurations that become the same program are one compile from there on.
        trusts_cache_dir: whether `cache_dir` is used though others can write it; docs/security.md says what that means.
        remote: URLs of stores that hosts share, separated by blanks; there may be passwords in them.
        trusts_remote: whether entries from there count that no trusted key has signed.
        remote_deadline: seconds that a compile waits for them; None: the default.
        remote_key: which of the user's own keys signs what goes there; empty: the only one.
        farm: `"ray"`, or the address of a Ray cluster, whose machines compile as well; empty: none does.
        farm_signs: whether what they make counts only if a trusted key has signed it.
        keep_runs: logs of how many runs are kept, for `headstart report`; 0: none is written.
    """

    cache_dir: Path
    workers: int
    time_limit: float | None
    store_limit: int | None
    memory_limit: int | None = None
    service: str = "auto"
    early_cutoff: bool = False
    trusts_cache_dir: bool = False
    remote: str = ""
    trusts_remote: bool = False
    remote_deadline: float | None = None
    remote_key: str = ""
    farm: str = ""
    farm_signs: bool = False
    keep_runs: int = DEFAULT_KEEP_RUNS

    @classmethod
    def load(
        cls,
        *,
        workers: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        farm: str | None = None,
    ) -> Settings:
        """Read `HEADSTART_CACHE_DIR`, `_WORKERS`, `_COMPILE_TIMEOUT` (seconds), `_CACHE_LIMIT` and `_MEMORY_LIMIT`
        (`"10GiB"`, `"none"`), `_SERVICE` (`"auto"`, `"private"`, `"shared"`, or a path), `_EARLY_CUTOFF` and
        `_TRUST_CACHE_DIR` (`"1"`), `_REMOTE` (URLs), `_REMOTE_TRUST` (`"signed"`, `"all"`), `_REMOTE_DEADLINE`
        (seconds), `_REMOTE_KEY` (a name), `_FARM` (`"ray"`, `"off"`, or an address) and `_KEEP_RUNS` (a number).

        Raises:
            UsageError: one of them is not valid.
        """
        warn()
        if workers is None:
            workers = _whole_number("HEADSTART_WORKERS", min(usable_cpus(), MAX_WORKERS), MAX_WORKERS)
        if not isinstance(workers, int) or not 1 <= workers <= MAX_WORKERS:
            raise UsageError(f"workers: expected a number from 1 to {MAX_WORKERS}, got {workers!r}")
        return cls(
            cache_dir=default_cache_dir() if cache_dir is None else expanded(cache_dir, "cache_dir"),
            workers=workers,
            time_limit=_seconds("HEADSTART_COMPILE_TIMEOUT"),
            store_limit=_size("HEADSTART_CACHE_LIMIT", DEFAULT_STORE_LIMIT),
            memory_limit=_size("HEADSTART_MEMORY_LIMIT", None),
            service=_service(),
            early_cutoff=_switch("HEADSTART_EARLY_CUTOFF"),
            trusts_cache_dir=trusts_cache_dir(),
            remote=" ".join(lookup("HEADSTART_REMOTE").split()),
            trusts_remote=_trusts_remote(),
            remote_deadline=_seconds("HEADSTART_REMOTE_DEADLINE"),
            remote_key=lookup("HEADSTART_REMOTE_KEY"),
            farm=parse_farm(lookup("HEADSTART_FARM"), origin("HEADSTART_FARM")) if farm is None else parse_farm(farm),
            farm_signs=lookup("HEADSTART_REMOTE_TRUST").lower() == "signed",
            keep_runs=_whole_number("HEADSTART_KEEP_RUNS", DEFAULT_KEEP_RUNS, MAX_KEEP_RUNS, least=0),
        )

    def __repr__(self) -> str:
        return f"Settings({str(self.cache_dir)!r}, …)"  # there may be passwords


def trusts_cache_dir() -> bool:
    """`HEADSTART_TRUST_CACHE_DIR`.

    Raises:
        UsageError: it is not valid.
    """
    return _switch("HEADSTART_TRUST_CACHE_DIR")


def patience() -> float:
    """Seconds that an adapter waits for the first answer of a worker before it compiles by itself.

    Raises:
        UsageError: `HEADSTART_PATIENCE` is not valid.
    """
    return _seconds("HEADSTART_PATIENCE") or DEFAULT_PATIENCE


def parse_farm(text: str, name: str = "farm") -> str:
    """Which farm is meant: `"ray"`, or the address of a cluster as `ray.init` takes it; empty: none.

    Raises:
        UsageError: it is no such thing. `name` is what it is called in the message.
    """
    if isinstance(text, str):
        text = text.strip()
        if text.lower() in ("", "off"):
            return ""
        if text == "ray" or re.fullmatch(r"(ray://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):\d{1,5}", text):
            return text
    raise UsageError(f"{name}: expected ray, off, or an address such as ray://head:10001 or head:6379, got {text!r}")


def parse_seconds(text: str) -> float:
    """Seconds in `"90"`, `"90s"`, `"10m"` or `"2h"`.

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None:
        raise UsageError(f"expected a time such as 90s, 10m or 2h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_size(text: str) -> int | None:
    """Bytes in `"10GiB"`, `"500M"` or `"123"`; None for `"none"`.

    Raises:
        UsageError: it is none of these.
    """
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"expected a size such as 10GiB, 500M or none, got {text!r}")
    return int(Fraction(match[1]) * _UNITS[match[2].upper()])


def _service() -> str:
    text = lookup("HEADSTART_SERVICE")
    if not text or text in ("auto", "private", "shared"):
        return text or "auto"
    if "/" not in text:
        raise UsageError(
            f"{origin('HEADSTART_SERVICE')}: expected auto, private, shared or the path of a socket, got {text!r}"
        )
    return os.path.abspath(expanded(text, origin("HEADSTART_SERVICE")))


def _switch(variable: str) -> bool:
    return switch(origin(variable), lookup(variable))


def _trusts_remote() -> bool:
    text = lookup("HEADSTART_REMOTE_TRUST").lower()
    if text not in ("", "signed", "all"):
        raise UsageError(f"HEADSTART_REMOTE_TRUST: expected signed or all, got {text!r}")
    return text == "all"


def _size(variable: str, default: int | None) -> int | None:
    text = lookup(variable)
    if not text:
        return default
    try:
        return parse_size(text)
    except UsageError as error:
        raise UsageError(f"{origin(variable)}: {error}") from None


def _whole_number(variable: str, default: int, most: int, least: int = 1) -> int:
    text = lookup(variable)
    if not text:
        return default
    if not text.isdecimal() or len(text) > len(str(most)) or not least <= int(text) <= most:
        raise UsageError(f"{origin(variable)}: expected a number from {least} to {most}, got {text!r}")
    return int(text)


def _seconds(variable: str) -> float | None:
    text = lookup(variable)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{origin(variable)}: expected a number of seconds above 0, got {text!r}")
    return seconds
