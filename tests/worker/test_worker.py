"""A worker by itself, with neither zygote nor service: what it is told, what it says, what it leaves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import PATIENCE, client_environment, wait_until
from headstart import wire
from headstart.artifacts.entry import Entry
from headstart.model import keys
from headstart.model.request import CompileRequest
from headstart.stores import open_store
from headstart.wire.worker_folder import last_stage, last_words
from kernels import matmul, pointwise, prints, raises

pytestmark = pytest.mark.triton

_WORKER = """
import socket, sys
from headstart.worker import compiling, worker
compiling.prepare()
worker.run(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
"""


class Worker:
    """A worker's process, and the service's end of its socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        mine, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, str(theirs.fileno()), str(folder)],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **client_environment()},
            )
        self.socket = mine
        self.socket.settimeout(PATIENCE)
        self._messages = wire.receive_blocking(self.socket, wire.Deframer(wire.FromWorker))

    def say(self, message: msgspec.Struct) -> None:
        self.socket.sendall(wire.frame(message))

    def hear(self) -> Any:
        return next(self._messages)

    def does(self, kernel: dict[str, Any], **how: Any) -> Any:
        """What it says in the end; at a cut point it is told to go on."""
        self.say(order(kernel, **how))
        while isinstance(said := self.hear(), wire.Reached):
            self.say(wire.Proceed())
        return said


def order(kernel: dict[str, Any], *, store: Path | None = None, **how: Any) -> wire.Assign:
    request = CompileRequest.make(**kernel, target="cuda:90")
    key = keys.entry_key("ef" * 32, request.digest())
    return wire.Assign(key, "ef" * 32, request, b"" if store is None else os.fsencode(store), **how)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path / "worker")
    yield made
    made.socket.close()
    assert made.process.wait(PATIENCE) == 0  # it ends by itself when nobody is there any more


def test_what_it_makes_is_an_entry_of_the_request(worker: Worker) -> None:
    asked = order(pointwise())
    worker.say(asked)
    done = worker.hear()
    assert isinstance(done, wire.Finished)
    assert not done.stored
    entry = Entry.from_bytes(done.entry)
    entry.verify()
    assert (entry.key, entry.header.request_digest) == (asked.key, asked.request.digest())
    assert {"ttir", "ttgir", "llir", "ptx", "cubin"} <= set(entry.artifact_names)
    assert done.finished > done.started
    assert done.cpu_s > 0.0
    assert [stage for stage, _ in done.log.times if stage.endswith(("ttir", "cubin"))]


def test_a_store_is_given_the_entry_and_the_service_only_word_of_it(worker: Worker, tmp_path: Path) -> None:
    done = worker.does(pointwise(), store=tmp_path / "cache")
    assert (done.stored, done.entry, done.cached) == (True, b"", False)
    (key,) = open_store(tmp_path / "cache").keys()
    again = worker.does(pointwise(), store=tmp_path / "cache")  # somebody was faster: its entry is ours
    assert (again.stored, again.cached) == (True, True)
    assert list(open_store(tmp_path / "cache").keys()) == [key]


def test_a_store_that_cannot_be_written_is_a_notice_and_the_entry_travels(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    done = worker.does(pointwise(), store=tmp_path / "a file")
    assert not done.stored
    assert "kernels are kept in memory only" in done.notice
    assert Entry.from_bytes(done.entry).artifact("cubin")


def test_a_kernel_that_fails_is_a_failure_with_its_stage_and_the_next_one_is_compiled(worker: Worker) -> None:
    failure = worker.does(raises())
    assert isinstance(failure, wire.Failure)
    assert failure.stage == "ttir"
    assert failure.raised
    assert isinstance(worker.does(pointwise()), wire.Finished)


def test_what_one_source_sets_does_not_reach_the_next_kernel(worker: Worker) -> None:
    before = "import os, triton; os.environ['TRITON_DEBUG'] = '1'; triton.knobs.compilation.disable_line_info = True"
    plain = worker.does(pointwise())
    worker.does(pointwise(3.0, before=before))
    after = worker.does(pointwise())
    assert Entry.from_bytes(after.entry).artifact("cubin") == Entry.from_bytes(plain.entry).artifact("cubin")


def test_what_a_compile_prints_is_its_own_and_its_folder_is_emptied(worker: Worker) -> None:
    said = worker.does(prints())
    printed = said.log.stdout + said.log.stderr
    assert printed
    assert last_words(str(worker.folder)) == printed.strip()
    quiet = worker.does(pointwise())
    assert quiet.log.stdout + quiet.log.stderr == ""
    # Once it has answered: nobody waits for it.
    wait_until(lambda: {path.name for path in worker.folder.iterdir()} <= {"stage", "stdout", "stderr"})
    assert last_stage(str(worker.folder)) == "cubin"
    assert last_words(str(worker.folder)) == ""


def test_at_a_cut_point_it_asks_and_gives_the_compile_back_if_it_is_told_to(worker: Worker, tmp_path: Path) -> None:
    kernels = [matmul(num_stages=stages) for stages in (1, 2)]  # without a loop to pipeline they may become the same
    store = tmp_path / "cache"
    worker.say(order(kernels[0], store=store, early_cutoff=True))
    reached = worker.hear()
    assert isinstance(reached, wire.Reached)
    worker.say(wire.StandAside())
    stood = worker.hear()
    assert isinstance(stood, wire.StoodAside)
    assert stood.suffix == reached.suffix
    assert stood.prefix
    done = worker.does(kernels[0], store=store, early_cutoff=True)  # meanwhile somebody has compiled it whole
    assert done.stored
    taken = worker.does(kernels[0], store=store, prefix=stood.prefix)
    assert taken.stored


def test_a_worker_whose_service_is_gone_in_the_middle_of_a_frame_ends(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "worker")
    worker.socket.sendall(wire.frame(order(pointwise()))[:-10])
    worker.socket.close()
    assert worker.process.wait(PATIENCE) == 0
