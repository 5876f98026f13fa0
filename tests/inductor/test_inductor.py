"""torch.compile through headstart, up to where a GPU would begin to work.

The row numbers are those of the requirements for the adapter. Each program is a process of its own (`program.py`), and
most of them serve several tests: importing torch is what these tests spend their time on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from programs import HERE, Programs

import headstart
from headstart.adapters.inductor import layout
from headstart.artifacts.entry import Entry, pack_entry
from headstart.describe import devices
from headstart.describe.recipe import Describe, Recipe
from headstart.describe.recipe_entries import recipe_key
from headstart.errors import DamagedError

pytestmark = [
    pytest.mark.torch,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="there is no torch"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the stand-in for CUDA has to be built"),
]

EVERYTHING = ["pointwise", "rescaled", "trained", "mm", "grouped_mm", "flex", "user_kernels", "dynamic_shapes"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def everything(programs: Programs) -> dict[str, Any]:
    """One fresh process, workers ready, that compiles every kind of kernel. It leaves a bundle."""
    bundle = str(programs.folder / "everything.bundle")
    result = programs.run({"cases": EVERYTHING, "wait": True, "bundle": bundle}, caches="everything")
    assert {name: case["error"] for name, case in result["cases"].items()} == dict.fromkeys(EVERYTHING, "")
    return {**result, "bundle": bundle}


def test_row_1_triton_is_called_only_in_worker_processes(everything: dict[str, Any]) -> None:
    assert everything["in process"] == []
    assert everything["stock workers"] == []
    assert everything["counts"]["in_process"] == 0
    assert everything["statistics"]["compiled"] == everything["counts"]["jobs"] > 30


def test_a_source_is_one_message_and_its_kernels_are_none(everything: dict[str, Any]) -> None:
    counts, sent = everything["counts"], everything["sent"]
    assert sent["SubmitSource"] == counts["sources"] > 20
    assert sent["Submit"] == counts["late"]


def test_of_headstart_s_threads_the_connection_s_and_the_log_s_are_left_in_the_program(
    everything: dict[str, Any],
) -> None:
    assert sorted(everything["threads"]) == ["headstart", "headstart-run-log"]


def test_workers_put_kernels_into_tritons_cache_and_say_how_many_registers_they_take(
    everything: dict[str, Any],
) -> None:
    assert everything["in_triton_cache"] == everything["counts"]["jobs"] > 30


def test_row_1_what_rescaling_asks_for_is_foreseen(everything: dict[str, Any]) -> None:
    # Late is what Inductor asks for with no kick-off: the two configurations of the epilogue benchmarked by itself.
    assert everything["counts"]["late"] == 2


def test_row_1_the_backward_is_compiled_too(everything: dict[str, Any]) -> None:
    names = everything["cases"]["trained"]["names"]
    assert [name for name in names if "backward" in name]


def test_row_2_a_kick_off_loads_no_kernel_in_the_client(everything: dict[str, Any]) -> None:
    # Rescaling is Inductor's own decision, for which it loads the one source.
    assert len(everything["loaded"]) <= 1


def test_row_3_the_same_source_twice_is_one_job(everything: dict[str, Any]) -> None:
    flex = everything["cases"]["flex"]
    assert flex["kicks"] == 20
    assert len(flex["texts"]) == 10


@pytest.mark.parametrize("case", ["pointwise", "rescaled", "trained", "mm", "grouped_mm", "flex", "dynamic_shapes"])
def test_row_4_every_kernel_of_the_module_was_kicked_off_before_it(case: str, everything: dict[str, Any]) -> None:
    result = everything["cases"][case]
    assert result["from_module"] > 0
    assert result["not_early"] == []


def test_row_4_the_first_compile_of_a_process_begins_before_code_generation_ends(everything: dict[str, Any]) -> None:
    assert everything["first_start"] < everything["cases"]["pointwise"]["ended"]
    assert everything["first_start"] < everything["cases"]["rescaled"]["began"]


def test_row_6_every_kernel_and_recipe_is_noted_for_the_bundle(everything: dict[str, Any]) -> None:
    assert everything["bundled"] >= everything["counts"]["jobs"]


def test_enabling_is_cheap_and_disabling_leaves_inductor_as_it_was(everything: dict[str, Any]) -> None:
    assert everything["enable_s"] < 0.5
    assert everything["restored"]


def test_row_7_from_a_bundle_nothing_is_compiled_and_no_process_started(
    everything: dict[str, Any], programs: Programs
) -> None:
    warm = programs.run({"cases": EVERYTHING, "bundle": everything["bundle"]})
    assert {case["error"] for case in warm["cases"].values()} == {""}
    assert warm["in process"] == warm["stock workers"] == []
    assert warm["statistics"]["compiled"] == 0
    assert (warm["services"], warm["describers"]) == (0, [])


@pytest.fixture(scope="module")
def planted(programs: Programs) -> dict[str, Any]:
    cases = ["max_autotuned", "max_autotuned_too", "max_autotuned"]
    return programs.run({"cases": cases, "plant": True, "reset": True}, TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")


def test_row_8_two_functions_share_a_kernel_and_each_gets_its_own(planted: dict[str, Any]) -> None:
    first, second = planted["cases"]["max_autotuned"], planted["cases"]["max_autotuned_too"]
    assert set(first["texts"]) & set(second["texts"])
    assert {case["error"] for case in planted["cases"].values()} == {""}
    assert planted["cases"]["max_autotuned again"]["kicks"] > 0


def test_row_9_nothing_of_tritons_is_pickled(planted: dict[str, Any]) -> None:
    assert {case["error"] for case in planted["cases"].values()} == {""}
    assert planted["in process"] == planted["stock workers"] == []


def test_row_11_with_caches_disabled_the_store_is_bypassed_and_workers_are_not(planted: dict[str, Any]) -> None:
    assert planted["statistics"]["compiled"] > 0
    assert not list((planted["folder"] / "headstart").glob("store/v2/??/*"))


def test_row_11_one_compile_thread_means_in_process(programs: Programs) -> None:
    result = programs.run({"cases": ["pointwise"]}, TORCHINDUCTOR_COMPILE_THREADS="1")
    assert result["cases"]["pointwise"]["error"] == ""
    assert result["in process"]
    assert result["counts"]["jobs"] == 0
    assert "TORCHINDUCTOR_COMPILE_THREADS=1" in result["log"]


def test_row_11_a_cache_folder_may_move_while_the_workers_run(programs: Programs) -> None:
    moved = programs.folder / "moved"
    result = programs.run({"cases": ["pointwise", "shares_a_kernel"], "move": str(moved), "reset": True})
    assert {case["error"] for case in result["cases"].values()} == {""}
    assert result["in process"] == []
    assert list(moved.glob("triton/0/*/*.cubin"))


@pytest.mark.parametrize("variable", ["TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"])
def test_a_relative_cache_folder_is_where_stock_has_it_though_the_program_moves(
    variable: str, programs: Programs
) -> None:
    order = {"cases": ["shares_a_kernel"], "chdir": "elsewhere", "wait": True}
    made = []
    for adapter in ("stock", "headstart"):
        result = programs.run({**order, "adapter": adapter}, **{variable: "relative"})
        assert result["cases"]["shares_a_kernel"]["error"] == ""
        assert "headstart" not in adapter or result["in process"] == []
        folder = result["folder"]
        made.append({str(path.relative_to(folder)) for path in folder.rglob("*.cubin")})
    assert made[0] == made[1]
    assert any("relative" in path for path in made[0])
    # It makes Inductor's folder when it imports torch, and is nowhere in the program's.
    assert variable != "TORCHINDUCTOR_CACHE_DIR" or result["describer"][variable] == "/"


def _hashes(result: dict[str, Any]) -> set[str]:
    """Of the kernels in Triton's cache."""
    found = (result["folder"] / "inductor" / "triton").rglob("*.json")
    return {json.loads(path.read_text())["hash"] for path in found if not path.name.startswith("__grp__")}


