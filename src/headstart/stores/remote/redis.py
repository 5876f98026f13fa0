"""Redis, and what speaks its protocol: Valkey, and services of clouds.

    headstart:v1:<key>          a blob, with the URL's `ttl`
    headstart:v1:claim:<key>    who compiles that key, until its time is over

Guarantees:

Hundreds of keys are one round trip. Of each value no more is asked for than `FIRST_BYTES`, and what is longer is got by
itself, so that nobody who puts large values there takes more memory of this process than `MAX_REPLY_BYTES` and a chunk.

Blobs are put whole (`SET … NX`), and claims are taken by one of those who try.

This code assumes that a server which was reached is a Redis: one that sends a reply of another length than was asked
for can have this process take memory for as long as the caller's deadline lets it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from headstart.errors import UsageError
from headstart.stores.remote.base import (
    MAX_BLOB_BYTES,
    MAX_REPLY_BYTES,
    RemoteError,
    check_blob,
    check_key,
    missing,
    plain,
)
from headstart.stores.remote.urls import RemoteUrl, seconds_of

CONNECT_SECONDS = 0.2
READ_SECONDS = 0.2  # between two pieces of an answer
CHUNK = 128  # keys asked for at once
FIRST_BYTES = 1 << 20  # asked for of each at first; most entries are shorter
_PORT = 6379
_PREFIX = "headstart"
_FORMAT = "v1"
# A claim is removed by those who took it: it may be over by then, and somebody else's.
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"

T = TypeVar("T")


class RedisRemote:
    """Blobs as values of a Redis. Nothing is connected to before the first call.

    Raises:
        UsageError: redis-py is not installed, or the URL has a part that Redis has not.
    """

    writable = True

    def __init__(self, url: RemoteUrl) -> None:
        self.name = url.shown
        self.trusted = url.trust_all
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise missing(url.shown, "redis", "redis") from error
        self._redis: Any = redis
        host, port, database, user, password = _parts(url)
        self._secrets = [each for each in (user, password, url.location.rpartition("@")[0]) if each]
        self._ttl = seconds_of(url.options["ttl"], "ttl", url.shown) if "ttl" in url.options else None
        self._prefix = f"{url.options.get('prefix', _PREFIX)}:{_FORMAT}:"
        self._has_claims = url.claims
        self._token = os.urandom(16).hex()
        self._client: Any = redis.Redis(
            host=host,
            port=port,
            db=database,
            username=user,
            password=password,
            ssl=url.scheme == "rediss",
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=READ_SECONDS,
            # Once, for a connection that the server has closed since it was last used.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            protocol=2,
        )

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """See `Remote`."""
        names = [self._prefix + check_key(key) for key in keys]
        found: dict[str, bytes] = {}
        room = MAX_REPLY_BYTES
        for start in range(0, len(keys), CHUNK):
            chunk = names[start : start + CHUNK]
            for key, name, blob in zip(keys[start:], chunk, self._beginnings(chunk), strict=False):
                if len(blob) > FIRST_BYTES:
                    blob = self._whole(name)
                if blob and len(blob) <= min(MAX_BLOB_BYTES, room):
                    room -= len(blob)
                    found[key] = blob
        return found

    def put(self, key: str, blob: bytes) -> None:
        """See `Remote`. The time of one that is there already is not begun anew."""
        name = self._prefix + check_key(key)
        check_blob(blob)
        self._call(lambda: self._client.set(name, blob, ex=self._ttl, nx=True))

    def claim(self, key: str, seconds: float) -> bool | None:
        """See `Remote`."""
        if not self._has_claims:
            return None
        name = f"{self._prefix}claim:{check_key(key)}"
        milliseconds = max(1, int(seconds * 1000))
        return bool(self._call(lambda: self._client.set(name, self._token, px=milliseconds, nx=True)))

    def release(self, key: str) -> None:
        """See `Remote`."""
        if self._has_claims:
            name = f"{self._prefix}claim:{check_key(key)}"
            self._call(lambda: self._client.eval(_RELEASE, 1, name, self._token))

    def delete(self, key: str) -> None:
        """See `Remote`."""
        name = self._prefix + check_key(key)
        self._call(lambda: self._client.delete(name))

    def close(self) -> None:
        """See `Remote`."""
        try:
            self._client.close()
        except (self._redis.RedisError, OSError):
            pass  # it is gone already

    def _beginnings(self, names: Sequence[str]) -> list[bytes]:
        """The first bytes of each, one more than `FIRST_BYTES` where there are more; empty where there is none.

        Not MGET, which would have the whole of each sent.
        """

        def ask() -> list[Any]:
            pipeline = self._client.pipeline(transaction=False)
            for name in names:
                pipeline.getrange(name, 0, FIRST_BYTES)
            answers: list[Any] = pipeline.execute(raise_on_error=False)
            return answers

        answers = self._call(ask)
        for answer in answers:
            # Somebody else's value under that name, of another type than bytes, is no entry.
            if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
                raise self._error(answer) from answer
        return [answer if isinstance(answer, bytes) else b"" for answer in answers]

    def _whole(self, name: str) -> bytes:
        """One byte more than the most there may be, if there is more."""
        whole: bytes = self._call(lambda: self._client.getrange(name, 0, MAX_BLOB_BYTES))
        return whole

    def _call(self, what: Callable[[], T]) -> T:
        try:
            return what()
        except Exception as error:  # noqa: BLE001 - what is no Redis makes redis-py fail in any way
            raise self._error(error) from None  # its text may have the password

    def _error(self, error: Exception) -> RemoteError:
        errors = self._redis.exceptions
        text = plain(error, self._secrets)
        upper = text.upper()
        if isinstance(error, errors.AuthenticationError) or upper.startswith(("WRONGPASS", "NOAUTH")):
            why = "it asks for a password" if "NOAUTH" in upper or "REQUIRED" in upper else "wrong user or password"
            return self._lasting(why, "correct the URL: redis://user:password@host:6379/0")
        if isinstance(error, (errors.NoPermissionError, errors.AuthorizationError)):
            return self._lasting(
                f"not allowed ({text})", "have its administrator allow this user GETRANGE, SET, DEL, EVAL"
            )
        if isinstance(error, errors.OutOfMemoryError) or upper.startswith(
            ("OOM", "COMMAND NOT ALLOWED WHEN USED MEMORY")
        ):
            return RemoteError(
                f"{self.name}: it has no memory left and takes nothing",
                advice="give it more (maxmemory), or have it drop old values (maxmemory-policy allkeys-lru; ?ttl=7d)",
            )
        if isinstance(error, errors.ReadOnlyError):
            return self._lasting("a replica, which cannot be written", "name the primary, or add ?read-only")
        if isinstance(error, errors.BusyLoadingError):
            return RemoteError(f"{self.name}: it is loading its data", advice="wait until it has")
        if "DB INDEX" in upper:
            return self._lasting(f"no such database ({text})", "correct the number at the end of the URL")
        if "CERTIFICATE" in upper or "SSL" in upper or "TLS" in upper:
            return self._lasting(
                f"TLS is refused ({text})", "have its certificate trusted (SSL_CERT_FILE), or see whether it speaks TLS"
            )
        if isinstance(error, (errors.TimeoutError, TimeoutError)):
            tls = ", and speaks TLS" if self.name.startswith("rediss:") else ""
            return RemoteError(
                f"{self.name}: no answer in time", advice=f"see whether it can be reached from this host{tls}"
            )
        if isinstance(error, (errors.MovedError, errors.AskError, errors.ClusterError)):
            return self._lasting("it is a cluster, which is not supported", "name a single server or a proxy")
        if isinstance(error, (errors.ConnectionError, OSError)):
            return RemoteError(
                f"{self.name}: cannot be reached ({text})",
                advice="see whether it runs and can be reached from this host",
            )
        if isinstance(error, errors.ResponseError):
            return RemoteError(f"{self.name}: it refuses: {text}")
        return RemoteError(f"{self.name}: what answers is no Redis ({type(error).__name__})", advice="correct the URL")

    def _lasting(self, what: str, advice: str) -> RemoteError:
        return RemoteError(f"{self.name}: {what}", advice=advice, lasting=True)


def _parts(url: RemoteUrl) -> tuple[str, int, int, str | None, str | None]:
    """Host, port, database, user and password.

    Raises:
        UsageError: one of them cannot be.
    """
    try:
        parts = urlsplit(f"//{url.location}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(
            f"{url.shown}: expected redis://host:6379/0, quoted as URLs are (a / in a password is %2F)"
        ) from None
    number = parts.path.strip("/") or "0"
    if not host or not number.isdecimal() or len(number) > 5:
        raise UsageError(f"{url.shown}: expected redis://host:6379/0, with the number of a database")
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    return host, port or _PORT, int(number), user, password
