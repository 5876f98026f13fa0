"""Every kernel of this folder in all its configurations, for `headstart build`. No GPU is needed.

    headstart build examples/kernels/plan.py --target cuda:90 -o kernels.bundle

`FAMILIES` says what there is; EXAMPLE_KERNELS=matmul,softmax in the environment takes a part of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

if str(Path(__file__).parent) not in sys.path:  # loaded by path, not run as a script
    sys.path.insert(0, str(Path(__file__).parent))

from cases import Case

import headstart

FAMILIES = (
    "matmul",
    "attention",
    "softmax",
    "layer_norm",
    "cross_entropy",
    "rotary",
    "quantized",
    "grouped",
)


def cases() -> Iterator[Case]:
    """All cases of the families that were asked for."""
    for family in filter(None, os.environ.get("EXAMPLE_KERNELS", ",".join(FAMILIES)).split(",")):
        yield from import_module(family).cases()


def kernels() -> Iterator[headstart.KernelSpec]:
    """What `headstart build` asks a plan for."""
    for case in cases():
        yield case.spec()
