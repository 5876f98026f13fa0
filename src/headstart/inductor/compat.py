"""Everything that reaches into torch and Triton for the adapter. The only module that knows their insides.

Replaced in a client, and put back by `Replacement.remove`:

* `torch._inductor.async_compile.AsyncCompile.process_pool`: every job for a compile worker comes to our pool;
* the name `triton` in `torch._inductor.runtime.triton_heuristics`, by a proxy whose `compile` is ours: all four ways by
  which Inductor compiles in its own process end there. Triton itself is left alone.

Relied on, and checked before anything is replaced: `_REQUIRED`. The describer, whose process is ours, changes more
(`Recorder`). Read for torch 2.11 to 2.14; run with 2.13. docs/inductor.md says what to check when torch changes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
import threading
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from headstart.environment import BYPASS_VARIABLES, bypass_reason, fingerprint

KNOWN_VERSIONS = ("2.11", "2.12", "2.13", "2.14")

ASYNC_COMPILE = "torch._inductor.async_compile"
HEURISTICS = "torch._inductor.runtime.triton_heuristics"

_BYPASSES = tuple(sorted(BYPASS_VARIABLES))
_GENERATED = "torch._inductor.runtime.compile_tasks"  # where modules of PyCodeCache claim to live

_REQUIRED = {
    ASYNC_COMPILE: ("AsyncCompile.process_pool.cache_clear", "AsyncCompile._ready_future", "get_compile_threads"),
    HEURISTICS: (
        "triton.compile",
        "CachingAutotuner._precompile_config",
        "CachingAutotuner._dynamic_scale_rblock",
        "CachingAutotuner._make_launchers",
        "check_autotune_cache",
        "triton_config_to_hashable",
        "_ConstRepr",
        "OutOfResources",
        "PTXASError",
    ),
    "torch._inductor.codecache": ("PyCodeCache.load", "code_hash", "torch_key", "write"),
    "torch._inductor.compile_worker.subproc_pool": ("SubprocException.with_name",),
    "torch._inductor.runtime.compile_tasks": ("_worker_compile_triton", "_set_triton_ptxas_path"),
    "torch._inductor.runtime.runtime_utils": ("cache_dir", "triton_cache_dir", "triton_hash_to_path_key"),
}


class Torch(msgspec.Struct, frozen=True):
    """The torch that this process has, or would import."""

    folder: str
    version: str

    @property
    def known(self) -> bool:
        """Whether the adapter was written with this version in view."""
        return ".".join(self.version.split(".")[:2]) in KNOWN_VERSIONS


def find_torch() -> Torch | None:
    """Found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    try:
        match = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", (folder / "version.py").read_text(encoding="utf-8"))
    except OSError:
        match = None
    return Torch(str(folder), match[1] if match else "unknown")


def missing() -> str | None:
    """The first thing of torch that the adapter relies on and does not find."""
    for module, names in _REQUIRED.items():
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            return f"{module} ({error})"
        for name in names:
            try:
                functools.reduce(getattr, name.split("."), found)
            except AttributeError:
                return f"{module}.{name}"
    return None


_awaited: dict[str, Callable[[], None]] = {}


