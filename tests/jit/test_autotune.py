"""Autotuners with the adapter: all configurations at once, Triton's own choices, recorded and reused."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Client
from headstart.artifacts import runs
from headstart.artifacts.manifest import Manifest

pytestmark = pytest.mark.triton

Start = Callable[..., Client]
Run = Callable[..., dict[str, Any]]

HEAD = """
import json, logging, os, sys
logging.basicConfig(level=logging.WARNING, format="%(message)s")
sys.path.insert(0, HELPERS)
from headstart.client.client import Client
from headstart.adapters.triton.adapter import Adapter
from headstart.artifacts.manifest import Manifest
from headstart.adapters.recording import Recorder

recorder = Recorder(os.environ["RECORD"]) if "RECORD" in os.environ else None
tunings = Manifest.open(os.environ["REUSE"]).tunings if "REUSE" in os.environ else None
adapter = None
if "STOCK" not in os.environ:
    adapter = Adapter(Client(workers=2), recorder=recorder, tunings=tunings)
    adapter.install()

import triton, triton.language as tl
import gpuless
from gpuless import Tensor, launches, stages

x, y = Tensor(), Tensor()
events = []

def benchmark(call, quantiles):
    kicked_off = 0 if adapter is None else adapter.counts["kicked_off"]  # before the first launch
    call()
    metadata = launches[-1].metadata
    events.append([metadata.num_warps, kicked_off])
    return [1.0 / metadata.num_warps] * 3

def configs(*warps, **more):
    return [triton.Config({"BLOCK": block}, num_warps=count, **more) for block in (64, 128) for count in warps]

def told(**more):
    counts = {} if adapter is None else adapter.counts
    print("TOLD", json.dumps(dict(stages=stages, launches=len(launches), events=events, counts=counts, **more)))
    if recorder is not None:
        recorder.close()
    if adapter is not None:
        adapter.close(); adapter.compiler.client.close()
"""


@pytest.fixture
def run(start_client: Start, tmp_path: Path) -> Run:
    """Runs a program: what it told. Each has a Triton cache of its own."""
    started = []

    def start(body: str, **variables: str) -> dict[str, Any]:
        started.append(1)
        program = f"HELPERS = {str(Path(__file__).parent)!r}\n" + HEAD + textwrap.dedent(body)
        caches = {"TRITON_CACHE_DIR": str(tmp_path / f"triton{len(started)}")}
        client = start_client(program, **caches | variables)
        output, errors = client.process.communicate(timeout=60)
        assert client.process.returncode == 0, errors.decode()
        (line,) = [line for line in output.decode().splitlines() if line.startswith("TOLD ")]
        return {**json.loads(line.removeprefix("TOLD ")), "log": errors.decode()}

    return start


SWEEP = """
    @triton.autotune(configs(1, 4, 2), key=["n"], do_bench=benchmark)
    @triton.jit
    def kernel(x, y, n, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)

    kernel[(1,)](x, y, 10)
    best = kernel.best_config.all_kwargs()
    kernel[(1,)](x, y, 10)
    told(best=best, cache=[list(key) for key in kernel.cache])
