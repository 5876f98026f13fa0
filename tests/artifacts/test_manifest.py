"""A manifest gives back what went in, or says that it cannot; and merging obeys its laws."""

from __future__ import annotations

import datetime as dt
import os
import struct
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.artifacts import manifest as manifest_module
from headstart.artifacts.bundle import Bundle
from headstart.artifacts.comparing import compare
from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.manifest import MAGIC, Manifest, is_manifest, merge
from headstart.artifacts.retargeting import retarget
from headstart.artifacts.specialization import Origin, Specialization, Tuning
from headstart.errors import DamagedError, FutureVersionError, UsageError
from headstart.model.request import CompileRequest
from headstart.model.target import Target
from headstart.model.values import Encoded

PREFIX = struct.Struct("<8sHQ32s")
DAY = dt.date(2026, 11, 23)


def request(name: str = "k", source: str = "source", **changes: Any) -> CompileRequest:
    fields: dict[str, Any] = {"signature": {"x": "*fp32"}, "target": "cuda:90", "environment": {}} | changes
    return CompileRequest.make(name, source, **fields)


def specialization(made: CompileRequest | None = None, **fields: Any) -> Specialization:
    made = made or request()
    return Specialization(request=made, digest=made.digest(), **{"last_seen": DAY, **fields})


def generated(key: str = "a" * 64, **fields: Any) -> GeneratedSource:
    said: dict[str, Any] = {
        "name": "triton_poi_fused_add_0",
        "target": "cuda:90",
        "configurations": 2,
        "question": b"question",
        "recipe": b"recipe",
        "stem": "cabc",
        "torch": "torch",
        "generation": "generation",
        "last_seen": DAY,
    }
    return GeneratedSource(key=key, **{**said, **fields})


