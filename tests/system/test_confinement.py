"""What nobody vouches for is compiled by workers that can do nothing else."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import PATIENCE, Family, needs_confinement
from headstart import AsyncCompile, CompileError, CompileOutOfMemory, CompileTimeout, HeadstartError
from headstart.adapters import replay
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.specialization import Specialization
from headstart.client.policy import Policy
from headstart.model.captured import (
    Binding,
    CapturedFunction,
    CapturedSource,
    Constant,
    Import,
    Namespace,
    Parameter,
    Unbound,
)
from headstart.model.request import CompileRequest, Source
from headstart.model.toolchain import find_toolchain
from kernels import HEAD, pointwise

Open = Callable[..., AsyncCompile]

pytestmark = pytest.mark.triton

BODY = "    tl.store(x, 1)\n"


def request(source: Source, *, name: str = "k", **how: Any) -> CompileRequest:
    fields: dict[str, Any] = {"signature": {"x": "*fp32"}, "target": "cuda:90", "environment": {}} | how
    return CompileRequest.make(name, source, **fields)


def captured(text: str, names: dict[str, Binding] | None = None, **fields: Any) -> CapturedSource:
    given: dict[str, Any] = {
        "kind": "jit",
        "module": "program",
        "qualname": "k",
        "filename": "/srv/program.py",
        "first_line": 1,
        "text": text,
        "names": {"triton": Import("triton"), "tl": Import("triton.language"), **(names or {})},
        "defaults": {},
        "parameters": [Parameter("x", "positional_or_keyword")],
    } | fields
    return CapturedSource([CapturedFunction(**given)])


@pytest.fixture
def unvouched(open_compile: Open) -> Open:
    def make(**arguments: Any) -> AsyncCompile:
        return open_compile(vouched=False, **arguments)

    return make


@pytest.fixture
def unchecked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Confined workers of the services that are started from now on look at nothing before they compile it."""
    boot = textwrap.dedent("""
        import importlib, sys
        path, module, argument = sys.argv[1:]
        sys.path[:] = path.split("\\n")
        from headstart.worker import vetting_again as vetting
        from headstart.worker import worker
        worker._vet = lambda request: None
        vetting.install = lambda: None
        importlib.import_module(module).main(argument)
    """)
    (tmp_path / "boot.py").write_text(boot)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {tmp_path / "boot.py"} "$@"\n')
    python.chmod(0o755)
    toolchain = msgspec.structs.replace(find_toolchain(), python=str(python))
    monkeypatch.setattr(Policy, "toolchain", lambda self, again=False: toolchain)


# The boundary itself, without any check before it