def test_a_variable_set_after_enable_counts_in_the_hash_as_in_stock(programs: Programs) -> None:
    order = {"cases": ["shares_a_kernel"], "set": {"TRITON_DISABLE_LINE_INFO": "1"}}
    stock = programs.run({**order, "adapter": "stock"}, TORCHINDUCTOR_COMPILE_THREADS="1")
    first = programs.run({**order, "wait": True}, caches="line info")
    again = programs.run(order, caches="line info")
    without = programs.run({"cases": ["shares_a_kernel"]}, caches="line info")
    assert first["in process"] == again["in process"] == []
    assert _hashes(first) == _hashes(again) == _hashes(stock)
    assert _hashes(first)
    assert not _hashes(first) & _hashes(without)


def test_the_describer_has_inductors_variables_of_when_a_pool_of_inductors_would_have_begun(
    programs: Programs,
) -> None:
    order = {"cases": ["shares_a_kernel"], "wait": True}
    result = programs.run({**order, "set": {"TORCHINDUCTOR_ENABLE_PDL": "1"}}, TORCHINDUCTOR_DIVISIBLE_BY_16="1")
    assert result["cases"]["shares_a_kernel"]["error"] == ""
    assert result["describer"]["TORCHINDUCTOR_ENABLE_PDL"] == "1"  # another one than `enable` started
    assert result["describer"]["TORCHINDUCTOR_DIVISIBLE_BY_16"] == "1"
    assert len(result["describers"]) == 1
    assert result["in process"] == []