def full() -> Manifest:
    """One of everything."""
    return Manifest.of(
        [
            specialization(
                request(
                    "softmax",
                    constants={"B": 64, "T": Encoded({"dtype": "fp16"}), "t": (1, (2, None))},
                    attrs={(2, 0): 16},
                ),
                duration_s=1.5,
                winner=True,
                asked_by="/app/train.py:12",
            ),
            specialization(request("softmax", constants={"B": 128}, options={"num_warps": 8}), duration_s=0.5),
            specialization(request("é核", "another source", target="hip:gfx942", signature="*fp32:16, i32")),
        ],
        [
            Tuning(
                autotuner="app.softmax",
                key=[128, "fp16", None],
                target="cuda:90",
                configuration={"kwargs": {"B": 64}, "num_warps": 4},
                recorded_at=2.0,
            )
        ],
        [Origin(program="/app/train.py", headstart_version="0.1.0", triton_version="3.9.0", recorded_at=1.0)],
        [generated(added_key="b" * 64, added=b"added", duration_s=0.5)],
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "my manifests é"
    folder.mkdir()
    return folder / "app.manifest"


# Writing and reading


def test_a_manifest_gives_back_what_went_in(path: Path) -> None:
    full().save(path)
    found = Manifest.open(path)
    assert found == full()
    assert [each.request.digest() for each in found.specializations.values()] == list(found.specializations)
    assert found.targets == ["cuda:90", "hip:gfx942"]
    assert found.triton_versions == ["3.9.0"]
    assert is_manifest(path)
    assert [each.name for each in path.parent.iterdir()] == ["app.manifest"]


def test_an_empty_manifest_is_one(path: Path) -> None:
    Manifest().save(path)
    assert Manifest.open(path) == Manifest()


def test_a_source_is_kept_once() -> None:
    source = "x" * 10_000
    many = Manifest.of(specialization(request("k", source, constants={"B": size})) for size in range(50))
    assert len(many.encode()) < 30_000


def test_equal_manifests_are_equal_bytes() -> None:
    parts = list(full().specializations.values())
    tunings = list(full().tunings.values())
    generated = list(full().generated.values())
    assert Manifest.of(reversed(parts), tunings, full().origins, generated).encode() == full().encode()


def test_the_layout_is_the_documented_one() -> None:
    data = full().encode()
    magic, version, length, digest = PREFIX.unpack_from(data)
    body = data[PREFIX.size :]
    assert (magic, version, length, digest) == (MAGIC, 2, len(body), sha256(body).digest())
    assert set(msgspec.msgpack.decode(body)) == {"origins", "specializations", "tunings", "sources", "generated"}


def test_a_manifest_of_before_there_were_generated_sources_is_read() -> None:
    body = msgspec.msgpack.decode(full().encode()[PREFIX.size :])
    del body["generated"]
    data = msgspec.msgpack.encode(body)
    before = PREFIX.pack(MAGIC, 2, len(data), sha256(data).digest()) + data
    assert manifest_module._parse(Path("any"), before) == msgspec.structs.replace(full(), generated={})


def test_a_manifest_that_cannot_be_written_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full().save(path)

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        Manifest().save(path)
    assert [each.name for each in path.parent.iterdir()] == ["app.manifest"]
    assert Manifest.open(path) == full()


def test_a_link_is_followed(path: Path) -> None:
    link = path.with_name("link.manifest")
    link.symlink_to(path.name)
    full().save(link)
    assert link.is_symlink()
    assert Manifest.open(path) == full()


# What is no manifest


def test_a_truncated_manifest_is_damaged_wherever_it_ends(path: Path) -> None:
    data = full().encode()
    for end in [*range(80), *range(80, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(DamagedError):
            Manifest.open(path)


def test_every_flipped_bit_is_noticed(path: Path) -> None:
    data = full().encode()
    for position in [*range(60), *range(60, len(data), 41)]:
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        with pytest.raises(DamagedError):
            Manifest.open(path)


def test_more_than_the_manifest_is_damage(path: Path) -> None:
    path.write_bytes(full().encode() + b"\0")
    with pytest.raises(DamagedError, match="truncated or altered"):
        Manifest.open(path)


@pytest.mark.parametrize("end", [10, 50])
def test_a_newer_version_is_told_from_damage(path: Path, end: int) -> None:
    path.write_bytes(PREFIX.pack(MAGIC, 3, 0, bytes(32))[:end])
    with pytest.raises(FutureVersionError, match="format 3 is newer than 2"):
        Manifest.open(path)


def test_a_bundle_is_no_manifest_and_the_other_way_round(path: Path) -> None:
    path.write_bytes(b"\x89HSE\r\n\x1a\n" + bytes(100) + b"\x89HSB\r\n\x1a\n")
    assert not is_manifest(path)
    with pytest.raises(DamagedError, match="not a manifest"):
        Manifest.open(path)
    with pytest.raises(UsageError, match="not a manifest"):
        full().save(path)
    path.unlink()
    full().save(path)
    with pytest.raises(DamagedError, match="not a bundle"):
        Bundle.open(path)


def test_a_file_that_is_not_there_is_an_os_error(path: Path) -> None:
    assert not is_manifest(path)
    with pytest.raises(FileNotFoundError):
        Manifest.open(path)
    with pytest.raises(IsADirectoryError):
        Manifest.open(path.parent)


def sealed(body: Any) -> bytes:
    data = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
    return PREFIX.pack(MAGIC, 2, len(data), sha256(data).digest()) + data


def body(**changes: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.msgpack.decode(full().encode()[PREFIX.size :])
    return decoded | changes


RECORD = body()["specializations"][0]


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\xc1",
        [],
        {},
        body(sources=["one"]),
        body(sources=[1, 2]),
        body(specializations=[[1] * 7]),
        body(specializations=[{}]),
        body(tunings=[{"autotuner": "a"}]),
        body(origins=[{"recorded_at": "yesterday"}]),
        body(origins=[{"recorded_at": float("nan")}]),
        body(specializations=[[{**RECORD[0], "name": "../k"}, *RECORD[1:]]]),
        body(specializations=[[*RECORD[:3], -1.0, False, "", "2026-11-23"]]),
        body(specializations=[[*RECORD[:3], float("nan"), False, "", "2026-11-23"]]),
        body(specializations=[[*RECORD[:2], "no digest", 1.0, False, "", "2026-11-23"]]),
        b"\x91" * 100_000,
    ],
)
def test_a_body_of_another_form_is_damaged(path: Path, wrong: Any) -> None:
    path.write_bytes(sealed(wrong))
    with pytest.raises(DamagedError, match="cannot be decoded"):
        Manifest.open(path)


def test_what_a_later_version_adds_is_skipped(path: Path) -> None:
    path.write_bytes(sealed(body(novelty=1)))
    assert Manifest.open(path) == full()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_damaged(data: bytes) -> None:
    for bytes_ in (data, MAGIC + data, sealed(data)):
        with pytest.raises(DamagedError):
            manifest_module._parse(Path("any"), bytes_)


# Merging

requests = st.builds(
    lambda name, size, filename: request(name, constants={"B": size}, filename=filename),
    st.sampled_from(["a", "b"]),
    st.sampled_from([1, 1.0, True, None]),
    st.sampled_from(["one.py", "two.py"]),
)
specializations = st.builds(
    specialization,
    requests,
    duration_s=st.sampled_from([0.0, 0.5, 2.0]),
    winner=st.booleans(),
    asked_by=st.sampled_from(["", "a.py:1", "b.py:2"]),
    torch=st.sampled_from(["", "one", "another"]),
    last_seen=st.sampled_from([DAY, DAY - dt.timedelta(1)]),
)
tunings = st.builds(
    Tuning,
    autotuner=st.sampled_from(["t", "u"]),
    key=st.sampled_from([[1], [1.0], {"b": 1, "a": 2}]),
    target=st.just("cuda:90"),
    configuration=st.sampled_from([{"num_warps": 4}, {"num_warps": 8}]),
    recorded_at=st.sampled_from([0.0, 1.0]),
)
origins = st.builds(
    Origin,
    program=st.sampled_from(["", "a"]),
    triton_version=st.sampled_from(["3.6.0", "3.9.0"]),
    recorded_at=st.sampled_from([1.0, 2.0]),
)
manifests = st.builds(
    Manifest.of,
    st.lists(specializations, max_size=4),
    st.lists(tunings, max_size=3),
    st.lists(origins, max_size=2),
    st.lists(
        st.builds(
            generated,
            st.sampled_from(["a" * 64, "b" * 64]),
            recipe=st.sampled_from([b"one", b"another"]),
            added_key=st.sampled_from(["", "c" * 64]),
            duration_s=st.sampled_from([0.0, 1.0, 2.0]),
            last_seen=st.sampled_from([DAY, DAY - dt.timedelta(1)]),
        ),
        max_size=3,
    ),
)


@settings(max_examples=200, deadline=None)
@given(manifests, manifests, manifests)
def test_merging_is_idempotent_commutative_and_associative(a: Manifest, b: Manifest, c: Manifest) -> None:
    assert merge(a, a) == merge(a) == merge(a, Manifest()) == a
    assert merge(a, b).encode() == merge(b, a).encode()
    assert merge(merge(a, b), c) == merge(a, merge(b, c)) == merge(a, b, c)
    assert merge(merge(a, b), b) == merge(a, b)


@settings(max_examples=100, deadline=None)
@given(manifests)
def test_any_manifest_survives_its_file(manifest: Manifest) -> None:
    assert manifest_module._parse(Path("any"), manifest.encode()) == manifest


def test_merging_nothing_is_nothing() -> None:
    assert merge() == Manifest()


def test_each_field_has_its_rule() -> None:
    early, late = DAY - dt.timedelta(1), DAY
    first = specialization(duration_s=3.0, asked_by="z.py:1", last_seen=early)
    second = specialization(duration_s=1.0, asked_by="a.py:1", last_seen=late, winner=True)
    (merged,) = Manifest.of([first, second]).specializations.values()
    assert merged == specialization(duration_s=3.0, asked_by="a.py:1", last_seen=late, winner=True)


def test_of_a_generated_source_what_the_last_run_saw_stands_and_what_either_knows_is_kept() -> None:
    early = generated(recipe=b"z", duration_s=2.0, last_seen=DAY - dt.timedelta(1), added_key="c" * 64, added=b"added")
    late = generated(recipe=b"a", duration_s=1.0)
    (merged,) = Manifest.of([], generated=[early, late]).generated.values()
    assert merged == generated(recipe=b"a", duration_s=2.0, added_key="c" * 64, added=b"added")


@pytest.mark.parametrize("changes", [{"stem": "../c"}, {"stem": ""}, {"added_key": "../../k"}, {"key": "k"}])
def test_a_source_whose_names_lead_elsewhere_is_no_source(changes: dict[str, Any]) -> None:
    fields = {name: getattr(generated(), name) for name in generated().__struct_fields__} | changes
    made = Manifest(generated={"a" * 64: GeneratedSource(**fields)})
    with pytest.raises(DamagedError):
        manifest_module._parse(Path("any"), made.encode())


def test_the_record_of_a_program_that_was_killed_says_that_it_used_torch_compile() -> None:
    assert Manifest.of([], generated=[generated()]).uses_torch_compile
    assert Manifest.of([specialization(torch="generation")]).uses_torch_compile
    assert not Manifest.of([specialization()]).uses_torch_compile


def test_what_no_run_has_asked_for_is_forgotten() -> None:
    old = generated("b" * 64, last_seen=DAY - dt.timedelta(9))
    kept = Manifest.of([specialization()], generated=[old, generated()]).seen_since(DAY - dt.timedelta(3))
    assert (list(kept.generated), len(kept.specializations)) == (["a" * 64], 1)


def test_the_later_choice_of_an_autotuner_stands() -> None:
    def chosen(warps: int, at: float) -> Manifest:
        configuration = {"num_warps": warps}
        return Manifest.of(
            [], [Tuning(autotuner="t", key=[1], target="cuda:90", configuration=configuration, recorded_at=at)]
        )

    (tuning,) = merge(chosen(4, 2.0), chosen(8, 1.0)).tunings.values()
    assert tuning.configuration == {"num_warps": 4}


def test_choices_for_another_device_are_kept_apart() -> None:
    made = [Tuning(autotuner="t", key=[1], target=target, configuration={}) for target in ("cuda:90", "hip:gfx942")]
    assert len(Manifest.of([], made).tunings) == 2


# Matching


def test_what_is_missing_comes_in_the_order_in_which_to_compile_it() -> None:
    long, short, winner, known = (
        specialization(request(name), duration_s=duration, winner=name == "winner")
        for name, duration in {"long": 9.0, "short": 1.0, "winner": 0.1, "known": 5.0}.items()
    )
    manifest = Manifest.of([short, known, long, winner])
    assert manifest.in_compile_order({known.digest}) == [winner, long, short]
    assert manifest.in_compile_order(manifest.specializations) == []


# Differences


def test_kernels_of_one_name_are_compared_with_the_nearest() -> None:
    shared = specialization(request("same"))
    old = [specialization(request("k", constants={"B": 64}, options={"num_warps": warps})) for warps in (4, 8)]
    new = [specialization(request("k", constants={"B": 64}, options={"num_warps": 8, "num_stages": 2}))]
    difference = compare(
        Manifest.of([shared, *old, specialization(request("gone"))]),
        Manifest.of([shared, *new, specialization(request("come"))]),
    )
    assert sorted(each.name for each in difference.removed) == ["gone", "k"]
    assert [each.name for each in difference.added] == ["come"]
    (change,) = difference.changed
    assert (change.before.key, change.after.key) == (old[1].digest, new[0].digest)
    assert change.reasons == ["options.num_stages was not given, now 2"]


def test_the_nearest_of_all_are_paired_first_whatever_their_order() -> None:
    def with_options(*, warps: int, stages: int) -> Specialization:
        return specialization(request("k", options={"num_warps": warps, "num_stages": stages}))

    old = [with_options(warps=4, stages=3), with_options(warps=8, stages=5)]
    near, far = with_options(warps=4, stages=2), with_options(warps=16, stages=7)
    for added in ([near, far], [far, near]):
        changed = compare(Manifest.of(old), Manifest.of(added)).changed
        reasons = {change.after.key: change.reasons for change in changed}
        assert reasons[near.digest] == ["options.num_stages was 3, now 2"]
        assert reasons[far.digest] == ["options.num_stages was 5, now 7", "options.num_warps was 8, now 16"]


def test_more_kernels_of_a_name_than_are_looked_through_at_once_are_all_paired() -> None:
    def many(option: str, count: int) -> Manifest:
        return Manifest.of(specialization(request("k", options={option: number})) for number in range(count))

    difference = compare(many("num_warps", 250), many("num_stages", 253))
    assert (len(difference.changed), len(difference.removed), len(difference.added)) == (250, 0, 3)


def test_equal_manifests_do_not_differ() -> None:
    difference = compare(full(), full())
    assert (difference.removed, difference.added, difference.changed) == ([], [], [])


# Another target


def test_a_request_for_another_device_of_the_backend_keeps_its_options() -> None:
    made = request(options={"num_warps": 4, "maxnreg": 64, "arch": "sm90"}, attrs={"x": 16})
    moved, lost = retarget(made, Target.parse("cuda:80"))
    assert moved.target == "cuda:80"
    assert moved.options == {"num_warps": 4, "maxnreg": 64}
    assert moved.attributes == made.attributes
    assert lost == ["arch"]
    assert retarget(made, Target.parse("cuda:90")) == (made, [])


def test_a_request_for_another_backend_loses_what_only_the_former_has() -> None:
    options = {"num_warps": 4, "num_stages": 3, "num_ctas": 1, "enable_fp_fusion": False}
    made = request(options={**options, "maxnreg": 64, "launch_pdl": True})
    moved, lost = retarget(made, Target.parse("hip:gfx942"))
    assert (moved.options, lost) == (options, ["launch_pdl", "maxnreg"])

    attributes = {"x": [["tt.divisibility", 16], ["tt.pointer_range", 32]], "y": [["tt.pointer_range", 32]]}
    made = request(target="hip:gfx942", options={**options, "waves_per_eu": 2}, attrs=attributes)
    moved, lost = retarget(made, Target.parse("cuda:90"))
    assert (moved.options, lost) == (options, ["waves_per_eu", "tt.pointer_range"])
    assert moved.attributes == {"x": [("tt.divisibility", 16)]}
