"""What headstart relies on in the objects of a live Triton, 3.6 to 3.9, that is not public. Whoever has a kernel has
Triton imported: nothing here does so.

What of its functions is read stands in `headstart.capture.reading`.

* `triton.compile` parses its options, hashes `get_cache_key(…)`, asks the manager of that hash for the group
  `NAME.json`, makes a `CompiledKernel` of the files that it is given, and tells `knobs.compilation.listener`.

What is replaced in Triton's own classes stands in `patches`.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from headstart.capture.reading import _MAX_NAME, is_triton, kind
from headstart.errors import CompileError
from headstart.model.environment import fingerprint

KNOWN_VERSIONS = ("3.6", "3.7", "3.8", "3.9")


_REQUIRED = {
    "triton": ("compiler.ASTSource", "compiler.CompiledKernel", "compiler.make_backend", "runtime.driver"),
    "triton.knobs": ("compilation.listener", "CompileTimes"),
    "triton.runtime.cache": ("get_cache_manager", "get_cache_key", "triton_key"),
    "triton.runtime.jit": ("get_cache_invalidating_env_vars", "JITFunction._do_compile", "_async_compile.active_mode"),
    "triton.runtime.autotuner": ("Autotuner.prune_configs", "Autotuner._bench"),
}


# Drivers


def set_driver(driver: Any) -> None:
    """Have Triton ask `driver` about the device, and launch by it."""
    sys.modules["triton"].runtime.driver.set_active(driver)


def gpu_target(backend: str, arch: str, warp_size: int) -> Any:
    """Triton's own form of a target."""
    target = sys.modules["triton"].backends.compiler.GPUTarget
    return target(backend, int(arch) if backend == "cuda" else arch, warp_size)


# Compiles


class CompileCall(NamedTuple):
    """One call of `triton.compile`.

    Attributes:
        source: Triton's `ASTSource`.
        options: those that differ from the backend's defaults.
        target: as `Target` reads it.
        hash: Triton's own of the entry.
    """

    source: Any
    options: dict[str, Any]
    target: str
    hash: str

    @property
    def function(self) -> Any:
        """The `JITFunction`."""
        return self.source.fn

    @property
    def file(self) -> str:
        """The file of the entry that stands for all of it."""
        return f"{self.stem}.json"

    @property
    def stem(self) -> str:
        """How the entry's files are named, up to their suffixes."""
        name: str = self.source.name
        return name[:_MAX_NAME]


def compile_of(source: Any, target: Any, options: Mapping[str, Any] | None, env_vars: Any = None) -> CompileCall:
    """What `triton.compile` would do first, when it is given this.

    Raises whatever Triton raises there: a global variable has another value than an inner function was compiled with.
    """
    triton = sys.modules["triton"]
    if target is None:
        target = triton.runtime.driver.active.get_current_target()
    backend = triton.compiler.make_backend(target)
    parsed = backend.parse_options({**(options or {}), **source.parse_options()})
    variables = sys.modules["triton.runtime.jit"].get_cache_invalidating_env_vars() if env_vars is None else env_vars
    text: str = sys.modules["triton.runtime.cache"].get_cache_key(source, backend, parsed, env_vars=variables)
    defaults = _defaults(target, tuple(sorted(fingerprint().items())))
    return CompileCall(
        source,
        {name: value for name, value in vars(parsed).items() if value is not None and value != defaults.get(name)},
        _shown(target),
        hashlib.sha256(text.encode()).hexdigest(),
    )


def is_jit_source(source: Any) -> bool:
    """Whether a source is of a `@triton.jit` function that can be described, and not of Gluon or a file of IR."""
    return type(source) is sys.modules["triton.compiler"].ASTSource and kind(source.fn) == "jit"


def new_source(function: Any, signature: Any, constants: Any, attributes: Any) -> Any:
    """The `ASTSource` that `JITFunction._do_compile` makes."""
    return function.ASTSource(function, signature, constants, attributes)


def has_broken_hash(function: Any) -> bool:
    """Whether hashing a function raised: Triton leaves a mark, with which it would not raise again."""
    return str(getattr(function, "hash", "")).startswith("recursion:")


def cache_manager(hash: str) -> Any:
    """The program's own cache manager of an entry, whichever is set.

    Raises:
        OSError: its folder cannot be made.
    """
    return sys.modules["triton.runtime.cache"].get_cache_manager(hash)


def compiled_kernel(compiled: CompileCall, group: dict[str, str]) -> Any:
    """Triton's `CompiledKernel` of an entry's files."""
    return sys.modules["triton.compiler"].CompiledKernel(compiled.source, group, compiled.hash)


