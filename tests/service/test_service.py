"""Who runs where: what a client may and may not do, one compile per key, and what workers and services are given."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import headstart
from conftest import PATIENCE, PROMPT, Client, Family, client_environment, is_alive, wait_until
from headstart import AsyncCompile, ServiceError
from kernels import Gate, pointwise, prints

pytestmark = pytest.mark.triton

Open = Callable[..., AsyncCompile]
Start = Callable[..., Client]


# The client compiles nothing


def test_the_client_neither_imports_triton_nor_runs_a_compiler(start_client: Start) -> None:
    client = start_client(
        """
        import json, os, sys

        ran = []
        events = ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen")
        sys.addaudithook(lambda event, arguments: event in events and ran.append(str(arguments)))

        import headstart
        from kernels import pointwise, raises

        with headstart.AsyncCompile("cuda:90", workers=2) as async_compile:
            scope = {"good": async_compile.triton(**pointwise()), "bad": async_compile.triton(**raises())}
            try:
                async_compile.wait(scope)
            except headstart.CompileErrors:
                pass
            assert scope["good"].asm["cubin"] and scope["good"].metadata.num_warps
        loaded = [name for name in sys.modules if name.partition(".")[0] in ("triton", "torch", "numpy")]
        print(json.dumps({"loaded": loaded, "ran": ran}))
        """
    )
    seen = json.loads(client.finish())
    assert seen["loaded"] == []
    assert len(seen["ran"]) == 1
    assert "headstart.service.server" in seen["ran"][0]


@pytest.mark.parametrize("statement", ["import headstart", "import headstart, headstart.client.async_compile"])
def test_importing_headstart_imports_neither_triton_nor_torch(statement: str) -> None:
    program = f"{statement}, sys; print([m for m in ('triton', 'torch') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **client_environment()},
    )
    assert result.stdout == "[]\n", result.stderr


# One compile per key


@pytest.mark.usefixtures("either_service")
def test_the_same_request_again_is_the_same_future(open_compile: Open) -> None:
    async_compile = open_compile()
    future = async_compile.triton(**pointwise())
    assert async_compile.triton(**pointwise()) is future
    assert async_compile.triton(**pointwise(), filename="elsewhere.py") is future
    assert async_compile.triton(**pointwise(3.0)) is not future
    assert future.result(PATIENCE) is future.result()
    assert async_compile.statistics.deduplicated == 2


@pytest.mark.usefixtures("either_service")
def test_one_service_compiles_a_key_once_and_answers_everyone(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    futures = []
    for _ in range(3):
        futures.append(async_compile.triton(**gate.kernel()))
        async_compile.kernels.cache_clear()  # as at the start of another compile
    gate.began()
    futures.append(async_compile.triton(**gate.kernel()))
    gate.open()
    results = [future.result(PATIENCE) for future in futures]
    assert len(set(map(id, futures))) == 4
    assert len({result.asm["cubin"] for result in results}) == 1
    assert len(gate.pids()) == 1


def test_two_clients_one_key_one_compile(open_compile: Open, family: Family, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    first, second = open_compile(), open_compile()
    one = first.triton(**gate.kernel())
    gate.began()
    other = second.triton(**gate.kernel())
    # The second one's worker has the job too, and waits for the first one's.
    wait_until(lambda: [name for name, _ in second.in_flight()] == ["gated"])
    assert len(family.services()) == 2
    unrelated = second.triton(**pointwise())
    assert unrelated.result(PATIENCE).asm["cubin"]
    gate.open()
    assert one.result(PATIENCE).asm["cubin"] == other.result(PATIENCE).asm["cubin"]
    assert len(gate.pids()) == 1
    assert (first.statistics.compiled, first.statistics.cached) == (1, 0)
    assert (second.statistics.compiled, second.statistics.cached) == (1, 1)  # one of its own


def test_a_second_client_compiles_what_the_first_did_not_live_to_finish(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    first, second = open_compile(), open_compile()
    first.triton(**gate.kernel())
    gate.began()
    other = second.triton(**gate.kernel())
    wait_until(second.in_flight)
    first.close()
    gate.began(times=2)
    gate.open()
    assert other.result(PATIENCE).asm["cubin"]
    assert second.statistics.compiled == 1


@pytest.mark.usefixtures("either_service")
def test_a_later_client_finds_what_an_earlier_one_compiled(open_compile: Open) -> None:
    with open_compile() as first:
        cubin = first.triton(**pointwise()).result(PATIENCE).asm["cubin"]
    second = open_compile()
    assert second.triton(**pointwise()).result(PATIENCE).asm["cubin"] == cubin
    assert (second.statistics.compiled, second.statistics.cached) == (0, 1)


@pytest.mark.usefixtures("either_service")
def test_without_the_store_everything_is_compiled_anew_and_nothing_is_kept(open_compile: Open) -> None:
    for _ in range(2):
        with open_compile(use_store=False) as async_compile:
            assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]
            assert async_compile.statistics.compiled == 1
    assert not list(Path(os.environ["HEADSTART_CACHE_DIR"]).glob("store/v2/??"))


# Kick-off does not wait


def test_kick_off_returns_while_the_service_is_still_starting(
    open_compile: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.client import launch

    started = threading.Event()
    spawn = launch.spawn
    monkeypatch.setattr(launch, "spawn", lambda *args, **kwargs: started.wait(PATIENCE) and spawn(*args, **kwargs))
    async_compile = open_compile()
    futures = [async_compile.triton(**pointwise(number)) for number in range(20)]
    assert async_compile.services_started == 0
    assert not any(future.done() for future in futures)
    started.set()
    assert all(future.result(PATIENCE).asm["cubin"] for future in futures)


def test_kick_off_never_waits_for_a_service_that_does_not_read(open_compile: Open, family: Family) -> None:
    async_compile = open_compile()
    async_compile.triton(**pointwise(1)).result(PATIENCE)
    service = family.service()
    service.suspend()
    try:
        padding = "# " + "x" * (1 << 19) + "\n"
        begun = time.monotonic()
        futures = [async_compile.triton(**pointwise(100 + number, before=padding)) for number in range(16)]
        took = time.monotonic() - begun
    finally:
        service.resume()
    assert took < 2  # 8 MiB; no socket holds that
    assert all(future.result(PATIENCE).asm["cubin"] for future in futures)


@pytest.mark.usefixtures("either_service")
def test_many_threads_may_kick_off_and_wait_at_once(open_compile: Open) -> None:
    async_compile = open_compile()
    barrier = threading.Barrier(16)
    kernels: list[tuple[int, headstart.CompiledKernel]] = []

    def work(thread: int) -> None:
        barrier.wait()
        futures = [(number, async_compile.triton(**pointwise(number))) for number in range(8)]
        kernels.extend((number, future.result(PATIENCE)) for number, future in futures)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(kernels) == 16 * 8
    assert len({id(kernel) for _, kernel in kernels}) == 8
    statistics = async_compile.statistics
    assert (statistics.requested, statistics.compiled, statistics.deduplicated) == (128, 8, 120)


@pytest.mark.usefixtures("either_service")
def test_a_result_can_be_asked_for_inside_a_running_event_loop(open_compile: Open) -> None:
    async_compile = open_compile()

    async def main() -> headstart.CompiledKernel:
        return async_compile.triton(**pointwise()).result(PATIENCE)

    assert asyncio.run(main()).asm["cubin"]


# Forks of the client


def in_a_fork(work: Callable[[], object]) -> None:
    """Run `work` in a fork of this process; it must end well."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + PATIENCE
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            psutil.Process(pid).kill()
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0


