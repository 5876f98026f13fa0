"""The describers of a service: who asks what of which process, and what becomes of it when that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_stuck import stopped

import headstart
from headstart import wire
from headstart.model.toolchain import Toolchain
from headstart.service import describers
from headstart.service.describers import DescriberKind, Describers
from headstart.service.loop import Loop
from headstart.system import machine

PATIENCE = 30.0  # seconds

# Answers with what it is asked, or does what it is told. `noted` is where it says what it was asked.
FAKE = """
import os, socket, sys
from headstart import wire
def main(argument):
    fd, parent = map(int, argument.split())
    with open(os.environ["TORCHINDUCTOR_NOTED"], "a") as noted:
        noted.write(f"started {os.getpid()}\\n")
    if "TORCHINDUCTOR_BROKEN" in os.environ:
        sys.exit("it cannot import torch")
    sock = socket.socket(fileno=fd)
    sock.sendall(wire.frame(wire.Awake()))
    for asked in wire.receive_blocking(sock, wire.Deframer(wire.ToDescriber)):
        with open(os.environ["TORCHINDUCTOR_NOTED"], "a") as noted:
            noted.write(f"asked {asked.question.decode()}\\n")
        if asked.question == b"die":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(3)
        if asked.question == b"talk nonsense":
            sock.sendall(b"\\xff" * 64)
        if asked.question == b"leave":
            sock.sendall(wire.frame(wire.Answer(asked.ticket, b"left")))
            return
        sock.sendall(wire.frame(wire.Answer(asked.ticket, asked.question.upper())))
