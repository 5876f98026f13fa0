"""Hosts and networks as they are where something is wrong with them: not one call of headstart's is patched.

A host is a program in a process of its own, with a cache folder of its own. What is wrong is made by the kernel (in
namespaces of the test's own), by a proxy between it and a real server, or by a library that is loaded before libc
(`faulty_host.c`). Whatever it is: each kernel is right, one line is said at most, and nothing is left.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bad_servers
import pytest
import servers
from servers import only

from conftest import client_environment

pytestmark = [pytest.mark.triton, pytest.mark.remote, pytest.mark.timeout(240)]

KERNELS = 6
LONGEST = 100.0  # seconds of a host on a machine that does much else: that it ends at all
# Connections to a store that does not answer: each kernel looked up and put, twice, until three such calls have failed.
MOST_TRIES = KERNELS * 2 * 2 * 3
HOST = """
    import hashlib, json, logging, os, sys, time
    from pathlib import Path
    import headstart
    from kernels import pointwise

    said = []
    class Kept(logging.Handler):
        def emit(self, record):
            if not record.getMessage().startswith("compiling "):  # what Triton printed
                said.append(record.getMessage())
    logging.getLogger("headstart").addHandler(Kept(logging.WARNING))

    first, count = map(int, sys.argv[1:])
    with headstart.AsyncCompile("cuda:90", workers=2) as async_compile:
        futures = [async_compile.triton(**pointwise(float(first + each))) for each in range(count)]
        made = [hashlib.sha256(future.result(90).asm["cubin"]).hexdigest() for future in futures]
        compiled, found = async_compile.statistics.compiled, async_compile.used().remote

    def publishing():
        mark = f"XDG_RUNTIME_DIR={os.environ['XDG_RUNTIME_DIR']}".encode()
        for each in Path("/proc").glob("[0-9]*"):
            try:
                command, environment = (each / "cmdline").read_bytes(), (each / "environ").read_bytes()
            except OSError:
                continue
            if b"headstart.remote.process" in command and mark in environment.split(b"\\0"):
                return True
        return False

    since = time.monotonic()
    while publishing() and time.monotonic() < since + 20:
        time.sleep(0.02)
    print(json.dumps({"made": made, "compiled": compiled, "found": found, "said": said}), flush=True)
    """


def namespaces(*kinds: str) -> list[str]:
    """A command's beginning that gives it namespaces of its own, if that is allowed here."""
    return ["unshare", "--map-root-user", *(f"--{kind}" for kind in kinds), "sh", "-euc"]


