"""Not timed: write a manifest of a workload's kernels; with a number, of so many of them."""

import datetime as dt
import sys

from benchmarks.subjects.common import TARGET, load, report
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.specialization import Specialization
from headstart.model.request import CompileRequest

path, file, *many = sys.argv[1:]
kernels = load(path)[: int(many[0]) if many else None]
requests = [CompileRequest.make(name, source, **how, target=TARGET, environment={}) for name, source, how in kernels]
today = dt.datetime.now(dt.timezone.utc).date()
Manifest.of([Specialization(request=each, digest=each.digest(), last_seen=today) for each in requests]).save(file)
report(kernels=len(requests))