"""


class Household:
    """Describers that are fakes, and clients that are lists of what they were told."""

    def __init__(self, folder: Path) -> None:
        self.told: dict[int, list[msgspec.Struct]] = {}
        self.noted = folder / "noted"
        self.noted.touch()
        (folder / "fake_describer.py").write_text(FAKE)
        self._path = (str(folder), *(os.path.abspath(each) for each in sys.path))
        self.loop = Loop()
        self.describers = Describers(self.loop, self._tell)

    def _tell(self, client: int, message: msgspec.Struct) -> None:
        self.told.setdefault(client, []).append(message)

    def kind(self, python: str = sys.executable, *, generation: int = 0, **settings: str) -> DescriberKind:
        given = {"TORCHINDUCTOR_NOTED": str(self.noted), **settings}
        toolchain = Toolchain(python, python_version="3.11", triton_dir="", triton_version="", sys_path=self._path)
        return DescriberKind(wire.DescriberSpec(toolchain, "stamp", tuple(sorted(given.items()))), generation)

    def ask(self, client: int, ticket: int, kind: DescriberKind, question: bytes) -> None:
        """Ask; what is answered is noted as what the client was told under its `ticket`."""

        def answered(said: bytes | wire.Failure) -> None:
            failed = isinstance(said, wire.Failure)
            self._tell(client, wire.Failed(ticket, said) if failed else wire.Answer(ticket, said))

        self.describers.ask(client, kind, question, answered)

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, (self.told, self.noted.read_text())
            self.loop.flush()
            self.loop.once(0.05)

    def answers(self, client: int) -> list[tuple[int, str]]:
        return [
            (each.ticket, each.answer.decode() if isinstance(each, wire.Answer) else each.failure.summary)
            for each in self.told.get(client, [])
            if isinstance(each, (wire.Answer, wire.Failed))
        ]

    def lines(self, word: str) -> list[str]:
        return [line.split(" ", 1)[1] for line in self.noted.read_text().splitlines() if line.startswith(word)]

    def awake(self, client: int) -> bool:
        states = [each.awake for each in self.told.get(client, []) if isinstance(each, wire.DescriberState)]
        return bool(states) and states[-1]


@pytest.fixture
def household(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Household]:
    monkeypatch.setattr(describers, "MODULE", "fake_describer")
    made = Household(tmp_path)
    yield made
    made.describers.end()
    assert not made.describers.pids


def test_a_question_that_is_on_its_way_is_asked_once_and_everyone_is_answered(household: Household) -> None:
    kind = household.kind()
    household.ask(1, 10, kind, b"a")
    household.ask(2, 20, kind, b"a")
    household.ask(2, 21, kind, b"b")
    household.until(lambda: len(household.answers(2)) == 2)
    assert (household.answers(1), household.answers(2)) == ([(10, "A")], [(20, "A"), (21, "B")])
    household.ask(3, 30, kind, b"a")  # the answer is known
    assert household.answers(3) == [(30, "A")]
    assert household.lines("asked") == ["a", "b"]
    assert len(household.lines("started")) == 1
    assert not household.describers.busy


def test_whoever_asks_or_prepares_is_told_that_it_is_awake_and_when_it_leaves(household: Household) -> None:
    kind = household.kind()
    household.describers.prepare(1, kind)
    household.until(lambda: household.awake(1))
    household.ask(2, 20, kind, b"leave")
    assert household.awake(2)
    household.until(lambda: not household.awake(1))
    assert not household.awake(2)
    assert household.answers(2) == [(20, "left")]
    household.ask(1, 11, kind, b"leave")  # of a new process: what the old one had said is forgotten
    household.until(lambda: household.answers(1))
    assert household.lines("asked") == ["leave", "leave"]


def test_another_torch_or_other_settings_are_another_process(household: Household) -> None:
    household.ask(1, 1, household.kind(), b"a")
    household.ask(1, 2, household.kind(TORCHINDUCTOR_ENABLE_PDL="1"), b"a")
    household.ask(1, 3, household.kind(generation=1), b"a")
    household.until(lambda: len(household.answers(1)) == 3)
    assert len(household.describers) == 3


def test_one_that_was_prepared_and_never_asked_ends_when_its_client_prepares_another(household: Household) -> None:
    first, second = household.kind(), household.kind(TORCHINDUCTOR_ENABLE_PDL="1")
    household.describers.prepare(1, first)
    household.describers.prepare(1, second)
    assert len(household.describers) == 1
    household.ask(2, 20, first, b"a")
    household.describers.prepare(2, second)  # it has been of use
    assert len(household.describers) == 2


def test_the_question_at_which_it_dies_twice_fails_alone(household: Household) -> None:
    kind = household.kind()
    for ticket, question in enumerate([b"a", b"die", b"b"]):
        household.ask(1, ticket, kind, question)
    household.ask(2, 7, kind, b"die")
    household.until(lambda: len(household.answers(1)) == 3)
    said = dict(household.answers(1))
    assert (said[0], said[2]) == ("A", "B")
    assert said[1] == "the describer exited with code 3; its last words: the last words"
    assert household.answers(2) == [(7, said[1])]
    assert household.lines("asked").count("die") == describers.MAX_DEATHS


def test_one_that_talks_nonsense_is_killed_and_its_question_fails(household: Household) -> None:
    household.ask(1, 1, household.kind(), b"talk nonsense")
    household.until(lambda: household.answers(1))
    assert "SIGKILL" in household.answers(1)[0][1]


def test_one_that_never_awakes_fails_what_is_asked_and_the_next_to_ask_tries_again(household: Household) -> None:
    kind = household.kind(TORCHINDUCTOR_BROKEN="1")
    household.ask(1, 1, kind, b"a")
    household.ask(1, 2, kind, b"b")
    household.until(lambda: len(household.answers(1)) == 2)
    assert all("it cannot import torch" in why for _, why in household.answers(1))
    assert len(household.lines("started")) == describers.MAX_DEATHS
    household.ask(1, 3, kind, b"a")
    household.until(lambda: len(household.answers(1)) == 3)
    assert len(household.lines("started")) == 2 * describers.MAX_DEATHS


def test_where_no_process_can_be_started_whoever_asks_is_told(household: Household) -> None:
    kind = household.kind("/no/such/python")
    household.describers.prepare(1, kind)
    household.ask(1, 1, kind, b"a")
    assert household.answers(1) == [(1, "no describer: cannot start /no/such/python: No such file or directory")]
    assert not household.describers.busy


def test_those_that_are_idle_end_when_the_service_is_quiesced_and_come_back_when_they_are_asked(
    household: Household,
) -> None:
    kind = household.kind()
    household.describers.prepare(1, kind)
    household.until(lambda: household.awake(1))
    household.ask(1, 1, household.kind(TORCHINDUCTOR_ENABLE_PDL="1"), b"a")  # somebody waits for this one
    household.describers.end_idle()
    assert len(household.describers) == 1
    assert not household.awake(1)
    household.ask(1, 2, kind, b"b")
    household.until(lambda: len(household.answers(1)) == 2)


def test_who_has_left_is_not_told(household: Household) -> None:
    kind = household.kind()
    household.ask(1, 1, kind, b"a")
    household.ask(2, 2, kind, b"a")
    household.describers.client_left(1)
    household.until(lambda: household.answers(2))
    assert 1 not in household.told


def test_one_that_is_stopped_while_somebody_waits_is_replaced(
    household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = household.kind()
    household.describers.prepare(1, kind)
    household.until(lambda: household.awake(1))
    (pid,) = household.describers.pids
    with stopped(pid):
        household.describers.replace_stopped(0.0)
        household.ask(1, 1, kind, b"a")
        household.loop.flush()
        household.describers.replace_stopped(100.0)  # since when somebody waits
        assert household.describers.pids == {pid}
        household.describers.replace_stopped(100.0 + describers.STOPPED_TIMEOUT)
        household.until(lambda: household.answers(1))
    assert household.answers(1) == [(1, "A")]
    assert household.describers.pids != {pid}


def test_answers_are_kept_within_a_limit(household: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describers, "_MAX_KEPT", 5)
    kind = household.kind()
    for ticket, question in enumerate([b"aa", b"bb", b"aa"]):
        household.ask(1, ticket, kind, question)
        household.until(lambda: len(household.answers(1)) == ticket + 1)  # noqa: B023 - called before it changes
    assert household.lines("asked") == ["aa", "bb", "aa"]


def test_the_real_one_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    # It may be importing torch, and so not be reading: the kernel ends it.
    (tmp_path / "torch.py").write_text(f"import time; open({str(tmp_path / 'importing')!r}, 'w'); time.sleep(60)")
    script = f"""
import os, pathlib, socket, subprocess, sys, time
from headstart.system.spawn import spawn
mine, theirs = socket.socketpair()
process = spawn(sys.executable, [{str(tmp_path)!r}, *sys.path], "headstart.describe.describer",
                f"{{theirs.fileno()}} {{os.getpid()}}", pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
while not pathlib.Path({str(tmp_path / "importing")!r}).exists():
    time.sleep(0.01)
print(process.pid, flush=True)
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    source = str(Path(headstart.__file__).parent.parent)
    given = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", script], env=given, capture_output=True, timeout=PATIENCE)
    pid = int(done.stdout)
    deadline = time.monotonic() + PATIENCE
    while machine.name_of(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