def test_a_fork_gets_its_results_from_a_service_of_its_own_and_leaves_the_parent_s_alone(
    open_compile: Open, family: Family, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    done = async_compile.triton(**pointwise(1))
    done.result(PATIENCE)
    pending = async_compile.triton(**gate.kernel())
    gate.began()
    service = family.service().pid

    def child() -> None:
        assert done.result(PATIENCE).asm["cubin"]
        new = async_compile.triton(**pointwise(2))
        assert new.result(PATIENCE).asm["cubin"]
        gate.open()
        assert pending.result(PATIENCE).asm["cubin"]
        assert Family(os.getpid()).service().pid != service
        async_compile.close()

    in_a_fork(child)
    assert pending.result(PATIENCE).asm["cubin"]
    assert async_compile.triton(**pointwise(3)).result(PATIENCE).asm["cubin"]
    assert family.service().pid == service
    assert async_compile.services_started == 1


def test_a_fork_that_ends_without_closing_leaves_the_parent_s_service_alone(open_compile: Open, family: Family) -> None:
    async_compile = open_compile()
    async_compile.triton(**pointwise(1)).result(PATIENCE)
    in_a_fork(lambda: None)
    in_a_fork(lambda: async_compile.triton(**pointwise(2)).result(PATIENCE))
    assert async_compile.triton(**pointwise(3)).result(PATIENCE).asm["cubin"]
    assert async_compile.services_started == 1
    assert len(family.services()) == 1


def test_a_fork_does_not_keep_the_parent_s_service_alive(open_compile: Open, family: Family) -> None:
    async_compile = open_compile()
    async_compile.triton(**pointwise(1)).result(PATIENCE)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent closes its end
        os._exit(0)
    os.close(reader)
    try:
        service = family.service()
        begun = time.monotonic()
        async_compile.close()
        assert time.monotonic() - begun < 2
        assert not is_alive(service)
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def test_a_fork_while_the_service_is_being_started_does_not_keep_it_alive(
    open_compile: Open, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.client import launch

    starting, forked = threading.Event(), threading.Event()
    spawn = launch.spawn

    def spawn_after_the_fork(*arguments: Any, **more: Any) -> Any:
        starting.set()
        forked.wait(PATIENCE)
        return spawn(*arguments, **more)

    monkeypatch.setattr(launch, "spawn", spawn_after_the_fork)
    async_compile = open_compile()
    assert starting.wait(PATIENCE)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent closes its end
        os._exit(0)
    os.close(reader)
    forked.set()
    try:
        assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]
        begun = time.monotonic()
        async_compile.close()
        assert time.monotonic() - begun < 2
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def test_a_fork_while_other_threads_kick_off_and_wait_is_not_stuck(
    open_compile: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every lock of the client is held by another thread at the moment of the fork."""
    from headstart.client.connection import ServiceConnection
    from headstart.stores.disk import DiskStore

    async_compile = open_compile()
    async_compile.bundler.begin_compile()
    finishing = async_compile.triton(**pointwise(1))
    wait_until(finishing.done)
    inside, go = threading.Barrier(3), threading.Event()
    parent = os.getpid()

    def held_up(original: Callable[..., object]) -> Callable[..., object]:
        def method(*arguments: object, **more: object) -> object:
            if os.getpid() == parent and threading.current_thread() is not threading.main_thread():
                inside.wait(PATIENCE)
                go.wait(PATIENCE)
            return original(*arguments, **more)

        return method

    with monkeypatch.context() as held:
        held.setattr(ServiceConnection, "submit", held_up(ServiceConnection.submit))
        held.setattr(DiskStore, "find", held_up(DiskStore.find))
        threads = [
            threading.Thread(target=async_compile.triton, kwargs=pointwise(2)),  # holds the client's lock
            threading.Thread(target=finishing.result),  # holds the future's lock
        ]
        for thread in threads:
            thread.start()
        inside.wait(PATIENCE)

        def child() -> None:
            assert finishing.result(PATIENCE).asm["cubin"]
            assert async_compile.triton(**pointwise(2)).result(PATIENCE).asm["cubin"]
            assert async_compile.statistics.requested >= 2
            async_compile.close()

        try:
            in_a_fork(child)
        finally:
            go.set()
            for thread in threads:
                thread.join(PATIENCE)
    assert finishing.result(PATIENCE).asm["cubin"]


def _in_a_pool(number: int) -> int:
    assert _shared is not None
    return len(_shared.triton(**pointwise(number)).result(PATIENCE).asm["cubin"])


_shared: AsyncCompile | None = None


@pytest.mark.usefixtures("either_service")
def test_a_forked_multiprocessing_pool_can_use_it(open_compile: Open, family: Family) -> None:
    global _shared
    _shared = open_compile()
    _shared.triton(**pointwise(0)).result(PATIENCE)
    try:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert all(pool.map(_in_a_pool, range(4)))
            pool.close()
            pool.join()
    finally:
        _shared, mine = None, _shared
    assert mine.triton(**pointwise(9)).result(PATIENCE).asm["cubin"]
    assert mine.services_started == 1


# What belongs to the client stays with it


def test_nothing_inherits_the_client_s_standard_streams(start_client: Start, tmp_path: Path) -> None:
    gate, end = Gate(tmp_path / "gate"), Gate(tmp_path / "end")
    client = start_client(
        """
        import os, sys, headstart
        from kernels import Gate, pointwise
        gate, end = Gate(sys.argv[1]), Gate(sys.argv[2])
        async_compile = headstart.AsyncCompile("cuda:90", workers=2)
        async_compile.triton(**gate.kernel())
        end.wait()
        print("bye", flush=True)
        os._exit(0)
        """,
        gate.folder,
        end.folder,
    )
    gate.began()
    pipes = {os.readlink(f"/proc/{client.process.pid}/fd/{fd}") for fd in (1, 2)}
    for process in psutil.Process(client.process.pid).children(recursive=True):
        folder = f"/proc/{process.pid}/fd"
        assert pipes.isdisjoint(os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder))
    # End of file on both, though nobody below the client was given time to end.
    begun = time.monotonic()
    end.open()
    assert client.finish() == "bye\n"
    assert time.monotonic() - begun < 1


@pytest.mark.usefixtures("either_service")
def test_a_client_without_standard_streams_can_compile(start_client: Start, tmp_path: Path) -> None:
    client = start_client(
        """
        import os, sys
        for fd in (0, 1, 2):
            os.close(fd)
        import headstart
        from kernels import pointwise
        with headstart.AsyncCompile("cuda:90", workers=1) as async_compile:
            outcome = async_compile.triton(**pointwise()).exception(20)
        with open(sys.argv[1], "w") as file:
            file.write(str(outcome))
        """,
        tmp_path / "outcome",
    )
    client.finish()
    assert (tmp_path / "outcome").read_text() == "None"


@pytest.mark.usefixtures("either_service")
def test_what_a_compile_prints_is_captured_and_shown_to_whoever_waits(
    start_client: Start, open_compile: Open, caplog: pytest.LogCaptureFixture
) -> None:
    client = start_client(
        """
        import headstart
        from kernels import prints
        with headstart.AsyncCompile("cuda:90", workers=1) as async_compile:
            print(async_compile.triton(**prints()).result().entry.header.output.count("BLOCK is 128"))
        """
    )
    output, errors = client.process.communicate(timeout=PATIENCE)
    assert output == b"1\n"
    assert b"BLOCK is 128" in errors
    # It is kept with the entry, for those who get it from the store.
    later = open_compile().triton(**prints()).result(PATIENCE)
    assert "BLOCK is 128" in later.entry.header.output


def test_compiling_a_kernel_that_prints_nothing_shows_nothing(
    open_compile: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns if nobody says what it is to be
    kernel = open_compile().triton(**pointwise()).result(PATIENCE)
    assert kernel.entry.header.output == ""
    assert caplog.messages == []


# What workers are given

LOOK = """
import json, os, pathlib, threading
seen = {{
    "environment": dict(getattr(os, "environ")),  # as no source should
    "pid": os.getpid(),
    "ppid": os.getppid(),
    "pgid": os.getpgrp(),
    "sid": os.getsid(0),
    "tasks": os.listdir("/proc/self/task"),
    "parent's tasks": os.listdir(f"/proc/{{os.getppid()}}/task"),
    "cwd": os.getcwd(),
    "fds": [os.readlink(f"/proc/self/fd/{{fd}}") for fd in (0, 1, 2)],
    "tmp": __import__("tempfile").gettempdir(),
    "modules": [name for name in __import__("sys").modules if name.partition(".")[0] in ("torch", "numpy")],
}}
path = pathlib.Path({folder!r}, "looked.json")
pathlib.Path({folder!r}, "looking").write_text(json.dumps(seen))
os.replace(pathlib.Path({folder!r}, "looking"), path)
"""


def look(async_compile: AsyncCompile, folder: Path, **how: object) -> dict[str, object]:
    """What a worker sees when it defines a kernel."""
    kernel = pointwise(name="looks", before=LOOK.format(folder=str(folder)), **how)
    async_compile.kernels.cache_clear()
    async_compile.triton(**kernel).result(PATIENCE)
    seen: dict[str, object] = json.loads((folder / "looked.json").read_text())
    return seen


def test_a_worker_sees_no_gpu_has_a_group_and_a_temporary_folder_of_its_own(
    open_compile: Open, family: Family, tmp_path: Path, runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "0,1")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    seen = look(open_compile(), tmp_path)
    environment = seen["environment"]
    assert isinstance(environment, dict)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        assert environment[name] == ""
    assert environment["PYTHONHASHSEED"] == "0"
    assert seen["pgid"] == seen["pid"] != seen["ppid"] == family.zygote().pid
    assert seen["sid"] == family.service().pid
    assert seen["tasks"] == [str(seen["pid"])]
    assert seen["parent's tasks"] == [str(family.zygote().pid)]
    assert Path(str(seen["tmp"])).is_relative_to(runtime_folder / "headstart")
    assert environment["TMPDIR"] == seen["tmp"]
    assert isinstance(seen["fds"], list)
    assert seen["fds"][0] == "/dev/null"
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        assert Path(seen["fds"][descriptor]) == Path(str(seen["tmp"])) / name
    assert seen["modules"] == []


@pytest.mark.usefixtures("either_service")
def test_a_variable_that_changes_the_outcome_changes_the_key_and_reaches_the_worker(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async_compile = open_compile()
    plain = async_compile.triton(**pointwise()).result(PATIENCE)
    monkeypatch.setenv("PTXAS_OPTIONS", "--maxrregcount=24")
    changed = async_compile.triton(**pointwise()).result(PATIENCE)
    assert changed.key != plain.key
    assert headstart.model.keys.explain(plain.entry.header.components, changed.entry.header.components) == [
        "environment.PTXAS_OPTIONS was not given, now --maxrregcount=24"
    ]
    assert changed.metadata.ptx_options in ("--maxrregcount=24", None)  # where Triton writes it down
    assert look(async_compile, tmp_path)["environment"]["PTXAS_OPTIONS"] == "--maxrregcount=24"  # type: ignore[index]
    monkeypatch.delenv("PTXAS_OPTIONS")
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    bare = async_compile.triton(**pointwise()).result(PATIENCE)
    assert ".loc" in plain.asm["ptx"]
    assert ".loc" not in bare.asm["ptx"]


def test_a_worker_serves_one_fingerprint_in_its_life(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async_compile = open_compile(workers=1)
    pids = []
    cases = [
        ("cuda:80", ""),
        ("cuda:80", "--maxrregcount=24"),
        ("cuda:86", "--maxrregcount=24"),
        ("cuda:86", ""),
    ]
    for target, options in cases:
        monkeypatch.setenv("PTXAS_OPTIONS", options)
        seen = look(async_compile, tmp_path, target=target)
        assert isinstance(seen["environment"], dict)
        assert seen["environment"].get("PTXAS_OPTIONS", "") == options
        pids.append(seen["pid"])
    assert pids[0] != pids[1] == pids[2] != pids[3]


@pytest.mark.parametrize(
    "setting",
    [
        "import os\nos.environ['TRITON_DISABLE_LINE_INFO'] = '1'\n",
        "triton.knobs.compilation.disable_line_info = True\n",
    ],
    ids=["a variable", "a knob"],
)
def test_what_one_source_sets_does_not_reach_the_next_one(open_compile: Open, setting: str) -> None:
    polluting = pointwise(before=f"import triton\n{setting}")
    with open_compile(workers=1) as async_compile:
        async_compile.triton(**polluting).result(PATIENCE)
        after = async_compile.triton(**pointwise()).result(PATIENCE)
    assert ".loc" in after.asm["ptx"]


# Where things lie


def test_a_cache_folder_with_spaces_and_letters_of_any_kind_works(open_compile: Open, tmp_path: Path) -> None:
    folder = tmp_path / "my caché 核 'quoted' $HOME"
    with open_compile(cache_dir=folder) as async_compile:
        assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]
    again = open_compile(cache_dir=folder)
    assert again.triton(**pointwise()).result(PATIENCE).entry.path.is_relative_to(folder)
    assert again.statistics.cached == 1


@pytest.mark.usefixtures("either_service")
def test_a_cache_folder_whose_name_is_no_text_works(open_compile: Open, tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/latin-\xe9")
    assert open_compile(cache_dir=folder).triton(**pointwise()).result(PATIENCE).asm["cubin"]


def test_a_runtime_folder_with_a_very_long_path_works(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 40) / ("longer" * 20)
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert len(str(folder)) > 250
    async_compile = open_compile()
    assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]
    async_compile.close()
    assert list(folder.glob("headstart/*")) == []


def test_a_file_name_that_is_no_text_harms_no_other_kernel(open_compile: Open) -> None:
    async_compile = open_compile()
    good = [async_compile.triton(**pointwise(1))]
    try:
        odd = async_compile.triton(**pointwise(2), filename=os.fsdecode(b"latin-\xe9.py"))
    except headstart.UsageError as error:
        assert "filename" in str(error)  # noqa: PT017 - refusing it is fine, too
    else:
        assert odd.result(PATIENCE).asm["cubin"]
    good += [async_compile.triton(**pointwise(3))]
    assert all(future.result(PATIENCE).asm["cubin"] for future in good)


@pytest.mark.parametrize("where", ["signature", "option"])
def test_text_that_cannot_be_encoded_is_refused_or_fails_alone(open_compile: Open, where: str) -> None:
    async_compile = open_compile()
    good = async_compile.triton(**pointwise(1))
    kernel = pointwise(2)
    if where == "signature":
        kernel["signature"] = {**kernel["signature"], "x": "*fp\ud800"}
    else:
        kernel["options"] = {"arch": "\ud800"}
    with pytest.raises(headstart.HeadstartError):
        async_compile.triton(**kernel).result(PATIENCE)
    assert good.result(PATIENCE).asm["cubin"]
    assert async_compile.triton(**pointwise(3)).result(PATIENCE).asm["cubin"]


# Where there is nothing to compile with, or nowhere to keep it


def without_triton(folder: Path) -> dict[str, str]:
    """Environment for a Python that finds what headstart needs, and nothing else."""
    import msgspec
    import platformdirs

    for package in (headstart, msgspec, platformdirs):
        (folder / package.__name__).symlink_to(Path(package.__file__ or "").parent)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{Path(__file__).parents[1]}"}


def test_without_triton_every_request_says_what_to_do(tmp_path: Path) -> None:
    program = """
import headstart
from kernels import pointwise
with headstart.AsyncCompile("cuda:90", workers=2) as async_compile:
    for number in (1, 2):
        try:
            async_compile.triton(**pointwise(number)).result(30)
        except headstart.ServiceError as error:
            print(error)
    print(async_compile.services_started, async_compile.statistics.failed)
"""
    result = subprocess.run(
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **without_triton(tmp_path)},
        timeout=PATIENCE,
    )
    lines = result.stdout.splitlines()
    assert lines[-1] == "0 2", result.stderr
    assert len(lines) == 3
    assert all("no Triton to compile with" in line and "pip install" in line for line in lines[:2])


@pytest.mark.usefixtures("either_service")
def test_a_triton_that_cannot_be_imported_is_reported_with_its_traceback(start_client: Start, tmp_path: Path) -> None:
    (tmp_path / "broken" / "triton").mkdir(parents=True)
    (tmp_path / "broken" / "triton" / "__init__.py").write_text(
        '__version__ = "3.9.0"\nraise OSError("no such libtriton")\n'
    )
    client = start_client(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import headstart
        from kernels import pointwise
        with headstart.AsyncCompile("cuda:90", workers=2) as async_compile:
            try:
                async_compile.triton(**pointwise()).result(30)
            except headstart.ServiceError as error:
                print(error)
        """,
        tmp_path / "broken",
    )
    said = client.finish()
    assert "Triton cannot be imported" in said
    assert "OSError: no such libtriton" in said


def test_no_interpreter_to_start_is_a_service_error(open_compile: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    error = open_compile().triton(**pointwise()).exception(PATIENCE)
    assert isinstance(error, ServiceError)
    assert "sys.executable is '/nonexistent/python'" in str(error)


@pytest.mark.usefixtures("either_service")
def test_a_cache_folder_that_is_a_file_costs_one_warning_and_no_kernel(
    open_compile: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("not a folder")
    async_compile = open_compile(cache_dir=tmp_path / "cache")
    futures = [async_compile.triton(**pointwise(number)) for number in range(4)]
    assert all(future.result(PATIENCE).asm["cubin"] for future in futures)
    assert async_compile.services_started == 1
    said = [message for message in caplog.messages if "FP_FUSION" not in message]
    assert len(said) == 1
    assert f"cannot write {tmp_path / 'cache'}" in said[0]
    assert "kept in memory only" in said[0]


SMALL_DISK = """
import logging, os, subprocess, sys
logging.basicConfig(format="%(message)s")
import headstart
from kernels import pointwise
from pathlib import Path
from typing import Any

disk, how = sys.argv[1:]
if how == "full":
    Path(disk, "filler").write_bytes(b"x" * (60 << 10))
else:
    Path(disk, "toolchains").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
with headstart.AsyncCompile("cuda:90", workers=2, cache_dir=disk) as async_compile:
    futures = [async_compile.triton(**pointwise(number)) for number in range(4)]
    assert all(future.result(30).asm["cubin"] for future in futures)
    print(async_compile.statistics.compiled, async_compile.services_started)
print(sorted(os.listdir(Path(disk, "store", "v2", "tmp"))) if Path(disk, "store", "v2", "tmp").exists() else [])
"""


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_cache_folder_that_is_full_or_read_only_costs_one_warning_and_no_kernel(tmp_path: Path, how: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=64k none "$1" && shift && exec "$@"'
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(disk)]
    try:
        allowed = subprocess.run([*unshare, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this system does not let its users mount a small disk")
    result = subprocess.run(
        [*unshare, sys.executable, "-c", SMALL_DISK, str(disk), how],
        capture_output=True,
        text=True,
        env={**os.environ, **client_environment()},
        timeout=2 * PATIENCE,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "4 1\n[]\n"
    assert result.stderr.count("kept in memory only") == 1


# Idle


def test_an_idle_service_uses_no_processor_time(open_compile: Open, family: Family) -> None:
    async_compile = open_compile()
    async_compile.triton(**pointwise()).result(PATIENCE)
    below = [family.service(), family.zygote(), *family.workers()]

    def switches() -> list[int]:
        return [sum(process.num_ctx_switches()) for process in [psutil.Process(), *below][1:]]

    def settled() -> bool:
        before = switches()
        time.sleep(0.3)  # what is measured is that nothing happens
        return switches() == before

    wait_until(settled, PROMPT)


@pytest.mark.parametrize("other_target", ["cuda:80", "hip:gfx942"])
def test_one_service_compiles_for_other_targets_too(open_compile: Open, other_target: str) -> None:
    async_compile = open_compile()
    here, there = (
        async_compile.triton(**pointwise()),
        async_compile.triton(**pointwise(), target=other_target),
    )
    assert here is not there
    assert here.result(PATIENCE).asm["cubin"]
    assert there.result(PATIENCE).asm[headstart.Target.parse(other_target).binary][:4] == b"\x7fELF"


def test_a_kernel_that_prints_a_lot_keeps_the_end_of_it(open_compile: Open) -> None:
    before = "import os\nfor _ in range(1000): os.write(1, b'x' * 999)\nos.write(1, b'the end')\n"
    output = open_compile().triton(**pointwise(before=before)).result(PATIENCE).entry.header.output
    assert "the end" in output
    assert len(output) < 100_000
