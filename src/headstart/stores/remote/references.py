"""`oci` URLs: a registry, a repository of it, and what is named there."""

from __future__ import annotations

import re
from typing import NamedTuple

from headstart.errors import UsageError
from headstart.stores.remote.urls import RemoteUrl, without_credentials

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::\d{1,5})?|\[[0-9a-fA-F:]+\](?::\d{1,5})?")
_DOCKER_HUB = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_EXPECTED = "expected oci://registry.example/team/kernels:tag"


class Reference(NamedTuple):
    """What a URL names: a repository, and a tag or digest in it, either of which may be empty."""

    host: str
    repository: str
    tag: str
    digest: str

    @property
    def api_host(self) -> str:
        """Who answers for that host: for Docker's own registry, another one."""
        return _DOCKER_HUB.get(self.host, self.host)


def reference_of(url: RemoteUrl) -> Reference:
    """Take an `oci` URL apart.

    Raises:
        UsageError: no registry could have it.
    """
    location, _, digest = without_credentials(url.location).partition("@")
    host, _, rest = location.partition("/")
    repository, _, tag = rest.partition(":")
    if not _HOST.fullmatch(host):
        raise UsageError(f"{url.shown}: this is no name of a host; {_EXPECTED}")
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"{url.shown}: a repository is of lower-case words, as team/kernels; {_EXPECTED}")
    if tag and not _TAG.fullmatch(tag):
        raise UsageError(f"{url.shown}: a tag is up to 128 letters, digits, _, . and -; {_EXPECTED}")
    if digest and not DIGEST.fullmatch(digest):
        raise UsageError(f"{url.shown}: a digest is sha256: and 64 hexadecimal digits")
    if host in _DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    return Reference(host, repository, tag, digest)