def skip_unless(setup: str, *kinds: str) -> None:
    """Skip, with the reason, where these things cannot be set up in namespaces of these kinds."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    done = subprocess.run([*namespaces(*kinds), setup], capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"this machine does not let its users do that: {done.stderr.strip()[-200:]}")


class Hosts:
    """Runs hosts, one after the other.

    Args:
        folder: for their cache folders.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "host.py"
        self.program.write_text(textwrap.dedent(HOST), encoding="utf-8")

    def command(self, first: int = 1, count: int = KERNELS) -> list[str]:
        return [sys.executable, str(self.program), str(first), str(count)]

    def environment(self, name: str, remote: str, **variables: str) -> dict[str, str]:
        return {
            **os.environ,
            **client_environment(),
            "HEADSTART_CACHE_DIR": str(self.folder / name),
            "HEADSTART_REMOTE": remote,
            "HEADSTART_REMOTE_DEADLINE": "5",
            **variables,
        }

    def run(
        self, name: str, remote: str, *, first: int = 1, inside: list[str] | None = None, **variables: str
    ) -> dict[str, Any]:
        """What came of the kernels of a host; `inside`: of which command its own is the end."""
        done = subprocess.run(
            [*(inside or []), *self.command(first)],
            env=self.environment(name, remote, **variables),
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
        assert done.returncode == 0, done.stderr
        *before, last = done.stdout.splitlines()
        told: dict[str, Any] = json.loads(last)
        assert len(told["made"]) == KERNELS, told
        return {**told, "before": before}


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


_right: list[str] = []


@pytest.fixture
def right(hosts: Hosts) -> list[str]:
    """What the kernels are where nothing is wrong; compiled once."""
    if not _right:
        _right.extend(hosts.run("alone", "")["made"])
    return _right


# A network that loses what it is given


# What is sent from v0 to 10.9.0.2 arrives at v1, which is not that host: it is dropped there, and nobody hears of it.
_BLACK_HOLE = """
    ip link set lo up
    ip link add v0 type veth peer name v1
    ip addr add 10.9.0.1/24 dev v0
    ip link set v0 up; ip link set v1 up
    ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev v0
    """


@pytest.mark.parametrize(
    "remote",
    [
        "redis://10.9.0.2:6379/0",
        "s3://kernels/x?endpoint=http://10.9.0.2:9000&allow-http",
        "oci://10.9.0.2:5000/team/kernels?allow-http",
    ],
)
def test_a_network_that_drops_every_packet_costs_no_kernel_and_one_line(
    hosts: Hosts, right: list[str], remote: str
) -> None:
    skip_unless(_BLACK_HOLE, "net")
    inside = [*namespaces("net"), _BLACK_HOLE + 'exec "$@"', "sh"]
    told = hosts.run("cut off", remote, inside=inside, HEADSTART_REMOTE_DEADLINE="0.1", **servers.S3_ENVIRONMENT)
    assert (told["made"], told["compiled"]) == (right, KERNELS)
    assert len(told["said"]) <= 1


_LOSSY = """
    ip link set lo up
    tc qdisc add dev lo root netem delay 20ms 5ms loss 3%
    """


@pytest.mark.skipif(not servers.program("redis"), reason="there is no redis-server: make test-remote gets it")
def test_a_slow_network_that_loses_packets_costs_no_kernel_and_one_line(
    hosts: Hosts, right: list[str], tmp_path: Path
) -> None:
    skip_unless(_LOSSY, "net")
    (port,) = servers.free_ports(1)
    first = " ".join(f"'{part}'" for part in hosts.command())
    serve = f"""
        {servers.program("redis")} --port {port} --save '' --dir {tmp_path} >/dev/null &
        server=$!
        HEADSTART_CACHE_DIR={tmp_path}/first {first}
        "$@"
        kill $server; wait $server || true
        """
    inside = [*namespaces("net"), _LOSSY + serve, "sh"]
    libraries = {"LD_LIBRARY_PATH": servers.libraries()["LD_LIBRARY_PATH"]}
    told = hosts.run("second", f"redis://127.0.0.1:{port}/0", inside=inside, **libraries)
    before = json.loads(told["before"][-1])
    assert (told["made"], before["made"]) == (right, right)
    assert max(len(told["said"]), len(before["said"])) <= 1


@pytest.mark.parametrize("after", [20, 500])
@pytest.mark.parametrize("kind", only("redis", "s3", "oci"))
def test_a_connection_that_is_silent_in_the_middle_of_a_reply_costs_no_kernel_and_one_line(
    hosts: Hosts, right: list[str], tmp_path: Path, kind: str, after: int
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    tried: list[socket.socket] = []
    with ExitStack() as stack:
        server = stack.enter_context(servers.running(_server(kind, folder)))
        reply = bad_servers.silent_after(after, server.port)

        def counted(connection: socket.socket) -> None:
            tried.append(connection)
            reply(connection)

        port = stack.enter_context(bad_servers.serving(counted))
        url = servers.url_of(kind, f"127.0.0.1:{port}", folder)
        told = hosts.run("half open", url, HEADSTART_REMOTE_DEADLINE="0.1", **servers.S3_ENVIRONMENT)
    assert (told["made"], told["compiled"]) == (right, KERNELS)
    assert len(told["said"]) <= 1
    assert 1 <= len(tried) <= MOST_TRIES


def _server(kind: str, folder: Path) -> servers.Server:
    server = servers.started(kind, folder)
    assert server is not None
    return server


# A shared folder that is full, or cannot be written


def test_a_shared_folder_that_is_full_costs_no_kernel_and_one_line(
    hosts: Hosts, right: list[str], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o700)
    mount = f"mount -t tmpfs -o size=1m,mode=0700 none {shared}\n"
    skip_unless(mount, "mount")
    first = " ".join(f"'{part}'" for part in hosts.command())
    fill = f"""
        dd if=/dev/zero of={shared}/others bs=1k count=980 2>/dev/null
        HEADSTART_CACHE_DIR={tmp_path}/first {first}
        find {shared} -name '*.blob' | wc -l
        find {shared} -name '*.tmp' | wc -l
        exec "$@"
        """
    told = hosts.run("second", f"file://{shared}", inside=[*namespaces("mount"), mount + fill, "sh"])
    line, blobs, temporaries = told["before"]
    before = json.loads(line)
    assert (told["made"], before["made"]) == (right, right)
    assert int(temporaries) == 0
    assert 0 <= int(blobs) < KERNELS  # else it was not full
    assert told["found"] == int(blobs)
    assert len(before["said"]) == 1
    assert "No space left" in before["said"][0]
    assert len(told["said"]) <= 1


def test_a_shared_folder_that_is_mounted_read_only_is_read_and_one_line_says_that_it_is_not_written(
    hosts: Hosts, right: list[str], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o700)
    mount = f"mount --bind {shared} {shared}; mount -o remount,ro,bind {shared}\n"
    skip_unless(mount, "mount")
    url = f"file://{shared}"
    hosts.run("writer", url)
    inside = [*namespaces("mount"), mount + 'exec "$@"', "sh"]
    told = hosts.run("reader", url, inside=inside)
    assert (told["made"], told["found"], told["said"]) == (right, KERNELS, [])
    other = hosts.run("compiler", url, first=100, inside=inside)
    assert other["compiled"] == KERNELS
    (line,) = other["said"]
    assert "Read-only file system" in line


# A file server without locks whose files are replaced by others, and clocks that differ


@pytest.fixture(scope="module")
def faulty_host(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The library to be loaded before libc."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("library") / "faulty_host.so"
    source = Path(__file__).with_name("faulty_host.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-o", library, source, "-ldl"], check=True, timeout=60)
    return str(library)


def test_a_file_server_whose_files_are_stale_costs_no_kernel(
    hosts: Hosts, right: list[str], tmp_path: Path, faulty_host: str
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o700)
    url = f"file://{shared}"
    hosts.run("first", url)
    before = sorted(path.name for path in shared.rglob("*.blob"))
    told = hosts.run("second", url, LD_PRELOAD=faulty_host, FAULTY_FOLDER=str(shared))
    assert (told["made"], told["said"]) == (right, [])
    assert told["found"] > 0
    assert told["compiled"] > 0  # else nothing was stale
    assert sorted(path.name for path in shared.rglob("*") if path.is_file()) == before


def test_a_cache_folder_on_a_file_server_without_locks_costs_no_kernel(
    hosts: Hosts, right: list[str], tmp_path: Path, faulty_host: str
) -> None:
    faulty = {"LD_PRELOAD": faulty_host, "FAULTY_FOLDER": str(tmp_path / "nfs")}
    told = hosts.run("nfs", "", **faulty)
    assert told["made"] == right
    again = hosts.run("nfs", "", **faulty)
    assert again["made"] == right
    assert (told["said"], again["said"], again["compiled"]) == ([], [], 0)
    assert list((tmp_path / "nfs").glob("store/v2/tmp/*")) == []


@pytest.fixture
def clocked(faulty_host: str) -> Callable[[int], dict[str, str]]:
    """Variables of a host whose clock is wrong by so many hours."""
    return lambda hours: {"LD_PRELOAD": faulty_host, "FAULTY_SECONDS": str(3600 * hours)}


@pytest.mark.parametrize("claims", [False, True])
@pytest.mark.parametrize("kind", only("folder", "redis", "s3", "oci"))
def test_hosts_whose_clocks_differ_by_two_hours_share_what_they_make(
    hosts: Hosts,
    right: list[str],
    tmp_path: Path,
    kind: str,
    claims: bool,
    clocked: Callable[[int], dict[str, str]],
) -> None:
    folder = tmp_path / "server"
    folder.mkdir(mode=0o700)
    with ExitStack() as stack:
        server = servers.started(kind, folder)
        address = stack.enter_context(servers.running(server)).address if server is not None else ""
        url = servers.url_of(kind, address, folder)
        url += ("&claims" if "?" in url else "?claims") if claims else ""
        first = hosts.run("fast", url, **clocked(1), **servers.S3_ENVIRONMENT)
        second = hosts.run("slow", url, **clocked(-1), **servers.S3_ENVIRONMENT)
    assert first["made"] == second["made"] == right
    if kind == "s3" and not second["found"]:  # a store that refuses what was signed at another time says so
        for (line,) in (first["said"], second["said"]):
            assert "its clock and this host's differ" in line
    else:
        assert (second["found"], first["said"], second["said"]) == (KERNELS, [], [])


def test_a_host_whose_clock_is_fast_prunes_nothing_that_is_fresh(
    hosts: Hosts, tmp_path: Path, clocked: Callable[[int], dict[str, str]]
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o700)
    url = f"file://{shared}"
    hosts.run("first", url)
    done = subprocess.run(
        [sys.executable, "-m", "headstart", "cache", "prune", "--remote", "--older-than", "30m"],
        env=hosts.environment("first", url, **clocked(24)),
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(shared.rglob("*.blob"))) == KERNELS
