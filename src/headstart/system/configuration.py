"""Settings from files: a variable of the environment, or what a file says in its place.

    headstart.toml, or [tool.headstart] in pyproject.toml    the first in the working directory or one above it
    <configuration folder>/headstart.toml                    the user's own

Guarantees:

A variable goes before the project's file, and that before the user's own.

A file counts only if nobody but this user and root can have written it, nor put it there. That says nothing of a
project's: who unpacks one owns what is in it. So a project's file sets only what costs nobody anything (`_ANYBODY`).
Where kernels come from and go to, and what is removed from the cache, it sets once the user has allowed just these
lines (`allow`), and what loosens trust, never. What is refused is left out, with one warning.

This code assumes that files do not change while a process runs.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from headstart.errors import ServiceError, UsageError
from headstart.system.files import replace
from headstart.system.places import config_dir
from headstart.system.private import make_folder, read, refusal
from headstart.system.variables import KNOWN

FILE = "headstart.toml"
_PROJECT = "pyproject.toml"
_MARK = b"tool.headstart"
_PREFIX = "HEADSTART_"
_MAX_BYTES = 1 << 20
_ALLOWED = "allowed"  # in the configuration folder: digests, one a line

# What any file may set, whoever wrote it.
_ANYBODY = frozenset(
    {
        "HEADSTART_COMPILE_TIMEOUT",
        "HEADSTART_EARLY_CUTOFF",
        "HEADSTART_MEMORY_LIMIT",
        "HEADSTART_PATIENCE",
        "HEADSTART_REMOTE_DEADLINE",
        "HEADSTART_WORKERS",
    }
)
# What a project's file may set once the user has allowed it.
_ONCE_ALLOWED = frozenset({"HEADSTART_CACHE_LIMIT", "HEADSTART_KEEP_RUNS", "HEADSTART_REMOTE", "HEADSTART_SERVICE"})
# What no file may set: where files are, and whether headstart is used, which is asked before any is looked for.
_VARIABLES_ONLY = frozenset({"HEADSTART", "HEADSTART_CONFIG_DIR"})

_ONLY_OWN = f"is not used: a project's file decides nothing about trust; your own {FILE}, or a variable, may"
_said: set[str] = set()
_log = logging.getLogger("headstart")


class Value(NamedTuple):
    """What a file says. `key` is as it is written there."""

    text: str
    path: Path
    key: str


class Configuration(NamedTuple):
    """What files say for one working directory.

    Attributes:
        values: by the name of the variable in whose place it is.
        refused: a sentence for each setting, and each file, that does not count.
        unallowed: the project's file that has settings which the user could allow; None: there is none.
    """

    values: Mapping[str, Value]
    refused: tuple[str, ...] = ()
    unallowed: Path | None = None


def lookup(name: str) -> str:
    """What a variable says, or a file in its place; empty: neither."""
    if name in os.environ:  # an empty one asks for the default, whatever a file says
        return os.environ[name].strip()
    value = configuration().values.get(name)
    return "" if value is None else value.text


def origin(name: str) -> str:
    """What to call a setting in a message: the variable, or a file and what is written there."""
    value = None if name in os.environ else configuration().values.get(name)
    return name if value is None else f"{value.path}: {value.key}"


def configuration() -> Configuration:
    """What files say in this process's working directory. Never raises."""
    try:
        folder = os.getcwd()
    except OSError:  # it was removed
        folder = ""
    try:
        own = str(config_dir())
    except (ServiceError, UsageError):
        own = ""
    return _configuration(folder, own)


def warn(say: Callable[[str], None] | None = None) -> None:
    """Say once in a process what does not count; by default, in the log."""
    for sentence in configuration().refused:
        if sentence not in _said:
            _said.add(sentence)
            (say or functools.partial(_log.warning, "%s"))(sentence)


def allow(path: Path) -> None:
    """Have a project's file set what it sets now, where that needs the user's word.

    Raises:
        UsageError: it is no such file, or others could write it.
        OSError: this cannot be written down.
    """
    table, why = _table(path)
    if table is None:
        raise UsageError(f"{path} {why}" if why else f"{path}: there are no settings of headstart's in it")
    if why := refusal(path.parent):
        raise UsageError(f"{path} is not used: {why}")
    folder = config_dir()
    make_folder(folder)
    if why := refusal(folder):
        raise UsageError(f"{folder} is not used: {why}")
    digests = _allowed(str(folder)) | {_digest(path, table)}
    replace(folder / _ALLOWED, "".join(f"{each}\n" for each in sorted(digests)).encode(), mode=0o600)
    _configuration.cache_clear()


