"""`headstart config`: which settings are in force, and where each comes from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import click

from headstart.cli import json_line, printable, printable_lines, using
from headstart.errors import HeadstartError, UsageError
from headstart.stores.remote.urls import parse_url, parse_urls
from headstart.system.configuration import allow as allow_settings
from headstart.system.configuration import configuration, lookup, warn
from headstart.system.folders import cache_dir
from headstart.system.machine import usable_cpus
from headstart.system.places import config_dir
from headstart.system.settings import DEFAULT_KEEP_RUNS, DEFAULT_PATIENCE, MAX_WORKERS, Settings, patience
from headstart.system.variables import KNOWN, mode

# What holds where nothing is set, by variable; those that are not here: nothing.
_DEFAULTS: Mapping[str, Callable[[], object]] = {
    "HEADSTART": lambda: "on",
    "HEADSTART_CACHE_DIR": cache_dir,
    "HEADSTART_CACHE_LIMIT": lambda: "10GiB",
    "HEADSTART_COMPILE_TIMEOUT": lambda: "none",
    "HEADSTART_CONFIG_DIR": config_dir,
    "HEADSTART_EARLY_CUTOFF": lambda: "0",
    "HEADSTART_FARM": lambda: "off",
    "HEADSTART_KEEP_RUNS": lambda: DEFAULT_KEEP_RUNS,
    "HEADSTART_MEMORY_LIMIT": lambda: "none",
    "HEADSTART_PATIENCE": lambda: f"{DEFAULT_PATIENCE:g}",
    "HEADSTART_REMOTE_TRUST": lambda: "signed",
    "HEADSTART_SERVICE": lambda: "auto",
    "HEADSTART_TRUST_CACHE_DIR": lambda: "0",
    "HEADSTART_WORKERS": lambda: min(usable_cpus(), MAX_WORKERS),
}


class _Row(NamedTuple):
    """One setting: what `--json` prints of it. `source` is `variable`, `default`, or a file's path."""

    setting: str
    value: str
    source: str


@click.command(short_help="Show which settings are in force, and where each comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per setting.")
@click.option("--allow", is_flag=True, help="First have the project's file set what needs your word.")
def config(as_json: bool, allow: bool) -> None:
    """Show which settings are in force, and where each comes from. Passwords are not shown.

    A variable goes before the project's file (headstart.toml, or [tool.headstart] in pyproject.toml, in this folder or
    one above it), and that before headstart.toml in your configuration folder. What a project's file says of remotes,
    the cache's limit and the service counts once you --allow it, as it stands. Exit code 2 if a setting is wrong.
    """
    if allow:
        _allow()
    for row in _rows():
        if as_json:
            click.echo(json_line(row._asdict()))
        else:
            click.echo(f"{row.setting:18} {printable(row.value):32} {printable(row.source)}")
    warn(lambda sentence: click.echo(f"headstart: {printable_lines(sentence)}", err=True))
    mode()
    Settings.load()
    patience()
    parse_urls(lookup("HEADSTART_REMOTE"))


def _allow() -> None:
    path = configuration().unallowed
    if path is None:
        raise UsageError("there is nothing to allow: no project's file here sets what needs your word")
    with using(path):
        allow_settings(path)
    click.echo(f"headstart: allowed, as it stands now: {printable(str(path))}", err=True)


def _rows() -> Iterator[_Row]:
    for name in sorted(KNOWN):
        setting = name.removeprefix("HEADSTART_").lower().replace("_", "-")
        value = None if name in os.environ else configuration().values.get(name)
        text = lookup(name)
        if text:
            shown = _without_passwords(text) if name == "HEADSTART_REMOTE" else text
            yield _Row(setting, shown, "variable" if value is None else str(value.path))
        else:
            yield _Row(setting, _default(name), "default")


def _default(name: str) -> str:
    try:
        return str(_DEFAULTS[name]()) if name in _DEFAULTS else ""
    except HeadstartError:  # there is no such folder for this user
        return ""


def _without_passwords(remotes: str) -> str:
    return " ".join(map(_shown, remotes.split()))


def _shown(text: str) -> str:
    try:
        url = parse_url(text)
    except UsageError:
        return "***"  # who knows what it is
    options = [f"{name}={value}" for name, value in url.options.items()]
    options += ["read-only"] * url.read_only
    return f"{url.shown}{'?' if options else ''}{'&'.join(options)}"
