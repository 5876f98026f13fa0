"""What stores of other hosts do to their users when they refuse, fail, lie or die: an error that says so, in time."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import bad_servers
import obstore
import obstore.store
import pytest
import redis
import servers
from servers import needs

from headstart.errors import DamagedError, UsageError
from headstart.stores.remote import oci, oci_bundles, open_remote, open_remotes
from headstart.stores.remote.base import MAX_BLOB_BYTES, RemoteError
from headstart.stores.remote.objects import ObjectsRemote
from headstart.stores.remote.oci import Descriptor, OciRemote, manifest_of
from headstart.stores.remote.oci_bundles import BUNDLE_TYPE, digest_in, pull_bundle
from headstart.stores.remote.redis import FIRST_BYTES, RedisRemote
from headstart.stores.remote.registry import Registry, digest_of
from headstart.stores.remote.urls import parse_url

SECRET = "hunter2-of-mine"
A, B = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b"))
BLOB = bytes(range(256)) * 40

with_redis = [*needs("redis")]
with_s3 = [*needs("s3")]
with_registry = [*needs("registry")]


def marked(marks: list[pytest.MarkDecorator]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def mark(test: Callable[..., None]) -> Callable[..., None]:
        for each in marks:
            test = each(test)
        return test

    return mark


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., servers.Server]]:
    """Starts servers, and ends them."""
    with ExitStack() as stack:
        yield lambda server: stack.enter_context(servers.running(server))


def refused(url: str, key: str = A) -> RemoteError:
    """What is said of a remote that cannot be read; and the same of writing it. Nothing says a password."""
    remote = open_remote(parse_url(url))
    errors = []
    for call in (lambda: remote.get_many([key]), lambda: remote.put(key, BLOB)):
        with pytest.raises(RemoteError) as caught:
            call()
        told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(vars(caught.value))
        assert SECRET not in told
        errors.append(caught.value)
    remote.close()
    assert errors[0].lasting == errors[1].lasting
    return errors[0]


# Who is not let in


@marked(with_redis)
@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        (f":{SECRET}@", "wrong user or password"),
        (f"somebody:{SECRET}@", "wrong user or password"),
        ("", "asks for a password"),
    ],
)
def test_a_redis_with_a_password_says_so(
    run: Callable[..., servers.Server], tmp_path: Path, credentials: str, said: str
) -> None:
    server = run(servers.redis_server(tmp_path, password="right"))
    error = refused(f"redis://{credentials}{server.address}/0")
    assert said in str(error)
    assert error.lasting
    store = open_remote(parse_url(f"redis://:right@{server.address}"))
    store.put(A, BLOB)
    assert store.get_many([A]) == {A: BLOB}
    store.close()


@marked(with_redis)
def test_a_redis_user_that_may_not_write_is_told(run: Callable[..., servers.Server], tmp_path: Path) -> None:
    server = run(servers.redis_server(tmp_path))
    with redis.Redis(port=server.port) as client:
        client.acl_setuser("reader", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], commands=["+getrange"])
    store = open_remote(parse_url(f"redis://reader:{SECRET}@{server.address}"))
    assert store.get_many([A]) == {}
    with pytest.raises(RemoteError, match="not allowed") as caught:
        store.put(A, BLOB)
    assert caught.value.lasting
    assert SECRET not in str(caught.value)
    store.close()


@marked(with_redis)
def test_a_database_that_a_redis_has_not_is_said(run: Callable[..., servers.Server], tmp_path: Path) -> None:
    server = run(servers.redis_server(tmp_path))
    error = refused(f"redis://{server.address}/9999")
    assert "no such database" in str(error)
    assert error.lasting


@marked(with_s3)
def test_an_object_store_that_knows_neither_bucket_nor_key_says_so(
    run: Callable[..., servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = run(servers.s3_server(tmp_path))
    error = refused(f"s3://another-one/x?endpoint=http://{server.address}")
    assert "there is no such bucket" in str(error)
    assert error.lasting
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    error = refused(f"s3://{servers.BUCKET}/x?endpoint=http://{server.address}")
    assert "not allowed" in str(error)
    assert error.lasting
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    # Where a cloud's machines would get theirs: nobody is there.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    error = refused(f"s3://{servers.BUCKET}/x?endpoint=http://{server.address}")
    assert "credentials" in str(error) or "cannot be reached" in str(error)


@marked(with_registry)
def test_a_registry_that_demands_a_token_gets_one(
    run: Callable[..., servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = bad_servers.TokenServer(tmp_path, "me", SECRET)
    try:
        server = run(servers.registry_server(tmp_path, token=tokens.settings))
        store = open_remote(parse_url(f"oci://me:{SECRET}@{server.address}/team/kernels"))
        assert store.get_many([A, B]) == {}
        store.put(A, BLOB)  # for which the first token is not enough
        assert store.get_many([A, B]) == {A: BLOB}
        store.delete(A)
        assert store.get_many([A]) == {}
        store.close()
        error = refused(f"oci://me:not-{SECRET}@{server.address}/team/kernels")
        assert "this user is not let in" in str(error)
        assert error.lasting
        error = refused(f"oci://{server.address}/team/kernels")
        assert "it asks who this is" in str(error)
        assert f"docker login {server.address}" in error.advice
    finally:
        tokens.close()


@marked(with_registry)
@pytest.mark.parametrize("how", ["auth", "username", "podman"])
def test_a_registry_s_credentials_are_found_where_docker_and_podman_keep_them(
    run: Callable[..., servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    tokens = bad_servers.TokenServer(tmp_path, "me", SECRET)
    try:
        server = run(servers.registry_server(tmp_path, token=tokens.settings))
        (tmp_path / "docker").mkdir()
        encoded = base64.b64encode(f"me:{SECRET}".encode()).decode()
        entry = {"username": "me", "password": SECRET} if how == "username" else {"auth": encoded}
        name = f"{server.address}/team" if how == "podman" else f"http://{server.address}/v2/"
        file = tmp_path / "docker" / "config.json"
        file.write_text(json.dumps({"auths": {"other.example": {"auth": "eDp5"}, name: entry}}))
        if how == "podman":
            monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
            monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
        store = open_remote(parse_url(f"oci://{server.address}/team/kernels"))
        store.put(A, BLOB)
        assert store.get_many([A]) == {A: BLOB}
        store.close()
    finally:
        tokens.close()


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"auths": 3}', '{"auths": {"127.0.0.1:1": {"auth": "%"}}}', "[" * 9999]
)
def test_a_file_of_docker_s_that_says_nothing_has_no_credentials(tmp_path: Path, content: str) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(content)
    assert "cannot be reached" in str(refused("oci://127.0.0.1:1/team/kernels"))


def test_a_credential_helper_that_is_not_asked_is_named(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    with bad_servers.serving(bad_servers.saying(_http(401, "WWW-Authenticate: Basic realm=x\r\n"))) as port:
        config = {"credHelpers": {f"127.0.0.1:{port}": "ecr-login"}}
        (tmp_path / "docker" / "config.json").write_text(json.dumps(config))
        error = refused(f"oci://127.0.0.1:{port}/team/kernels")
    assert "credential helper ecr-login is not asked" in error.advice


@pytest.mark.parametrize(
    "realm",
    ["http://evil.example/token", "ftp://127.0.0.1/", "", "file:///etc/passwd", "//evil.example/token", "https://[bad"],
)
def test_a_password_is_not_sent_to_a_realm_that_anybody_could_overhear(realm: str) -> None:
    challenge = f'WWW-Authenticate: Bearer realm="{realm}",service="x"\r\n'
    with bad_servers.serving(bad_servers.saying(_http(401, challenge))) as port:
        error = refused(f"oci://me:{SECRET}@127.0.0.1:{port}/team/kernels")
    assert re.search("nothing is encrypted|not let in|no address", str(error))


@pytest.mark.parametrize(("url", "may"), [("", False), ("?allow-http=0", False), ("?allow-http", True)])
def test_a_registry_elsewhere_does_not_send_this_host_to_itself(url: str, may: bool) -> None:
    there = Registry(parse_url(f"oci://registry.example/team/kernels{url}"))
    for address in ("http://127.0.0.1:1/token", "http://localhost/", "http://[::1]:1/"):
        if may:
            assert there._transport.checked(address) == address
        else:
            with pytest.raises(RemoteError, match="nothing is encrypted"):
                there._transport.checked(address)
    there.close()


@pytest.mark.parametrize("digest", ["../../../other/manifests/secret", "sha256:ab", "", "https://evil.example/"])
def test_what_a_manifest_names_by_no_digest_is_not_asked_for(digest: str, tmp_path: Path) -> None:
    asked: list[bytes] = []
    bodies = {kind: manifest_of(kind, [Descriptor(kind, digest, len(BLOB))]) for kind in (oci.ENTRY_TYPE, BUNDLE_TYPE)}

    def registry(connection: socket.socket) -> None:
        asked.append(connection.recv(65536))
        connection.sendall(_http(200, "", bodies[oci.ENTRY_TYPE if A.encode() in asked[-1] else BUNDLE_TYPE]))

    with bad_servers.serving(registry) as port:
        store = open_remote(parse_url(f"oci://127.0.0.1:{port}/team/kernels"))
        assert store.get_many([A]) == {}
        store.close()
        with pytest.raises(RemoteError, match="no digest"):
            pull_bundle(f"oci://127.0.0.1:{port}/team/app:v1", tmp_path / "app.bundle")
    assert [b"/manifests/" in each.splitlines()[0] for each in asked] == [True, True]
    assert b"secret" not in b"".join(asked)


def test_a_token_that_is_nested_without_end_is_nonsense() -> None:
    with bad_servers.serving(bad_servers.saying(_http(200, "", b'{"x": ' + b"[" * 30_000))) as realm:
        challenge = f'WWW-Authenticate: Bearer realm="http://127.0.0.1:{realm}/token"\r\n'
        with bad_servers.serving(bad_servers.saying(_http(401, challenge))) as port:
            assert "token cannot be read" in str(refused(f"oci://me:{SECRET}@127.0.0.1:{port}/team/kernels"))


@pytest.mark.parametrize("location", ["https://[bad", "//[bad"])
def test_an_upload_to_what_is_no_address_is_nonsense(location: str) -> None:
    with bad_servers.serving(bad_servers.saying(_http(202, f"Location: {location}\r\n"))) as port:
        there = Registry(parse_url(f"oci://127.0.0.1:{port}/team/kernels"))
        with pytest.raises(RemoteError, match="no address"):
            there.put_blob(digest_of(b"1"), 1, b"1")
        there.close()


def test_a_token_is_not_sent_to_where_a_blob_is_redirected(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def elsewhere(connection: socket.socket) -> None:
        seen.append(connection.recv(65536))
        connection.sendall(_http(200, "", b"12345"))

    def registry(connection: socket.socket) -> None:
        while request := connection.recv(65536):
            if b"authorization" not in request.lower():
                connection.sendall(_http(401, "WWW-Authenticate: Basic realm=x\r\n", close=False))
            else:
                connection.sendall(_http(307, f"Location: http://127.0.0.1:{port}/blob\r\n", close=False))

    with bad_servers.serving(elsewhere) as port, bad_servers.serving(registry) as registry_port:
        there = Registry(parse_url(f"oci://me:{SECRET}@127.0.0.1:{registry_port}/team/kernels"))
        assert there.blob(digest_of(b"12345"), 5) == b"12345"
        there.close()
    assert seen
    assert b"authorization" not in seen[0].lower()


def test_a_password_is_not_sent_to_whoever_a_blob_is_redirected_to() -> None:
    asked: list[bytes] = []

    def realm(connection: socket.socket) -> None:
        asked.append(connection.recv(65536))
        connection.sendall(_http(200, "", b'{"token": "x"}'))

    def registry(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(_http(307, f"Location: http://127.0.0.1:{elsewhere}/blob\r\n"))

    with bad_servers.serving(realm) as realm_port:
        challenge = f'WWW-Authenticate: Bearer realm="http://127.0.0.1:{realm_port}/token"\r\n'
        with (
            bad_servers.serving(bad_servers.saying(_http(401, challenge))) as elsewhere,
            bad_servers.serving(registry) as port,
        ):
            there = Registry(parse_url(f"oci://me:{SECRET}@127.0.0.1:{port}/team/kernels"))
            with pytest.raises(RemoteError, match="nobody is let in"):
                there.blob(digest_of(b"12345"), 5)
            there.close()
    assert asked == []


@marked(with_registry)
def test_what_a_registry_says_may_be_longer_than_the_blob_that_was_asked_for(
    run: Callable[..., servers.Server], tmp_path: Path
) -> None:
    server = run(servers.registry_server(tmp_path))
    there = Registry(parse_url(f"oci://{server.address}/team/kernels"))
    assert there.blob(digest_of(b"1"), 1) is None
    there.put_blob(digest_of(b"1"), 1, b"1")
    assert there.blob(digest_of(b"1"), 1) == b"1"
    there.close()


def test_a_token_in_the_place_of_a_user_is_not_said_either() -> None:
    with bad_servers.serving(bad_servers.saying(_http(401, "WWW-Authenticate: Basic realm=x\r\n"))) as port:
        assert "this user is not let in" in str(refused(f"oci://{SECRET}@127.0.0.1:{port}/team/kernels"))
    with bad_servers.serving(bad_servers.saying(f"-ERR unknown 'AUTH {SECRET}'\r\n".encode())) as port:
        refused(f"redis://{SECRET}@127.0.0.1:{port}")
        refused(f"redis://{SECRET}:pw@127.0.0.1:{port}")


def _http(status: int, headers: str = "", body: bytes = b"", *, close: bool = True) -> bytes:
    end = "Connection: close\r\n" if close else ""
    return f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\n{headers}{end}\r\n".encode() + body


# TLS


@marked(with_redis)
def test_a_redis_whose_certificate_nobody_trusts_is_refused(run: Callable[..., servers.Server], tmp_path: Path) -> None:
    server = run(servers.redis_server(tmp_path, tls=bad_servers.certificate(tmp_path)))
    error = refused(f"rediss://:{SECRET}@{server.address}")
    assert "TLS is refused" in str(error)
    assert error.lasting


@marked(with_registry)
def test_a_registry_whose_certificate_nobody_trusts_is_refused(
    run: Callable[..., servers.Server], tmp_path: Path
) -> None:
    server = run(servers.registry_server(tmp_path, tls=bad_servers.certificate(tmp_path)))
    error = refused(f"oci://me:{SECRET}@{server.address}/team/kernels?allow-http=0")
    assert "TLS is refused" in str(error)
    assert error.lasting


@marked(with_registry)
def test_an_object_store_whose_certificate_nobody_trusts_is_refused(
    run: Callable[..., servers.Server], tmp_path: Path
) -> None:
    server = run(servers.registry_server(tmp_path, tls=bad_servers.certificate(tmp_path)))
    error = refused(f"s3://bucket?endpoint=https://{server.address}")
    assert "TLS is refused" in str(error)
    assert error.lasting


@pytest.mark.parametrize(
    "url",
    [
        "rediss://127.0.0.1:{}",
        "oci://127.0.0.1:{}/team/kernels?allow-http=0",
        "s3://bucket?endpoint=https://127.0.0.1:{}",
    ],
)
def test_a_server_that_speaks_no_tls_is_refused(url: str) -> None:
    with bad_servers.serving(bad_servers.saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        error = refused(url.format(port))
    assert "TLS is refused" in str(error)


# Servers that fail

ALL = {
    "redis": f"redis://:{SECRET}@127.0.0.1:{{}}/0",
    "s3": "s3://bucket/x?endpoint=http://127.0.0.1:{}",
    "oci": f"oci://me:{SECRET}@127.0.0.1:{{}}/team/kernels",
}


@pytest.mark.parametrize("url", ALL.values(), ids=ALL)
def test_nobody_at_that_port_is_an_error_at_once(url: str) -> None:
    begun = time.monotonic()
    error = refused(url.format(servers.free_ports(1)[0]))
    assert "cannot be reached" in str(error)
    assert not error.lasting
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("url", ALL.values(), ids=ALL)
def test_no_answer_is_an_error_in_time(url: str) -> None:
    with bad_servers.serving(bad_servers.never_answering) as port:
        store = open_remotes(url.format(port), operation_seconds=1.5, warn=lambda text: None)
        begun = time.monotonic()
        with pytest.raises(RemoteError, match="no answer"):
            store.get_many([A])
        assert time.monotonic() - begun < 10
        store.close()


def trickling(connection: socket.socket) -> None:
    """An answer that never ends, and never pauses for long."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.02)


