"""Launchers: the C modules that Triton up to 3.6 builds by gcc in the program, at the first launch of each signature.

    a kernel is asked for ─▶ Launchers.foresee: its launcher's text ─▶ a worker builds it beside the kernel's compile
    Triton is imported ─▶ Launchers.foresee_utilities: the same for the module by which its driver loads kernels
    the first launch ─▶ compile_module_from_src(text), which is ours ─▶ out of the bundle, or from that worker, into
        Triton's cache ─▶ the real one, which finds it there
    neither has it ─▶ the real one, which calls gcc; what it made is noted for the bundle

Replaced: the name `compile_module_from_src` in `triton.backends.nvidia.driver` and `.amd.driver`. Relied on: its
arguments, how it names its entry in Triton's cache, and the driver's `make_launcher`. Triton 3.7 and later build no
launchers; nothing is replaced there.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from headstart.adapters.triton import compat
from headstart.artifacts.entry import Entry, pack_entry
from headstart.artifacts.kinds import LAUNCHER
from headstart.client.async_compile import AsyncCompile
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.client.policy import Policy
from headstart.client.use import BundleUse, Missed, miss
from headstart.errors import HeadstartError
from headstart.model import keys
from headstart.model.environment import fingerprint
from headstart.model.parameters import parameters_of
from headstart.model.request import CompileRequest
from headstart.model.target import Target

ARTIFACT = "so"
_DRIVERS = {"nvidia": "triton.backends.nvidia.driver", "amd": "triton.backends.amd.driver"}
_LAUNCHER = "__triton_launcher"
_UTILITIES = "cuda_utils"
_NVIDIA = "/dev/nvidiactl"

_log = logging.getLogger("headstart")


class Launchers:
    """Of one process.

    Args:
        compiler: whose client, and so service and bundle, is used.
    """

    def __init__(self, compiler: AsyncCompile) -> None:
        # Of its own, so that nobody takes launchers for kernels when they are counted.
        self._policy = Policy()
        self._compiler = AsyncCompile(client=compiler.client, policy=self._policy, start=False)
        self._started: dict[str, LambdaFuture[CompiledKernel]] = {}  # by Triton's key
        self._recorded: list[CompileRequest] = []  # for when Triton is imported
        self._missed: dict[Missed, None] = {}  # what no bundle had, in order
        self._seen: set[tuple[Any, ...]] = set()  # signatures of what was recorded
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Replace the two names, if this Triton builds launchers."""
        for backend, name in _DRIVERS.items():
            driver: Any = sys.modules.get(name)
            if all(hasattr(driver, each) for each in ("make_launcher", "compile_module_from_src", "include_dirs")):
                self._replace(driver, backend)
        self._foresee_recorded()

    def remove(self) -> None:
        """Put them back."""
        while self._undo:
            self._undo.pop()()

    @property
    def use(self) -> BundleUse:
        """What no bundle had, and a C compiler was called for."""
        return BundleUse(missed=list(self._missed))

    def foresee(self, what: compat.CompileCall) -> None:
        """Have a worker build the launcher of a kernel that is being compiled. Never raises."""
        try:
            if self._undo and (backend := _active_backend()) is not None:
                self._foresee_signature(backend, what.target, tuple(what.source.signature.values()))
        except Exception:  # noqa: BLE001 - it is built when it is needed
            _log.debug("a launcher is not foreseen", exc_info=True)

    def foresee_recorded(self, requests: Iterable[CompileRequest]) -> None:
        """Have workers build the launchers of kernels that an earlier run recorded, once Triton is imported."""
        self._recorded += requests
        if self._undo:
            self._foresee_recorded()

    def _foresee_recorded(self) -> None:
        # No driver is asked for: that would start CUDA in a program that may be about to fork.
        while self._recorded and self._undo:
            request = self._recorded.pop()
            backend = "nvidia" if request.target.startswith("cuda:") else "amd"
            try:
                if (types := _types_of(request)) is not None:
                    self._foresee_signature(backend, request.target, types, background=True)
            except Exception:  # noqa: BLE001 - as above
                _log.debug("the launcher of %s is not foreseen", request.name, exc_info=True)

    def _foresee_signature(
        self, backend: str, target: str, types: tuple[Any, ...], *, background: bool = False
    ) -> None:
        """A launcher is for the types of a kernel's parameters, `types`, as `ASTSource.signature` has them in order.

        With tensor descriptors it also depends on what the compile finds out: such a kernel's is not foreseen.
        """
        warp_size = Target.parse(target).warp_size
        signature = (backend, warp_size, *types)
        if signature in self._seen or not _builds() or any("tensordesc" in str(each) for each in types):
            return
        self._seen.add(signature)
        more = (warp_size,) if backend == "amd" else ()
        text = sys.modules[_DRIVERS[backend]].make_launcher({}, dict(enumerate(types)), *more, None)
        self._foresee(backend, _LAUNCHER, text, background=background)

    def foresee_utilities(self) -> None:
        """Have a worker build what the driver for this machine's GPU needs before all else. Never raises.

        Not where a bundle makes it likely that no worker is needed.
        """
        driver: Any = sys.modules.get(_DRIVERS["nvidia"])
        if not (self._undo and self._compiler.starts_service and os.path.exists(_NVIDIA)):
            return
        try:
            text = Path(driver.dirname, "driver.c").read_text(encoding="utf-8")
            self._foresee("nvidia", _UTILITIES, text)
        except Exception:  # noqa: BLE001 - as above
            _log.debug("the driver's utilities are not foreseen", exc_info=True)

    def _foresee(self, backend: str, name: str, text: str, *, background: bool = False) -> None:
        key = _key_of(text)
        if key in self._started or compat.cache_manager(key).get_file(_file_of(name)) is not None:
            return
        request = _request(backend, name, text)
        if self._bundled(request) is None:
            self._started[key] = self._compiler.submit(request, background=background)
            self._missed[Missed(name, "a worker built it: the bundle had none of this text")] = None

    def _replace(self, driver: Any, backend: str) -> None:
        stock = driver.compile_module_from_src

        @functools.wraps(stock)
        def compile_module_from_src(src: str, name: str, *arguments: Any, **keywords: Any) -> Any:
            ours = bool(self._undo) and _builds()
            if ours:
                self._provide(backend, name, src)
            module = stock(src, name, *arguments, **keywords)
            if ours:
                self._note(backend, name, src)
            return module

        def undo() -> None:
            if driver.compile_module_from_src is compile_module_from_src:
                driver.compile_module_from_src = stock

        driver.compile_module_from_src = compile_module_from_src
        self._undo.append(undo)

    def _provide(self, backend: str, name: str, text: str) -> None:
        """Have it in Triton's cache, if it is there sooner than gcc would make it. Never raises."""
        try:
            manager, file = compat.cache_manager(_key_of(text)), _file_of(name)
            if manager.get_file(file) is not None:
                return
            entry = self._bundled(_request(backend, name, text)) or self._built(_key_of(text))
            if entry is None:
                miss()
                self._missed[Missed(name, "built in the program's process: the bundle gave none of this text")] = None
            else:
                manager.put(entry.artifact(ARTIFACT), file, binary=True)
        except (HeadstartError, OSError) as error:
            _log.debug("%s is left to Triton: %s", name, error)
        except Exception:  # noqa: BLE001 - Triton builds it
            _log.exception("headstart has no launcher for Triton; this is a bug")

    def _bundled(self, request: CompileRequest) -> Entry | None:
        bundler = self._compiler.bundler
        return bundler.find(self._entry_key(request), LAUNCHER) if bundler.holds(LAUNCHER) else None

    def _built(self, key: str) -> Entry | None:
        """What a worker made, or is about to have made; None if gcc is not even running there."""
        future = self._started.get(key)
        if future is None or not (future.done() or self._is_running(future)):
            return None
        entry = future.result().entry
        return entry if entry.header.kind == LAUNCHER else None

    def _is_running(self, future: LambdaFuture[CompiledKernel]) -> bool:
        return bool(getattr(future._pending, "started", None))

    def _note(self, backend: str, name: str, text: str) -> None:
        """What Triton has in its cache belongs into the bundle that is written."""
        bundler = self._compiler.bundler
        if not bundler.is_noting:
            return
        try:
            path = compat.cache_manager(_key_of(text)).get_file(_file_of(name))
            request = _request(backend, name, text)
            key = self._entry_key(request)
            if path is not None and not any(key in bundle for bundle in bundler.bundles):
                bundler.put(key, functools.partial(self._entry, key, request, Path(path).read_bytes()))
        except (HeadstartError, OSError) as error:
            _log.debug("%s is not bundled: %s", name, error)

    def _entry(self, key: str, request: CompileRequest, content: bytes) -> Entry:
        toolchain = self._toolchain(request)
        parts = pack_entry(
            key=key,
            kind=LAUNCHER,
            name=request.name,
            request_digest=request.digest(),
            toolchain=toolchain,
            target=request.target,
            components=[("format", keys.KEY_FORMAT), ("toolchain", toolchain), *request.components()],
            metadata={},
            artifacts={ARTIFACT: content},
            compile_wall_s=0.0,
            compile_cpu_s=0.0,
            triton_version=self._policy.toolchain().triton_version,
            request=b"",
            output="",
        )
        return Entry.from_bytes(b"".join(parts))

    def _entry_key(self, request: CompileRequest) -> str:
        return keys.entry_key(self._toolchain(request), request.digest())

    def _toolchain(self, request: CompileRequest) -> str:
        return self._policy.toolchain_digest(self._compiler.cache_dir, request.environment)


