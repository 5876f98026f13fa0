"""A source text compiled by Triton itself, with as little around it as there can be."""

import linecache
import types

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.subjects.common import Kernel

TARGET = GPUTarget("cuda", 90, 32)


def define(kernel: Kernel) -> triton.JITFunction:
    """Execute the source, under the file name that headstart gives it, so that debug lines and binaries are equal."""
    name, source, _ = kernel
    filename = f"{name}.py"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = types.ModuleType(name)
    exec(compile(source, filename, "exec"), module.__dict__)
    return module.__dict__[name]


def compile_function(function: triton.JITFunction, kernel: Kernel) -> triton.compiler.CompiledKernel:
    """`triton.compile`, or a hit in Triton's cache on disk."""
    how = kernel[2]
    source = ASTSource(function, how["signature"], how["constants"], how["attrs"])
    return triton.compile(source, target=TARGET, options=how["options"])


def compile_kernel(kernel: Kernel) -> triton.compiler.CompiledKernel:
    """From source text to a compiled kernel."""
    return compile_function(define(kernel), kernel)
