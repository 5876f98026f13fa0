"""What the machine has to give: the least of affinity, quota and what is left, whatever the cgroups look like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headstart.service.capacity import RESERVE, WORKER_MEMORY, Capacity
from headstart.system import machine

MIB = 1 << 20


class Fake:
    """A /proc and a /sys/fs/cgroup of one's own."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self.write(self.proc / "self" / "cgroup", "0::/user/job\n")
        self.write(self.proc / "meminfo", "MemTotal:  9000 kB\nMemAvailable:  4000 kB\n")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def cpus(self) -> int:
        return machine.usable_cpus(self.proc, self.cgroups)

    def memory(self) -> int | None:
        return machine.available_memory(self.proc, self.cgroups)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return Fake(tmp_path)


def test_without_a_quota_there_are_as_many_cpus_as_the_affinity_allows(fake: Fake) -> None:
    assert fake.cpus() == 8
    fake.write(fake.cgroups / "user" / "cpu.max", "max 100000\n")
    assert fake.cpus() == 8


@pytest.mark.parametrize(("quota", "cpus"), [("350000 100000", 4), ("50000 100000", 1), ("1600000 100000", 8)])
@pytest.mark.parametrize("where", ["", "user", "user/job"])
def test_the_quota_of_any_cgroup_around_counts_rounded_up(fake: Fake, where: str, quota: str, cpus: int) -> None:
    fake.write(fake.cgroups / where / "cpu.max", quota)
    assert fake.cpus() == cpus


def test_the_memory_left_is_the_machine_s_or_the_cgroup_s_whichever_is_less(fake: Fake) -> None:
    assert fake.memory() == 4000 << 10
    fake.write(fake.cgroups / "user" / "memory.max", "max")
    assert fake.memory() == 4000 << 10
    fake.write(fake.cgroups / "user" / "memory.max", str(3000 << 10))
    fake.write(fake.cgroups / "user" / "memory.current", str(2500 << 10))
    assert fake.memory() == 500 << 10
    fake.write(fake.cgroups / "user" / "memory.stat", f"anon 17\ninactive_file {100 << 10}\n")
    assert fake.memory() == 600 << 10


def test_where_nothing_can_be_read_nothing_is_claimed(tmp_path: Path) -> None:
    assert machine.available_memory(tmp_path, tmp_path) is None
    assert machine.usable_cpus(tmp_path, tmp_path) == len(os.sched_getaffinity(0))
    assert machine.own_memory(1, tmp_path) == 0


def test_the_memory_of_a_process_is_measured_without_its_files() -> None:
    before = machine.own_memory(os.getpid())
    block = bytearray(os.urandom(1 << 20)) * 64
    assert machine.own_memory(os.getpid()) - before > 60 << 20
    assert len(block)


# How many workers that is room for


def test_where_there_is_memory_there_may_be_as_many_workers_as_were_asked_for() -> None:
    assert Capacity(8).fitting([], None) == 8
    assert Capacity(8).fitting([10 * MIB] * 2, 100 * WORKER_MEMORY) == 8


def test_each_new_worker_needs_room_beside_a_reserve() -> None:
    assert Capacity(8).fitting([], RESERVE + 3 * WORKER_MEMORY) == 3
    assert Capacity(8).fitting([WORKER_MEMORY] * 2, RESERVE + WORKER_MEMORY) == 3


def test_where_memory_is_short_there_are_to_be_fewer_but_never_none() -> None:
    assert Capacity(8).fitting([WORKER_MEMORY] * 4, RESERVE - 2 * WORKER_MEMORY) == 2
    assert Capacity(8).fitting([WORKER_MEMORY] * 4, 0) == 3
    assert Capacity(8).fitting([], 0) == 1


def test_what_one_worker_needed_is_expected_of_the_others() -> None:
    capacity = Capacity(8)
    assert capacity.fitting([4 * WORKER_MEMORY], RESERVE + 8 * WORKER_MEMORY) == 3
    assert capacity.fitting([0], RESERVE + 8 * WORKER_MEMORY) == 3, "it is remembered"


def test_an_allowance_counts_what_workers_use_and_what_new_ones_will() -> None:
    capacity = Capacity(8, allowance=4 * WORKER_MEMORY)
    assert capacity.fitting([], 1 << 50) == 4
    assert capacity.fitting([0, 0], 1 << 50) == 4
    assert capacity.fitting([2 * WORKER_MEMORY, 0], 1 << 50) == 2


def test_the_memory_of_a_process_counts_with_that_of_all_below_it(fake: Fake) -> None:
    def process(pid: int, anonymous: int, swapped: int, *children: int) -> None:
        status = f"Name: x\nVmRSS: 999999 kB\nRssAnon: {anonymous} kB\nVmSwap: {swapped} kB\n"
        fake.write(fake.proc / str(pid) / "status", status)
        fake.write(fake.proc / str(pid) / "task" / str(pid) / "children", " ".join(map(str, children)))

    process(1, 10, 1, 2, 3)
    process(2, 20, 0, 4)
    process(4, 40, 2)
    assert machine.tree_memory(1, fake.proc) == {1: 11 << 10, 2: 20 << 10, 3: 0, 4: 42 << 10}, "3 has just ended"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("processor : 0\nflags\t: fpu fma avx avx2 avx512f avx512vbmi\nprocessor : 1\n", "avx2 avx512f fma"),
        ("processor : 0\nFeatures\t: fp asimd sve2 crc32\n", "asimd sve2"),
        ("", ""),
    ],
)
def test_vector_instructions_are_those_by_which_code_differs(
    fake: Fake, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    fake.proc.mkdir(exist_ok=True)
    (fake.proc / "cpuinfo").write_text(text)
    assert machine.vector_instructions(fake.proc).split()[1:] == words.split()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert machine.vector_instructions(fake.proc).split()[1:] == ["avx2", *words.split()]
