"""`HEADSTART_REMOTE`: which remotes there are, as URLs separated by blanks, the nearest first.

    redis://user:password@host:6379/0?ttl=7d    rediss:// with TLS; valkey:// and valkeys:// are the same
    s3://bucket/prefix?region=…&endpoint=…      gs://bucket/prefix, az://container/prefix
    oci://registry.example/team/kernels:tag
    file:///mnt/shared/headstart

Credentials are in a URL only where the store has no place of its own for them. `shown` has none, and is all that
messages and `repr` give away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import parse_qsl, unquote

import msgspec

from headstart.errors import UsageError

# Schemes and their own options; all have those below.
_OPTIONS: Mapping[str, frozenset[str]] = {
    scheme: frozenset(names.split())
    for scheme, names in {
        "redis": "ttl prefix",
        "rediss": "ttl prefix",
        "s3": "region endpoint allow-http",
        "gs": "",
        "az": "endpoint allow-http",
        "oci": "allow-http",
        "file": "",
    }.items()
}
_COMMON = frozenset({"read-only", "trust", "claims"})
_FLAGS = frozenset({"read-only", "claims", "allow-http"})
_ALIASES = {"valkey": "redis", "valkeys": "rediss"}
SCHEMES = (*_OPTIONS, *_ALIASES)

_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_TIME = re.compile(r"(\d{1,9})([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_ON = frozenset({"", "1", "true", "yes", "on"})
_OFF = frozenset({"0", "false", "no", "off"})


class RemoteUrl(msgspec.Struct, frozen=True):
    """One remote, as the user named it.

    Attributes:
        scheme: `redis`, `rediss`, `s3`, `gs`, `az`, `oci` or `file`.
        location: what is between `://` and `?`, credentials included, still quoted as in URLs.
        options: what is behind `?`, `read-only` left out.
        read_only: nothing is written there.
        trust_all: what is there counts without a signature.
        shown: scheme and location without credentials, for people.
    """

    scheme: str
    location: str
    options: dict[str, str]
    read_only: bool
    trust_all: bool
    shown: str

    def __repr__(self) -> str:
        return f"RemoteUrl({self.shown})"

    @property
    def claims(self) -> bool:
        """Whether hosts tell one another there what they compile."""
        return self.options.get("claims") == "1"

    @property
    def signed_only(self) -> bool:
        """Whether signatures are asked for even in a folder that nobody but this user can write."""
        return self.options.get("trust") == "signed"

    def allows_http(self, host: str) -> bool:
        """Whether requests to a host may travel without TLS: within this host, or if the URL says so."""
        return self.options.get("allow-http", "1" if is_loopback(host) else "0") == "1"

    @property
    def path(self) -> str:
        """The folder of a `file` URL."""
        return unquote(self.location)


def parse_urls(setting: str) -> list[RemoteUrl]:
    """The remotes of a setting, the nearest first.

    Raises:
        UsageError: one of them is none; says which schemes, or options, there are.
    """
    return [parse_url(text) for text in setting.split()]


def parse_url(text: str) -> RemoteUrl:
    """One remote.

    Raises:
        UsageError: as `parse_urls`. Its text has no credentials.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise UsageError(_no_scheme(text))
    known = scheme.lower()
    scheme = _ALIASES.get(known, known)
    if scheme not in _OPTIONS:
        raise UsageError(f"{_printable(known)}:// is no kind of remote{_did_you_mean(known)}; there are {_listed()}")
    location, _, query = rest.partition("#")[0].partition("?")
    shown = f"{scheme}://{without_credentials(location)}"
    if not shown.isprintable():
        shown = ascii(shown)[1:-1]
    options = _options(scheme, query, shown)
    _check_location(scheme, location, shown)
    trust = options.get("trust", "signed")
    if trust not in ("all", "signed"):
        raise UsageError(f"{shown}: trust: expected all or signed")
    read_only = options.pop("read-only", "0") == "1"
    return RemoteUrl(scheme, location, options, read_only, trust == "all", shown)


def seconds_of(text: str, name: str, shown: str) -> int:
    """Seconds in `"90"`, `"90s"`, `"10m"`, `"2h"` or `"7d"`.

    Raises:
        UsageError: it is none of these, or no time at all.
    """
    match = _TIME.fullmatch(text)
    seconds = 0 if match is None else int(match[1]) * _UNITS[match[2]]
    if seconds < 1:
        raise UsageError(f"{shown}: {name}: expected a time such as 90s, 12h or 7d, got {text!r}")
    return seconds


def _options(scheme: str, query: str, shown: str) -> dict[str, str]:
    options = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _COMMON | _OPTIONS[scheme]:
            there = ", ".join(sorted(_COMMON | _OPTIONS[scheme]))
            # What stands behind it may be a password.
            raise UsageError(f"{shown}: {_printable(name)} is no option of it; there are {there}")
        if name in _FLAGS:
            if value.lower() not in _ON | _OFF:
                raise UsageError(f"{shown}: {name}: expected 1 or 0")
            value = "1" if value.lower() in _ON else "0"
        elif not value:
            raise UsageError(f"{shown}: {name}: expected a value")
        options[name] = value
    if "ttl" in options:
        seconds_of(options["ttl"], "ttl", shown)
    return options


def _check_location(scheme: str, location: str, shown: str) -> None:
    if scheme == "file":
        if not location.startswith("/"):
            raise UsageError(f"{shown}: expected an absolute path, with three slashes: file:///mnt/shared/headstart")
        if "\0" in unquote(location):
            raise UsageError(f"{shown}: this is no path")
        return
    place, _, path = without_credentials(location).partition("/")
    if not place:
        raise UsageError(f"{shown}: expected {_EXAMPLES[scheme]}")
    if scheme == "oci" and not path:
        raise UsageError(f"{shown}: expected a repository as well: {_EXAMPLES[scheme]}")
    if scheme in ("s3", "gs", "az") and "@" in location:
        # obstore, and every tool of these stores, reads them from where they belong.
        raise UsageError(f"{shown}: credentials are not taken from the URL; see docs/remote.md for where they go")


_EXAMPLES = {
    "redis": "redis://host:6379/0",
    "rediss": "rediss://host:6379/0",
    "s3": "s3://bucket/prefix",
    "gs": "gs://bucket/prefix",
    "az": "az://container/prefix",
    "oci": "oci://registry.example/team/kernels:tag",
}


def without_credentials(location: str) -> str:
    """A password may have a slash in it that nobody quoted: all before the last @ goes, but for that of a digest."""
    digest = _DIGEST.search(location)
    if digest is not None:
        return without_credentials(location[: digest.start()]) + digest[0]
    return location.rpartition("@")[2]


def _no_scheme(text: str) -> str:
    if text.startswith("/"):
        return f"{_printable(text)} is no URL of a remote; did you mean file://{_printable(text)}?"
    return f"{_printable(without_credentials(text))} is no URL of a remote; there are {_listed()}"


def _did_you_mean(scheme: str) -> str:
    import difflib  # hardly ever needed

    near = difflib.get_close_matches(scheme, SCHEMES, n=1)
    return f", did you mean {near[0]}://?" if near else ""


def _listed() -> str:
    return ", ".join(f"{scheme}://" for scheme in SCHEMES)


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


def is_loopback(host: str) -> bool:
    """Whether a host's name can only be this host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