@pytest.mark.parametrize("serve", [bad_servers.never_answering, trickling])
def test_a_bundle_is_not_waited_for_without_end(
    serve: Callable[[socket.socket], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_bundles, "TAG_SECONDS", 0.5)
    monkeypatch.setattr(oci_bundles, "PULL_SECONDS", 0.5)
    with bad_servers.serving(serve) as port:
        url = f"oci://127.0.0.1:{port}/team/app:v1"
        for call in (lambda: digest_in(url), lambda: pull_bundle(url, tmp_path / "app.bundle")):
            begun = time.monotonic()
            with pytest.raises(RemoteError, match=r"not done within|no answer in time"):
                call()
            assert time.monotonic() - begun < 10
    assert os.listdir(tmp_path) == []


def test_a_bundle_that_comes_slowly_is_waited_for_as_long_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_bundles, "PULL_SECONDS", 1.0)
    content = bytes(6 << 20)  # no bundle, which is found out at the end
    body = manifest_of(BUNDLE_TYPE, [Descriptor(BUNDLE_TYPE, digest_of(content), len(content))])

    def registry(connection: socket.socket) -> None:
        if b"/manifests/" in connection.recv(65536):
            connection.sendall(_http(200, "", body))
            return
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode())
        for start in range(0, len(content), 1 << 20):
            connection.sendall(content[start : start + (1 << 20)])
            time.sleep(0.3)

    with bad_servers.serving(registry) as port:
        url = f"oci://127.0.0.1:{port}/team/app:v1"
        with pytest.raises(DamagedError):
            pull_bundle(url, tmp_path / "app.bundle")
        monkeypatch.setattr(oci_bundles, "LEAST_RATE", 1 << 40)
        with pytest.raises(RemoteError, match="not done within 1 s"):
            pull_bundle(url, tmp_path / "app.bundle")