@needs_confinement
def test_a_confined_process_reaches_nothing_but_its_folder_and_the_toolchain(tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "worker"
    secret.write_text("4711")
    folder.mkdir()
    program = f"""
        import ctypes, mmap, os, resource, socket, subprocess, sys
        import headstart, msgspec, triton
        from headstart.system import confinement
        from headstart.system.syscalls import NUMBERS, architecture
        secret, folder = {str(secret)!r}, {str(folder)!r}
        parent, leak = os.getppid(), os.open(secret, os.O_RDONLY)
        packages = [os.path.dirname(module.__file__) for module in (triton, headstart, msgspec)]
        ptxas, *_ = confinement._tools(packages)
        confinement.confine(folder, packages, [])
        libc = ctypes.CDLL(None, use_errno=True)

        def call(name, *arguments):
            if libc.syscall(NUMBERS[architecture()][name], *arguments) < 0:
                raise OSError(ctypes.get_errno(), name)

        tried = dict(
            read=lambda: open(secret).read(),
            inherit=lambda: os.read(leak, 1),
            list=lambda: os.listdir({str(tmp_path)!r}),
            environment_of_others=lambda: open(f"/proc/{{parent}}/environ").read(),
            memory_of_others=lambda: open(f"/proc/{{parent}}/mem"),
            write=lambda: open({str(tmp_path / "written")!r}, "w"),
            write_toolchain=lambda: open(triton.__file__, "a"),
            remove=lambda: os.unlink(secret),
            move=lambda: os.rename(secret, folder + "/mine"),
            link=lambda: os.link(triton.__file__, folder + "/mine"),
            symlink=lambda: os.symlink(secret, folder + "/mine"),
            folder=lambda: os.mkdir(folder + "/deeper"),
            mode=lambda: os.chmod(secret, 0o777),
            mode_by_descriptor=lambda: os.fchmod(os.open(triton.__file__, os.O_RDONLY), 0o777),
            owner=lambda: os.chown(secret, 1, 1),
            times=lambda: os.utime(secret),
            attributes=lambda: os.setxattr(secret, "user.x", b""),
            truncate=lambda: os.truncate(secret, 0),
            shell=lambda: subprocess.run("id", shell=True, check=True),
            program=lambda: subprocess.run([sys.executable, "-c", ""]),
            program_of_its_own=lambda: (
                os.write(os.open(folder + "/a", os.O_CREAT | os.O_WRONLY, 0o777), b"#!/bin/sh"),
                subprocess.run([folder + "/a"]),
            ),
            program_in_memory=lambda: os.memfd_create("program"),
            socket=lambda: socket.socket(),
            socket_pair=lambda: socket.socketpair(),
            signal=lambda: os.kill(parent, 0),
            signal_group=lambda: os.killpg(0, 0),
            signal_when_ready=lambda: __import__("fcntl").fcntl(0, 8, parent),
            watch=lambda: os.pidfd_open(parent),
            limit_others=lambda: resource.prlimit(parent, resource.RLIMIT_CPU),
            slow_others=lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
            bind_others=lambda: os.sched_setaffinity(parent, [0]),
            raise_limit=lambda: resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6)),
            trace=lambda: call("ptrace", 16, parent, 0, 0),
            read_memory=lambda: call("process_vm_readv", parent, 0, 0, 0, 0, 0),
            session=lambda: os.setsid(),
            group=lambda: os.setpgid(0, 0),
            namespace=lambda: call("unshare", 0x10000000),
            namespace_by_clone=lambda: call("clone", 0x10000000 | 17, 0, 0, 0, 0),
            mount=lambda: call("mount", 0, 0, 0, 0, 0),
            shared_memory=lambda: call("shmget", 1, 4096, 0o1600),
            key=lambda: call("keyctl", 0, -3, 0),
            ring=lambda: call("io_uring_setup", 1, 0),
            program_in_kernel=lambda: call("bpf", 0, 0, 0),
            of_another_table=lambda: libc.syscall(100_000) < 0 and call("clone3", 0, 0),
        )
        for name, what in tried.items():
            try:
                what()
            except (OSError, ValueError, subprocess.CalledProcessError):
                continue
            print("could:", name)
        open(folder + "/mine", "w").write("x"), os.unlink(folder + "/mine")
        print(subprocess.run([ptxas, "--version"], capture_output=True).returncode, os.listdir(folder))
    """
    code = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.returncode) == ("0 ['a']\n", 0), done.stderr
    assert secret.read_text() == "4711"


@needs_confinement
@pytest.mark.parametrize("directive", ["incbin", "include"])
def test_assembly_cannot_bring_in_a_file(tmp_path: Path, directive: str) -> None:
    secret, folder = tmp_path / "secret.s", tmp_path / "worker"
    secret.write_text('.ascii "the secret 04711"\n\n\n')  # whole words
    folder.mkdir()
    text = f's_nop 0\\n.{directive} \\"{secret}\\"\\nv_mov_b32 $0, $1'
    source = f"""{HEAD}
@triton.jit
def k(x):
    i = tl.arange(0, 64)
    v = tl.inline_asm_elementwise("{text}", "=v,v", [tl.load(x + i)], dtype=tl.int32, is_pure=False, pack=1)
    tl.store(x + i, v)
"""
    program = f"""
        import os, sys
        import headstart, msgspec, triton
        from headstart.model.request import CompileRequest
        from headstart.system import confinement
        from headstart.worker.compiling import Compiler, Refused
        request = CompileRequest.make(
            "k", {source!r}, signature={{"x": "*i32"}}, target="hip:gfx942", environment={{}}
        )
        packages = [os.path.dirname(module.__file__) for module in (triton, headstart, msgspec)]
        if sys.argv[1] == "confined":
            confinement.confine({str(folder)!r}, packages, [])
        compiled = Compiler({str(folder)!r}, lambda stage: None).compile(request)
        print("secret" if b"the secret 04711" in compiled.artifacts["hsaco"] else "nothing")
    """
    code = textwrap.dedent(program)
    outcomes = [
        subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, timeout=PATIENCE)
        for how in ("free", "confined")
    ]
    assert outcomes[0].stdout == "secret\n", outcomes[0].stderr  # or this test would show nothing
    assert "secret" not in outcomes[1].stdout


