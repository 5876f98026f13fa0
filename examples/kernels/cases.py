"""What it takes to compile a kernel without launching it: a value for each argument, and a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import triton.language as tl

import headstart

_TYPES = {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32, "i8": tl.int8, "i32": tl.int32, "i64": tl.int64}


@dataclass(frozen=True)
class Pointer:
    """Stands for a tensor, as far as Triton looks at one: its type, and an address that is a multiple of 16."""

    name: str

    @property
    def dtype(self) -> Any:
        return _TYPES[self.name]

    def data_ptr(self) -> int:
        return 0


HALF, BRAIN, FULL, BYTES, INDICES = map(Pointer, ("fp16", "bf16", "fp32", "i8", "i64"))


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration.

    Attributes:
        kernel: a `@triton.jit` function.
        arguments: a `Pointer` or a number for each argument that is no constexpr.
        constants: the constexprs.
        options: of the backend: `num_warps`, `num_stages`.
    """

    kernel: Any
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)

    def spec(self) -> headstart.KernelSpec:
        """For a plan."""
        return headstart.KernelSpec(
            self.kernel,
            signature={name: _type(value) for name, value in self.arguments.items()},
            constants=self.constants,
            attrs={name: 16 for name, value in self.arguments.items() if _is_divisible(value)},
            options=self.options,
        )

    def warm_up(self) -> Any:
        """Compile it as a launch would."""
        return self.kernel.warmup(**self.arguments, **self.constants, **self.options, grid=(1,))


def sweep(**choices: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Every combination, the last name varying fastest."""
    for values in product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def _type(value: Any) -> str:
    if isinstance(value, Pointer):
        return f"*{value.name}"
    return "fp32" if isinstance(value, float) else "i32"


def _is_divisible(value: Any) -> bool:
    return isinstance(value, Pointer) or (isinstance(value, int) and value % 16 == 0)