def test_a_recipes_key_is_made_of_the_variables_of_the_kick_off(monkeypatch: pytest.MonkeyPatch) -> None:
    described = Describe("triton_", "source", {}, {}, {}, {"TORCHINDUCTOR_ENABLE_PDL": "1"})
    key = recipe_key(described, "toolchain", "torch")
    monkeypatch.setenv("TORCHINDUCTOR_ENABLE_PDL", "0")  # the program has gone on
    assert recipe_key(described, "toolchain", "torch") == key
    assert recipe_key(replace(described, settings={}), "toolchain", "torch") != key


def test_where_an_earlier_run_may_know_the_best_configuration_this_process_says_which_are_wanted(
    programs: Programs,
) -> None:
    cases = ["max_autotuned", "rescaled"]
    first = programs.run({"cases": cases, "wait": True}, caches="tuned")
    again = programs.run({"cases": cases, "wait": True, "tuned": True}, caches="tuned")
    assert {case["error"] for result in (first, again) for case in result["cases"].values()} == {""}
    assert first["in process"] == again["in process"] == []
    assert again["sent"]["SubmitSource"] == again["counts"]["sources"] == first["counts"]["sources"]
    assert again["sent"]["Submit"] == again["counts"]["jobs"] == first["counts"]["jobs"]
    assert again["statistics"]["compiled"] == 0  # all of it is in the store


def test_a_service_that_is_killed_meanwhile_costs_no_kernel(programs: Programs) -> None:
    result = programs.run({"cases": ["pointwise", "rescaled", "trained"], "wait": True, "kill": 6})
    assert {case["error"] for case in result["cases"].values()} == {""}
    assert result["in process"] == []
    assert result["counts"]["in_process"] == 0
    assert result["services"] == 2
    assert "the compile service died" in result["log"]


def test_row_12_a_kernel_that_fails_reads_as_in_stock_with_the_evidence(programs: Programs) -> None:
    result = programs.run({"cases": ["pointwise"], "break": "triton_"})
    error = result["cases"]["pointwise"]["error"]
    assert "SubprocException: An exception occurred in a subprocess" in error
    assert "Name=triton_" in error
    assert "no_such_function" in error
    assert "reproduce:" in error


def test_where_somebody_has_patched_triton_torch_compile_is_left_alone(programs: Programs) -> None:
    result = programs.run({"cases": ["shares_a_kernel"], "patch": True})
    assert result["cases"]["shares_a_kernel"]["error"] == ""
    assert result["counts"]["jobs"] == 0
    assert "CodeGenerator.visit_Assign is not Triton's own" in result["log"]


CHANGED = {"decorator": "cached_autotune", "class": "CachingAutotuner", "method": "CachingAutotuner.__init__"}


@pytest.mark.parametrize("change", sorted(CHANGED))
def test_where_somebody_has_patched_inductors_decorators_torch_compile_is_left_alone(
    change: str, programs: Programs
) -> None:
    order = {"cases": ["shares_a_kernel"], "change": change}
    result = programs.run({**order, "pool": True})
    assert result["cases"]["shares_a_kernel"]["error"] == ""
    assert result["counts"]["jobs"] == result["counts"]["sources"] == 0
    assert f"triton_heuristics.{CHANGED[change]} is not torch's own" in result["log"]
    # A change reaches the objects of this process, and not what workers compile: in stock, and so here.
    stock = programs.run({**order, "adapter": "stock", "wait": True})
    assert stock["cases"]["shares_a_kernel"]["error"] == ""
    assert _hashes(result) == _hashes(stock)


