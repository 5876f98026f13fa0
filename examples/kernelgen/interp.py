"""Enough of `triton` and `triton.language`, in plain Python, to run what the printer prints.

A block is a flat list of Python numbers and a shape. Arithmetic is in doubles: what this checks is algebra,
addressing and masks, not rounding. It is stricter than a GPU where that finds mistakes: reading or writing outside
a buffer raises, and so does storing two different values to one place, which on a GPU would be a race.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kernelgen.ir import OPS, Shape, broadcast, divide, spread


class Buffer:
    """Memory of one tensor."""

    def __init__(self, name: str, data: list[Any]) -> None:
        self.name, self.data = name, data
        self.written: set[int] = set()

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self, offset)


class Pointer:
    def __init__(self, buffer: Buffer, offset: Any) -> None:
        self.buffer, self.offset = buffer, offset

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.buffer, self.offset + offset)


class Block:
    __slots__ = ("data", "shape")

    def __init__(self, data: list[Any], shape: Shape) -> None:
        self.data, self.shape = data, shape

    def __getitem__(self, index: Any) -> Block:
        if index == (slice(None), None):
            return Block(self.data, (len(self.data), 1))
        if index == (None, slice(None)):
            return Block(self.data, (1, len(self.data)))
        raise NotImplementedError(f"indexing a block by {index}")

    def to(self, dtype: Callable[[Any], Any]) -> Block:
        return Block(list(map(dtype, self.data)), self.shape)

    def __neg__(self) -> Block:
        return Block([-x for x in self.data], self.shape)


class Scalar(float):
    """A loaded scalar: Triton's have methods."""

    def to(self, dtype: Callable[[Any], Any]) -> Any:
        return dtype(self)


def apply(function: Callable[..., Any], *operands: Any) -> Any:
    """`function`, element by element, over broadcast operands."""
    shapes = [x.shape for x in operands if isinstance(x, Block)]
    if not shapes:
        return Scalar(function(*operands))
    shape = shapes[0] if shapes.count(shapes[0]) == len(shapes) else broadcast(shapes)
    count = 1
    for dim in shape:
        count *= dim
    columns = [spread(x.data, x.shape, shape) if isinstance(x, Block) else [x] * count for x in operands]
    return Block(list(map(function, *columns)), shape)


def _install_operators() -> None:
    table: dict[str, Callable[[Any, Any], Any]] = {
        "add": operator.add,
        "sub": operator.sub,
        "mul": operator.mul,
        "truediv": divide,
        "floordiv": operator.floordiv,
        "mod": operator.mod,
        "and": operator.and_,
    }
    for name, function in table.items():
        setattr(Block, f"__{name}__", lambda a, b, f=function: apply(f, a, b))
        setattr(Block, f"__r{name}__", lambda a, b, f=function: apply(f, b, a))
    for function in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq):
        setattr(Block, f"__{function.__name__}__", lambda a, b, f=function: apply(f, a, b))


_install_operators()


def _load(pointer: Any, mask: Any = None, other: Any = None) -> Any:
    if isinstance(pointer, Buffer):
        return Scalar(pointer.data[0])
    offsets, buffer = pointer.offset, pointer.buffer
    if mask is None:
        mask = Block([True], (1,) * len(offsets.shape))
    data = buffer.data
    size = len(data)
    shape = broadcast([offsets.shape, mask.shape])
    active = spread(mask.data, mask.shape, shape)
    out = []
    for at, on in zip(spread(offsets.data, offsets.shape, shape), active, strict=True):
        if not on:
            out.append(other)
        elif 0 <= at < size:
            out.append(data[at])
        else:
            raise IndexError(f"load at {at} of {buffer.name}, which has {size} elements")
    return Block(out, shape)


