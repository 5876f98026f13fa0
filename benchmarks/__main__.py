"""python -m benchmarks [--only ROW]… [--runs N] [--workers N] [--quick]"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import machine, report
from benchmarks.measure import Bench, say
from benchmarks.rows import ALL

RUNS = 5
WORKERS = 2


def main() -> int:
    options = _options()
    numbers = frozenset(number for row in ALL for number in row.NUMBERS)
    wanted = frozenset(options.only or numbers)
    if not wanted <= numbers:
        print(f"rows are {', '.join(map(str, sorted(numbers)))}", file=sys.stderr)
        return 2
    facts = machine.describe()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        bench = Bench(1 if options.quick else options.runs, options.workers, Path(folder), wanted)
        # Byte code, and Triton's libraries in the file cache: the first round is not to pay for what the others find.
        bench.python(["-c", "import triton, headstart; headstart.AsyncCompile"])
        lines = []
        for row in ALL:
            if wanted & set(row.NUMBERS):
                say(row.__doc__.splitlines()[0])
                lines += [line for line in row.measure(bench) if line.row in wanted]
        print(report.markdown(facts, bench, lines))
        if wanted == numbers and bench.runs >= RUNS:
            print(f"kept: {report.keep(facts, bench, lines)}")
        else:
            print(f"not kept: only a whole table of at least {RUNS} runs is")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures headstart against its goals.")
    parser.add_argument("--only", type=int, action="append", metavar="ROW", help="measure this row; may be repeated")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"rounds (default: {RUNS})")
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"compiles at a time (default: {WORKERS})")
    parser.add_argument("--quick", action="store_true", help="one round")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