def test_the_pool_and_what_makes_it_offer_all_that_inductors_own_do(programs: Programs) -> None:
    result = programs.run({"cases": ["shares_a_kernel"], "surface": True})
    assert result["lacking"] == []
    assert result["cases"]["shares_a_kernel"]["error"] == ""


@pytest.mark.parametrize("spoil", ["raise RuntimeError('it does not import')\n", "def :\n"])
def test_a_source_that_does_not_import_fails_with_torchs_own_class(spoil: str, programs: Programs) -> None:
    order = {"cases": ["shares_a_kernel"], "spoil": spoil}
    errors = [
        programs.run({**order, **more})["cases"]["shares_a_kernel"]["error"]
        for more in ({"adapter": "stock", "wait": True}, {"wait": True}, {})
    ]
    raised = "it does not import" if "import" in spoil else "SyntaxError"
    for error in errors:  # of stock; once the describer has tried; in this process, since it was not there yet
        assert error.startswith("InductorError: SubprocException: An exception occurred in a subprocess")
        assert "Name=triton_" in error
        assert raised in error


def _late(programs: Programs, process: str) -> dict[str, str]:
    """Variables under which one kind of headstart's processes takes a minute to start."""
    folder = programs.folder / f"late {process}"
    folder.mkdir(exist_ok=True)
    text = f"import sys, time\nif {process!r} in sys.argv: time.sleep(60)\n"
    (folder / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(headstart.__file__).parent.parent), str(HERE)])}


def test_row_5_workers_that_do_not_come_cost_patience_and_nothing_else(programs: Programs) -> None:
    late = _late(programs, "headstart.worker.zygote")
    result = programs.run({"cases": ["pointwise"]}, **late, HEADSTART_PATIENCE="1")
    assert result["cases"]["pointwise"]["error"] == ""
    assert result["counts"]["in_process"] == 2
    assert "no worker has answered yet" in result["log"]


def test_row_5_a_describer_that_does_not_come_costs_nothing(programs: Programs) -> None:
    late = _late(programs, "headstart.describe.describer")
    result = programs.run({"cases": ["pointwise", "rescaled", "trained"]}, **late)
    assert {case["error"] for case in result["cases"].values()} == {""}
    assert result["in process"] == []
    assert result["counts"]["in_process"] == 0
    assert result["statistics"]["compiled"] == result["counts"]["late"] == result["counts"]["jobs"] > 5


def test_a_kernel_is_assembled_by_the_assembler_that_its_hash_was_made_with(programs: Programs) -> None:
    # Foreseen: as Inductor's workers, by torch's, if it brings one. Late: by Triton's, as Inductor's parent does.
    from triton.backends import nvidia

    used, assembler = programs.folder / "used", programs.folder / "ptxas"
    real = Path(nvidia.__file__).parent / "bin" / "ptxas"
    assembler.write_text(f'#!/bin/sh\n[ "$1" = --version ] || touch {used}\nexec {real} "$@"\n')
    assembler.chmod(0o755)
    order = {"cases": ["shares_a_kernel"], "assembler": str(assembler)}
    late = programs.run(order, **_late(programs, "headstart.describe.describer"))
    assert late["counts"]["late"] == late["counts"]["jobs"] == late["statistics"]["compiled"] > 0
    assert not used.exists()
    foreseen = programs.run({**order, "wait": True})
    assert foreseen["counts"]["late"] == 0
    assert used.exists()


def test_two_ranks_that_compile_the_same_model_compile_each_kernel_once(programs: Programs) -> None:
    ranks = programs.run_ranks({"cases": ["pointwise", "rescaled", "trained"]})
    assert {case["error"] for rank in ranks for case in rank["cases"].values()} == {""}
    assert ranks[0]["in process"] == ranks[1]["in process"] == []
    assert ranks[0]["counts"]["jobs"] == ranks[1]["counts"]["jobs"] > 5
    assert len({tuple(compile) for rank in ranks for compile in rank["compiles"]}) == ranks[0]["counts"]["jobs"]
    assert ranks[0]["describers"] == ranks[1]["describers"]  # one process with torch in it for both
    assert len(ranks[0]["describers"]) == 1