def when_imported(module: str, act: Callable[[], None]) -> None:
    """Call `act` once `module` is imported: now, or later, in the thread that imports it."""
    if module in sys.modules:
        act()
        return
    _awaited[module] = act
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def forget_imports() -> None:
    """Wait for no import any more."""
    _awaited.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what is awaited as it would be found anyway, and has it acted upon."""

    def find_spec(
        self, name: str, path: Any, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        act = _awaited.pop(name, None)
        if act is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, act)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, act: Callable[[], None]) -> None:
        self._loader = loader
        self._act = act

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        module: types.ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        # From here on it is loaded as if we had not been here.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._act()


class Proxy:
    """A module, with another `compile`."""

    def __init__(self, module: Any, compile: Callable[..., Any]) -> None:
        self._module = module
        self.compile = compile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Replacement:
    """The two replacements.

    Args:
        choose_pool: given Inductor's own `process_pool`, returns the pool to use now.
        compile: given the real `triton.compile` and its arguments, in its place.
    """

    def __init__(self, choose_pool: Callable[[Callable[[], Any]], Any], compile: Callable[..., Any]) -> None:
        self._choose_pool = choose_pool
        self._compile = compile
        self._undo: list[Callable[[], None]] = []

    def replace_pool(self) -> None:
        """Once `ASYNC_COMPILE` is imported."""
        owner = sys.modules[ASYNC_COMPILE].AsyncCompile
        stock = owner.process_pool

        def process_pool() -> Any:
            return self._choose_pool(stock)

        process_pool.cache_clear = stock.cache_clear  # type: ignore[attr-defined]
        owner.process_pool = staticmethod(process_pool)
        owner._ready_future = None

        def undo() -> None:
            owner.process_pool = staticmethod(stock)
            owner._ready_future = None

        self._undo.append(undo)

    def replace_compile(self) -> None:
        """Once `HEURISTICS` is imported."""
        heuristics = sys.modules[HEURISTICS]
        real = heuristics.triton
        if real is None or not hasattr(real, "compile"):
            return
        vars(heuristics)["triton"] = Proxy(real, functools.partial(self._compile, real.compile))
        self._undo.append(lambda: vars(heuristics).update(triton=real))

    def remove(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()


def step_aside_reason() -> str | None:
    """Why Inductor must be left alone just now, or None. See the table in the documentation."""
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        return "TRITON_INTERPRET"
    # Asked at every kick-off: looking each name up is cheaper than going through what is set.
    asked_for = {name: value for name in _BYPASSES if (value := os.environ.get(name))}
    if (variable := bypass_reason(asked_for)) is not None:
        return variable
    if sys.modules[ASYNC_COMPILE].get_compile_threads() <= 1:
        return "TORCHINDUCTOR_COMPILE_THREADS=1"
    if getattr(_config().triton, "proton_profiling", False):
        return "Proton instrumentation"
    knobs = sys.modules.get("triton.knobs")
    if knobs is not None and getattr(knobs.runtime, "add_stages_inspection_hook", None) is not None:
        return "an add_stages_inspection_hook"
    return None


def inductor(mode: str | None, options: dict[str, Any] | None) -> Callable[[Any, Any], Any]:
    """The backend "inductor" as `torch.compile` makes it for a mode and options."""
    made: Callable[[Any, Any], Any] = importlib.import_module("torch")._TorchCompileInductorWrapper(mode, options, None)
    return made


def caches_disabled() -> bool:
    """Whether the user wants nothing to be taken from, or put into, a cache."""
    return bool(_config().force_disable_caches)


def environment(torch: Torch) -> dict[str, str]:
    """The fingerprint that Inductor's own workers would have: they prefer the ptxas that torch brings."""
    found = fingerprint()
    ptxas = os.path.join(torch.folder, "bin", "ptxas")
    if "TRITON_PTXAS_PATH" not in found and os.access(ptxas, os.X_OK):
        found["TRITON_PTXAS_PATH"] = ptxas
    return found


def _config() -> Any:
    return importlib.import_module("torch._inductor.config")


def _heuristics() -> Any:
    return importlib.import_module(HEURISTICS)


def _codecache() -> Any:
    return importlib.import_module("torch._inductor.codecache")


def _runtime_utils() -> Any:
    return importlib.import_module("torch._inductor.runtime.runtime_utils")


# Plain data and back


def hint(kind: str, member: str) -> Any:
    """A member of one of the enumerations in `torch._inductor.runtime.hints`."""
    return getattr(importlib.import_module("torch._inductor.runtime.hints"), kind)[member]


def device_properties(values: list[Any]) -> Any:
    """Inductor's DeviceProperties."""
    return importlib.import_module("torch._inductor.runtime.hints").DeviceProperties(*values)


def ordered_set(members: list[Any]) -> Any:
    """torch's OrderedSet."""
    return importlib.import_module("torch.utils._ordered_set").OrderedSet(members)


def config(kind: str, attributes: dict[str, Any]) -> Any:
    """A `triton.Config`, or Inductor's kind of it."""
    cls = getattr(_heuristics(), kind)
    made = cls.__new__(cls)
    made.__dict__.update(attributes)
    return made


def triton_language() -> Any:
    """`triton.language`."""
    return importlib.import_module("triton.language")


# Inductor's caches


def path_of_stem(stem: str, cache_dir: str | None = None) -> str:
    """Where PyCodeCache keeps the source with this key; `cache_dir` as in TORCHINDUCTOR_CACHE_DIR."""
    return os.path.join(cache_dir or _runtime_utils().cache_dir(), stem[1:3], f"{stem}.py")


def ensure_source(path: str, text: str) -> None:
    """Have a generated file there: ptxas writes its time and size into debug lines, and Inductor may load it."""
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = f"{path}.{os.getpid()}.tmp"
        Path(part).write_text(text, encoding="utf-8")
        os.replace(part, path)


def read_source(path: str) -> str:
    """The content of a generated file."""
    return Path(path).read_text(encoding="utf-8")


def triton_folder(device: int, environment: dict[str, str] | None = None) -> str:
    """Triton's cache folder for a device, as Inductor has it now, or had it when `environment` was taken."""
    if environment is None:
        return str(_runtime_utils().triton_cache_dir(device))
    configured = environment.get("TRITON_CACHE_DIR")
    root = environment.get("TORCHINDUCTOR_CACHE_DIR") or _runtime_utils().cache_dir()
    return configured or os.path.join(root, "triton", str(device))


