"""What `capture` writes down of a function and `rebuilding` makes of it is the same function to Triton."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conftest import PATIENCE, client_environment

pytestmark = pytest.mark.triton

_PROGRAM = """
import json, sys
from typing import NamedTuple
import triton
import triton.language as tl
from headstart.capture.functions import capture_call
from headstart.worker.rebuilding import NamedTuples, rebuilt

class Pair(NamedTuple):
    left: object
    right: object = 3

SCALE = tl.constexpr(2)

@triton.constexpr_function
def twice(n):
    return 2 * n

@triton.jit
def helper(x, HOW: tl.constexpr = 4):
    return x * SCALE + HOW

@triton.jit(noinline=True)
def apart(x):
    return helper(x) + 1

@triton.jit
def kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    pair = Pair(tl.load(x + i, mask=i < n), 1)
    tl.store(y + i, apart(pair.left) + pair.right + twice(BLOCK), mask=i < n)

signature = {"x": "*fp32", "y": "*fp32", "n": "i32", "BLOCK": "constexpr"}
source, constants = capture_call(kernel, {"BLOCK": 64}, signature)
named = NamedTuples()
with rebuilt(source, named) as made:
    made.make()
    by_name = {function.__name__: function for function in made.functions}
    for original in (kernel, apart, helper):
        again = by_name[original.__name__]
        assert again.src == original.src, original
        assert again.starting_line_number == original.starting_line_number, original
        assert again.noinline == original.noinline
        assert again.arg_names == original.arg_names
        assert again.cache_key == original.cache_key, original
        assert [p.is_constexpr for p in again.params] == [p.is_constexpr for p in original.params]
    again = by_name["kernel"]
    scope = again.__globals__
    assert scope["twice"](5) == 10
    assert scope["Pair"](1) == (1, 3)
    assert scope["apart"] is by_name["apart"]
    assert not made.unbound(), made.unbound()
    assert not made.changed()
    again_pair = scope["Pair"]
with rebuilt(source, named) as second:
    second.make()
    scope = {f.__name__: f for f in second.functions}["kernel"].__globals__
    assert scope["Pair"] is again_pair  # one class of a name in a process, as for Triton's own
print("the same")
"""


def test_functions_that_are_rebuilt_are_the_same_to_triton(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(_PROGRAM))
    environment = {**os.environ, **client_environment()}
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.stdout == "the same\n", done.stderr
