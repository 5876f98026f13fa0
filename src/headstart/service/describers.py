"""The processes that have torch: each runs the decorators of torch.compile's sources, for all clients of a service.

    Sources ── ask(question) ─▶ Describers ── Question ─▶ describer (torch, one toolchain, Inductor's variables)
    Sources ◀─ answered ──────  Describers ◀─ Answer ────┘

What is asked and answered is bytes here. A question that is on its way is asked once, for whichever client; an answer
is kept for as long as the process that gave it lives.

A describer that dies is started again and asked again. The question that it was at both times is the suspect and fails;
one that dies twice before it was awake cannot be used, and what was asked of it fails.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import IO, Any, NamedTuple

import msgspec

from headstart import wire
from headstart.errors import ServiceError
from headstart.service.loop import Loop
from headstart.system import machine
from headstart.system.deaths import describe_status
from headstart.system.spawn import last_words_file, spawn

MODULE = "headstart.describe.describer"
MAX_DEATHS = 2  # of a describer at one question, or before it is awake
STOPPED_TIMEOUT = 10.0  # seconds until one that somebody has stopped is replaced
_LAST_WORDS = 4 << 10  # bytes
_MAX_KEPT = 64 << 20  # bytes of questions and answers, for each describer
_MOST_READS = 64  # more than a socket holds
_OWN = "TORCHINDUCTOR_"  # variables that are not inherited: a client says which it has

_log = logging.getLogger("headstart.service")


Answered = Callable[[bytes | wire.Failure], None]


class DescriberKind(NamedTuple):
    """What a describer is for. Clients with one torch, and the same variables of Inductor's, share one.

    Attributes:
        spec: as a client gives it.
        generation: how often the toolchain has changed on disk.
    """

    spec: wire.DescriberSpec
    generation: int


class _Question:
    def __init__(self, body: bytes) -> None:
        self.body = body
        self.askers: list[tuple[int, Answered]] = []  # client, and what its answer leads to
        self.deaths = 0


class _Describer:
    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: wire.Channel | None = None
        self.pidfd = -1
        self.log: IO[bytes] | None = None
        self.awake = False
        self.stopped: float | None = None  # since when, as far as was looked
        self.deaths = 0  # before it was awake
        self.asked = False
        self.audience: set[int] = set()  # clients that want to know whether it is awake
        self.questions: dict[int, _Question] = {}  # by number, in the order in which it gets them
        self.numbers: dict[bytes, int] = {}  # of these, by what is asked
        self.answers: OrderedDict[bytes, bytes] = OrderedDict()  # by question, the latest last
        self.kept = 0  # bytes of these


class Describers:
    """Starts describers when they are needed, and passes questions on.

    Args:
        loop: that listens to them.
        tell: sends a message to a client, if it is there.
    """

    def __init__(self, loop: Loop, tell: Callable[[int, msgspec.Struct], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._numbers = count(1)
        self._describers: dict[DescriberKind, _Describer] = {}

    def __len__(self) -> int:
        return len(self.pids)

    @property
    def pids(self) -> set[int]:
        """Their processes."""
        return {each.process.pid for each in self._describers.values() if each.process is not None}

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return any(describer.questions for describer in self._describers.values())

    def prepare(self, client: int, kind: DescriberKind) -> None:
        """Have a describer of this kind ready. One that the client prepared before and never used is ended."""
        for other, describer in list(self._describers.items()):
            if other != kind and client in describer.audience and not describer.asked:
                describer.audience.discard(client)
                if not describer.audience:
                    self._end(other)
        try:
            self._of(client, kind)
        except ServiceError as error:  # the client that asks is told
            _log.warning("%s", error)

    def is_awake(self, kind: DescriberKind) -> bool:
        """Whether there is one of this kind that answers within milliseconds."""
        return kind in self._describers and self._describers[kind].awake

    def ask(self, client: int, kind: DescriberKind, body: bytes, answered: Answered) -> None:
        """Ask on behalf of `client`; `answered` is called unless it leaves first, perhaps at once."""
        try:
            describer = self._of(client, kind)
        except ServiceError as error:
            answered(wire.Failure("service", str(error)))
            return
        describer.asked = True
        if (answer := describer.answers.get(body)) is not None:
            describer.answers.move_to_end(body)
            answered(answer)
            return
        number = describer.numbers.get(body)
        if number is None:
            number = describer.numbers[body] = next(self._numbers)
            describer.questions[number] = _Question(body)
            assert describer.channel is not None
            self._loop.send(describer.channel, wire.Question(number, body))
        describer.questions[number].askers.append((client, answered))

    def client_left(self, client: int) -> None:
        """Nobody is there to be told. What it asked is answered all the same: others may ask the same."""
        for describer in self._describers.values():
            describer.audience.discard(client)
            for question in describer.questions.values():
                question.askers = [each for each in question.askers if each[0] != client]

    def replace_stopped(self, now: float) -> None:
        """End describers that somebody has stopped (SIGSTOP) and left so while somebody waits."""
        for describer in self._describers.values():
            process = describer.process
            if process is None or not describer.questions or not machine.stopped(process.pid):
                describer.stopped = None
            elif describer.stopped is None:
                describer.stopped = now
            elif now - describer.stopped >= STOPPED_TIMEOUT:
                process.kill()  # which is seen, and another is started

    def end_idle(self) -> None:
        """Give the memory back: end those of which nobody waits for an answer."""
        for kind, describer in list(self._describers.items()):
            if not describer.questions:
                was_awake = describer.awake
                self._end(kind)
                if was_awake:
                    self._announce(kind, describer)

    def end(self) -> None:
        """End them all; what was asked is not answered."""
        for kind in list(self._describers):
            self._end(kind)

    # Inside

    def _of(self, client: int, kind: DescriberKind) -> _Describer:
        describer = self._describers.get(kind)
        if describer is None:
            describer = _Describer()
            self._start(kind, describer)
            self._describers[kind] = describer
        if client not in describer.audience:
            describer.audience.add(client)
            if describer.awake:
                self._tell(client, wire.DescriberState(kind.spec.settings, True))
        return describer

    def _start(self, kind: DescriberKind, describer: _Describer) -> None:
        """Raises ServiceError: no process can be started."""
        spec = kind.spec
        try:
            log = last_words_file()
            mine, theirs = socket.socketpair()
        except OSError as error:
            raise ServiceError(f"no describer: {error.strerror}") from error
        with theirs:
            try:
                process = spawn(
                    spec.toolchain.python,
                    spec.toolchain.sys_path,
                    MODULE,
                    f"{theirs.fileno()} {os.getpid()}",
                    pass_fds=[theirs.fileno()],
                    unset=[name for name in os.environ if name.startswith(_OWN)],
                    set_to={
                        **dict(spec.settings),
                        # Torch makes Inductor's cache folder when it is imported. Each question says where it is.
                        f"{_OWN}CACHE_DIR": "/",
                        "HEADSTART": "off",
                        "TORCH_WARM_POOL": "0",  # a pool of Inductor's own would be of no use there
                    },
                    stderr=log,
                )
            except (OSError, ValueError) as error:  # a ValueError: a path or a variable with a null byte
                mine.close()
                log.close()
                why = getattr(error, "strerror", None) or error
                raise ServiceError(f"no describer: cannot start {spec.toolchain.python}: {why}") from error
        try:
            describer.pidfd = os.pidfd_open(process.pid)
        except OSError as error:  # no more file descriptors
            process.kill()
            process.wait()
            mine.close()
            log.close()
            raise ServiceError(f"no describer: it cannot be watched: pidfd_open: {error.strerror}") from error
        describer.process, describer.log = process, log
        describer.channel = wire.Channel(mine, wire.FromDescriber)
        describer.awake, describer.stopped = False, None
        self._loop.watch(describer.channel, lambda mask: self._hear(kind, describer, mask))
        self._loop.watch(describer.pidfd, lambda mask: self._died(kind, describer))
        for number, question in describer.questions.items():
            self._loop.send(describer.channel, wire.Question(number, question.body))

    def _hear(self, kind: DescriberKind, describer: _Describer, mask: int) -> None:
        assert describer.channel is not None
        assert describer.process is not None
        try:
            for message in self._loop.receive(describer.channel, mask):
                self._take(kind, describer, message)
        except (EOFError, ConnectionError):
            self._loop.unwatch(describer.channel)  # its pidfd tells when it is gone
        except wire.ProtocolError:
            _log.exception("a describer was killed")
            self._loop.unwatch(describer.channel)
            describer.process.kill()

    def _take(self, kind: DescriberKind, describer: _Describer, message: Any) -> None:
        if isinstance(message, wire.Awake):
            describer.awake, describer.deaths = True, 0
            self._announce(kind, describer)
            return
        question = describer.questions.pop(message.ticket, None)
        if question is None:
            return
        del describer.numbers[question.body]
        describer.answers[question.body] = message.answer
        describer.kept += len(question.body) + len(message.answer)
        while describer.kept > _MAX_KEPT:
            body, answer = describer.answers.popitem(last=False)
            describer.kept -= len(body) + len(answer)
        for _, answered in question.askers:
            answered(message.answer)

    def _announce(self, kind: DescriberKind, describer: _Describer) -> None:
        for client in describer.audience:
            self._tell(client, wire.DescriberState(kind.spec.settings, describer.awake))

    def _died(self, kind: DescriberKind, describer: _Describer) -> None:
        assert describer.channel is not None
        assert describer.process is not None
        assert describer.log is not None
        with contextlib.suppress(EOFError, ConnectionError, wire.ProtocolError):
            for _ in range(_MOST_READS):  # what it had said before it died
                for message in describer.channel.receive():
                    self._take(kind, describer, message)
        status, words = describer.process.wait(), _last_words(describer.log)
        was_awake = describer.awake
        self._let_go(describer)
        if was_awake:
            self._announce(kind, describer)
        if not describer.questions:
            del self._describers[kind]  # it had nothing to do; its answers may be of a torch that is no more
            return
        why = f"the describer {describe_status(status)}; its last words: {words or 'none'}"
        number, suspect = next(iter(describer.questions.items()))
        if was_awake:
            suspect.deaths += 1
        else:
            describer.deaths += 1
        if describer.deaths >= MAX_DEATHS:
            self._give_up(kind, describer, why)
            return
        if suspect.deaths >= MAX_DEATHS:
            self._fail(describer, number, why)
        if not describer.questions:
            del self._describers[kind]
            return
        try:
            self._start(kind, describer)
        except ServiceError as error:
            self._give_up(kind, describer, f"{why}. {error}")

    def _give_up(self, kind: DescriberKind, describer: _Describer, why: str) -> None:
        for number in list(describer.questions):
            self._fail(describer, number, why)
        del self._describers[kind]

    def _fail(self, describer: _Describer, number: int, why: str) -> None:
        question = describer.questions.pop(number)
        del describer.numbers[question.body]
        for _, answered in question.askers:
            answered(wire.Failure("service", why))

    def _let_go(self, describer: _Describer) -> None:
        assert describer.channel is not None
        assert describer.log is not None
        self._loop.unwatch(describer.channel)
        self._loop.unwatch(describer.pidfd)
        describer.channel.close()
        os.close(describer.pidfd)
        describer.log.close()
        describer.process = describer.channel = describer.log = None
        describer.awake = False

    def _end(self, kind: DescriberKind) -> None:
        describer = self._describers.pop(kind)
        if describer.process is not None:
            describer.process.kill()  # it may be importing torch, and has nothing to finish
            describer.process.wait()
            self._let_go(describer)


def _last_words(log: IO[bytes]) -> str:
    size = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), _LAST_WORDS, max(0, size - _LAST_WORDS)).decode(errors="replace").strip()