"""


def test_all_configurations_are_kicked_off_before_the_first_is_benchmarked(run: Run) -> None:
    mine = run(SWEEP)
    assert mine["stages"] == []
    assert [kicked_off for _, kicked_off in mine["events"]] == [6] * 6
    assert [warps for warps, _ in mine["events"]] == [1, 4, 2] * 2
    assert mine["launches"] == 8
    stock = run(SWEEP, STOCK="1")
    assert "make_ir" in stock["stages"]
    assert (mine["best"], mine["cache"], mine["launches"]) == (stock["best"], stock["cache"], stock["launches"])
    assert (mine["best"]["num_warps"], mine["counts"]["autotuned"], mine["counts"]["late"]) == (4, 1, 0)


def test_what_was_benchmarked_and_chosen_is_in_the_log_of_the_run(run: Run) -> None:
    told = run(SWEEP)
    (found,) = runs.runs(Path(os.environ["HEADSTART_CACHE_DIR"]))
    (sweep,) = found.processes[0].sweeps
    kernels = found.processes[0].kernels
    assert sweep.name.endswith(".kernel")
    times = {kernels[number].label: milliseconds for number, milliseconds in sweep.times.items()}
    assert sorted(times.values()) == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert times[kernels[sweep.winner].label] == min(times.values())
    assert kernels[sweep.winner].label == f"BLOCK={told['best']['BLOCK']}"  # four warps are what Triton does by itself
    assert kernels[sweep.winner].where


def test_times_that_are_no_numbers_are_not_in_the_log_and_all_else_is_as_ever(run: Run, tmp_path: Path) -> None:
    """Triton only compares what a benchmark returns."""
    record = str(tmp_path / "it.manifest")
    lengths = """
    import datetime
    numbers = benchmark
    def benchmark(call, quantiles):
        return datetime.timedelta(milliseconds=numbers(call, quantiles)[0])
    """
    told = run(textwrap.dedent(lengths) + textwrap.dedent(SWEEP), RECORD=record)
    assert told["best"]["num_warps"] == 4
    assert [each.configuration for each in Manifest.open(record).tunings.values()] == [told["best"]]
    assert "headstart" not in told["log"]
    (found,) = runs.runs(Path(os.environ["HEADSTART_CACHE_DIR"]))
    assert len(found.kernels) == 6
    assert found.processes[0].sweeps == []


def test_a_winner_is_recorded_and_reused_only_if_asked_for(run: Run, tmp_path: Path) -> None:
    record = str(tmp_path / "it.manifest")
    first = run(SWEEP, RECORD=record)
    manifest = Manifest.open(record)
    winners = [each for each in manifest.specializations.values() if each.winner]
    assert [each.request.options.get("num_warps", 4) for each in winners] == [4]
    assert len(manifest.specializations) == 6
    (tuning,) = manifest.tunings.values()
    assert (tuning.target, tuning.configuration) == ("cuda:90", first["best"])
    again = run(SWEEP)
    assert again["counts"]["autotuned"] == 1
    reused = run(SWEEP, REUSE=record, RECORD=str(tmp_path / "second.manifest"))
    assert (reused["events"], reused["best"], reused["launches"]) == ([], first["best"], 2)
    assert (reused["counts"]["reused"], reused["counts"]["kicked_off"]) == (1, 1)
    (winner,) = Manifest.open(tmp_path / "second.manifest").specializations.values()
    assert winner.winner


def test_a_recorded_choice_that_is_no_configuration_any_more_is_not_used(run: Run, tmp_path: Path) -> None:
    record = str(tmp_path / "it.manifest")
    run(SWEEP, RECORD=record)
    changed = run(SWEEP.replace("configs(1, 4, 2)", "configs(1, 2)"), REUSE=record)
    assert (changed["best"]["num_warps"], len(changed["events"])) == (2, 4)


FAILING = """
    @triton.autotune(configs(1, 2, 4), key=["n"], do_bench=benchmark)
    @triton.jit
    def kernel(x, y, n, BLOCK: tl.constexpr, num_warps: tl.constexpr):
        tl.static_assert(num_warps * BLOCK < 256, "too large")
        i = tl.arange(0, BLOCK)
        tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)

    kernel[(1,)](x, y, 10)
    told(best=kernel.best_config.all_kwargs(),
         failed=[str(config) for config, timing in kernel.configs_timings.items() if timing[0] == float("inf")])