def test_devices_share_recipes_and_kernels_and_each_has_autotuners_of_its_own(programs: Programs) -> None:
    order = {"cases": ["pointwise", "rescaled", "trained"], "wait": True}
    first = programs.run({**order, "index": 0}, caches="devices")
    known = _recipes(programs.folder / "devices" / "headstart" / "store")
    other = programs.run({**order, "index": 3}, caches="devices")
    found = _recipes(programs.folder / "devices" / "headstart" / "store")
    own = [recipe for key, recipe in found.items() if key not in known]
    assert [recipe.function.name.count("cumsum") for recipe in own] == [1]  # it calls a function of its module's
    assert other["statistics"]["compiled"] == sum(len(recipe.jobs) for recipe in own)
    assert other["in process"] == []
    assert other["counts"] == first["counts"]
    for index, result in ((0, first), (3, other)):
        assert {case["error"] for case in result["cases"].values()} == {""}
        assert len(result["autotuners"]) > 10
        assert result["autotuners"] == [[index, []]] * len(result["autotuners"])


def _recipes(store: Path) -> dict[str, Recipe]:
    """Those in a store, by key; but for what rescaling added."""
    found = {}
    for path in store.rglob("*.hse"):
        entry = Entry.from_bytes(path.read_bytes())
        with contextlib.suppress(msgspec.ValidationError):
            if entry.header.kind == "recipe":
                found[path.stem] = msgspec.msgpack.decode(entry.artifact("recipe"), type=Recipe)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "DeviceProperties(type='cpu', index=1, x)\n@triton.jit\ndef f(): pass",
        "DeviceProperties(type='cuda', index=None, x)\n@triton.jit\ndef f(): pass",
        "@triton.jit\ndef f(): DeviceProperties(type='cuda', index=1, x)",
        "DeviceProperties(type='cuda', index=1, x)\n@triton.jit\ndef g(): pass\n@triton.jit\ndef f(): pass",
        "DeviceProperties(type='cuda', index=1, DeviceProperties(type='cuda', index=1, x)\n@triton.jit\ndef f(): pass",
    ],
)
def test_a_source_whose_device_cannot_be_told_apart_stays_as_it_is(text: str) -> None:
    assert devices.split(text) == (text, None)


def test_a_source_is_for_any_device_and_back() -> None:
    text = "DeviceProperties(type='cuda', index=12, x)\n@triton.jit\ndef f(): pass"
    shared, index = devices.split(text)
    assert (shared, index) == (text.replace("12", "0"), 12)
    assert devices.on(shared, 12) == text


def test_nothing_is_installed_when_headstart_is_off(programs: Programs) -> None:
    result = programs.run({"cases": ["pointwise"]}, HEADSTART="off")
    assert "counts" not in result
    assert result["in process"] or result["stock workers"]


def test_a_cache_entry_names_nothing_of_headstart(everything: dict[str, Any]) -> None:
    files = [path for path in (everything["folder"] / "inductor").rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if b"headstart." in path.read_bytes().replace(os.fsencode(HERE), b"")] == []


def _change(recipe: Recipe, number: int) -> Recipe:
    """What somebody could write into a recipe to have it run as the program's code, or be taken for its text."""
    code = f"__import__('pathlib').Path('ran {number}').touch()"
    function, job = recipe.function, recipe.jobs[0]
    arguments = {"dict": [*recipe.arguments["dict"], ["mutated_arg_names", [code]]]}
    grid = {"dict": [*recipe.arguments["dict"], ["inductor_meta", {"dict": [["extra_launcher_args", [code]]]}]]}
    changes: list[dict[str, Any]] = [
        {"text": f"{code}\n{recipe.text}"},
        {"stem": "c" + "a" * 51},
        {"arguments": arguments},
        {"arguments": grid},
        {"arguments": [code]},
        {"arguments": {"dict": [["configs", {"config": ["CachingAutotuner", {"dict": []}]}]]}},
        {"arguments": {"dict": [["configs", {"enum": ["importlib", "util"]}]]}},
        {"function": replace(function, arg_names=[*function.arg_names, f"x={code}"])},
        {"function": replace(function, module="os")},
        {"function": replace(function, src=code)},
        {"jobs": [replace(job, hash="../" + job.hash[3:])]},
        {"jobs": [replace(job, name="../../x")]},
        {"jobs": [replace(job, signature={**job.signature, code: "i32"})]},
        {"jobs": [replace(job, target=code)]},
    ]
    return replace(recipe, **changes[number % len(changes)])