# What a manifest may carry


def attacks(canary: Path, secret: Path) -> dict[str, CompileRequest]:
    """By what they do; each would make `canary`, or show `secret`, if it were compiled as Triton does by itself."""
    run = f"os.system('touch {canary}')"
    inspect = f"tl.core.inspect.{run}"
    shadow = f"{HEAD}@triton.jit\ndef k(x{{parameters}}):\n    {{line}}\n{BODY}"
    constexpr = f"{HEAD}@triton.constexpr_function\ndef f(n{{parameters}}):\n    {{line}}\n    return 1\n"
    calls = f"@triton.jit\ndef k(x):\n    n: tl.constexpr = f(1)\n{BODY}"
    module = f"__import__('os').system('touch {canary}')"
    second = f'@triton.jit(repr="""\ndef k(x, y={inspect}): pass\n""")\ndef k(x):\n{BODY}'
    return {
        "an annotation calls": request(captured(f"@triton.jit\ndef k(x: {inspect} = 1):\n{BODY}")),
        "an annotation calls, in a text": request(f"{HEAD}@triton.jit\ndef k(x: {inspect}):\n{BODY}"),
        "a default calls": request(captured(f"@triton.jit\ndef k(x, y={inspect}):\n{BODY}")),
        "a default calls, in a text": request(f"{HEAD}@triton.jit\ndef k(x, y={inspect}):\n{BODY}"),
        "a keyword-only parameter is a builtin": request(
            shadow.format(parameters=", *, getattr=1", line=f"getattr(tl.core, 'inspect').{run}")
        ),
        "a positional-only parameter is a builtin": request(
            f"{HEAD}@triton.jit\ndef k(getattr, /, x):\n    getattr(tl.core, 'inspect').{run}\n{BODY}"
        ),
        "a lambda's parameter in an annotation": request(
            constexpr.format(parameters=": (lambda eval: 1) = 1", line=f'eval("{module}")') + calls
        ),
        "a lambda's parameter in an annotation, captured": request(
            captured(f"@triton.jit\ndef k(x: (lambda getattr: 1)):\n    getattr(tl.core, 'inspect').{run}\n{BODY}")
        ),
        "an alias imported twice": request(
            f"from triton.language import core as a\nfrom triton import language as a\n{HEAD}"
            f"from triton.language import core as a\n@triton.jit\ndef k(x):\n    a.inspect.{run}\n{BODY}"
        ),
        "an alias is a builtin, used before": request(
            f"evil = eval\nfrom triton.language import load as eval\n{HEAD}"
            f'@triton.constexpr_function\ndef f(n):\n    evil("{module}")\n    return 1\n{calls}'
        ),
        "an alias is a dunder": request(
            f"from triton.language import core as __builtins__\n{HEAD}@triton.jit\n"
            f"def k(x):\n    __builtins__.inspect.{run}\n{BODY}"
        ),
        "a decorator holds a second def": request(captured(second)),
        "a decorator holds a second def, in a text": request(HEAD + second),
        "a form feed shifts lines": request(
            f"{HEAD}a = '''\x0c\n\x0c\ndef k(x, y={inspect}): pass\n'''\n@triton.jit\ndef k(x):\n{BODY}"
        ),
        "a namespace is named like a module that Triton swaps": request(
            captured(
                f"@triton.jit\ndef k(x):\n    m.core.inspect.{run}\n{BODY}",
                {"m": Namespace("triton.language.extra.libdevice", {"core": Constant(1), "inspect": Constant(1)})},
            )
        ),
        "what is unbound is a builtin": request(
            captured(
                f"@triton.jit\ndef k(x):\n    getattr(tl.core, 'inspect').{run}\n{BODY}",
                {"getattr": Unbound("")},
            )
        ),
        "a text that was replaced": request(
            captured(f"@triton.jit\ndef k(x):\n{BODY}", replaced=f"def k(x):\n    {inspect}\n{BODY}")
        ),
        "a name of the kernel is a path": request(
            msgspec.structs.replace(captured(f"@triton.jit\ndef k(x):\n{BODY}"), entry_name=str(canary))
        ),
        "a module of Triton's": request(HEAD + f"@triton.jit\ndef k(x):\n{BODY}", module="triton.language.core"),
        "assembly brings in a file": request(
            f"{HEAD}@triton.jit\ndef k(x):\n    i = tl.arange(0, 64)\n    tl.store(x + i, tl.inline_asm_elementwise("
            f"'.incbin \"{secret}\"', '=v,v', [tl.load(x + i)], dtype=tl.float32, is_pure=False, pack=1))\n",
            target="hip:gfx942",
        ),
        "a plug-in": request(
            HEAD + f"@triton.jit\ndef k(x):\n{BODY}", environment={"LLVM_PASS_PLUGIN_PATH": str(secret)}
        ),
        "a tool": request(
            HEAD + f"@triton.jit\ndef k(x):\n{BODY}",
            target="cuda:100",
            environment={"TRITON_PTXAS_BLACKWELL_PATH": str(canary.parent / "tool")},
        ),
    }


