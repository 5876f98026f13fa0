"""`headstart build --model`: the kernels that torch.compile makes of a model, where there is no GPU. Experimental.

The model is the user's program and runs here, on fake tensors; Inductor generates code as for the target, and
headstart's adapter for torch.compile compiles it and writes the bundle, as it does in a training process.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.adapters import inductor
from headstart.cli.build_job import in_flight
from headstart.cli.plans import PlanRaised, call_function
from headstart.cli.progress import make_progress
from headstart.cli.publishing import Published, publishing_of, summary
from headstart.client.about import About, describe
from headstart.errors import HeadstartError, UsageError
from headstart.model.target import Target
from headstart.system.files import BUNDLE, rename_onto

if TYPE_CHECKING:
    from headstart.client.timeline import Statistics


def build_model(
    reference: str,
    targets: Sequence[Target],
    workers: int | None,
    output: Path,
    require_published: bool,
    say: Callable[[str], None],
    quiet: bool = False,
) -> tuple[dict[str, Any], Published | None]:
    """Build a model's kernels into the bundle `output`, which is replaced if it exists. Returns what became of it.

    Args:
        require_published: whether there has to be a store of other hosts to publish to.
        say: told how far publishing is.
        quiet: whether not to show how far compiling is.

    Raises:
        UsageError: no such function, it returns something else, there is no torch, too little is known of the target,
            there is no store where one is required.
        HeadstartError: headstart has to leave torch.compile alone.
    """
    if len(targets) > 1:
        raise UsageError("--model takes one --target at a time")
    target = targets[0] if targets else Target.parse("cuda:90")
    started = time.monotonic()
    from headstart.adapters.inductor import without_gpu

    with (
        tempfile.TemporaryDirectory(prefix="headstart-") as folder,
        # In the same file system as the output.
        tempfile.TemporaryDirectory(prefix=".headstart-", dir=Path(os.path.realpath(output)).parent) as beside,
    ):
        # What torch.compile made earlier would keep it from making anything now.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        part = Path(beside, "part.bundle")
        describe(About("build", reference, bundle=os.path.abspath(output)))
        inductor.enable(bundle=part, workers=workers)
        without_gpu.load_shim()
        adapter = inductor.current()
        if adapter is None:
            raise HeadstartError("headstart leaves torch.compile alone here, so there is nothing to build")
        try:
            publishing = publishing_of(adapter.compiler.client, require_published)
            compiler = adapter.compiler
            tally = _ModelTally(lambda: compiler.statistics)
            with (
                without_gpu.pretend(target),
                make_progress(tally, partial(in_flight, compiler.client), quiet=quiet),
            ):
                _compile(reference)
            counts, compiled = dict(adapter.counts), adapter.compiler.statistics.compiled
            published = None if publishing is None else publishing.wait(say, compiled=compiled)
        finally:
            inductor.disable()
        if not part.exists():
            raise UsageError(f"{reference}: torch.compile made no Triton kernel of it")
        rename_onto(part, output, BUNDLE)
    outcome = {
        "bundle": str(output),
        "target": str(target),
        "sources": counts["sources"],
        "kernels": counts["jobs"],
        "compiled": compiled,
        "left_out": counts["in_process"],
        "wall_s": time.monotonic() - started,
        **summary(published),
    }
    return outcome, published


class _ModelTally:
    """What a model has come to: how many kernels torch.compile makes of it shows as it goes."""

    failed = 0

    def __init__(self, statistics: Callable[[], Statistics]) -> None:
        self._statistics = statistics
        self._started = time.monotonic()

    @property
    def requested(self) -> int:
        return self._statistics().requested

    @property
    def done(self) -> int:
        found = self._statistics()
        return found.compiled + found.cached + found.deduplicated + found.failed

    def line(self, running: Sequence[tuple[str, float]] = ()) -> str:
        """As `Tally.line`."""
        return f"{self.done}/{self.requested} kernels so far, {time.monotonic() - self._started:.0f} s"


def _compile(reference: str) -> None:
    from headstart.adapters.inductor import without_gpu

    made = call_function(reference)
    if not isinstance(made, tuple) or not made or not callable(made[0]):
        raise UsageError(f"{reference}: expected it to return the model and its arguments, as in `return model, x`")
    model, *arguments = made
    try:
        without_gpu.codegen(model, *arguments)
    except HeadstartError:
        raise
    except Exception as error:
        raise PlanRaised(reference, error) from error