@pytest.mark.parametrize(("size", "error"), [(1 << 62, RemoteError), (-1, RemoteError), (16 << 30, OSError)])
def test_a_bundle_for_which_there_is_no_room_is_not_begun(
    size: int, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    body = manifest_of(BUNDLE_TYPE, [Descriptor(BUNDLE_TYPE, digest_of(b""), size)])

    def registry(connection: socket.socket) -> None:
        asked.append(connection.recv(65536))
        connection.sendall(_http(200, "", body))

    disk = os.statvfs(tmp_path)
    full = os.statvfs_result([*disk[:4], min(disk.f_bavail, (8 << 30) // disk.f_frsize), *disk[5:]])
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with bad_servers.serving(registry) as port, pytest.raises(error):
        pull_bundle(f"oci://127.0.0.1:{port}/team/app:v1", tmp_path / "app.bundle")
    assert len(asked) == 1
    assert os.listdir(tmp_path) == []


NONSENSE = {
    "noise": os.urandom(4000),
    "nothing": b"",
    "text": b"hello\r\n",
    "not found": _http(404),
    "a page": _http(200, "Content-Type: text/html\r\n", b"<html>hello</html>"),
    "a length that is none": b"$abc\r\n",
    "a negative length": b"*-7\r\n$-9\r\n",
    "an error with the password": f"-ERR unknown command 'AUTH', with args '{SECRET}'\r\n".encode(),
    "long lines": b"+" + b"x" * 100_000 + b"\r\n",
    "cut headers": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc",
    "chunks that are none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "json that is none": _http(200, "", b"[" * 100_000),
}


@pytest.mark.parametrize("reply", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("url", ALL.values(), ids=ALL)
def test_nonsense_is_an_error_or_a_miss_and_never_a_blob(url: str, reply: bytes) -> None:
    with bad_servers.serving(bad_servers.saying(reply)) as port:
        remote = open_remote(parse_url(url.format(port)))
        for call in (lambda: remote.get_many([A, B]), lambda: remote.put(A, BLOB), lambda: remote.delete(A)):
            found: object = None
            said = ""
            try:
                found = call()
            except RemoteError as error:
                said = "".join(traceback.format_exception(error))
            assert not found or url == ALL["s3"]  # which has no way to tell: its reader verifies what it gets
            assert SECRET not in said
        remote.close()


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        pytest.param("redis", servers.redis_server, marks=with_redis),
        pytest.param("s3", servers.s3_server, marks=with_s3),
        pytest.param("oci", servers.registry_server, marks=with_registry),
    ],
)
def test_a_server_that_dies_in_the_middle_of_a_reply_gives_no_part_of_a_blob(
    run: Callable[..., servers.Server], tmp_path: Path, kind: str, make: Callable[[Path], servers.Server]
) -> None:
    server = run(make(tmp_path))
    url = {
        "redis": "redis://127.0.0.1:{}/0",
        "s3": f"s3://{servers.BUCKET}/x?endpoint=http://127.0.0.1:{{}}",
        "oci": "oci://127.0.0.1:{}/team/kernels",
    }[kind]
    store = open_remote(parse_url(url.format(server.port)))
    for key in (A, B):
        store.put(key, BLOB)
    store.close()
    outcomes = set()
    for count in (0, 1, 10, 200, 1000, 5000, 9000, 12_000, 15_000):
        with bad_servers.serving(bad_servers.dying_after(count, server.port)) as port:
            cut = open_remote(parse_url(url.format(port)))
            try:
                found = cut.get_many([A, B])
                outcomes.add("got")
                assert set(found.values()) <= {BLOB}
            except RemoteError:
                outcomes.add("failed")
            cut.close()
    assert "failed" in outcomes


@marked(with_redis)
def test_a_server_that_is_stopped_and_goes_on_is_used_again(run: Callable[..., servers.Server], tmp_path: Path) -> None:
    server = run(servers.redis_server(tmp_path))
    store = open_remote(parse_url(f"redis://{server.address}"))
    store.put(A, BLOB)
    server.send(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(RemoteError, match="no answer in time"):
            store.get_many([A])
        assert time.monotonic() - begun < 5
    finally:
        server.send(signal.SIGCONT)
    assert store.get_many([A]) == {A: BLOB}
    store.close()


@marked(with_redis)
def test_a_server_that_was_started_anew_is_used_by_the_same_store(
    run: Callable[..., servers.Server], tmp_path: Path
) -> None:
    server = run(servers.redis_server(tmp_path))
    store = open_remote(parse_url(f"redis://{server.address}"))
    store.put(A, BLOB)
    server.kill()
    with pytest.raises(RemoteError, match="cannot be reached"):
        store.get_many([A])
    server.start()
    assert store.get_many([A]) == {}
    store.put(A, BLOB)
    assert store.get_many([A]) == {A: BLOB}
    store.close()


# What is too much


@marked(with_redis)
def test_a_redis_that_has_no_memory_left_says_so_and_goes_on_answering(
    run: Callable[..., servers.Server], tmp_path: Path
) -> None:
    server = run(servers.redis_server(tmp_path, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction"))
    store = open_remote(parse_url(f"redis://{server.address}"))
    store.put(A, BLOB)
    with redis.Redis(port=server.port) as client:
        for number in range(8):
            with contextlib.suppress(redis.exceptions.OutOfMemoryError):
                client.set(f"of somebody else {number}", bytes(1 << 20))
    with pytest.raises(RemoteError, match=r"no memory left.*maxmemory-policy") as caught:
        store.put(B, bytes(1 << 20))
    assert not caught.value.lasting
    assert store.get_many([A]) == {A: BLOB}
    store.close()


@marked(with_redis)
def test_a_value_that_is_too_large_is_a_miss_and_does_not_fill_this_process(
    run: Callable[..., servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = run(servers.redis_server(tmp_path))
    store = open_remote(parse_url(f"redis://{server.address}"))
    assert isinstance(store, RedisRemote)
    store.put(B, BLOB)
    with redis.Redis(port=server.port) as client:
        client.setrange(f"headstart:v1:{A}", MAX_BLOB_BYTES + 1, b"x")
        client.lpush(f"headstart:v1:{'c' * 64}", "of another type")
    asked: list[tuple[int, int]] = []
    real = store._client.getrange
    monkeypatch.setattr(store._client, "getrange", lambda name, a, b: (asked.append((a, b)), real(name, a, b))[1])
    assert store.get_many([A, B, "c" * 64]) == {B: BLOB}
    assert asked == [(0, MAX_BLOB_BYTES)]  # one byte more than may be, of a value of any length
    assert FIRST_BYTES < MAX_BLOB_BYTES
    store.close()


@marked(with_registry)
@pytest.mark.parametrize("size", [1 << 30, -1, MAX_BLOB_BYTES + 1])
def test_an_entry_of_a_registry_that_says_to_be_a_gibibyte_is_a_miss(
    run: Callable[..., servers.Server], tmp_path: Path, size: int
) -> None:
    server = run(servers.registry_server(tmp_path))
    store = open_remote(parse_url(f"oci://{server.address}/team/kernels"))
    assert isinstance(store, OciRemote)
    store.put(A, BLOB)
    layer = Descriptor(oci.ENTRY_TYPE, digest_of(BLOB), size)
    store._registry.put_manifest(store._tag_of(B), manifest_of(oci.ENTRY_TYPE, [layer]), oci.MANIFEST_TYPE)
    assert store.get_many([A, B]) == {A: BLOB}
    store.close()


@marked(with_registry)
def test_an_entry_of_a_registry_that_is_not_what_its_manifest_says_is_no_blob(
    run: Callable[..., servers.Server], tmp_path: Path
) -> None:
    server = run(servers.registry_server(tmp_path))
    store = open_remote(parse_url(f"oci://{server.address}/team/kernels"))
    assert isinstance(store, OciRemote)
    store.put(A, BLOB)
    for data in (base64.b64encode(BLOB[::-1]).decode(), "%%%", base64.b64encode(BLOB[:-1]).decode()):
        layer = Descriptor(oci.ENTRY_TYPE, digest_of(BLOB), len(BLOB), data)
        store._registry.put_manifest(store._tag_of(B), manifest_of(oci.ENTRY_TYPE, [layer]), oci.MANIFEST_TYPE)
        assert store.get_many([B]) == {B: BLOB}  # the blob itself is right
    wrong = Descriptor(oci.ENTRY_TYPE, digest_of(BLOB), len(BLOB) - 1)
    store._registry.put_manifest(store._tag_of(B), manifest_of(oci.ENTRY_TYPE, [wrong]), oci.MANIFEST_TYPE)
    with pytest.raises(RemoteError, match=r"longer than it should be|is something else"):
        store.get_many([B])
    store.close()


# Claims of somebody else's making


@pytest.mark.parametrize("lasts", ["NaN", "Infinity", "-Infinity", "1e999", "-1", '"x"', "[]", "null"])
def test_a_claim_that_lasts_for_no_time_that_there_is_counts_for_nothing(lasts: str) -> None:
    store = open_remote(parse_url("s3://bucket?claims"))
    assert isinstance(store, ObjectsRemote)
    store._store = obstore.store.MemoryStore()
    obstore.put(store._store, f"v1/claims/{A}", b'{"for": %s, "by": "another"}' % lasts.encode())
    assert store.claim(A, 60) is True
    assert store.claim(A, 60) is False
    store.close()


# What is not installed


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [("redis://h", "redis", "redis"), ("s3://b", "obstore", "s3"), ("oci://h/r", "urllib3", "oci")],
)
def test_a_remote_whose_library_is_not_installed_says_how_to_get_it(
    url: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=re.escape(f"pip install 'headstart[{extra}]'")):
        open_remotes(url)


# Nothing is said where others read it


@pytest.mark.parametrize("url", ALL.values(), ids=ALL)
def test_no_password_is_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    before = threading.active_count()  # other tests leave some
    with caplog.at_level(logging.DEBUG), bad_servers.serving(bad_servers.saying(b"-NOAUTH\r\n")) as port:
        store = open_remotes(url.format(port))
        with pytest.raises(RemoteError):
            store.put(A, BLOB)
        for _ in range(3):
            with contextlib.suppress(RemoteError):  # what takes nothing for long is given nothing
                store.put(A, BLOB)
        for _ in range(4):
            with pytest.raises(RemoteError):
                store.get_many([A])
        store.close()
    assert SECRET not in caplog.text
    assert "Nothing is put there meanwhile" in caplog.text
    assert "Compiles go on without it" in caplog.text
    assert threading.active_count() < before + 50
