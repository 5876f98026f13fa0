"""Programs with @triton.jit on a GPU: their first call with plain Triton, and under `headstart run`.

    python benchmarks/gpu/live.py [program …] [kind …]      from a checkout, with src and the libraries on PYTHONPATH
    python benchmarks/gpu/live.py --report FILE             the table of what an earlier run wrote
    ROUNDS=3                                                next starts (`AGAIN`) that often, in turns; medians
    PARTS=all|both|forward                                  how much of flash-linear-attention (`programs/gla.py`)

Each measurement is a fresh process with empty caches, unless said. Results are compared with stock's. Prints a line for
each and a table, and writes live.json into $OUT.

    stock      plain Triton
    headstart  headstart run --record --bundle: compiles go to workers, and everything is recorded
    bundle     headstart run --bundle --reuse-tuning: from what `headstart` left; no cache of Triton's or of headstart's
    record     the same from the record alone: no bundle, no cache, and autotuners benchmark
    warm       plain Triton with the disk cache that `headstart` left, and TRITON_CACHE_AUTOTUNING=1
    sweeps     the same without what autotuners chose: nothing is compiled, and they benchmark, as they do for `record`
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROGRAMS = ("liger", "gla")
KINDS = ("headstart", "bundle", "warm", "sweeps", "record", "stock")
AGAIN = ("bundle", "warm", "sweeps", "record")
ROUNDS = int(os.environ.get("ROUNDS", "1"))
DEADLINE = float(os.environ.get("DEADLINE", "540"))  # seconds, for everything
_TOLERANCE = 2e-2  # of a norm: autotuners may choose configurations that add up in another order


def run(program: str, kind: str, folder: Path, limit: float) -> dict[str, Any]:
    """One process; what it printed."""
    kept = folder / program
    caches = kept / kind
    if caches.exists():  # of the round before
        caches.rename(kept / f"{kind} {len(list(kept.iterdir()))}")
    (caches / "runtime").mkdir(parents=True, mode=0o700)
    if kind == "sweeps":
        chosen = shutil.ignore_patterns("*.autotune.json")
        shutil.copytree(kept / "headstart" / "triton", caches / "triton", ignore=chosen)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "HEADSTART"))},
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]),
        "TRITON_CACHE_DIR": str(kept / ("headstart" if kind == "warm" else kind) / "triton"),
        "TRITON_CACHE_AUTOTUNING": "1",
        "HEADSTART_CACHE_DIR": str(caches / "headstart"),
        "HEADSTART_CONFIG_DIR": str(folder / "config"),
        "XDG_RUNTIME_DIR": str(caches / "runtime"),
    }
    bundle, manifest = ["--bundle", str(kept / "app.bundle")], str(kept / "app.manifest")
    ours = {
        "headstart": [*bundle, "--record", manifest],
        "bundle": [*bundle, "--manifest", manifest, "--reuse-tuning", "--no-record"],
        "record": ["--manifest", manifest, "--trust", "--no-record"],
    }
    wrapped = ["-m", "headstart", "run", "-v", *ours[kind]] if kind in ours else []
    command = [sys.executable, *wrapped, str(HERE / "programs" / f"{program}.py")]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"program": program, "kind": kind, "failed": f"it took longer than {limit:.0f} s"}
    if done.returncode:
        return {"program": program, "kind": kind, "failed": done.stderr[-4000:] or "no message"}
    result = {**json.loads(done.stdout.splitlines()[-1]), "program": program, "kind": kind}
    result.update(process_s=time.perf_counter() - started, cores=os.cpu_count(), log=done.stderr[-3000:])
    if kind == "headstart":
        result["sweeps"] = sweeps(kept / "app.manifest")
    return result


def sweeps(path: Path) -> dict[str, Any]:
    """What a perfect pool would need for what was recorded: per kernel, max(longest compile, all of them / cores)."""
    from headstart.artifacts.manifest import Manifest

    cores = os.cpu_count() or 1
    kernels: dict[str, list[float]] = {}
    for specialization in Manifest.open(path).specializations.values():
        kernels.setdefault(specialization.request.name, []).append(specialization.duration_s)
    floors = {name: max(max(seconds), sum(seconds) / cores) for name, seconds in kernels.items()}
    return {
        "kernels": sum(map(len, kernels.values())),
        "cpu_s": sum(map(sum, kernels.values())),
        "floor_s": sum(floors.values()),
        "each": {name: [len(kernels[name]), max(kernels[name]), floors[name]] for name in kernels},
    }


def line(result: dict[str, Any]) -> str:
    """One line for a person."""
    if "failed" in result:
        return f"{result['program']:6} {result['kind']:10} failed: {result['failed'].strip().splitlines()[-1]}"
    return (
        f"{result['program']:6} {result['kind']:10} first {result['first_call_s']:7.2f} s  second "
        f"{result['second_call_s']:6.3f} s  before {result['before_s']:5.1f} s  compiled in process "
        f"{result['compiled_in_process']} ({result['compiled_in_process_s']:.1f} s)  hits {result['hits_in_process']} "
        f"({result['hits_in_process_s']:.2f} s)"
    )


def report(results: list[dict[str, Any]]) -> str:
    """All of them as a table in Markdown."""
    rounds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        if "failed" not in result:
            rounds.setdefault((result["program"], result["kind"]), []).append(result)
    found = {what: sorted(each, key=lambda one: one["first_call_s"])[len(each) // 2] for what, each in rounds.items()}
    first = next(iter(found.values()), None)
    lines = [f"{first['gpu']}, torch {first['torch']}, {first['cores']} cores" if first else "nothing", ""]
    lines += [f"| program | {' | '.join(KINDS)} | results |", "|---|" + "---|" * (len(KINDS) + 1)]
    for program in dict.fromkeys(result["program"] for result in results):
        cells = []
        reference = found.get((program, "stock")) or found.get((program, "warm"))
        same = []
        for kind in KINDS:
            result = found.get((program, kind))
            if result is None:
                failed = next((r["failed"] for r in results if (r["program"], r["kind"]) == (program, kind)), "")
                cells.append(failed.strip().splitlines()[-1][:60] if failed else "")
                continue
            ratio = f" : {result['first_call_s'] / reference['first_call_s']:.2f}" if reference else ""
            times = f", {len(rounds[program, kind])} runs" if len(rounds[program, kind]) > 1 else ""
            cells.append(f"{result['first_call_s']:.2f} s{ratio} ({result['compiled_in_process']} in process{times})")
            if reference and reference is not result:
                pairs = zip(result["norms"], reference["norms"], strict=True)
                same.append(all(abs(one - other) <= _TOLERANCE * max(abs(other), 1e-3) for one, other in pairs))
        verdict = ("same" if all(same) else "DIFFERENT") if same else ""
        lines.append(f"| {program} | {' | '.join(cells)} | {verdict} |")
        if (program, "headstart") in found:
            sweep = found[program, "headstart"]["sweeps"]
            lines.append(
                f"| | {sweep['kernels']} kernels, {sweep['cpu_s']:.1f} s of compiling; one sweep after the other takes "
                f"at least {sweep['floor_s']:.1f} s |" + " |" * len(KINDS)
            )
    return "\n".join(lines)


def main() -> None:
    end = time.monotonic() + DEADLINE
    out = Path(os.environ.get("OUT", "."))
    asked = sys.argv[1:]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        programs = [name for name in asked if name in PROGRAMS] or list(PROGRAMS)
        kinds = [name for name in asked if name in KINDS] or list(KINDS)
        for program in programs:
            for kind in kinds + [kind for kind in kinds if kind in AGAIN] * (ROUNDS - 1):
                results.append(run(program, kind, Path(folder), max(10.0, end - time.monotonic())))
                print(line(results[-1]), flush=True)
                (out / "live.json").write_text(json.dumps(results, indent=1) + "\n")
    print(report(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--report"]:
        print(report(json.loads(Path(sys.argv[2]).read_text())))
    else:
        main()
