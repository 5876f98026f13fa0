"""Whose word counts on which cluster this host belongs to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from headstart.farm import own_cluster
from headstart.farm.attending import FarmError
from headstart.farm.own_cluster import find

MINE = f"Uid:\t{os.getuid()}\t{os.getuid()}\t{os.getuid()}\t{os.getuid()}\n"


class Host:
    """What `find` looks at."""

    def __init__(self, folder: Path) -> None:
        self.processes = folder / "proc"
        self.processes.mkdir()
        (self.processes / "meminfo").touch()
        self.file = folder / "ray" / "ray_current_cluster"
        self.file.parent.mkdir()
        self.environment = {"RAY_TMPDIR": str(folder)}

    def has_raylet(self, address: str, *, uids: str = MINE, exe: str = "/opt/ray/raylet") -> None:
        folder = self.processes / str(100 + len(list(self.processes.iterdir())))
        folder.mkdir()
        (folder / "exe").symlink_to(exe)
        (folder / "status").write_text(f"Name:\traylet\n{uids}Gid:\t0\t0\t0\t0\n")
        (folder / "cmdline").write_bytes(f"/opt/ray/raylet\0--gcs-address={address}\0--num=1\0".encode())

    def find(self) -> str:
        return find(self.environment, self.processes)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_this_user_s_raylet_counts(host: Host) -> None:
    host.has_raylet("10.0.0.1:6379")
    host.has_raylet("10.0.0.1:6379", exe="/opt/ray/raylet (deleted)")
    host.file.write_text("10.0.0.2:6379")
    assert host.find() == "10.0.0.1:6379"


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_one_that_is_in_any_way_another_user_s_does_not(host: Host, which: int) -> None:
    uids = [str(os.getuid())] * 4
    uids[which] = str(os.getuid() + 1)
    host.has_raylet("10.0.0.1:6379", uids="Uid:\t" + "\t".join(uids) + "\n")
    with pytest.raises(FarmError, match="HEADSTART_FARM=head:6379"):
        host.find()


def test_what_only_calls_itself_raylet_does_not(host: Host) -> None:
    host.has_raylet("10.0.0.1:6379", exe="/usr/bin/mount")
    with pytest.raises(FarmError, match="no Ray cluster on this host"):
        host.find()


def test_the_file_of_ray_start_counts(host: Host) -> None:
    host.file.write_text("10.0.0.2:6379\n")
    assert host.find() == "10.0.0.2:6379"


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_one_that_others_may_write_does_not(host: Host, mode: int) -> None:
    host.file.write_text("10.0.0.2:6379")
    host.file.chmod(mode)
    with pytest.raises(FarmError, match="somebody else's word"):
        host.find()


@pytest.mark.skipif(os.getuid() != 0, reason="gives a file away")
def test_one_of_another_user_s_does_not(host: Host) -> None:
    host.file.write_text("10.0.0.2:6379")
    os.chown(host.file, 12345, 12345)
    with pytest.raises(FarmError, match="somebody else's word"):
        host.find()


def test_a_link_is_not_followed(host: Host, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("10.0.0.2:6379")
    host.file.symlink_to(tmp_path / "mine")
    with pytest.raises(FarmError):
        host.find()


def test_of_several_clusters_the_one_that_was_started_last_counts_or_none(host: Host) -> None:
    host.has_raylet("10.0.0.1:6379")
    host.has_raylet("10.0.0.2:6379")
    with pytest.raises(FarmError, match="several clusters"):
        host.find()
    host.file.write_text("10.0.0.2:6379")
    assert host.find() == "10.0.0.2:6379"


@pytest.mark.parametrize(("named", "found"), [("10.0.0.9:6379", "10.0.0.9:6379"), ("auto", ""), ("local", "")])
def test_the_environment_goes_first_unless_it_says_nothing(host: Host, named: str, found: str) -> None:
    host.environment["RAY_ADDRESS"] = named
    host.has_raylet("10.0.0.1:6379")
    assert host.find() == (found or "10.0.0.1:6379")


@pytest.mark.parametrize("address", ["nonsense", "a b:1", "http://head:8265", ""])
def test_what_is_no_address_does_not_count(host: Host, address: str) -> None:
    host.has_raylet(address)
    host.file.write_text(address)
    with pytest.raises(FarmError):
        host.find()


def test_a_process_as_the_kernel_shows_it(tmp_path: Path) -> None:
    program = tmp_path / "raylet"
    shutil.copy(shutil.which("bash") or "", program)
    process = subprocess.Popen(
        [program, "-c", "read", "bash", "--gcs-address=127.0.0.1:1"], stdin=subprocess.PIPE, close_fds=True
    )
    try:
        assert "127.0.0.1:1" in own_cluster._of_raylets(Path("/proc"))
    finally:
        process.kill()
        process.communicate()
    assert "127.0.0.1:1" not in own_cluster._of_raylets(Path("/proc"))
