"""Object stores: S3 and what speaks its protocol, Google Cloud Storage, Azure's blobs.

    <prefix>/v1/3f/3f…e2.blob     what is under a key
    <prefix>/v1/claims/<key>      who compiles that key, and for how many seconds

Guarantees:

Blobs are put whole, and only where there is none, if the store knows how (`If-None-Match: *`).

Keys are got side by side, over connections that are kept. An object is not read if it says that it is larger than
`MAX_BLOB_BYTES`, nor further than what it said.

Credentials are those of the environment, as every tool of that store reads them; never of the URL.

This code assumes that clocks of hosts differ by little: if they do by more than a compile takes, a claim counts for too
long, which costs a wait, or not at all, which costs a compile. What pruning removes is told by the store's clock.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import os
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from headstart.errors import UsageError
from headstart.stores.remote.base import (
    MAX_BLOB_BYTES,
    MAX_REPLY_BYTES,
    Progress,
    Pruned,
    RemoteError,
    check_blob,
    check_key,
    missing,
    plain,
)
from headstart.stores.remote.urls import RemoteUrl

CONNECT_SECONDS = 1.0  # TLS included
REQUEST_SECONDS = 3.0
AT_ONCE = 64  # requests
_RETRIES = 1
_FORMAT = "v1"
_CLAIM_BYTES = 200

T = TypeVar("T")
_BLOB = re.compile(r"[0-9a-f]{64}\.blob")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: ([345]\d\d)")
_CREDENTIALS = "see docs/remote.md for where credentials go"
_KINDS = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}


class ObjectsRemote:
    """Blobs as objects of a bucket, or container. Nothing is connected to before the first call.

    Args:
        url: names them.
        progress: see `open_remote`.

    Raises:
        UsageError: obstore is not installed, or refuses an option.
    """

    writable = True

    def __init__(self, url: RemoteUrl, progress: Progress | None = None) -> None:
        self.name = url.shown
        self._progress = progress or Progress()
        self.trusted = url.trust_all
        try:
            import obstore
            import obstore.exceptions
            import obstore.store
        except ImportError as error:
            raise missing(url.shown, "obstore", "s3") from error
        self._obstore: Any = obstore
        self._errors: Any = obstore.exceptions
        self._has_claims = url.claims
        self._puts_if_absent = True
        self._token = os.urandom(16).hex()
        bucket, _, prefix = unquote(url.location).partition("/")
        self._store: Any = self._opened(getattr(obstore.store, _KINDS[url.scheme]), bucket, prefix.strip("/"), url)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """See `Remote`."""
        places = {check_key(key): _place(key) for key in keys}
        found: dict[str, bytes] = {}
        room = MAX_REPLY_BYTES

        async def get(key: str, limit: asyncio.Semaphore) -> None:
            nonlocal room
            async with limit:
                try:
                    answer = await self._obstore.get_async(self._store, places[key])
                except (FileNotFoundError, self._errors.NotFoundError) as error:
                    self._check_bucket(error)
                    self._progress()
                    return
                size = answer.meta["size"]
                if size > min(MAX_BLOB_BYTES, room):
                    return
                room -= size
                blob = bytes(await answer.bytes_async())
                self._progress()
                if len(blob) == size:
                    found[key] = blob

        async def get_all() -> None:
            limit = asyncio.Semaphore(AT_ONCE)
            await _together([get(key, limit) for key in places])

        self._call(lambda: asyncio.run(get_all()))
        return found

    def put(self, key: str, blob: bytes) -> None:
        """See `Remote`."""
        place = _place(check_key(key))
        check_blob(blob)
        if self._puts_if_absent:
            try:
                self._put(place, blob, "create")
            except self._errors.AlreadyExistsError:
                return
            except (NotImplementedError, self._errors.NotSupportedError):
                self._puts_if_absent = False
            else:
                return
        self._put(place, blob, "overwrite")

    def claim(self, key: str, seconds: float) -> bool | None:
        """See `Remote`. None too where the store cannot put only what is absent."""
        if not self._has_claims:
            return None
        place = f"{_FORMAT}/claims/{check_key(key)}"
        mine = json.dumps({"for": seconds, "by": self._token}).encode()
        try:
            self._put(place, mine, "create")
        except self._errors.AlreadyExistsError:
            return self._take_over(place, mine)
        except (NotImplementedError, self._errors.NotSupportedError):
            return None
        return True

    def release(self, key: str) -> None:
        """See `Remote`."""
        if not self._has_claims:
            return
        place = f"{_FORMAT}/claims/{check_key(key)}"
        held = self._claim_at(place)
        if held is not None and held[1] == self._token:
            self._delete([place])

    def delete(self, key: str) -> None:
        """See `Remote`."""
        self._delete([_place(check_key(key))])

    def close(self) -> None:
        """See `Remote`. obstore closes what is idle by itself."""

    def prune(self, older_than: float) -> Pruned:
        """See `Prunable`. Object stores do not say when an object was used: its age is since it was written."""
        now = self._now()
        removed = freed = kept = kept_bytes = 0

        # Page by page: there may be millions.
        pages = iter(self._obstore.list(self._store, prefix=_FORMAT, chunk_size=1000))
        while (page := self._call(lambda: next(pages, None))) is not None:
            old = []
            for each in page:
                age = (now - each["last_modified"]).total_seconds()
                is_claim = each["path"].startswith(f"{_FORMAT}/claims/")
                if not is_claim and not _BLOB.fullmatch(each["path"].rpartition("/")[2]):
                    continue
                if age > older_than:
                    old.append(each["path"])
                if not is_claim:
                    removed, freed = removed + (age > older_than), freed + (age > older_than) * each["size"]
                    kept, kept_bytes = kept + (age <= older_than), kept_bytes + (age <= older_than) * each["size"]
            self._delete(old)
        return Pruned(removed, freed, kept, kept_bytes)

    def _opened(self, kind: Any, bucket: str, prefix: str, url: RemoteUrl) -> Any:
        endpoint = url.options.get("endpoint", "")
        client: dict[str, Any] = {
            "connect_timeout": dt.timedelta(seconds=CONNECT_SECONDS),
            "timeout": dt.timedelta(seconds=REQUEST_SECONDS),
            "user_agent": "headstart",
        }
        config: dict[str, Any] = {}
        if endpoint:
            _check_endpoint(endpoint, url)
            config["endpoint"] = endpoint
            client["allow_http"] = endpoint.startswith("http://")
        if "region" in url.options:
            config["region"] = url.options["region"]
        retries = {
            "max_retries": _RETRIES,
            "retry_timeout": dt.timedelta(seconds=2 * REQUEST_SECONDS),
            "backoff": {"init_backoff": dt.timedelta(milliseconds=50), "max_backoff": dt.timedelta(milliseconds=200)},
        }
        try:
            return kind(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=retries)
        except Exception as error:  # noqa: BLE001 - also of what the environment says
            raise UsageError(f"{url.shown}: {_short(error)}") from None

    def _put(self, place: str, blob: bytes, mode: Any) -> None:
        """`mode`: obstore's; with a version, the absence of that is an error of obstore's too."""
        try:
            self._call(lambda: self._obstore.put(self._store, place, blob, mode=mode, use_multipart=False))
        except (FileNotFoundError, self._errors.NotFoundError):
            if isinstance(mode, str):
                raise self._no_bucket() from None
            raise

    def _delete(self, places: list[str]) -> None:
        if places:
            try:
                self._call(lambda: self._obstore.delete(self._store, places))
            except (FileNotFoundError, self._errors.NotFoundError) as error:
                self._check_bucket(error)

    def _take_over(self, place: str, mine: bytes) -> bool:
        """Whether a claim that is there was over, and is ours now."""
        held = self._claim_at(place)
        if held is None:
            return False  # given back just now: its entry is there, or will not come
        if dt.datetime.now(dt.timezone.utc) < held[0]:
            return False
        try:
            self._put(place, mine, held[2])
        except (FileNotFoundError, self._errors.PreconditionError, self._errors.AlreadyExistsError):
            return False
        except (NotImplementedError, self._errors.NotSupportedError):
            self._delete([place])  # whoever comes next may take it
            return False
        return True

    def _claim_at(self, place: str) -> tuple[dt.datetime, str, dict[str, Any]] | None:
        """When a claim is over, whose it is, and which version of it this is; None if there is none."""

        def get() -> tuple[Any, bytes]:
            answer = self._obstore.get(self._store, place)
            if answer.meta["size"] > _CLAIM_BYTES:
                return answer.meta, b""
            return answer.meta, bytes(answer.bytes())

        try:
            meta, data = self._call(get)
        except (FileNotFoundError, self._errors.NotFoundError) as error:
            self._check_bucket(error)
            return None
        seconds, by = 0.0, ""
        try:
            said = json.loads(data)
            if math.isfinite(lasts := float(said["for"])):
                seconds, by = min(max(lasts, 0.0), 3600.0), str(said["by"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            pass  # somebody else's; it counts for nothing
        version = {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}
        return meta["last_modified"] + dt.timedelta(seconds=seconds), by, version

    def _now(self) -> dt.datetime:
        """What time the store has."""
        place = f"{_FORMAT}/now-{os.urandom(8).hex()}"
        self._put(place, b"now", "overwrite")
        try:
            now: dt.datetime = self._call(lambda: self._obstore.head(self._store, place))["last_modified"]
            return now
        except (FileNotFoundError, self._errors.NotFoundError):
            raise RemoteError(f"{self.name}: what was written is not there") from None
        finally:
            self._delete([place])

    def _call(self, what: Callable[[], T]) -> T:
        """Raises RemoteError, or what says that something is absent, is there already, or cannot be done here."""
        try:
            return what()
        except (
            FileNotFoundError,
            NotImplementedError,
            self._errors.NotFoundError,
            self._errors.AlreadyExistsError,
            self._errors.PreconditionError,
            self._errors.NotSupportedError,
            RemoteError,
        ) as error:
            if isinstance(error, (FileNotFoundError, self._errors.NotFoundError)):
                self._check_bucket(error)
            raise
        except (self._errors.BaseError, OSError, ValueError) as error:
            raise self._error(error) from None  # its text may have what was sent

    def _check_bucket(self, error: Exception) -> None:
        """Raises RemoteError if it is not the object that is absent."""
        code = _CODE.search(str(error))
        if code is not None and code[1] in ("NoSuchBucket", "ContainerNotFound"):
            raise self._no_bucket() from None

    def _no_bucket(self) -> RemoteError:
        return RemoteError(f"{self.name}: there is no such bucket", advice="make it, or correct the URL", lasting=True)

    def _error(self, error: Exception) -> RemoteError:
        """Told by words of obstore's, whose classes of errors are few; the text itself is pages long."""
        text = str(error)
        code = _CODE.search(text)
        status = _STATUS.search(text)
        said = f" ({code[1]})" if code else f" ({status[1]})" if status else ""
        if code is not None and code[1] == "RequestTimeTooSkewed":
            what, advice, lasting = f"its clock and this host's differ{said}", "set the one that is wrong", True
        elif "169.254.169.254" in text or "/latest/api/token" in text or "redential" in text:
            what, advice, lasting = "there are no credentials", _CREDENTIALS, True
        elif isinstance(error, (self._errors.PermissionDeniedError, self._errors.UnauthenticatedError)):
            what, advice, lasting = f"not allowed{said}", _CREDENTIALS, True
        elif any(word in text for word in ("InvalidMessage(", "InvalidCertificate", "ertificate", "AlertReceived(")):
            what, advice, lasting = "TLS is refused", "have its certificate trusted, or correct endpoint=", True
        elif "kind: Timeout" in text:
            what, advice, lasting = "no answer in time", "see whether it can be reached from this host", False
        elif "kind: Connect" in text:
            what, advice, lasting = "cannot be reached", "see whether it runs and can be reached from this host", False
        else:
            what, advice, lasting = (
                f"it refuses, or is no such store{said}",
                "headstart remote check tries again",
                False,
            )
        return RemoteError(f"{self.name}: {what}", advice=advice, lasting=lasting)


async def _together(what: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all side by side; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(each) for each in what]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _place(key: str) -> str:
    return f"{_FORMAT}/{key[:2]}/{key}.blob"


def _check_endpoint(endpoint: str, url: RemoteUrl) -> None:
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"{url.shown}: endpoint: expected a URL such as https://minio.example:9000")
    if "@" in parts.netloc:
        raise UsageError(f"{url.shown}: endpoint: credentials are not taken from the URL; see docs/remote.md")
    if parts.scheme == "http" and not url.allows_http(host):
        raise UsageError(
            f"{url.shown}: endpoint: whoever is between can read and change what travels over http; "
            "use https, or add allow-http if you trust that network"
        )


def _short(error: Exception) -> str:
    return plain(error)