def _tamper(store: Path) -> int:
    """Change all recipes in a store, one each way; returns how many there are."""
    number = 0
    for path in sorted(store.rglob("*.hse")):
        header = (entry := Entry.from_bytes(path.read_bytes())).header
        if header.kind != "recipe":
            continue
        try:
            recipe = msgspec.msgpack.decode(entry.artifact("recipe"), type=Recipe)
        except msgspec.ValidationError:  # what rescaling added
            continue
        content = msgspec.msgpack.encode(_change(recipe, number))
        kept = ("key", "kind", "name", "request_digest", "toolchain", "target")
        same = {name: getattr(header, name) for name in kept}
        parts = pack_entry(
            **same,
            components=[],
            metadata={},
            artifacts={"recipe": content},
            compile_wall_s=0.0,
            compile_cpu_s=0.0,
            triton_version="",
            request=b"",
            output="",
        )
        path.write_bytes(b"".join(parts))
        number += 1
    return number


def test_a_recipe_is_used_only_if_it_says_what_the_programs_own_source_says(programs: Programs) -> None:
    order = {"cases": ["pointwise", "rescaled", "trained", "dynamic_shapes"], "wait": True}
    first = programs.run(order, caches="tampered")
    changed = _tamper(programs.folder / "tampered" / "headstart" / "store")
    assert changed >= 14
    again = programs.run(order, caches="tampered")
    assert {case["error"] for case in again["cases"].values()} == {""}
    assert again["log"].count("is not what its source says; unused") == changed
    assert list(again["folder"].rglob("ran *")) == []
    assert again["in process"] == []
    assert again["statistics"]["compiled"] == 0  # the kernels themselves are as good as before
    assert again["counts"]["jobs"] == first["counts"]["jobs"]


def test_what_no_back_end_makes_does_not_get_into_tritons_cache(tmp_path: Path) -> None:
    entry = SimpleNamespace(metadata={})
    kernel: Any = SimpleNamespace(asm={"cubin": b"", "so": b"a launcher"}, entry=entry)
    with pytest.raises(DamagedError, match="so"):
        layout.write(str(tmp_path), "0" * 64, "kernel", kernel)
    assert list(tmp_path.iterdir()) == []


MODEL = """
import torch

import cases


def make():
    function, arguments, _ = cases.trained()
    return function, *arguments
"""


def test_a_model_built_without_a_gpu_needs_no_compile_where_there_is_one(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(MODEL)
    bundle = tmp_path / "my.bundle"
    (tmp_path / "runtime").mkdir(mode=0o700)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "TORCH"))},
        "PYTHONPATH": os.pathsep.join([str(Path(headstart.__file__).parent.parent), str(HERE)]),
        "XDG_RUNTIME_DIR": str(tmp_path / "runtime"),
        "HEADSTART_CACHE_DIR": str(tmp_path / "headstart"),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    command = ["build", "--model", "my_model.py:make", "--target", "cuda:90", "-o", str(bundle), "--json"]
    program = [sys.executable, "-c", "from headstart.cli import main; main()", *command]
    done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout.splitlines()[-1])
    assert built["kernels"] == built["compiled"] > 5
    assert built["left_out"] == 0
    result = programs.run({"cases": ["trained"], "bundle": str(bundle)})
    assert result["cases"]["trained"]["error"] == ""
    assert result["statistics"]["cached"] == built["kernels"]
    assert result["statistics"]["compiled"] == result["services"] == 0


ENDS = """
import sys
from headstart.adapters import process

told = lambda compilers: print(len(compilers))
process.begin(process.EnableOptions(bundle=sys.argv[1], torch_when_used=True, tell_use=told))
import triton
import torch._inductor.async_compile
"""


def test_torch_compile_that_began_late_is_there_when_the_end_looks_what_was_used(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(headstart.__file__).parent.parent),
        "HEADSTART_CACHE_DIR": str(tmp_path / "headstart"),
    }
    command = [sys.executable, "-c", ENDS, str(tmp_path / "a.bundle")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n", done.stderr  # that of torch.compile, and that of `@triton.jit`


@functools.cache
def _registered() -> bool:
    from importlib.metadata import entry_points

    return bool(entry_points(group="torch_dynamo_backends", name="headstart"))


@pytest.mark.skipif(not _registered(), reason="headstart is not installed, only on the path")
def test_the_backend_is_found_by_its_name(programs: Programs) -> None:
    result = programs.run({"cases": ["pointwise"], "adapter": "backend"})
    assert result["cases"]["pointwise"]["error"] == ""
    assert result["in process"] == result["stock workers"] == []