def _types_of(request: CompileRequest) -> tuple[str, ...] | None:
    """The types of a kernel's parameters in order, as `ASTSource.signature` has them; None if they are not plain."""
    signature = request.signature
    if isinstance(signature, str):
        return None
    parameters = parameters_of(request)  # a manifest keeps types by name, in any order
    types = [signature.get(name, "constexpr") for name in parameters]
    plain = tuple(each for each in types if isinstance(each, str))
    return plain if len(plain) == len(types) and signature.keys() <= set(parameters) else None


def _builds() -> bool:
    """Whether Triton itself would call a compiler, as it does by default."""
    build = sys.modules["triton.knobs"].build
    return not (getattr(build, "impl", None) or getattr(build, "backend_dirs", None))


def _active_backend() -> str | None:
    """Whose launchers the program uses, if its driver is one of Triton's own."""
    module = type(sys.modules["triton"].runtime.driver.active).__module__
    return next((backend for backend, name in _DRIVERS.items() if name == module), None)


def _request(backend: str, name: str, text: str) -> CompileRequest:
    return CompileRequest.make_launcher(
        name,
        text,
        backend=backend,
        platform=f"{sys.modules['triton.runtime.build'].platform_key()} {sysconfig.get_config_var('EXT_SUFFIX')}",
        compiler=os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "cc",
        environment=fingerprint(),
    )


def _key_of(text: str) -> str:
    """As `compile_module_from_src` makes it."""
    return hashlib.sha256((text + sys.modules["triton.runtime.build"].platform_key()).encode()).hexdigest()


def _file_of(name: str) -> str:
    return f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
