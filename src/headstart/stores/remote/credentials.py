"""Who this user is to a registry: what its URL says, else what `docker login` and its like have written down.

Credential helpers are programs of Docker's, which headstart does not run.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from headstart.stores.remote.urls import RemoteUrl, without_credentials

_MAX_BYTES = 1 << 20
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


class Credentials(msgspec.Struct):
    """A user and a password, or neither. Their `repr` tells nothing.

    Attributes:
        helper: what has credentials for this host that cannot be read from here; empty: nothing.
    """

    user: str = ""
    password: str = ""
    helper: str = ""

    def __repr__(self) -> str:
        return f"Credentials({'some' if self.password else 'none'})"

    def basic(self) -> str:
        """The header's value; empty if there is nobody to be."""
        if not self.user and not self.password:
            return ""
        return f"Basic {base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()}"

    def secrets(self) -> list[str]:
        """What no message may have in it."""
        return [each for each in (self.user, self.password, self.basic().removeprefix("Basic ")) if each]

    def advice(self, host: str) -> str:
        """What to do if the registry does not let this user in."""
        if self.helper:
            helped = f"Docker's credential helper {self.helper} is not asked"
            return f"{helped}; put the password into the URL, oci://user:password@…, or log in without it"
        if self.user:
            return "see whether the password is right, and this user may do that"
        return f"docker login {host}, or put them into the URL: oci://user:password@…"


def credentials_for(url: RemoteUrl, host: str) -> Credentials:
    """Those of the URL, or of the first file that has some for this host."""
    given = url.location.removesuffix(without_credentials(url.location)).removesuffix("@")
    if given:
        user, _, password = given.partition(":")
        return Credentials(unquote(user), unquote(password))
    helper = ""
    for path in _files():
        found = _in_file(path, host)
        if found.user or found.password:
            return found
        helper = helper or found.helper
    return Credentials(helper=helper)


def _files() -> list[Path]:
    named = os.environ.get("REGISTRY_AUTH_FILE")  # of podman, skopeo, buildah
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    session = os.environ.get("XDG_RUNTIME_DIR")
    paths = [named, os.path.join(folder, "config.json"), session and os.path.join(session, "containers", "auth.json")]
    return [Path(path) for path in paths if path]


def _in_file(path: Path, host: str) -> Credentials:
    """What is no such file, or cannot be read, has none."""
    try:
        with open(path, "rb") as file:
            said: Any = msgspec.json.decode(file.read(_MAX_BYTES))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Credentials()
    if not isinstance(said, dict):
        return Credentials()
    auths = said.get("auths")
    for name, entry in auths.items() if isinstance(auths, dict) else ():
        if _is_of(name, host) and isinstance(entry, dict):
            found = _decoded(entry)
            if found.user or found.password:
                return found
    helpers = said.get("credHelpers")
    named: Any = (helpers.get(host) if isinstance(helpers, dict) else None) or said.get("credsStore")
    return Credentials(helper=named if isinstance(named, str) else "")


def _decoded(entry: dict[str, Any]) -> Credentials:
    auth = entry.get("auth")
    if isinstance(auth, str):
        try:
            user, _, password = base64.b64decode(auth).decode().partition(":")
        except (binascii.Error, ValueError):
            return Credentials()
        return Credentials(user, password)
    name, word = entry.get("username"), entry.get("password")
    if isinstance(name, str) and isinstance(word, str):
        return Credentials(name, word)
    return Credentials()


def _is_of(name: str, host: str) -> bool:
    place = name.partition("://")[2] or name
    there = place.partition("/")[0]
    return there == host or (there in _DOCKER_HUB and host in _DOCKER_HUB)