@functools.lru_cache(maxsize=8)
def _configuration(folder: str, own: str) -> Configuration:
    values: dict[str, Value] = {}
    refused: list[str] = []
    unallowed: Path | None = None
    if own:
        path = Path(own, FILE)
        table, why = _table(path)
        if why := why or (table and refusal(own)) or "":
            refused.append(f"{path} is not used: {why}")
        else:
            values.update(_values(path, table or {}, None, refused))
    for path in _project_files(folder):
        table, why = _table(path)
        if why := why or (table is not None and refusal(path.parent)) or "":
            refused.append(f"{path} is not used: {why}")
            continue
        if table is None:
            continue
        is_allowed = _digest(path, table) in _allowed(own)
        may = _ANYBODY | _ONCE_ALLOWED if is_allowed else _ANYBODY
        values.update(_values(path, table, may, refused))
        if not is_allowed and any(_variable(key) in _ONCE_ALLOWED for key in table):
            unallowed = path
        break  # the nearest is the project's
    return Configuration(values, tuple(refused), unallowed)


def _project_files(folder: str) -> Iterator[Path]:
    if folder:
        for place in (Path(folder), *Path(folder).parents):
            yield place / FILE
            yield place / _PROJECT


def _table(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The settings in a file, and why they do not count. None: it has none, or is not there."""
    try:
        if os.stat(path).st_size > _MAX_BYTES:
            return None, "it is too large"
        data = read(path)
    except OSError as error:
        # What cannot even be read says nothing to anybody; EPERM is `read`'s own.
        return None, str(error.strerror) if error.errno == errno.EPERM else ""
    if path.name == _PROJECT and _MARK not in data:
        return None, ""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        said = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        return None, f"this is no TOML: {str(error).splitlines()[0]}"
    if path.name == _PROJECT:
        tools = said.get("tool")
        said = tools.get("headstart") if isinstance(tools, dict) else None
        if said is None:
            return None, ""
    if not isinstance(said, dict):
        return None, "tool.headstart is no table"
    return said, ""


def _values(
    path: Path, table: Mapping[str, Any], may: frozenset[str] | None, refused: list[str]
) -> Iterator[tuple[str, Value]]:
    """The settings of a file that count. `may`: those that a project's file may set; None: it is the user's own."""
    for key, value in table.items():
        name = _variable(key)
        text = _text(value)
        if name not in KNOWN:
            refused.append(f"{path}: {_shown(key)} is no setting of headstart's; there are {', '.join(_keys())}")
        elif name in _VARIABLES_ONLY:
            refused.append(f"{path}: {_shown(key)} cannot be set in a file; set {name}")
        elif text is None:
            refused.append(f"{path}: {_shown(key)}: expected a text, a number, true or false, or a list of texts")
        elif may is not None and name not in _ANYBODY | _ONCE_ALLOWED:
            refused.append(f"{path}: {key} {_ONLY_OWN}")
        elif may is not None and name == "HEADSTART_REMOTE" and _loosens(text):
            refused.append(f"{path}: {key}: a remote whose entries could count unsigned {_ONLY_OWN}")
        elif may is not None and name not in may:
            refused.append(f"{path}: {key} is not used until you allow it: headstart config --allow")
        else:
            yield name, Value(text, path, key)


def _loosens(remotes: str) -> bool:
    """Whether entries of one of the URLs could count that nobody has signed. In doubt they could.

    So could those of a folder that this user alone can write: a project may bring one along.
    """
    for url in remotes.split():
        scheme, _, rest = url.partition("://")
        query = rest.partition("?")[2]
        options = query.split("&")
        if "#" in url or "%" in query:  # what stands for something else could stand for this
            return True
        if any("trust" in each.lower() and each != "trust=signed" for each in options):
            return True
        if scheme.lower() == "file" and "trust=signed" not in options:
            return True
    return False


def _allowed(own: str) -> set[str]:
    if not own or refusal(own):
        return set()
    try:
        return set(read(Path(own, _ALLOWED)).decode("ascii", "replace").split())
    except OSError:
        return set()


def _digest(path: Path, table: Mapping[str, Any]) -> str:
    """Of a file's place and its settings: others lines, or another project, are to be allowed anew."""
    said = json.dumps([str(path), table], sort_keys=True, default=str)
    return hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()


def _variable(key: str) -> str:
    return _PREFIX + key.upper().replace("-", "_")


def _keys() -> list[str]:
    names = sorted(set(KNOWN) - _VARIABLES_ONLY)
    return [name.removeprefix(_PREFIX).lower().replace("_", "-") for name in names]


def _text(value: object) -> str | None:
    """As a variable would have it; None: no variable could."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, list):
        return " ".join(value) if all(isinstance(each, str) for each in value) else None
    return value.strip() if isinstance(value, str) else None


def _shown(key: str) -> str:
    return key if key.isprintable() else ascii(key)[1:-1]