def hash_folder(hash: str) -> str:
    """The name of an entry's folder in Triton's cache."""
    return str(_runtime_utils().triton_hash_to_path_key(hash))


def torch_key() -> str:
    """Inductor's own digest of torch's source files."""
    key = _codecache().torch_key()
    return key.hex() if isinstance(key, bytes) else str(key)


# What Inductor is given


WorkerJob = tuple[str, str, dict[str, str], dict[str, Any]]


def worker_job(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> WorkerJob | None:
    """Kernel name, source, environment and config of a job for `_worker_compile_triton`; None for any other job."""
    if getattr(function, "__name__", "") != "_worker_compile_triton" or keywords or len(arguments) != 3:
        return None
    load, environment, settings = arguments
    parts: list[Any] = list(getattr(load, "args", ()))
    if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        return None
    name, source = parts
    return name, source, environment, settings


def worker_error(details: str, cause: BaseException) -> Exception:
    """What Inductor raises if a job fails in a worker of its own."""
    module = importlib.import_module("torch._inductor.compile_worker.subproc_pool")
    error: Exception = module.SubprocException(details)
    error.__cause__ = cause
    return error


def ptxas_error(text: str) -> Exception:
    """The assembler's refusal, which an autotuner takes as one configuration less."""
    error: Exception = _heuristics().PTXASError(text)
    return error


def lean_function(known: Any) -> Any:
    """A JITFunction with no more in it than Inductor's parent process looks at (`recipe.Function`)."""
    from triton.runtime.jit import JITFunction

    function = JITFunction.__new__(JITFunction)
    function.__dict__.update(
        __name__=known.name,
        __qualname__=known.qualname,
        __module__=known.module,
        fn=None,
        __globals__=None,
        used_global_vals=None,
        repr=_heuristics()._ConstRepr(known.repr),
        arg_names=known.arg_names,
        # It ends up in FX graph cache entries: nothing of ours may be in it.
        params=[
            types.SimpleNamespace(num=number, name=name, is_constexpr=number in known.constexprs)
            for number, name in enumerate(known.arg_names)
        ],
        constexprs=known.constexprs,
        _src=known.src,
        hash=known.cache_key,
        _hash_lock=threading.RLock(),
        launch_metadata=None,
    )
    return function


def check_autotune_cache(arguments: dict[str, Any]) -> tuple[list[Any], Any, dict[str, Any]]:
    """Configurations left once the autotune cache was asked, that cache or None, and what Inductor notes about it."""
    found: tuple[list[Any], Any, dict[str, Any]] = _heuristics().check_autotune_cache(
        arguments["configs"], arguments["filename"], arguments["inductor_meta"]
    )
    return found


def config_hash(config: Any) -> Any:
    """What tells two configurations apart."""
    return _heuristics().triton_config_to_hashable(config)


def new_autotuner(function: Any, arguments: dict[str, Any]) -> Any:
    """A CachingAutotuner as a worker of Inductor's would send it, but for its compile results.

    Its `precompile`, which Inductor calls next, asks our `compile` for each configuration.
    """
    configs, cache, info = check_autotune_cache(arguments)
    arguments = {**arguments, "configs": configs}
    if "autotune_cache_info" in arguments:
        arguments["autotune_cache_info"] = info
    outer = os.environ.get("TRITON_CACHE_DIR")
    autotuner = _heuristics().CachingAutotuner(fn=function, save_cache_hook=cache and cache.save, **arguments)
    if outer is None:
        os.environ.pop("TRITON_CACHE_DIR", None)  # the constructor sets it, for workers
    return autotuner


def source_stem(src: Any) -> str | None:
    """Which generated source an ASTSource is of: its code cache key; None if it is of no such source."""
    package, _, stem = str(getattr(src.fn, "__module__", "")).rpartition(".")
    return stem if package == _GENERATED and (src.fn.fn is None or Path(path_of(src)).stem == stem) else None


def path_of(src: Any) -> str:
    """The file of a generated source."""
    if src.fn.fn is None:
        return path_of_stem(src.fn.__module__.rpartition(".")[2])
    return str(src.fn.fn.__code__.co_filename)


def code_key(text: str) -> str:
    """The key of a source in PyCodeCache."""
    return str(_codecache().code_hash(text.strip()))


# Triton


def parsed_options(target: Any, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a compile, as the backend understands them."""
    from triton.compiler import make_backend

    return dict(vars(make_backend(target).parse_options(dict(options))))


def cache_hash(src: Any, target: Any, options: dict[str, Any]) -> str:
    """The hash under which Triton would keep this compile."""
    from triton.compiler import make_backend
    from triton.compiler.compiler import get_cache_invalidating_env_vars
    from triton.runtime.cache import get_cache_key

    backend = make_backend(target)
    key = get_cache_key(src, backend, backend.parse_options(dict(options)), env_vars=get_cache_invalidating_env_vars())
    return hashlib.sha256(key.encode()).hexdigest()


def compiled_kernel(src: Any, files: dict[str, str], hash: str) -> Any:
    """Triton's CompiledKernel of a cache entry's files."""
    from triton.compiler import CompiledKernel

    return CompiledKernel(src, files, hash)


# The describer


class _Noted(BaseException):
    """Not an Exception, which Inductor would log."""

    def __init__(self, src: Any, target: Any, options: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = src, target, options


class Recorder:
    """Makes this process's Inductor say what it would do. For good: it cannot be undone."""

    def __init__(self) -> None:
        heuristics = self._heuristics = _heuristics()
        helpers = importlib.import_module("torch._inductor.runtime.triton_helpers")
        # Called at the top of generated sources; there is no device here, and none is needed.
        vars(helpers)["set_driver_to_gpu"] = vars(helpers)["set_driver_to_cpu"] = lambda: None
        # Sources that benchmark themselves import it, and a torch for CPUs has none.
        vars(importlib.import_module("torch._C")).setdefault("_cuda_getCurrentRawStream", lambda device: 0)
        # As in Inductor's workers: modules are not kept.
        vars(importlib.import_module("torch._inductor.compile_worker.utils"))["_IN_TOPLEVEL_PROCESS"] = False
        importlib.import_module("torch._inductor.runtime.compile_tasks")._set_triton_ptxas_path()
        # Which configuration was best last time is asked in the client: it may have changed by the time.
        vars(heuristics)["check_autotune_cache"] = lambda configs, filename, meta: (configs, None, {})
        vars(heuristics)["triton"] = Proxy(heuristics.triton, self._note)
        original = heuristics.CachingAutotuner.__init__
        signature = inspect.signature(original)

        def init(autotuner: Any, *arguments: Any, **keywords: Any) -> None:
            given = dict(signature.bind(autotuner, *arguments, **keywords).arguments)
            for name in ("self", "fn", "save_cache_hook"):
                given.pop(name, None)
            # Copied, because the constructor adds to what it is given.
            copied = {name: dict(value) if isinstance(value, dict) else value for name, value in given.items()}
            original(autotuner, *arguments, **keywords)
            vars(autotuner)["_headstart_given"] = copied

        heuristics.CachingAutotuner.__init__ = init

    @staticmethod
    def _note(src: Any, target: Any = None, options: Any = None) -> None:
        raise _Noted(src, target, options)

    def load(self, name: str, source: str) -> tuple[Any, str]:
        """Import a generated source. Returns its autotuner and its file."""
        codecache = _codecache()
        _, path = codecache.write(source, "py")
        return getattr(codecache.PyCodeCache.load(source), name), path

    def arguments(self, autotuner: Any) -> dict[str, Any]:
        """What its constructor was given, but for the function and the hook."""
        found: dict[str, Any] = vars(autotuner)["_headstart_given"]
        return found

    def compile_arguments(self, autotuner: Any, config: Any) -> tuple[Any, Any, dict[str, Any]]:
        """What `triton.compile` would be called with for one configuration: source, target, options."""
        try:
            autotuner._precompile_config(config)
        except _Noted as noted:
            return noted.arguments
        raise RuntimeError("Inductor did not call triton.compile")


def may_scale(autotuner: Any) -> bool:
    """Whether `_dynamic_scale_rblock` may add configurations."""
    if hasattr(type(autotuner), "_could_rblock_scale"):
        return bool(autotuner._could_rblock_scale)
    return getattr(autotuner.heuristic_type, "name", "") == "REDUCTION" and autotuner.size_hints is not None


def scaled_configs(autotuner: Any, registers: list[int | None]) -> list[Any]:
    """The configurations that `_dynamic_scale_rblock` adds, given what launchers would say."""
    added: list[Any] = []

    def note(config: Any) -> Any:
        added.append(config)
        return types.SimpleNamespace(config=config, kernel=types.SimpleNamespace())

    autotuner.compile_results = [
        types.SimpleNamespace(config=config, kernel=types.SimpleNamespace(n_regs=count))
        for config, count in zip(autotuner.configs, registers, strict=True)
    ]
    # On the instance: the class's own are needed to describe.
    vars(autotuner).update(_precompile_config=note, _make_launchers=lambda: None)
    try:
        autotuner._dynamic_scale_rblock()
    finally:
        del autotuner._precompile_config, autotuner._make_launchers
        autotuner.compile_results = []
    return added


def patched_config(settings: dict[str, Any]) -> AbstractContextManager[Any]:
    """Inductor's config with `settings` in force."""
    found: AbstractContextManager[Any] = _config().patch(settings)
    return found
