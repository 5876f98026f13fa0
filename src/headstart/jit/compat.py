"""What headstart relies on in the objects of a live Triton, 3.6 to 3.9, that is not public. Whoever has a kernel has
Triton imported: nothing here does so.

* `@triton.jit` makes a `JITFunction`, `@triton.constexpr_function` a `ConstexprFunction`; both keep the Python function
  in `fn`, its lines with decorators in `raw_src`, the number of the first in `starting_line_number`, and in `_src` what
  will be compiled. `Autotuner` and `Heuristics` keep what they wrap in `fn`.
* `JITFunction.noinline`; `JITFunction._repr`, which names the compiled kernel, given a specialization.
* `triton.language.core`: `constexpr.value`, `dtype.name`, and the mark of an aggregate.
* What `jit_cache_hook` is told (`fn.jit_function`, `compile`); that `triton.compile` hashes `get_cache_key(…)`, asks
  the manager of that hash, in base 32, for the group `NAME.json`, and takes what it is given.
* `knobs.cache.manager_class` is a descriptor, whose `get` reads `TRITON_CACHE_MANAGER`.
* `Autotuner.run`: looks a key up in `cache`; for a new one calls `prune_configs(kwargs)` and for each configuration
  that is left `_bench(*args, config=…, **kwargs)`, then sets `cache[key]`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import sys
from collections import namedtuple
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any, Literal, NamedTuple

import msgspec

from headstart.errors import CompileError, UsageError

KNOWN_VERSIONS = ("3.6", "3.7", "3.8", "3.9")

Kind = Literal["jit", "constexpr_function"]

_WRAPPERS = ("Autotuner", "Heuristics")
_MAX_NAME = 150  # characters of a kernel's name that Triton uses for files

_REQUIRED = {
    "triton": ("compiler.ASTSource", "compiler.make_backend", "runtime.driver"),
    "triton.knobs": ("runtime.jit_cache_hook", "cache.manager_class"),
    "triton.runtime.cache": ("CacheManager", "FileCacheManager", "get_cache_key", "triton_key"),
    "triton.runtime.jit": ("get_cache_invalidating_env_vars",),
    "triton.runtime.autotuner": ("Autotuner.prune_configs", "Autotuner._bench"),
}

# By the name and the fields that Triton gives it.
SpecializationProxy = namedtuple("SpecializationProxy", ["constants", "signature"])


def jit_function(kernel: Any) -> Any:
    """The `JITFunction` that is, or lies under, `kernel`.

    Raises:
        UsageError: there is none.
    """
    function = kernel
    while type(function).__name__ in _WRAPPERS and is_triton(type(function).__module__):
        function = function.fn
    if kind(function) == "jit":
        return function
    if isinstance(kernel, FunctionType):
        raise UsageError(f"{kernel.__name__} is a plain Python function: @triton.jit is missing")
    if type(function).__name__ == "InterpretedFunction":
        raise UsageError(
            "TRITON_INTERPRET is set, so @triton.jit makes functions that cannot be compiled; unset it"
        )
    if type(function).__name__ == "GluonJITFunction":
        raise UsageError(f"{function.__name__} is a Gluon function, which headstart cannot compile yet")
    raise UsageError(
        f"expected source text or a @triton.jit function, not {type(kernel).__name__} ({kernel!r:.80})"
    )


def kind(value: Any) -> Kind | None:
    """Which of Triton's functions `value` is, if it is one that can be described. A subclass is something else."""
    jit = sys.modules.get("triton.runtime.jit")
    if jit is None:
        return None
    if type(value) is jit.JITFunction:
        return "jit"
    return "constexpr_function" if type(value) is getattr(jit, "ConstexprFunction", None) else None


def is_triton(module: Any) -> bool:
    """Whether `module` is the name of Triton, or of one of its modules."""
    return isinstance(module, str) and (module == "triton" or module.startswith("triton."))


def text(function: Any) -> str:
    """The function as it stands in its file, decorators included."""
    return "".join(function.raw_src)


def first_line(function: Any) -> int:
    """Number of the first line of `text`."""
    return int(function.starting_line_number)


def compiled_text(function: Any) -> str:
    """What Triton parses: from `def` on, without indentation. The same string object until somebody replaces it."""
    compiled: str = function._src
    return compiled


def noinline(function: Any) -> bool | None:
    """As it was given to `@triton.jit`; None for a constexpr function."""
    value = getattr(function, "noinline", None)
    return None if value is None else bool(value)


def has_own_name(function: Any) -> bool:
    """Whether the compiled kernel's name is made by a `repr` of its own."""
    return function._repr is not None


