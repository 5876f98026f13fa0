"""Ranks of one job that compile the same model at once, on few cores: the slowest rank's first call.

    python benchmarks/gpu/ranks.py [case …]        from a checkout, with src on PYTHONPATH
    RANKS=4 CORES=8 ROUNDS=1                       how many, on how many cores, how often, in turns

The cases and kinds are those of `torch_compile.py`: `stock`, where each rank has Inductor's pool, and `headstart`,
where all share one service. All ranks use one GPU. Results are checked against eager. Prints a line for each round and
a table, and writes ranks.json into $OUT.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RANKS = int(os.environ.get("RANKS", "4"))
CORES = int(os.environ.get("CORES", "8"))
ROUNDS = int(os.environ.get("ROUNDS", "1"))
DEADLINE = float(os.environ.get("DEADLINE", "540"))  # seconds, for everything: what does not fit is left out
KINDS = ("stock", "headstart")
_LIMIT = 200.0  # seconds for one job


def run(case: str, kind: str, folder: Path) -> dict[str, Any]:
    """One job, with caches of its own; what its slowest rank measured."""
    caches = folder / f"{case}-{kind}"
    for name in ("inductor", "runtime", "headstart"):
        (caches / name).mkdir(parents=True, mode=0o700)
    job = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TORCHINDUCTOR_", "TRITON_"))},
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "HEADSTART_CACHE_DIR": str(caches / "headstart"),
        "HEADSTART_CONFIG_DIR": str(caches / "config"),
        "XDG_RUNTIME_DIR": str(caches / "runtime"),
        "BUNDLE": str(caches / "app.bundle"),
        "ARTIFACTS": str(caches / "artifacts"),
        "TORCHELASTIC_RUN_ID": f"{case}-{kind}",
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
    }
    cores = {min(os.sched_getaffinity(0)) + number for number in range(CORES)}
    ranks = []
    for rank in range(RANKS):
        environment = {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment["ARTIFACTS"] += str(rank)
        command = [sys.executable, str(HERE / "torch_compile.py"), "--measure", case, kind]
        ranks.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
        )
    end = time.monotonic() + _LIMIT
    results = []
    try:
        for process in ranks:
            output, errors = process.communicate(timeout=max(1.0, end - time.monotonic()))
            if process.returncode:
                return {"case": case, "kind": kind, "failed": errors[-2000:] or "no message"}
            results.append(json.loads(output.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return {"case": case, "kind": kind, "failed": f"it took longer than {_LIMIT:g} s"}
    finally:
        for process in ranks:
            process.kill()
        shutil.rmtree(caches, ignore_errors=True)
    slowest = max(results, key=lambda result: float(result["first_call_s"]))
    return {
        **{name: slowest[name] for name in ("case", "kind", "first_call_s", "before_s", "torch", "gpu")},
        "correct": all(result["correct"] for result in results),
        "compiled_in_process": sum(result["compiles_in_process"] for result in results),
        "compiled_by_headstart": sum(result.get("compiled_by_workers", 0) for result in results),
    }


def report(results: list[dict[str, Any]]) -> str:
    """All of them as a table in Markdown."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        if "failed" not in result:
            found.setdefault((result["case"], result["kind"]), []).append(result)
    if not found:
        return "nothing"
    one = next(iter(found.values()))[0]
    wrong = sum(not result["correct"] for each in found.values() for result in each)
    lines = [f"{one['gpu']}, torch {one['torch']}, {RANKS} ranks on {CORES} cores. Wrong results: {wrong}.", ""]
    lines += [f"| case | {' | '.join(KINDS)} (s, slowest rank) | headstart : stock |", "|---|---|---|---|"]
    for case in dict.fromkeys(case for case, _ in found):
        medians = [
            statistics.median(result["first_call_s"] for result in found[case, kind]) if (case, kind) in found else None
            for kind in KINDS
        ]
        stock, ours = medians
        cells = [f"{median:.1f}" if median is not None else "" for median in medians]
        lines.append(f"| {case} | {' | '.join(cells)} | {f'{ours / stock:.2f}' if stock and ours else ''} |")
    return "\n".join(lines)


def main() -> None:
    end = time.monotonic() + DEADLINE
    out = Path(os.environ.get("OUT", "."))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for case in sys.argv[1:] or ("fusions", "matmul"):
                for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
                    if time.monotonic() > end - 60:
                        results.append({"case": case, "kind": kind, "failed": "left out: the time is up"})
                    else:
                        results.append(run(case, kind, Path(folder)))
                    print({name: value for name, value in results[-1].items() if name != "gpu"}, flush=True)
                    (out / "ranks.json").write_text(json.dumps(results, indent=1) + "\n")
    print(report(results))


if __name__ == "__main__":
    main()
