"""Loads a manifest of 10,000 specializations, matches it, and merges it; takes notes of as many."""

import datetime as dt
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.subjects.common import TARGET, load, report
from headstart.adapters.recording import Recorder
from headstart.artifacts.manifest import Manifest, merge
from headstart.artifacts.specialization import Specialization
from headstart.model.request import CompileRequest

SPECIALIZATIONS = 10_000


def requests(path: str) -> list[CompileRequest]:
    """Kernels of the workload, each with many sets of constants, as a program with autotuned kernels has them."""
    kernels = load(path)
    made = []
    for number in range(SPECIALIZATIONS):
        name, source, how = kernels[number % len(kernels)]
        constants = {**how.get("constants", {}), "VARIANT": number}
        made.append(CompileRequest.make(name, source, **{**how, "constants": constants}, target=TARGET, environment={}))
    return made


def timed(action: Callable[..., Any], *arguments: object) -> tuple[Any, float]:
    """What it returned, and seconds."""
    started = time.perf_counter()
    result = action(*arguments)
    return result, time.perf_counter() - started


path, file = sys.argv[1:]
today = dt.datetime.now(dt.timezone.utc).date()
recorded = [
    Specialization(
        request=request, digest=request.digest(), duration_s=number / 100, asked_by="app.py:1", last_seen=today
    )
    for number, request in enumerate(requests(path))
]
_, save_s = timed(Manifest.of(recorded).save, file)
half = {each.digest for each in recorded[::2]}

manifest, load_s = timed(Manifest.open, file)
missing, match_s = timed(lambda: manifest.specializations.keys() - half)
assert len(manifest.specializations) == SPECIALIZATIONS
assert len(missing) == SPECIALIZATIONS - len(half)
_, merge_s = timed(merge, manifest, Manifest.open(file))

recorder = Recorder(file + ".recorded")
started = time.perf_counter()
for each in recorded[:400]:  # few enough that nothing is saved meanwhile
    recorder.note(each.request, each.digest, duration_s=1.0, asked_by="app.py:1")
note_s = (time.perf_counter() - started) / 400
report(load_s=load_s, match_s=match_s, load_and_match_s=load_s + match_s, save_s=save_s, merge_s=merge_s, note_s=note_s)