def entry_name(function: Any, constants: Mapping[str, Any], signature: Mapping[str, str]) -> str:
    """The compiled kernel's name for a specialization; empty if it is the function's.

    Args:
        function: a `JITFunction`.
        constants: all of them, by name, defaults included.
        signature: type of each parameter in order, `"constexpr"` for constants.
    """
    if not has_own_name(function):
        return ""
    name: str = function._repr(SpecializationProxy(dict(constants), dict(signature)))
    return name.rpartition(".")[2]


def core() -> ModuleType | None:
    """`triton.language.core`, if it is imported."""
    return sys.modules.get("triton.language.core")


def is_aggregate(value: Any) -> bool:
    """Whether `value` is a class made by `triton.language.core._aggregate`."""
    return bool(getattr(value, "__triton_aggregate__", False))


# Drivers


def set_driver(driver: Any) -> None:
    """Have Triton ask `driver` about the device, and launch by it."""
    sys.modules["triton"].runtime.driver.set_active(driver)


def gpu_target(backend: str, arch: str, warp_size: int) -> Any:
    """Triton's own form of a target."""
    target = sys.modules["triton"].backends.compiler.GPUTarget
    return target(backend, int(arch) if backend == "cuda" else arch, warp_size)


# Compiles


class Specialized(NamedTuple):
    """What Triton is about to compile.

    Attributes:
        function: the `JITFunction`.
        signature: type of each parameter; `"constexpr"` for constants; a tuple's is a tuple.
        constants: by path; `attributes`, likewise.
        options: those that differ from the backend's defaults.
        target: as `Target` reads it.
        hash: Triton's own of the entry.
    """

    function: Any
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]
    target: str
    hash: str

    @property
    def key(self) -> str:
        """What a cache manager is made with."""
        return manager_key(self.hash)

    @property
    def stem(self) -> str:
        """How the entry's files are named, up to their suffixes."""
        name: str = self.function.__name__
        return name[:_MAX_NAME]


def manager_key(hash: str) -> str:
    """What Triton makes the cache manager of an entry with."""
    return base64.b32encode(bytes.fromhex(hash)).decode().rstrip("=")


def specialized(function: Any, told: Mapping[str, Any], environment: Mapping[str, str]) -> Specialized:
    """What `jit_cache_hook` was told of, with the hash by which `triton.compile` will ask for it.

    `environment` holds the variables that a worker will have.
    """
    triton = sys.modules["triton"]
    target = triton.runtime.driver.active.get_current_target()
    backend = triton.compiler.make_backend(target)
    options = backend.parse_options(_options(told["specialization_data"]))
    defaults = _defaults(target, tuple(environment.items()))
    (attributes,) = told["configs"]
    source = triton.compiler.ASTSource(function, told["signature"], told["constants"], attributes)
    cache = sys.modules["triton.runtime.cache"]
    variables = sys.modules["triton.runtime.jit"].get_cache_invalidating_env_vars()
    text: str = cache.get_cache_key(source, backend, options, env_vars=variables)
    return Specialized(
        function,
        told["signature"],
        told["constants"],
        attributes,
        {name: value for name, value in vars(options).items() if value is not None and value != defaults.get(name)},
        _shown(target),
        hashlib.sha256(text.encode()).hexdigest(),
    )