def tell_listener(compiled: CompileCall, kernel: Any, group: dict[str, str], times: Mapping[str, int] | None) -> None:
    """Tell `knobs.compilation.listener`, if there is one, of a compile; `times`: microseconds by stage, None: a hit."""
    knobs = sys.modules["triton.knobs"]
    listener = knobs.compilation.listener
    if listener is None:
        return
    stages = dict(times or {})
    listener(
        src=compiled.source,
        metadata=kernel.metadata._asdict(),
        metadata_group=group,
        times=knobs.CompileTimes(
            ir_initialization=stages.pop("ir_initialization", 0),
            store_results=stages.pop("store_results", 0),
            lowering_stages=list(stages.items()),
        ),
        cache_hit=times is None,
    )


def warn_once(text: str) -> bool:
    """Give a warning that Triton gives once in a process; False if this Triton has none such."""
    once = getattr(sys.modules.get("triton._utils"), "warn_once", None)
    if once is None:
        return False
    once(text)
    return True


@functools.lru_cache(maxsize=16)
def _defaults(target: Any, environment: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return dict(vars(sys.modules["triton"].compiler.make_backend(target).parse_options({})))


def is_tritons(value: Any) -> bool:
    """Whether `value` is an exception of Triton's."""
    return isinstance(value, Exception) and is_triton(type(value).__module__)


def compute_key() -> None:
    """Have Triton hash its own install: 0.3 s, once per process, before its cache can be asked for anything."""
    sys.modules["triton.runtime.cache"].triton_key()


def unusable() -> str | None:
    """Why the adapter cannot be used with the Triton that is imported, or None."""
    triton = sys.modules["triton"]
    if ".".join(triton.__version__.split(".")[:2]) not in KNOWN_VERSIONS:
        return f"headstart leaves Triton {triton.__version__} alone: it knows {', '.join(KNOWN_VERSIONS)}"
    for module, names in _REQUIRED.items():
        for name in names:
            try:
                functools.reduce(getattr, name.split("."), sys.modules[module])
            except (KeyError, AttributeError):
                return f"Triton {triton.__version__} has no {module}.{name}, which headstart relies on"
    return None


def as_tritons(error: CompileError) -> Exception | None:
    """What Triton raised in the worker if its assembler refused the kernel, with the same text; else None.

    Whatever else it raises it is to raise here: see `Adapter`.
    """
    if error.raised != "triton.runtime.errors.PTXASError":
        return None
    cls: type[Exception] = sys.modules["triton.runtime.errors"].PTXASError
    # Triton makes its text of what it is given.
    raised: Exception = cls.__new__(cls)
    vars(raised).update(error_message=error.message.removeprefix("PTXAS error: "))
    return raised if str(raised) == error.message else None


# Autotuners


def tuned(tuner: Any) -> Any:
    """The `JITFunction` below an `Autotuner`, if there is nothing between them but heuristics; else None."""
    function = tuner.fn
    while type(function).__name__ == "Heuristics" and is_triton(type(function).__module__):
        function = function.fn
    return function if kind(function) == "jit" else None


def tuning_key(tuner: Any, kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key of a launch, as `Autotuner.run` makes it; `tuner.nargs` holds the launch's positional arguments."""
    arguments = {name: value for name, value in {**tuner.nargs, **kwargs}.items() if name in tuner.arg_names}
    key = [arguments[name] for name in tuner.keys if name in arguments]
    key += [str(value.dtype) for value in arguments.values() if hasattr(value, "dtype")]
    return tuple(key)


def current_target() -> str:
    """The device's, as `Target` reads it."""
    return _shown(sys.modules["triton"].runtime.driver.active.get_current_target())


def _shown(target: Any) -> str:
    return f"{target.backend}:{target.arch}:{target.warp_size}"


def is_fixed(value: Any) -> bool:
    """Whether nothing that a hook does to an argument can make another specialization of it: tensors and plain values.

    A tensor descriptor's block shape, say, is part of its type.
    """
    if isinstance(value, (tuple, list)):
        return all(map(is_fixed, value))
    plain = value is None or isinstance(value, (bool, int, float, str))
    return plain or hasattr(value, "data_ptr") or (is_triton(type(value).__module__) and hasattr(value, "name"))


def has_pre_run_hooks(function: Any) -> bool:
    """Whether launching runs functions of the user's first, compiled or not."""
    return bool(getattr(function, "pre_run_hooks", ()))
