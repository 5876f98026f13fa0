"""A program with the kernels of this folder.

    headstart run examples/kernels/app.py                               with torch and a GPU: launches and checks
    headstart run --dry-run --target cuda:90 examples/kernels/app.py    with neither: compiles every configuration

Nothing in here knows of headstart; `python examples/kernels/app.py` does the same with all compiles in this process.
"""

from __future__ import annotations

import argparse
import time
from importlib import import_module
from typing import Any

from plan import FAMILIES


def find_torch() -> Any:
    """torch, if it is there and has a GPU."""
    try:
        torch = import_module("torch")
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def main() -> None:
    """Launch what can be launched, else compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--first", type=int, metavar="N", help="compile only so many configurations of each family")
    arguments = parser.parse_args()
    torch = find_torch()
    for name in arguments.families or FAMILIES:
        family = import_module(name)
        started = time.perf_counter()
        if torch is not None:
            family.check(torch)
            done = "right"
        else:
            cases = list(family.cases())[: arguments.first]
            for case in cases:
                case.warm_up()
            done = f"{len(cases)} configurations compiled"
        print(f"{name:15} {done}, {time.perf_counter() - started:.2f} s", flush=True)


if __name__ == "__main__":
    main()