ATTACKS = list(attacks(Path("/canary"), Path("/secret")))


@needs_confinement
def test_whatever_a_manifest_carries_runs_nothing_reads_nothing_and_ends(unvouched: Open, tmp_path: Path) -> None:
    canary, secret, tool = tmp_path / "canary", tmp_path / "secret", tmp_path / "tool"
    secret.write_text("the secret 4711")
    tool.write_text(f"#!/bin/sh\ntouch {canary}\n")
    tool.chmod(0o755)
    compiler = unvouched()
    futures = {what: compiler.submit(each, vouched=False) for what, each in attacks(canary, secret).items()}
    for what, future in futures.items():
        with pytest.raises(CompileError) as refused:
            future.result(PATIENCE)
        assert "the secret" not in str(refused.value), what
        assert "--trust" in str(refused.value), (what, str(refused.value))
    assert not canary.exists()


@needs_confinement
@pytest.mark.parametrize("what", ATTACKS)
def test_the_check_refuses_it_before_anything_is_started(what: str) -> None:
    from headstart.artifacts.vetting import check_request

    assert check_request(attacks(Path("/canary"), Path("/secret"))[what]) is not None


@needs_confinement
@pytest.mark.parametrize("filename", ["/x/{module}.pyc", "{module}", "/x\n/{module}.py"])
def test_a_file_name_decides_nothing(unvouched: Open, tmp_path: Path, filename: str) -> None:
    source = f"{HEAD}@triton.jit\ndef k(x):\n{BODY}"
    (tmp_path / "evil.py").write_text(f"{HEAD}@triton.jit\ndef k(x):\n    tl.store(x, 2)\n")
    compiler = unvouched(use_store=False)
    plain, odd = (
        compiler.submit(request(source, filename=name), use_store=False, vouched=False, digest=name).result(PATIENCE)
        for name in ("k.py", filename.format(module=tmp_path / "evil"))
    )
    assert odd.asm["cubin"] == plain.asm["cubin"]


# Limits