"""


def test_a_configuration_that_fails_to_compile_is_no_choice_as_in_stock(run: Run) -> None:
    mine, stock = run(FAILING), run(FAILING, STOCK="1")
    assert len(stock["failed"]) == 3
    assert (mine["failed"], mine["best"]) == (stock["failed"], stock["best"])
    assert len(mine["stages"]) == 3, "each that fails is compiled here once, for Triton's own error"


TOO_LARGE = """
    triton.runtime.driver.active.utils.get_device_properties = lambda device: {"max_shared_mem": 20000}

    @triton.autotune([triton.Config({"BLOCK": block}) for block in (32, 128)], key=["n"], do_bench=benchmark)
    @triton.jit
    def kernel(x, y, n, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        a = tl.load(x + i[:, None] * BLOCK + i[None, :])
        tl.store(y + i[:, None] * BLOCK + i[None, :], tl.dot(a, tl.trans(a)) + n)

    kernel[(1,)](x, y, 10)
    told(best=kernel.best_config.all_kwargs(), timings=[str(timing[0]) for timing in kernel.configs_timings.values()])
"""


def test_a_configuration_that_needs_too_much_shared_memory_is_refused_by_triton(run: Run) -> None:
    mine = run(TOO_LARGE)
    assert mine["timings"][1] == "inf"
    assert (mine["best"]["BLOCK"], mine["stages"]) == (32, [])


def test_hooks_of_configurations_and_autotuners_run_when_they_would_anyway(run: Run) -> None:
    body = """
        calls = []
        def before(arguments):
            calls.append(["config", arguments["BLOCK"], len(launches)])

        @triton.autotune(
            configs(1, 2, pre_hook=before), key=["n"], do_bench=benchmark, reset_to_zero=["y"],
        )
        @triton.jit
        def kernel(x, y, n, BLOCK: tl.constexpr):
            i = tl.arange(0, BLOCK)
            tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)

        kernel[(1,)](x, y, 10)
        told(calls=calls, zeroed=y.zeroed)
        """
    mine, stock = run(body), run(body, STOCK="1")
    assert (mine["calls"], mine["zeroed"]) == (stock["calls"], stock["zeroed"])
    assert [kicked_off for _, kicked_off in mine["events"]] == [4] * 4


def test_a_hook_that_may_change_the_kernel_is_waited_for(run: Run) -> None:
    body = """
        from triton.tools.tensor_descriptor import TensorDescriptor
        def before(arguments):
            arguments["x"].block_shape = [arguments["BLOCK"]]

        @triton.autotune(configs(1, 2, pre_hook=before), key=["n"], do_bench=benchmark)
        @triton.jit
        def kernel(x, y, n, BLOCK: tl.constexpr):
            tl.store(y + tl.arange(0, BLOCK), x.load([n]))

        kernel[(1,)](TensorDescriptor(x, [1024], [1], [16]), y, 10)
        told(best=kernel.best_config.all_kwargs())
        """
    mine, stock = run(body), run(body, STOCK="1")
    assert [kicked_off for _, kicked_off in mine["events"]] == [0, 1, 2, 3]
    assert (mine["best"], mine["stages"]) == (stock["best"], [])


def test_heuristics_and_pruning_keep_their_meaning(run: Run) -> None:
    body = """
        def prune(configs, arguments, **more):
            return [config for config in configs if config.num_warps != 2]

        @triton.autotune(
            configs(1, 2, 4), key=["n"], do_bench=benchmark, prune_configs_by={"early_config_prune": prune},
        )
        @triton.heuristics({"EVEN": lambda arguments: arguments["n"] % arguments["BLOCK"] == 0})
        @triton.jit
        def kernel(x, y, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
            i = tl.arange(0, BLOCK)
            if EVEN:
                tl.store(y + i, tl.load(x + i))
            else:
                tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)

        kernel[(1,)](x, y, 64)
        told(best=kernel.best_config.all_kwargs())
        """
    mine, stock = run(body), run(body, STOCK="1")
    assert mine["best"] == stock["best"]
    assert mine["events"] == [[warps, 4] for warps, _ in stock["events"]]
    assert mine["stages"] == []


def test_an_autotuner_below_heuristics_is_tuned_too(run: Run) -> None:
    told = run(
        """
        @triton.heuristics({"EVEN": lambda arguments: False})
        @triton.autotune(configs(1, 2), key=["n"], do_bench=benchmark)
        @triton.jit
        def kernel(x, y, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
            i = tl.arange(0, BLOCK)
            tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)

        kernel[(1,)](x, y, 64)
        told()
        """
    )
    assert [kicked_off for _, kicked_off in told["events"]] == [4] * 4
    assert told["stages"] == []


def test_what_triton_knows_from_an_earlier_sweep_is_not_kicked_off(run: Run, tmp_path: Path) -> None:
    shared = {"TRITON_CACHE_AUTOTUNING": "1", "TRITON_CACHE_DIR": str(tmp_path / "shared")}
    first = run(SWEEP, **shared)
    second = run(SWEEP, RECORD=str(tmp_path / "it.manifest"), **shared)
    assert (first["counts"]["kicked_off"], first["counts"]["autotuned"]) == (6, 1)
    assert (second["counts"]["kicked_off"], second["counts"]["autotuned"], second["events"]) == (0, 0, [])
    (winner,) = Manifest.open(tmp_path / "it.manifest").specializations.values()
    assert winner.winner


def test_closing_gives_autotuners_their_own_memory_back(run: Run) -> None:
    told = run(
        """
        @triton.autotune(configs(1, 2), key=["n"], do_bench=benchmark)
        @triton.jit
        def kernel(x, y, n, BLOCK: tl.constexpr):
            i = tl.arange(0, BLOCK)
            tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)

        kernel[(1,)](x, y, 64)
        during = type(kernel.cache).__name__
        adapter.close(); adapter.compiler.client.close()
        kernel[(1,)](x, y, 64)
        told(kinds=[during, type(kernel.cache).__name__])
        """
    )
    assert told["kinds"] == ["ChosenConfigs", "dict"]
    assert told["launches"] == 6


def test_warming_an_autotuner_up_compiles_its_configurations_side_by_side(run: Run) -> None:
    body = """
        calls = []
        @triton.autotune(configs(1, 2, pre_hook=calls.append), key=["n"], do_bench=benchmark)
        @triton.jit
        def kernel(x, y, n, BLOCK: tl.constexpr):
            i = tl.arange(0, BLOCK)
            tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)

        counts = []
        from triton import knobs
        knobs.compilation.listener = lambda **told: counts.append(adapter and adapter.counts["kicked_off"])
        warm = kernel.warmup(x, y, 10, grid=(1,))
        told(warps=[each.metadata.num_warps for each in warm], calls=len(calls), at=counts)
        """
    mine, stock = run(body), run(body, STOCK="1")
    assert (mine["warps"], mine["calls"], mine["stages"]) == (stock["warps"], 0, [])
    assert mine["at"] == [4] * 4
