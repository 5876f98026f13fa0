"""python -m benchmarks.remote [--only PART]… [--runs N] [--kernels N]"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks import machine, report
from benchmarks.measure import Bench
from benchmarks.remote import network, parts
from benchmarks.remote.hosts import Hosts, temporary

PARTS = ("second", "cold", "together")
RUNS = 5
HOW = "How it is measured: `benchmarks/remote/__init__.py`; again: `make bench-remote`."


def main() -> int:
    options = _options()
    wanted = options.only or PARTS
    facts = machine.describe()
    with temporary() as folder, network.stores(Path(folder)) as addresses:
        bench = Bench(options.runs, len(os.sched_getaffinity(0)), Path(folder), frozenset())
        hosts = Hosts(bench)
        lines = []
        if "second" in wanted:
            lines += parts.second(hosts, addresses, options.kernels)
        if "cold" in wanted:
            lines += parts.cold(hosts, addresses)
        if "together" in wanted:
            lines += parts.together(hosts, addresses)
        print(report.markdown(facts, bench, lines, how=HOW))
        missing = [kind for kind in network.KINDS if kind not in addresses]
        if missing:
            print(f"left out, since there is no such server here: {', '.join(missing)}")
        whole = set(wanted) == set(PARTS) and not missing and options.kernels == parts.KERNELS
        if whole and bench.runs >= RUNS:
            print(f"kept: {report.keep(facts, bench, lines, name='remote', how=HOW)}")
        else:
            print(f"not kept: only all parts, with all stores and at least {RUNS} runs, are")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote", description="Measures stores of other hosts.")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part; may be repeated")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"rounds (default: {RUNS})")
    parser.add_argument(
        "--kernels", type=int, default=parts.KERNELS, help=f"that a second host finds (default: {parts.KERNELS})"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
