"""One repository of an OCI registry, over HTTP: tokens, manifests, blobs.

The protocol is the OCI Distribution Specification 1.1, and Docker's for tokens. What of it is used:

    GET, HEAD, PUT, DELETE /v2/<repository>/manifests/<tag or digest>
    GET, HEAD              /v2/<repository>/blobs/<digest>
    POST, then PUT         /v2/<repository>/blobs/uploads/…
    GET                    <realm of a challenge>?service=…&scope=…        a token

Guarantees:

What is got by a digest has that digest, and no more bytes are read than were expected.

Credentials go to the registry, and to where it says that its tokens are; never over http, unless the registry itself is
on this host or the URL says so; and not to where a blob is redirected.

This code assumes that manifests are small (`MAX_MANIFEST_BYTES`). Each wait is bounded, but not their sum: that is the
caller's.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec

from headstart.stores.remote.base import RemoteError, plain
from headstart.stores.remote.credentials import Credentials, credentials_for
from headstart.stores.remote.references import DIGEST, reference_of
from headstart.stores.remote.transport import Answer, Transport
from headstart.stores.remote.urls import RemoteUrl

CONNECT_SECONDS = 1.0  # TLS included
READ_SECONDS = 5.0  # between two pieces of an answer
AT_ONCE = 16  # requests of one call
CONNECTIONS = 2 * AT_ONCE  # kept: two calls may be under way
MAX_MANIFEST_BYTES = 4 << 20  # as registries have it
_MAX_TOKEN_BYTES = 64 << 10
_TRIES = 3  # of what only reads, where a registry says that it failed
_PAUSE = 0.02  # seconds between them

_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


class Registry:
    """One repository. Nothing is connected to before the first call; its methods may be called from several threads.

    Raises:
        UsageError: urllib3 is not installed, or no registry could have this URL.
    """

    def __init__(self, url: RemoteUrl, *, read_seconds: float | None = None) -> None:
        self.name = url.shown
        self.reference = reference_of(url)
        host = self.reference.api_host
        name = urlsplit(f"//{host}").hostname or ""
        scheme = "http" if url.allows_http(name) else "https"
        self._base = f"{scheme}://{host}/v2/{self.reference.repository}/"
        self._credentials: Credentials = credentials_for(url, self.reference.host)
        self._authorization = ""
        self._lock = threading.Lock()
        secrets = self._credentials.secrets()
        self._transport = Transport(url, name, secrets, CONNECT_SECONDS, read_seconds or READ_SECONDS, CONNECTIONS)

    def manifest(self, reference: str, media_type: str) -> tuple[bytes, str] | None:
        """A manifest and its digest; None if there is none.

        Raises:
            RemoteError: nobody knows, or it is not what its digest says.
        """
        answer = self._request("GET", f"manifests/{reference}", {"Accept": media_type}, most=MAX_MANIFEST_BYTES)
        if answer.status == 404:
            return None
        self._expect(answer, 200)
        digest = digest_of(answer.body)
        if DIGEST.fullmatch(reference) and digest != reference:
            raise self._transport.nonsense(f"{reference} is something else")
        return answer.body, digest

    def manifest_digest(self, reference: str, media_type: str) -> str:
        """The digest that a registry gives for a manifest; empty if there is none.

        Raises:
            RemoteError: nobody knows.
        """
        answer = self._request("HEAD", f"manifests/{reference}", {"Accept": media_type})
        if answer.status == 404:
            return ""
        self._expect(answer, 200)
        digest = answer.headers.get("docker-content-digest", "")
        if DIGEST.fullmatch(digest):
            return digest
        found = self.manifest(reference, media_type)  # a registry need not say it
        return "" if found is None else found[1]

    def put_manifest(self, reference: str, body: bytes, media_type: str) -> str:
        """Returns its digest.

        Raises:
            RemoteError: it is not kept.
        """
        answer = self._request("PUT", f"manifests/{reference}", {"Content-Type": media_type}, body)
        self._expect(answer, 201)
        return digest_of(body)

    def delete_manifest(self, digest: str) -> bool:
        """Remove a manifest; fine if it is gone. False: this registry does not let anybody.

        Raises:
            RemoteError: it may still be there.
        """
        answer = self._request("DELETE", f"manifests/{digest}")
        if answer.status in (404, 405, 400):
            return answer.status == 404
        self._expect(answer, 202, 200)
        return True

    def blob(self, digest: str, size: int) -> bytes | None:
        """A blob of that size; None if there is none.

        Raises:
            RemoteError: nobody knows, or it is not what its digest says.
        """
        answer = self._request("GET", f"blobs/{digest}", most=size)
        if answer.status == 404:
            return None
        self._expect(answer, 200)
        if len(answer.body) != size or digest_of(answer.body) != digest:
            raise self._transport.nonsense(f"blob {digest} is something else")
        return answer.body

    def blob_into(self, digest: str, size: int, write: Callable[[bytes], object]) -> None:
        """Have a blob of that size written, piece by piece. What was written counts only once this returns.

        Raises:
            RemoteError: there is none, or it is not what its digest says.
            OSError: of `write`.
        """
        with_digest = hashlib.sha256()
        left = size

        def take(piece: bytes) -> None:
            nonlocal left
            left -= len(piece)
            if left < 0:
                raise self._transport.nonsense(f"blob {digest} is longer than it should be")
            with_digest.update(piece)
            try:
                write(piece)
            except OSError as error:
                raise _NotWritten(error) from error

        try:
            answer = self._request("GET", f"blobs/{digest}", into=take)
        except _NotWritten as error:
            raise error.error from None
        self._expect(answer, 200)
        if left or f"sha256:{with_digest.hexdigest()}" != digest:
            raise self._transport.nonsense(f"blob {digest} is something else")

    def put_blob(self, digest: str, size: int, data: bytes | IO[bytes]) -> None:
        """Keep a blob, if it is not there.

        Raises:
            RemoteError: it is not kept.
        """
        if self._request("HEAD", f"blobs/{digest}").status == 200:
            return
        begun = self._request("POST", "blobs/uploads/", {"Content-Length": "0"})
        self._expect(begun, 202)
        place = self._place(begun.headers.get("location", ""))
        place += ("&" if "?" in place else "?") + urlencode({"digest": digest})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._expect(self._request("PUT", place, headers, data), 201)

    def close(self) -> None:
        """Let go of connections."""
        self._transport.close()

    # HTTP

    def _request(
        self,
        method: str,
        place: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | IO[bytes] | None = None,
        *,
        most: int = MAX_MANIFEST_BYTES,
        into: Callable[[bytes], None] | None = None,
    ) -> Answer:
        """Ask, with a token if the registry wants one. Errors of the service are raised."""
        for number in range(_TRIES):
            answer = self._authorized(method, place, headers or {}, body, most, into)
            # Docker's own answers so to those who read a tag or a blob while another host writes the same.
            if answer.status < 500 or method not in ("GET", "HEAD") or number == _TRIES - 1:
                break
            time.sleep(_PAUSE)
        if answer.status == 403:
            raise self._refused(answer)
        if answer.status == 429 or answer.status >= 500:
            raise RemoteError(
                f"{self.name}: the registry is busy, or broken ({answer.status})", advice="try again later"
            )
        return answer

    def _authorized(
        self,
        method: str,
        place: str,
        headers: Mapping[str, str],
        body: bytes | IO[bytes] | None,
        most: int,
        into: Callable[[bytes], None] | None,
    ) -> Answer:
        """Ask, and once more if the registry says who could be let in."""
        used = self._authorization
        answer = self._transport.ask(method, urljoin(self._base, place), _with(headers, used), body, most, into)
        if answer.status == 401 and self._authorize(answer.headers.get("www-authenticate", ""), used):
            answer = self._transport.ask(
                method, urljoin(self._base, place), _with(headers, self._authorization), body, most, into
            )
        if answer.status == 401:
            raise self._refused(answer)
        return answer

    def _place(self, location: str) -> str:
        """Where an upload goes; the token goes along, so that it is the registry itself."""
        url = self._transport.checked(location, self._base)
        if urlsplit(url).netloc != urlsplit(self._base).netloc:
            raise self._transport.nonsense("it has this host upload to another one")
        return url

    # Tokens

    def _authorize(self, challenge: str, used: str) -> bool:
        """Get what the registry asks for; False if there is nothing better than what was used."""
        kind, _, rest = challenge.partition(" ")
        with self._lock:
            if self._authorization != used:
                return True  # another thread has
            if kind.lower() == "basic":
                fresh = self._credentials.basic()
            elif kind.lower() == "bearer":
                fresh = self._token(dict(_PARAMETER.findall(rest)))
            else:
                fresh = ""
            has_changed = bool(fresh) and (fresh != used)
            self._authorization = fresh or self._authorization
            return has_changed

    def _token(self, challenge: Mapping[str, str]) -> str:
        realm = self._transport.checked(challenge.get("realm", ""))
        asked = {name: challenge[name] for name in ("service", "scope") if name in challenge}
        basic = self._credentials.basic()
        headers = {"Authorization": basic} if basic else {}
        separator = "&" if "?" in realm else "?"
        answer = self._transport.ask(
            "GET", f"{realm}{separator}{urlencode(asked)}", headers, None, _MAX_TOKEN_BYTES, None
        )
        if answer.status in (401, 403):
            raise self._refused(answer)
        self._expect(answer, 200)
        try:
            given = msgspec.json.decode(answer.body, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise self._transport.nonsense("its token cannot be read") from None
        token = given.token or given.access_token
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise self._transport.nonsense("its token cannot be read")
        return f"Bearer {token}"

    # Errors

    def _expect(self, answer: Answer, *statuses: int) -> None:
        if answer.status not in statuses:
            said = plain(answer.body.decode("utf-8", "replace"), self._credentials.secrets())
            raise RemoteError(f"{self.name}: the registry answers {answer.status}{': ' if said else ''}{said}")

    def _refused(self, answer: Answer) -> RemoteError:
        # Not by name: tokens are given as users, too.
        who = "this user is not let in" if self._credentials.basic() else "it asks who this is"
        return RemoteError(
            f"{self.name}: {who} ({answer.status})", advice=self._credentials.advice(self.reference.host), lasting=True
        )


class _NotWritten(Exception):
    """What came cannot be written where it should go; `error` says why."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


def digest_of(data: bytes) -> str:
    """As registries name it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _with(headers: Mapping[str, str], authorization: str) -> dict[str, str]:
    return {**headers, "Authorization": authorization} if authorization else dict(headers)
