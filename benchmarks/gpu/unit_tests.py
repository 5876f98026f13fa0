"""Triton's own unit tests on a GPU, with plain Triton and with `headstart.enable()`: which differ, and what fell back.

    python benchmarks/gpu/unit_tests.py FOLDER [unit/language …] [--parts 12] [--share 1.0]

FOLDER is Triton's `python/test` at the version that is installed; it is no part of this repository. Each part of
the tests is a process of its own with an empty cache; the parts of one kind run at the same time, first stock, then
headstart's with one service for all. A test that differs runs again alone, both ways: flaky ones are told apart.
Prints a table and what differs, and writes unit_tests.json into $OUT.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KINDS = ("stock", "headstart")


def start(kind: str, tests: list[str], part: str, kept: Path, chosen: argparse.Namespace) -> subprocess.Popen[bytes]:
    name = f"{kind}-{part.replace('/', '-of-')}"
    kept.mkdir(exist_ok=True)
    caches = kept / name
    (caches / "runtime").mkdir(parents=True, mode=0o700)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "HEADSTART"))},
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE), os.environ.get("PYTHONPATH", "")]),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "HEADSTART_CACHE_DIR": str(caches / "headstart"),
        "XDG_RUNTIME_DIR": str(caches / "runtime"),
        "HEADSTART_WORKERS": "2",
    }
    (kept / "pytest.ini").write_text("[pytest]\n")  # not this repository's
    command = [sys.executable, "-m", "pytest", "-q", "-p", "under_headstart", "-p", "no:cacheprovider"]
    command += ["-c", str(kept / "pytest.ini"), "--rootdir", str(chosen.folder), "--continue-on-collection-errors"]
    command += ["--part", part, "--share", str(chosen.share), "--told", str(kept / f"{name}.json")]
    command += ["--device", "cpu", "--dry-run", chosen.dry_run] if chosen.dry_run else []
    command += [*(["--headstart"] if kind == "headstart" else []), *tests]
    with (kept / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def told(kept: Path, kind: str) -> dict[str, Any]:
    """Of all parts together."""
    outcomes: dict[str, list[str]] = {}
    counts: collections.Counter[str] = collections.Counter()
    reasons: list[str] = []
    for path in sorted(kept.glob(f"{kind}-*.json")):
        one = json.loads(path.read_text())
        outcomes |= one["outcomes"]
        counts.update(one["counts"])
        reasons += one["reasons"]
    return {"outcomes": outcomes, "counts": dict(counts), "reasons": reasons}


def run(
    kind: str, tests: list[str], kept: Path, chosen: argparse.Namespace, parts: int, limit: float
) -> dict[str, Any]:
    started = time.perf_counter()
    processes = [start(kind, tests, f"{part}/{parts}", kept, chosen) for part in range(parts)]
    ended = []
    for part, process in enumerate(processes):
        try:
            ended.append(process.wait(max(1.0, started + limit - time.perf_counter())))
        except subprocess.TimeoutExpired:
            process.terminate()
            ended.append(process.wait())
            print(f"{kind}: part {part} took longer than {limit:.0f} s and was ended; its tests do not count")
    what = told(kept, kind)
    for part, code in enumerate(ended):
        if code not in (0, 1, 5):
            log = (kept / f"{kind}-{part}-of-{parts}.log").read_text(errors="replace")
            print(f"{kind}: part {part} ended with {code}:", log[-1500:])
    return {**what, "seconds": round(time.perf_counter() - started, 1)}


def outcome(results: dict[str, Any], test: str) -> str:
    return str(results["outcomes"].get(test, ["missing"])[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("tests", nargs="*", help="files and folders in it; default: all")
    parser.add_argument("--parts", type=int, default=12)
    parser.add_argument("--share", type=float, default=1.0, help="of the tests, chosen by name")
    parser.add_argument("--dry-run", metavar="TARGET", help="without a GPU: compiles are real, results are not")
    parser.add_argument("--limit", type=float, default=270.0, help="seconds, for each kind")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    tests = [str(arguments.folder / each) for each in arguments.tests or ["unit"]]
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder)
        results = {kind: run(kind, tests, kept, arguments, arguments.parts, arguments.limit) for kind in KINDS}
        stock, mine = (results[kind] for kind in KINDS)
        both = [test for test in stock["outcomes"] if test in mine["outcomes"]]
        differing = [test for test in both if outcome(stock, test) != outcome(mine, test)]
        again = {}
        if differing:
            alone = [str(arguments.folder / test) for test in differing[:40]]
            arguments.share = 1.0
            again = {kind: run(kind, alone, kept / "again", arguments, 1, 100.0) for kind in KINDS}
    flaky = [test for test in differing if again and outcome(again["stock"], test) == outcome(again["headstart"], test)]
    counts = mine["counts"]
    compiled = counts.get("asked", 0) - counts.get("from_cache", 0)
    print("\n| | stock | headstart |\n|---|---|---|")
    for what in ("passed", "failed", "skipped", "xfailed"):
        print(f"| {what} |", *(f"{sum(each[0] == what for each in r['outcomes'].values())} |" for r in (stock, mine)))
    print(f"| seconds | {stock['seconds']} | {mine['seconds']} |")
    print(f"\n{len(both)} tests ran both ways; {len(differing)} differ, of which {len(flaky)} are alike when run alone")
    print(f"{compiled} kernels were compiled, {counts.get('in_process', 0)} in the program's process: {counts}")
    for test in differing:
        print(f"\n{test}\n  stock: {stock['outcomes'][test]}\n  headstart: {mine['outcomes'][test]}")
        for kind in KINDS if again else ():
            print(f"  {kind}, alone: {again[kind]['outcomes'].get(test)}")
    print("\nreasons:")
    for reason, number in collections.Counter(mine["reasons"]).most_common(60):
        print(f"{number:5} {reason[:300]}")
    if "OUT" in os.environ:
        summary = {
            "both": len(both),
            "differing": differing,
            "flaky": flaky,
            "counts": counts,
            "reasons": mine["reasons"],
            "seconds": {kind: results[kind]["seconds"] for kind in KINDS},
            "parts": arguments.parts,
        }
        Path(os.environ["OUT"], "unit_tests.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
