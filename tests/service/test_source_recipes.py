"""Recipes in the stores of a service's clients: found again, and refused if they say something else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entries import packed
from headstart import wire
from headstart.artifacts import triton_cache
from headstart.describe import facts
from headstart.describe.recipe import Describe, Function, Recipe, RecipeJob
from headstart.model.request import CompileRequest
from headstart.model.toolchain import find_toolchain
from headstart.service.lookup import Lookup
from headstart.service.recipes import Recipes

TEXT = "types = '*fp32'\n@triton.jit\ndef triton_kernel(x): pass"
DESCRIBED = Describe("triton_kernel", TEXT, {}, None, {}, {"TORCHINDUCTOR_ENABLE_PDL": "1"})
MODULE = facts.module_of_stem("stem")
FUNCTION = Function(
    "triton_kernel", MODULE, "triton_kernel", ["x"], [], "a" * 64, "def triton_kernel(x): pass", "triton_kernel"
)
JOB = RecipeJob(
    "job", "b" * 64, "triton_kernel", {"x": "*fp32"}, {"dict": []}, {"dict": []}, {"num_warps": 4}, "cuda:90:32", None
)
RECIPE = Recipe("stem", TEXT, 0, {"dict": [["size_hints", {"dict": []}]]}, FUNCTION, [JOB], True, 0.1)


def asked(*, use_store: bool = True) -> wire.SubmitSource:
    spec = wire.DescriberSpec(find_toolchain(), "stamp", ())
    return wire.SubmitSource(7, spec, b"", "stem", "torch", use_store, None)


@pytest.fixture
def preferences(tmp_path: Path) -> wire.Preferences:
    return wire.Preferences(os.fsencode(tmp_path / "cache"))


def recipes() -> Recipes:
    return Recipes(Lookup(lambda text, folder: None))


def keep(content: Recipe | list[RecipeJob], preferences: wire.Preferences) -> str:
    """Have a store hold something as the recipe of `DESCRIBED`; returns its key."""
    key = recipes().find(asked(), DESCRIBED, preferences).key
    recipes().keep(key, asked(), DESCRIBED, content, preferences)
    return key


def test_a_recipe_is_found_again_by_another_service(preferences: wire.Preferences) -> None:
    assert recipes().find(asked(), DESCRIBED, preferences).recipe is None
    key = keep(RECIPE, preferences)
    found = recipes().find(asked(), DESCRIBED, preferences)
    assert (found.key, found.recipe, found.strange) == (key, RECIPE, "")


def test_without_the_store_there_is_a_key_and_nothing_else(preferences: wire.Preferences) -> None:
    key = keep(RECIPE, preferences)
    found = recipes().find(asked(use_store=False), DESCRIBED, preferences)
    assert (found.key, found.recipe) == (key, None)


def test_what_is_known_is_known_for_one_cache_folder(preferences: wire.Preferences, tmp_path: Path) -> None:
    service = recipes()
    key = service.find(asked(), DESCRIBED, preferences).key
    service.keep(key, asked(), DESCRIBED, RECIPE, preferences)
    assert service.find(asked(), DESCRIBED, preferences).recipe is RECIPE  # though its store was not looked at
    elsewhere = msgspec.structs.replace(preferences, cache_dir=os.fsencode(tmp_path / "other"))
    assert service.find(asked(), DESCRIBED, elsewhere).recipe is None


def recorded(key: str, recipe: Recipe = RECIPE, *, added_key: str = "", added: bytes = b"") -> wire.SubmitSource:
    said = wire.RecordedRecipe(key, msgspec.msgpack.encode(recipe), added_key, added)
    return msgspec.structs.replace(asked(), recorded=said)


def test_what_an_earlier_run_has_recorded_is_believed_and_kept_if_it_is_of_the_same_key(
    preferences: wire.Preferences,
) -> None:
    key = recipes().find(asked(), DESCRIBED, preferences).key
    added_key, _ = recipes().added(asked(), DESCRIBED, RECIPE, [64], preferences)
    service = recipes()
    said = recorded(key, added_key=added_key, added=msgspec.msgpack.encode([JOB]))
    assert service.find(said, DESCRIBED, preferences).recipe == RECIPE
    assert recipes().find(asked(), DESCRIBED, preferences).recipe == RECIPE
    other_key, jobs = service.added(said, DESCRIBED, RECIPE, [32], preferences)
    assert (other_key != added_key, jobs) == (True, None), "it was recorded for other registers"
    assert service.added(said, DESCRIBED, RECIPE, [64], preferences) == (added_key, [JOB])
    assert recipes().added(asked(), DESCRIBED, RECIPE, [64], preferences) == (added_key, [JOB])


def test_what_was_recorded_with_another_torch_or_triton_is_described_again(preferences: wire.Preferences) -> None:
    assert recipes().find(recorded("0" * 64), DESCRIBED, preferences).recipe is None
    assert recipes().find(asked(), DESCRIBED, preferences).recipe is None


def test_what_was_recorded_and_says_more_than_its_source_is_described_again(preferences: wire.Preferences) -> None:
    key = recipes().find(asked(), DESCRIBED, preferences).key
    lie = msgspec.structs.replace(RECIPE, text=f"import os\n{TEXT}")
    assert recipes().find(recorded(key, lie), DESCRIBED, preferences).recipe is None
    added_key, _ = recipes().added(asked(), DESCRIBED, RECIPE, [64], preferences)
    no_jobs = recorded(key, added_key=added_key, added=b"\xc1")
    assert recipes().find(no_jobs, DESCRIBED, preferences).recipe == RECIPE
    assert recipes().added(no_jobs, DESCRIBED, RECIPE, [64], preferences) == (added_key, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"text": f"import os\n{TEXT}"},
        {"stem": "another"},
        {"arguments": {"dict": [["extra", "__import__('os')"]]}},
        {"arguments": {"dict": [["configs", {"config": ["CachingAutotuner", {"dict": []}]}]]}},
        {"arguments": {"dict": [["configs", {"enum": ["importlib", "util"]}]]}},
        {"arguments": {"dict": [["configs", {"enum": [["ReductionHint"], "INNER"]}]]}},
        {"arguments": {"dict": [["configs", {"tuple": 1, "dict": []}]]}},
        {"arguments": {"dict": [["configs"]]}},
        {"jobs": [msgspec.structs.replace(JOB, hash="../" + "b" * 61)]},
        {"jobs": [msgspec.structs.replace(JOB, constants={"pickle": "x"})]},
    ],
)
def test_a_recipe_that_says_more_than_its_source_is_not_used(
    preferences: wire.Preferences, changes: dict[str, Any]
) -> None:
    keep(msgspec.structs.replace(RECIPE, **changes), preferences)
    found = recipes().find(asked(), DESCRIBED, preferences)
    assert found.recipe is None
    assert "is not what its source says" in found.strange


def test_what_rescaling_adds_is_found_by_the_registers_that_it_follows_from(preferences: wire.Preferences) -> None:
    key, known = recipes().added(asked(), DESCRIBED, RECIPE, [64], preferences)
    assert known is None
    recipes().keep(key, asked(), DESCRIBED, [JOB], preferences)
    assert recipes().added(asked(), DESCRIBED, RECIPE, [64], preferences) == (key, [JOB])
    other, known = recipes().added(asked(), DESCRIBED, RECIPE, [32], preferences)
    assert (other != key, known) == (True, None)
    assert recipes().added(asked(use_store=False), DESCRIBED, RECIPE, [64], preferences) == (key, None)


REQUEST = CompileRequest.make("triton_kernel", TEXT, signature={"x": "*fp32"}, target="cuda:90")


def entry() -> bytes:
    other = {"name": "triton_kernel", "metadata": {"name": "triton_kernel"}, "artifacts": {"ttir": b"module {}"}}
    return packed("c" * 64, REQUEST.digest(), toolchain="", **other)


def test_a_kernel_is_put_where_its_client_wants_it(preferences: wire.Preferences, tmp_path: Path) -> None:
    place = wire.TritonCache(os.fsencode(tmp_path / "triton" / "FOLDER"), "b" * 64, "triton_kernel")
    result = recipes().made_known(wire.Result(1, "c" * 64, entry()), REQUEST, place, preferences)
    assert result.in_triton_cache
    assert triton_cache.find(os.fsdecode(place.folder), "triton_kernel") is not None


def test_a_kernel_that_cannot_be_put_there_is_left_to_the_client(preferences: wire.Preferences, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    place = wire.TritonCache(os.fsencode(tmp_path / "a file" / "FOLDER"), "b" * 64, "triton_kernel")
    gone = wire.Result(1, "c" * 64)
    for result in (gone, wire.Result(1, "c" * 64, entry())):
        assert not recipes().made_known(result, REQUEST, place, preferences).in_triton_cache


def test_the_folder_of_an_entry_is_named_as_triton_does() -> None:
    cache = pytest.importorskip("triton.runtime.cache")
    assert triton_cache.folder_name("0123456789abcdef" * 4) == cache._base32("0123456789abcdef" * 4)
