"""HTTP for registries: one request, its redirects, and what failures are called.

Answers are read no further than was asked for, and never unpacked. What a registry says is followed to where it is
encrypted, or to where the user allowed that it is not; its Authorization goes along to no other host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from headstart.stores.remote.base import RemoteError, missing, plain
from headstart.stores.remote.urls import RemoteUrl

_MAX_SAID_BYTES = 1 << 20  # of an answer that is no success
_REDIRECTS = 3
_PIECE = 1 << 20


class Answer(NamedTuple):
    """What a registry said. `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Connections to a registry, and to where it redirects. May be used from several threads.

    Args:
        url: the remote's.
        host: the registry's.
        secrets: what no message may have in it.
        connect_seconds: TLS included;
        read_seconds: between two pieces of an answer.
        connections: kept, for each host.

    Raises:
        UsageError: urllib3 is not installed.
    """

    def __init__(
        self,
        url: RemoteUrl,
        host: str,
        secrets: Sequence[str],
        connect_seconds: float,
        read_seconds: float,
        connections: int,
    ) -> None:
        try:
            import urllib3
        except ImportError as error:
            raise missing(url.shown, "urllib3", "oci") from error
        self._urllib3: Any = urllib3
        self._url = url
        self._host = host
        self._name = url.shown
        self._secrets = list(secrets)
        self._pool: Any = urllib3.PoolManager(
            num_pools=4,
            maxsize=connections,
            timeout=urllib3.Timeout(connect=connect_seconds, read=read_seconds),
            retries=urllib3.Retry(total=1, connect=1, read=0, redirect=0, status=0, other=0, raise_on_redirect=False),
            headers={"User-Agent": "headstart", "Accept-Encoding": "identity"},
        )

    def close(self) -> None:
        """Let go of connections."""
        self._pool.clear()

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | IO[bytes] | None,
        most: int,
        into: Callable[[bytes], None] | None,
    ) -> Answer:
        """Send a request, and follow where it is redirected.

        Args:
            most: bytes that a successful answer may have.
            into: given the pieces of one, instead; what it raises comes out of here.

        Raises:
            RemoteError: there is no answer, or not one that a registry would give.
        """
        errors = self._urllib3.exceptions
        if body is not None and not isinstance(body, bytes):
            body.seek(0)
        for redirects in range(_REDIRECTS + 1):
            try:
                response = self._pool.request(
                    method,
                    url,
                    headers={**self._pool.headers, **headers},
                    body=body,
                    preload_content=False,
                    redirect=False,
                )
                try:
                    known = {name.lower(): value for name, value in response.headers.items()}
                    if response.status in (301, 302, 303, 307, 308) and method in ("GET", "HEAD"):
                        target = self.checked(known.get("location", ""), url)
                        if urlsplit(target).netloc != urlsplit(url).netloc:
                            headers = {name: value for name, value in headers.items() if name != "Authorization"}
                        url = target
                        continue
                    if into is not None and response.status == 200:
                        for piece in response.stream(_PIECE, decode_content=False):
                            into(piece)
                        return Answer(200, known, b"")
                    if response.status == 401 and redirects:
                        # Who asks there is not the registry, and gets no password.
                        raise self.nonsense("where it sends this host on to, nobody is let in")
                    if response.status != 200:
                        most = _MAX_SAID_BYTES
                    data = b"" if method == "HEAD" else response.read(most + 1, decode_content=False)
                    if len(data) > most:
                        raise self.nonsense("an answer is longer than it should be")
                    return Answer(response.status, known, data)
                finally:
                    # One that was not read to its end cannot be used again.
                    response.release_conn() if _is_read(response) else response.close()
            except (errors.HTTPError, OSError, ValueError) as error:
                raise self._error(error) from None
        raise self.nonsense("it redirects in a circle")

    def checked(self, place: str, base: str = "") -> str:
        """An address that the registry gave, perhaps from `base` on, if it may be asked; else it raises RemoteError."""
        try:
            url = urljoin(base, place)
            parts = urlsplit(url)
        except ValueError:
            raise self.nonsense("it sends this host on to what is no address") from None
        # Another host's registry is not to have this one send a password to whoever listens here.
        allowed = all(self._url.allows_http(host) for host in (self._host, parts.hostname or ""))
        if parts.scheme == "https" or (parts.scheme == "http" and allowed):
            return url
        raise self.nonsense("it sends this host on to where nothing is encrypted")

    def nonsense(self, what: str) -> RemoteError:
        """What to raise if the registry says what no registry should."""
        return RemoteError(f"{self._name}: {what}", advice="see whether this is a registry, and the right one")

    def _error(self, error: Exception) -> RemoteError:
        errors = self._urllib3.exceptions
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, errors.SSLError) or isinstance(error, errors.SSLError):
            return RemoteError(
                f"{self._name}: TLS is refused ({plain(reason, self._secrets)})",
                advice="have its certificate trusted (SSL_CERT_FILE); a registry without TLS needs ?allow-http",
                lasting=True,
            )
        if isinstance(reason, (errors.TimeoutError, TimeoutError)) and not isinstance(
            reason, errors.NewConnectionError
        ):
            return RemoteError(
                f"{self._name}: no answer in time", advice="see whether it can be reached from this host"
            )
        if isinstance(reason, (errors.NewConnectionError, errors.NameResolutionError)):
            return RemoteError(
                f"{self._name}: cannot be reached", advice="see whether it runs and can be reached from this host"
            )
        return RemoteError(f"{self._name}: the connection broke, or this is no registry ({type(reason).__name__})")


def _is_read(response: Any) -> bool:
    return response.length_remaining in (0, None) and not response.chunked
