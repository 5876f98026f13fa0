"""From graphs to kernels, one by one: each is announced the moment its text is final, and checked right after.

That order is the point of the example. A compile takes longer than everything the generator does for a kernel, and once
the text is final nothing that the generator still does can change it; so the compile starts first and runs while the
generator checks this kernel, plans the next graph, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kernelgen import check, passes, printer, tiling
from kernelgen.ir import Graph, Node, Pointwise, Reduce
from kernelgen.programs import programs

DefineKernel = Callable[[str, str, dict[str, Any]], Any]

_KINDS = {"pointwise": "poi", "reduction": "red", "matmul": "mm", "attention": "att"}


@dataclass(frozen=True)
class Launch:
    kernel: str
    arguments: tuple[str | int, ...]
    grid: tuple[int, ...]


class Driver:
    def __init__(self, define_kernel: DefineKernel) -> None:
        self._define_kernel = define_kernel
        self._names: dict[str, str] = {}  # what makes a kernel what it is -> its name
        self.kernels: dict[str, tuple[str, dict[str, Any]]] = {}
        self.programs: dict[str, list[Launch]] = {}

    def run(self) -> None:
        for graph in programs():
            self.programs[graph.name] = list(self._lower(graph))

    def _lower(self, original: Graph) -> Iterator[Launch]:
        graph = passes.simplify(original)
        reference: check.Reference | None = None
        tensors = _Tensors(graph)
        for kernel in passes.plan(graph):
            lowered = printer.lower(kernel)
            tiles = tiling.choose(kernel)
            name, new = self._define(kernel, lowered, tiles)
            if new:
                # One evaluation serves all kernels of a graph, and none if it has only kernels that are known.
                reference = reference or check.Reference(original, graph)
                check.verify(kernel, lowered, reference)
            sizes = {size.name: size.of(size.node.shape) for size in lowered.sizes}
            arguments = [tensors.name(node) for _, node in lowered.pointers]
            passed = [sizes[size.name] for size in lowered.sizes if size.passed]
            yield Launch(name, (*arguments, *passed), check.grid_of(lowered, sizes, tiles.constants))

    def _define(self, kernel: passes.Kernel, lowered: printer.Lowered, tiles: tiling.Tiling) -> tuple[str, bool]:
        how = arguments_for_compile(lowered, tiles)
        identity = repr((lowered.source, how))
        if identity in self._names:
            return self._names[identity], False
        operations = (n.op if isinstance(n, Pointwise | Reduce) else _KINDS[kernel.kind] for n in kernel.nodes)
        distinct = [x for x in dict.fromkeys(operations) if x not in ("mm", "att", "cast")]
        name = "_".join(("triton", _KINDS[kernel.kind], "fused", *distinct[:5], str(len(self._names))))
        source = lowered.source.replace(printer.PLACEHOLDER, name)
        self._names[identity] = name
        self.kernels[name] = (source, how)
        self._define_kernel(name, source, how)
        return name, True

    def text(self) -> str:
        """The generated module: all kernels, a wait for them, and how each program launches them."""
        parts = ['"""Generated. Kernels by name, and PROGRAMS: what to launch, with what, on which grid."""\n\n']
        for name, (source, how) in self.kernels.items():
            keywords = "".join(f"    {key}={value!r},\n" for key, value in how.items())
            parts.append(f"{name} = async_compile.triton(\n    {name!r},\n    '''{source}''',\n{keywords})\n\n")
        parts.append("async_compile.wait(globals())\ndel async_compile\n\n\nPROGRAMS = {\n")
        for program, launches in self.programs.items():
            lines = "".join(f"        ({x.kernel}, {x.arguments!r}, {x.grid!r}),\n" for x in launches)
            parts.append(f"    {program!r}: [\n{lines}    ],\n")
        parts.append("}\n")
        return "".join(parts)


class _Tensors:
    """Names for the tensors of a graph: those that it has itself, and numbers for what kernels pass to each other."""

    def __init__(self, graph: Graph) -> None:
        self._names: dict[Node, str] = {node: name for name, node in graph.outputs.items()}
        self._names |= {node: node.name for node in graph.order if hasattr(node, "name")}

    def name(self, node: Node) -> str:
        return self._names.setdefault(node, f"buffer{len(self._names)}")


def arguments_for_compile(lowered: printer.Lowered, tiles: tiling.Tiling) -> dict[str, Any]:
    """What `AsyncCompile.triton` takes besides name and source."""
    signature = {name: f"*{node.dtype}" for name, node in lowered.pointers}
    # Tensors come from allocators that align them; a size is known to be a multiple of 16 or it is not.
    attrs = {(i,): [["tt.divisibility", 16]] for i in range(len(signature))}
    for size in lowered.sizes:
        if size.passed:
            if size.of(size.node.shape) % 16 == 0:
                attrs[(len(signature),)] = [["tt.divisibility", 16]]
            signature[size.name] = "i32"
    signature |= dict.fromkeys(lowered.constants, "constexpr")
    return {
        "signature": signature,
        "constants": {name: tiles.constants[name] for name in lowered.constants},
        "attrs": attrs,
        "options": {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages},
    }
