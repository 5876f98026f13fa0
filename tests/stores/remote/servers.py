"""Servers on loopback ports, started by tests and ended by them: Redis, an S3 server, a registry, and Azurite."""

from __future__ import annotations

import base64
import hmac
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path

import obstore
import pytest
from _pytest.mark import ParameterSet
from obstore.store import S3Store

STARTS_WITHIN = 60.0  # seconds; two shared cores, and a server of 150 MB
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "access",
    "AWS_SECRET_ACCESS_KEY": "a secret of tests",
    "AWS_REGION": "us-east-1",
}
# The account that Azurite has, and its key: they are the same everywhere, and written in its documentation.
AZURE_ENVIRONMENT = {
    "AZURE_STORAGE_ACCOUNT_NAME": "devstoreaccount1",
    "AZURE_STORAGE_ACCOUNT_KEY": (
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    ),
}
BUCKET = "kernels"


ENVIRONMENT = Path(sys.executable).parent.parent
PROGRAMS = {"redis": "redis-server", "s3": "weed", "registry": "docker-registry", "az": "azurite-blob"}


def program(kind: str) -> str:
    """Where a server is: beside this Python, where `make test-remote` puts it, or installed. Empty: nowhere."""
    name = PROGRAMS[kind]
    fetched = ENVIRONMENT / "servers"
    for folder in (ENVIRONMENT / "bin", fetched / "usr" / "bin", fetched / "node_modules" / ".bin"):
        if (folder / name).exists():
            return str(folder / name)
    return shutil.which(name) or ""


# Which server each kind of store needs; `folder` none.
KINDS = {"folder": "", "redis": "redis", "s3": "s3", "az": "az", "oci": "registry", "oci without deleting": "registry"}


def needs(kind: str) -> list[pytest.MarkDecorator]:
    """The marks of a test that talks to a server."""
    reason = f"there is no {PROGRAMS[kind]}: make test-remote gets it where that can be done"
    return [pytest.mark.remote, pytest.mark.skipif(not program(kind), reason=reason)]


def only(*kinds: str) -> list[ParameterSet]:
    """Parameters of the fixture `place`."""
    return [pytest.param(kind, marks=needs(KINDS[kind]) if KINDS[kind] else []) for kind in kinds]


def libraries() -> dict[str, str]:
    """The environment in which servers find what was downloaded with them."""
    found = ":".join(map(str, (ENVIRONMENT / "servers" / "usr" / "lib").glob("*-linux-gnu")))
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, [found, os.environ.get("LD_LIBRARY_PATH")]))}


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens just now, and that the kernel gives nobody who does not ask for one."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(min(10_000, low // 2), low)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