@needs_confinement
@pytest.mark.parametrize("line", ["m = 10**10**10", "while True: pass"])
def test_what_never_ends_is_ended_and_says_so(unvouched: Open, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setenv("HEADSTART_COMPILE_TIMEOUT", "1.5")
    source = f"{HEAD}@triton.constexpr_function\ndef f(n):\n    {line}\n    return 1\n"
    source += f"@triton.jit\ndef k(x):\n    n: tl.constexpr = f(1)\n{BODY}"
    began = time.monotonic()
    with pytest.raises(CompileTimeout, match=r"it took longer than 1\.5 s"):
        unvouched().submit(request(source), vouched=False).result(PATIENCE)
    assert time.monotonic() - began < 20


@needs_confinement
def test_what_takes_all_memory_is_ended_and_says_so(unvouched: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_MEMORY_LIMIT", "400MiB")
    source = f"{HEAD}@triton.constexpr_function\ndef f(n):\n    d = {{i: i for i in range(10**12)}}\n    return 1\n"
    source += f"@triton.jit\ndef k(x):\n    n: tl.constexpr = f(1)\n{BODY}"
    with pytest.raises(CompileOutOfMemory, match="400 MiB"):
        unvouched().submit(request(source), vouched=False).result(PATIENCE)


HUNGRY = "if not os.fork(): kept = bytearray(64 << 20), time.sleep(60)"
USES = {
    "processes": f"for _ in range(8):\n    {HUNGRY}\ntime.sleep(60)",
    "orphans": f"if not os.fork():\n    for _ in range(8):\n        {HUNGRY}\n    os._exit(0)\ntime.sleep(60)",
    "large files": "for n in range(10**6): open(f'{folder}/{n}', 'wb').write(bytes(1 << 20))",
    "many files": "for n in range(10**6): open(f'{folder}/{n}', 'wb').close()",
}


@needs_confinement
@pytest.mark.parametrize("what", USES)
def test_what_uses_the_machine_up_is_ended_and_says_so(
    unvouched: Open, monkeypatch: pytest.MonkeyPatch, unchecked: None, what: str
) -> None:
    monkeypatch.setenv("HEADSTART_MEMORY_LIMIT", "300MiB")
    before = f"import os, tempfile, time\nfolder = tempfile.gettempdir()\n{USES[what]}\n"
    with pytest.raises(CompileOutOfMemory):
        unvouched(workers=1).submit(request(f"{before}{HEAD}@triton.jit\ndef k(x):\n{BODY}"), vouched=False).result(
            PATIENCE
        )


@needs_confinement
def test_a_worker_that_stops_itself_runs_out_of_time(
    unvouched: Open, monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    monkeypatch.setenv("HEADSTART_COMPILE_TIMEOUT", "1.5")
    source = f"import signal\nsignal.raise_signal(signal.SIGSTOP)\n{HEAD}@triton.jit\ndef k(x):\n{BODY}"
    with pytest.raises(CompileTimeout):
        unvouched(workers=1).submit(request(source), vouched=False).result(PATIENCE)


# What a worker says that is not itself any more


LIES = {
    "garbage": "os.write(fd, b'\\xff' * 64)",
    "an endless frame": "os.write(fd, (200 << 20).to_bytes(4, 'little')), time.sleep(60)",
    "a cut point": "say(wire.Reached('suffix'))",
    "a prefix": "say(wire.StoodAside('suffix', b'prefix'))",
    "no entry": "say(wire.Finished(True, 0.0, float('nan'), cpu_s=float('inf'), shared=-5))",
    "another's entry": "say(wire.Finished(True, 0.0, 0.0, entry=entry(key='0' * 64, name='other')))",
    "names that are paths": "say(wire.Finished(True, 0.0, 0.0, entry=entry(artifacts={'../../evil': b''})))",
    "impossible metadata": "say(wire.Finished(True, 0.0, 0.0, entry=entry(metadata={'name': 'k', 'shared': -1})))",
    "a failure with files": (
        "say(wire.Failure('compile', '\\x1b[2J' + 'x' * 10**6, raised='os.system', message='id', "
        "files={'/tmp/evil': b''}, reproduce='rm -rf ~', needs_program=True))"
    ),
    "a lack of space": "say(wire.Failure('space', 'none'))",
}


@needs_confinement
@pytest.mark.parametrize("lie", LIES)
def test_a_confined_worker_is_not_believed(
    unvouched: Open, family: Family, tmp_path: Path, unchecked: None, lie: str
) -> None:
    before = f"""
import gc, os, socket, time
from headstart import wire
from headstart.artifacts.entry import pack_entry
fd = next(each.fileno() for each in gc.get_objects() if type(each) is socket.socket and each.fileno() >= 0)

def say(message):
    os.write(fd, wire.frame(message))
    time.sleep(60)

def entry(**fields):
    given = dict(key="1" * 64, name="k", request_digest="2" * 64, toolchain="t", target="cuda:90", components=[],
        metadata={{"name": "k"}}, artifacts={{"cubin": b"x"}}, compile_wall_s=0.0, compile_cpu_s=0.0,
        triton_version="", request=b"", output="")
    return b"".join(pack_entry(**(given | fields)))

{LIES[lie]}
"""
    compiler = unvouched(workers=1)
    each = request(f"{before}{HEAD}@triton.jit\ndef k(x):\n{BODY}")
    future = compiler.submit(each, vouched=False)
    if lie == "another's entry":  # what it made, but of its own request
        kernel = future.result(PATIENCE)
        entry = compiler.client.store.find(kernel.key, kind="kernel", request_digest=each.digest())
        assert entry is not None
        assert (entry.name, entry.header.target) == ("k", "cuda:90")
        return
    with pytest.raises(HeadstartError) as failed:
        future.result(PATIENCE)
    told = failed.value
    assert "\x1b" not in str(told)
    assert len(str(told)) < 200_000
    if isinstance(told, CompileError):
        assert (told.raised, told.files, told.reproduce, told.needs_program) == ("", {}, "", False)
    # The service goes on, and so do others.
    assert (
        compiler.submit(request(f"{HEAD}@triton.jit\ndef k(x):\n{BODY}"), vouched=False).result(PATIENCE).asm["cubin"]
    )


# Whom it serves


@needs_confinement
def test_an_unvouched_kernel_is_the_one_that_triton_makes(unvouched: Open, family: Family) -> None:
    kernel = pointwise()
    compiler = unvouched(workers=1)
    confined = [
        compiler.submit(request(name="pointwise", **_without_name(pointwise(factor))), vouched=False).result(PATIENCE)
        for factor in (2.0, 3.0)
    ]
    free = compiler.triton(**pointwise(4.0)).result(PATIENCE)
    assert free.asm["cubin"]
    direct = compiler.triton(**kernel, use_store=False).result(PATIENCE)
    assert confined[0].asm["cubin"] == direct.asm["cubin"]
    # In the store it is like any other.
    compiler.kernels.cache_clear()
    assert compiler.triton(**pointwise(3.0)).result(PATIENCE).asm["cubin"] == confined[1].asm["cubin"]


def _without_name(kernel: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kernel.items() if name != "name"}


@needs_confinement
def test_whoever_vouches_for_a_source_is_not_given_what_became_of_it_before(unvouched: Open) -> None:
    compiler = unvouched(workers=1)
    each = request(f"import os\n{HEAD}@triton.jit\ndef k(x):\n{BODY}")
    strange = compiler.submit(each, vouched=False)
    vouched = compiler.submit(each)
    assert vouched is not strange
    assert vouched.result(PATIENCE).asm["cubin"]
    with pytest.raises(CompileError, match="line 1 of its source imports os"):
        strange.result(PATIENCE)
    assert compiler.submit(each, vouched=False) is vouched


class Told:
    """Stands for an AsyncCompile: what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool]] = []

    def submit(self, request: CompileRequest, *, background: bool, vouched: bool) -> None:
        self.asked.append((request.name, vouched))


@pytest.mark.parametrize("trusted", [False, True])
def test_a_replay_of_what_nobody_vouches_for_is_confined_and_brings_no_tools(
    monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    monkeypatch.setattr(replay, "unavailable", lambda: "")
    source = f"{HEAD}@triton.jit\ndef {{}}(x):\n{BODY}"
    asks = [
        request(source.format("plain"), name="plain"),
        request(source.format("plugin"), name="plugin", environment={"LLVM_PASS_PLUGIN_PATH": "/evil.so"}),
        request(source.format("tool"), name="tool", environment={"TRITON_PTXAS_BLACKWELL_PATH": "/evil"}),
        request(f"import os\n{source.format('reads')}", name="reads"),
    ]
    told = Told()
    kernels = [Specialization(request=each, digest=each.digest(), last_seen=dt.date(2026, 11, 23)) for each in asks]
    replay.Replay(Manifest.of(kernels, [], []), lambda: told, trusted=trusted).run()  # type: ignore[arg-type,return-value]
    everything = [("plain", True), ("plugin", True), ("reads", True), ("tool", True)]
    assert sorted(told.asked) == (everything if trusted else [("plain", False)])


def test_a_replay_that_cannot_be_confined_asks_for_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replay, "unavailable", lambda: "this kernel offers no Landlock")
    each = request(f"{HEAD}@triton.jit\ndef k(x):\n{BODY}")
    recorded = Specialization(request=each, digest=each.digest(), last_seen=dt.date(2026, 11, 23))
    told = Told()
    replay.Replay(Manifest.of([recorded], [], []), lambda: told, trusted=False).run()  # type: ignore[arg-type,return-value]
    assert told.asked == []
    assert "this kernel offers no Landlock; --trust compiles them" in caplog.text


# Where the kernel offers nothing

REFUSES_LANDLOCK = """
    import errno, sys
    from headstart.system import confinement, kernel, seccomp
    from headstart.system.syscalls import NUMBERS, architecture
    rule = seccomp._Filter()
    rule.add(seccomp._LOAD, 0)
    rule.answer(seccomp._EQUAL, NUMBERS[architecture()]["landlock_create_ruleset"], 0x50000 | errno.EOPNOTSUPP)
    rule.add(seccomp._RETURN, seccomp._ALLOW)
    seccomp._filter = lambda: rule
    kernel.prctl(confinement._PR_SET_NO_NEW_PRIVS, 1)
    seccomp.restrict_calls()
"""


@needs_confinement
def test_what_cannot_be_confined_is_refused_with_what_to_do(start_client: Callable[..., Any]) -> None:
    program = f"""
{textwrap.dedent(REFUSES_LANDLOCK)}
import headstart
from headstart.model.request import CompileRequest
source = {HEAD + "@triton.jit" + chr(10) + "def k(x):" + chr(10) + BODY!r}
with headstart.AsyncCompile(vouched=False, workers=1) as compiler:
    request = CompileRequest.make("k", source, signature={{"x": "*fp32"}}, target="cuda:90")
    try:
        compiler.submit(request, vouched=False).result(60)
    except headstart.ServiceError as error:
        print(error)
    print("cubin" in compiler.submit(request).result(60).asm)
"""
    said = start_client(program).finish()
    assert "its worker cannot be confined here: this kernel, or the container around, offers no Landlock" in said
    assert "if you know where its source comes from, pass --trust" in said
    assert said.endswith("True\n")


@needs_confinement
def test_build_and_doctor_say_that_nothing_can_be_confined(start_client: Callable[..., Any], tmp_path: Path) -> None:
    each = request(HEAD + f"@triton.jit\ndef k(x):\n{BODY}")
    path = tmp_path / "app.manifest"
    recorded = Specialization(request=each, digest=each.digest(), last_seen=dt.date(2026, 11, 23))
    Manifest.of([recorded], [], []).save(path)
    program = f"""
{textwrap.dedent(REFUSES_LANDLOCK)}
import os
from click.testing import CliRunner
from headstart.cli import main
os.chdir({str(tmp_path)!r})
print(CliRunner().invoke(main, ["build", {str(path)!r}]).stderr)
print(CliRunner().invoke(main, ["doctor"]).stdout)
"""
    said = start_client(program).finish()
    refusal = next(line for line in said.splitlines() if "nobody vouches" in line)
    assert "offers no Landlock" in refusal
    assert "pass --trust" in refusal
    assert "manifests are compiled with --trust only: this kernel" in " ".join(said.split())