def _store(pointer: Pointer, value: Any, mask: Block) -> None:
    offsets, buffer = pointer.offset, pointer.buffer
    shape = broadcast([offsets.shape, mask.shape, *([value.shape] if isinstance(value, Block) else [])])
    values = spread(value.data, value.shape, shape) if isinstance(value, Block) else [value] * len(offsets.data)
    active = spread(mask.data, mask.shape, shape)
    for at, x, on in zip(spread(offsets.data, offsets.shape, shape), values, active, strict=True):
        if not on:
            continue
        if not 0 <= at < len(buffer.data):
            raise IndexError(f"store at {at} of {buffer.name}, which has {len(buffer.data)} elements")
        if at in buffer.written and buffer.data[at] != x:
            raise ValueError(f"two values stored at {at} of {buffer.name}")
        buffer.data[at] = x
        buffer.written.add(at)


def _fold(combine: Callable[[Sequence[Any]], Any]) -> Callable[[Block, int], Block]:
    def fold(x: Block, axis: int) -> Block:
        assert axis == 1
        rows, columns = x.shape
        return Block([combine(x.data[r * columns : (r + 1) * columns]) for r in range(rows)], (rows,))

    return fold


def _dot(a: Block, b: Block) -> Block:
    (m, k), n = a.shape, b.shape[1]
    rows = [a.data[i * k : (i + 1) * k] for i in range(m)]
    columns = [b.data[j::n] for j in range(n)]
    return Block([sum(map(operator.mul, row, column)) for row in rows for column in columns], (m, n))


def _trans(x: Block) -> Block:
    rows, columns = x.shape
    return Block([x.data[r * columns + c] for c in range(columns) for r in range(rows)], (columns, rows))


def _full(shape: Sequence[int], value: float, dtype: Any) -> Block:
    count = 1
    for dim in shape:
        count *= dim
    return Block([value] * count, tuple(shape))


def _language(ids: list[int]) -> types.ModuleType:
    tl = types.ModuleType("triton.language")
    elementwise = (
        "maximum",
        "minimum",
        "abs",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "sigmoid",
        "erf",
        "sin",
        "cos",
        "floor",
    )
    names: dict[str, Any] = {
        "constexpr": int,
        "program_id": lambda axis: ids[axis],
        "arange": lambda start, end: Block(list(range(start, end)), (end - start,)),
        "cdiv": lambda a, b: -(-a // b),
        "zeros": lambda shape, dtype: _full(shape, 0.0, dtype),
        "full": _full,
        "load": _load,
        "store": _store,
        "sum": _fold(sum),
        "max": _fold(max),
        "min": _fold(min),
        "dot": _dot,
        "trans": _trans,
        "where": lambda c, a, b: apply(OPS["where"].scalar, c, a, b),
        **dict.fromkeys(("float32", "float16", "bfloat16"), float),
        **dict.fromkeys(("int8", "int32"), int),
        "int1": bool,
    }
    for name in elementwise:
        names[name] = lambda *args, f=OPS[name].scalar: (
            apply(f, *args) if any(isinstance(x, Block | Scalar) for x in args) else f(*args)
        )
    tl.__dict__.update(names)
    return tl


class Program:
    """The kernel called `name` of `source`, compiled by Python and never by Triton."""

    def __init__(self, source: str, name: str) -> None:
        self._ids = [0, 0, 0]
        triton = types.ModuleType("triton")
        triton.jit = lambda function: function  # type: ignore[attr-defined]
        triton.language = _language(self._ids)  # type: ignore[attr-defined]
        modules = {"triton": triton, "triton.language": triton.language}  # type: ignore[attr-defined]

        def imports(module: str, _globals: Any = None, _locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
            return modules[module] if fromlist else modules[module.partition(".")[0]]

        builtins = {"__import__": imports, "range": range, "float": float}
        scope: dict[str, Any] = {"__builtins__": builtins, "__name__": f"interpreted.{name}"}
        exec(compile(source, f"<{name}>", "exec"), scope)
        self._function = scope[name]

    def launch(self, grid: Iterable[int], arguments: Sequence[Any]) -> None:
        x, y, z = (*grid, 1, 1)[:3]
        for i in range(x * y * z):
            self._ids[:] = i % x, i // x % y, i // (x * y)
            self._function(*arguments)