class Server:
    """A process that answers at `address`; it can be stopped, killed and started again."""

    def __init__(self, command: Sequence[str], folder: Path, is_up: Callable[[], bool], port: int) -> None:
        self.port = port
        self._command = list(command)
        self._folder = folder
        self._is_up = is_up
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it, and do not wait until it answers."""
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=libraries(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait(self) -> None:
        """Until it answers."""
        assert self._process is not None
        deadline = time.monotonic() + STARTS_WITHIN
        while not self._is_up():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                log_text = (self._folder / "log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"{self._command[0]} does not answer:\n{log_text}")
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None


@contextmanager
def running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.kill()


def redis_server(folder: Path, *options: str, password: str = "", tls: tuple[Path, Path] | None = None) -> Server:
    command = program("redis")
    (port,) = free_ports(1)
    listening = ["--port", str(port)]
    if tls is not None:
        certificate, key = map(str, tls)
        listening = ["--port", "0", "--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key]
        listening += ["--tls-auth-clients", "no"]
    secret = ["--requirepass", password] if password else []
    fixed = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    return Server([command, *listening, *fixed, *secret, *options], folder, lambda: accepts(port), port)


def s3_server(folder: Path) -> Server:
    command = program("s3")
    keys = {"accessKey": S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"], "secretKey": S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": "tests", "credentials": [keys], "actions": ["Admin", "Read", "List", "Tagging", "Write"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    ports = free_ports(len(names) + 2)
    listening = [f"-{name}={port}" for name, port in zip(names, ports, strict=False)]
    port, grpc = ports[len(names) :]
    listening += [f"-s3.port={port}", f"-s3.port.grpc={grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    fixed = [
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
    ]
    fixed += ["-s3.autoCreateBucket=false", "-master.volumeSizeLimitMB=64", "-volume.max=20", "-master.telemetry=false"]
    return Server([command, "server", *fixed, *listening], folder, lambda: _has_bucket(ports[4], port), port)


def azure_server(folder: Path) -> Server:
    (port,) = free_ports(1)
    fixed = ["--blobHost", "127.0.0.1", "--inMemoryPersistence", "--silent", "--disableTelemetry"]
    command = [program("az"), "--blobPort", str(port), *fixed, "--skipApiVersionCheck"]
    return Server(command, folder, lambda: accepts(port) and _has_container(port), port)


def registry_server(
    folder: Path,
    *,
    htpasswd: Path | None = None,
    token: dict[str, str] | None = None,
    tls: tuple[Path, Path] | None = None,
    deletes: bool = True,
) -> Server:
    command = program("registry")
    (port,) = free_ports(1)
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}", "secret": "of tests"}
    if tls is not None:
        http["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "data")},
            "cache": {"blobdescriptor": "inmemory"},
            "delete": {"enabled": deletes},
        },
        "http": http,
    }
    if htpasswd is not None:
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(htpasswd)}}
    if token is not None:
        config["auth"] = {"token": token}
    (folder / "config.yml").write_text(json.dumps(config))  # which is YAML too
    return Server([command, "serve", str(folder / "config.yml")], folder, lambda: accepts(port), port)


def started(kind: str, folder: Path) -> Server | None:
    """The server of a kind of store, to be started; None: it has none."""
    if kind == "folder":
        return None
    if kind == "redis":
        return redis_server(folder)
    if kind == "s3":
        return s3_server(folder)
    if kind == "az":
        return azure_server(folder)
    return registry_server(folder, deletes=kind == "oci")


def url_of(kind: str, address: str, folder: Path) -> str:
    """A place in a store that nothing is in."""
    own = os.urandom(6).hex()
    return {
        "folder": f"file://{folder}/{own}",
        "redis": f"redis://{address}/0?prefix={own}",
        "s3": f"s3://{BUCKET}/{own}?endpoint=http://{address}",
        "az": f"az://{BUCKET}/{own}?endpoint=http://{address}/{AZURE_ENVIRONMENT['AZURE_STORAGE_ACCOUNT_NAME']}",
    }.get(kind, f"oci://{address}/tests/{own}:v1")


def _has_container(port: int) -> bool:
    """Whether Azurite answers and has the container, which is made, with a signature as its protocol asks for."""
    account, key = AZURE_ENVIRONMENT.values()
    moment = formatdate(usegmt=True)
    path = f"/{account}/{BUCKET}"
    headers = f"x-ms-date:{moment}\nx-ms-version:2021-08-06"
    signed = "PUT" + "\n" * 12 + f"{headers}\n/{account}{path}\nrestype:container"
    mac = base64.b64encode(hmac.digest(base64.b64decode(key), signed.encode(), "sha256")).decode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}?restype=container", method="PUT")
    for name, value in [each.split(":", 1) for each in headers.split("\n")]:
        request.add_header(name, value)
    request.add_header("Authorization", f"SharedKey {account}:{mac}")
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code == 409  # it is there
    except OSError:
        return False
    return True


def accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def s3_bucket(port: int, timeout: str) -> S3Store:
    """The bucket, for what tests do to it themselves."""
    return S3Store(
        BUCKET,
        config={
            "endpoint": f"http://127.0.0.1:{port}",
            "access_key_id": S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            "secret_access_key": S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
            "region": S3_ENVIRONMENT["AWS_REGION"],
        },
        client_options={"allow_http": True, "timeout": timeout},
        retry_config={"max_retries": 0},
    )


def _has_bucket(filer: int, port: int) -> bool:
    """Whether the S3 server answers and has the bucket, which is made: a folder of SeaweedFS's filer."""
    if not (accepts(filer) and accepts(port)):
        return False
    try:
        made = urllib.request.Request(f"http://127.0.0.1:{filer}/buckets/{BUCKET}/keep", method="PUT", data=b"it")
        urllib.request.urlopen(made, timeout=5).close()
        store = s3_bucket(port, "5s")
        obstore.put(store, "there", b"is one", use_multipart=False)
        obstore.delete(store, "there")
    except Exception:  # noqa: BLE001 - while it starts it fails in many ways
        return False
    return True