def _options(specialization_data: str) -> dict[str, Any]:
    try:
        given = _decoder.decode(specialization_data).options
    except msgspec.DecodeError:  # a constant may be infinite, which is no JSON
        given = json.loads(specialization_data)["options"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


class _SpecializationData(msgspec.Struct):
    options: dict[str, Any]


_decoder = msgspec.json.Decoder(_SpecializationData)


@functools.lru_cache(maxsize=16)
def _defaults(target: Any, environment: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return dict(vars(sys.modules["triton"].compiler.make_backend(target).parse_options({})))


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
    """What Triton raised in the worker, of the same class and with the same text; None where that cannot be made."""
    module, _, name = error.raised.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None) if module == "builtins" or is_triton(module) else None
    if not (isinstance(cls, type) and issubclass(cls, Exception)):
        return None
    if not is_triton(module):
        try:
            return cls(error.message)
        except TypeError:  # UnicodeDecodeError, say, is made of more than a text
            return None
    # Triton's own are made of syntax trees and the like, of which they then make their text.
    raised: Exception = cls.__new__(cls)
    vars(raised).update(
        src=None,
        node=None,
        message=error.message,
        error_message=error.message.removeprefix("PTXAS error: "),
    )
    return raised if str(raised) == error.message else None


class Hooks:
    """Triton's hook before a compile, and its cache manager.

    Args:
        before: called in place of the hook, with the earlier one (or None) and what it is told.
        get_group: called in place of a manager's `get_group`: with the key, the name, and the manager.
    """

    def __init__(
        self,
        before: Callable[[Callable[..., Any] | None, dict[str, Any]], Any],
        get_group: Callable[[str, str, Any], dict[str, str] | None],
    ) -> None:
        self._before = before
        self._get_group = get_group
        self._earlier: Callable[..., Any] | None = None
        self._hook: Callable[..., Any] | None = None
        self._manager: Any = None
        self._theirs: Any = None  # the manager class that was set in Python

    def install(self) -> None:
        """Put both in place."""
        knobs = sys.modules["triton.knobs"]
        self._earlier = earlier = knobs.runtime.jit_cache_hook
        self._manager = self._manager_class()

        def hook(**told: Any) -> Any:
            return self._before(earlier, told) if self._hook is not None else earlier and earlier(**told)

        self._hook = knobs.runtime.jit_cache_hook = hook
        self.wrap_manager()

    def wrap_manager(self) -> None:
        """Stand before the manager that is set, whichever it is now."""
        knobs = sys.modules["triton.knobs"]
        current = vars(knobs.cache).get("manager_class")
        if current is not self._manager:
            self._theirs = current
            knobs.cache.manager_class = self._manager

    def manager(self, key: str) -> Any:
        """The program's own manager of an entry."""
        return self._theirs_now()(key)

    def remove(self) -> None:
        """Put back what was there. A hook that somebody has set since stays, and may go on calling ours."""
        if self._hook is None:
            return
        knobs = sys.modules["triton.knobs"]
        if knobs.runtime.jit_cache_hook is self._hook:
            knobs.runtime.jit_cache_hook = self._earlier
        self._hook = None
        if vars(knobs.cache).get("manager_class") is self._manager:
            if self._theirs is None:
                del knobs.cache.manager_class  # what TRITON_CACHE_MANAGER says counts again
            else:
                knobs.cache.manager_class = self._theirs

    def _theirs_now(self) -> Any:
        knobs = sys.modules["triton.knobs"]
        named = vars(type(knobs.cache))["manager_class"].get()
        return self._theirs or named or sys.modules["triton.runtime.cache"].FileCacheManager

    def _manager_class(self) -> Any:
        hooks = self

        class Manager(sys.modules["triton.runtime.cache"].CacheManager):  # type: ignore[misc]
            """The program's own cache manager; only what is on its way from a worker is answered by headstart."""

            def __init__(self, key: str, **how: bool) -> None:
                self._theirs = hooks._theirs_now()(key, **how)
                self._key = "" if any(how.values()) else key

            def get_file(self, filename: str) -> Any:
                return self._theirs.get_file(filename)

            def put(self, data: Any, filename: str, binary: bool = True) -> Any:
                return self._theirs.put(data, filename, binary=binary)

            def get_group(self, filename: str) -> Any:
                return hooks._get_group(self._key, filename, self._theirs)

            def put_group(self, filename: str, group: dict[str, str]) -> Any:
                return self._theirs.put_group(filename, group)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.__dict__["_theirs"], name)

        return Manager


# Autotuners


class Autotuners:
    """Two methods of `Autotuner`, which are called for a new key only.

    Args:
        prune: given the autotuner, the launch's keyword arguments and the real method.
        bench: given the autotuner, the launch's arguments, the configuration, keyword arguments and the real method.
    """

    def __init__(self, prune: Callable[..., Any], bench: Callable[..., Any]) -> None:
        self._prune = prune
        self._bench = bench
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Replace them."""
        owner = sys.modules["triton.runtime.autotuner"].Autotuner
        stock_prune, stock_bench = owner.prune_configs, owner._bench

        replaced = self._undo  # empty once we are gone, though somebody may have wrapped ours
        prune, bench = self._prune, self._bench

        def prune_configs(self: Any, kwargs: dict[str, Any]) -> Any:
            return prune(self, kwargs, stock_prune) if replaced else stock_prune(self, kwargs)

        def _bench(self: Any, *args: Any, config: Any, **meta: Any) -> Any:
            if not replaced:
                return stock_bench(self, *args, config=config, **meta)
            return bench(self, args, config, meta, stock_bench)

        owner.prune_configs, owner._bench = prune_configs, _bench

        def undo() -> None:
            if owner.prune_configs is prune_configs:
                owner.prune_configs = stock_prune
            if owner._bench is _bench:
                owner._bench = stock_bench

        self._undo.append(undo)

    def remove(self) -> None:
        """Put them back."""
        while self._undo:
            self._undo.pop()()


class ChosenConfigs(dict[Any, Any]):
    """In place of `Autotuner.cache`: the configuration of each key. Tells which is chosen, whoever looks it up.

    Launches only look up, which is a dict's own doing.
    """

    def __init__(self, chosen: Mapping[Any, Any], told: Callable[[Any, Any], None]) -> None:
        super().__init__(chosen)
        self._told = told

    def __setitem__(self, key: Any, config: Any) -> None:
        super().__setitem__(key, config)
        self._told(key, config)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


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
