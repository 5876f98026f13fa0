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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart.adapters.triton import compat
from headstart.artifacts.entry import Entry, pack_entry
from headstart.artifacts.kinds import LAUNCHER
from headstart.client.async_compile import AsyncCompile
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.client.policy import Policy
from headstart.errors import HeadstartError
from headstart.model import keys
from headstart.model.environment import fingerprint
from headstart.model.request import CompileRequest

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
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Replace the two names, if this Triton builds launchers."""
        for backend, name in _DRIVERS.items():
            driver: Any = sys.modules.get(name)
            if all(hasattr(driver, each) for each in ("make_launcher", "compile_module_from_src", "include_dirs")):
                self._replace(driver, backend)

    def remove(self) -> None:
        """Put them back."""
        while self._undo:
            self._undo.pop()()

    def foresee(self, what: compat.CompileCall) -> None:
        """Have a worker build the launcher of a kernel that is being compiled. Never raises."""
        if not self._undo:
            return
        try:
            driver = _active_driver()
            if driver is None or not _builds():
                return
            backend, module = driver
            types = what.source.signature
            if any("tensordesc" in str(each) for each in types.values()):
                return  # only the kernel's metadata tell how it is launched
            more = (int(what.target.rpartition(":")[2]),) if backend == "amd" else ()  # threads of a warp
            self._foresee(backend, _LAUNCHER, module.make_launcher({}, dict(types), *more, None))
        except Exception:  # noqa: BLE001 - it is built when it is needed
            _log.debug("a launcher is not foreseen", exc_info=True)

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

    def _foresee(self, backend: str, name: str, text: str) -> None:
        key = _key_of(text)
        if key in self._started or compat.cache_manager(key).get_file(_file_of(name)) is not None:
            return
        request = _request(backend, name, text)
        if self._bundled(request) is None:
            self._started[key] = self._compiler.submit(request)

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
            if entry is not None:
                manager.put(entry.artifact(ARTIFACT), file, binary=True)
        except (HeadstartError, OSError) as error:
            _log.debug("%s is left to Triton: %s", name, error)
        except Exception:  # noqa: BLE001 - Triton builds it
            _log.exception("headstart has no launcher for Triton; this is a bug")

    def _bundled(self, request: CompileRequest) -> Entry | None:
        bundler = self._compiler.bundler
        return bundler.find(self._entry_key(request)) if bundler.holds(LAUNCHER) else None

    def _built(self, key: str) -> Entry | None:
        """What a worker made, or is about to have made; None if gcc is not even running there."""
        future = self._started.get(key)
        if future is None or not (future.done() or self._is_running(future)):
            return None
        return future.result().entry

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


def _builds() -> bool:
    """Whether Triton itself would call a compiler, as it does by default."""
    build = sys.modules["triton.knobs"].build
    return not (getattr(build, "impl", None) or getattr(build, "backend_dirs", None))


def _active_driver() -> tuple[str, Any] | None:
    """The backend whose launchers the program uses, if it is one of Triton's own, and its module."""
    driver = sys.modules["triton"].runtime.driver.active
    module = type(driver).__module__
    backend = next((each for each, name in _DRIVERS.items() if name == module), None)
    return None if backend is None else (backend, sys.modules[module])


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
