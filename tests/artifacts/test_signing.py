"""Whose signatures count, and that nothing gets past them."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_bundle import FOOTER_OF_BEFORE, A, B, C, entry, read_all, write

from headstart.artifacts import index as index_module
from headstart.artifacts import keyring as keyring_module
from headstart.artifacts import signing
from headstart.artifacts.bundle import Bundle, BundleWriter, merge_bundles
from headstart.artifacts.entry import Entry
from headstart.artifacts.index import BundleItem, encode_items, ending
from headstart.artifacts.keyring import Keyring, TrustedKey
from headstart.artifacts.kinds import Verdict, carries_code
from headstart.artifacts.known_failure import KIND as FAILURE
from headstart.artifacts.seal import sign_bundle
from headstart.artifacts.signing import MAX_SIGNATURES, Signature, sign, sign_locally
from headstart.artifacts.trust import State, Trust
from headstart.errors import DamagedError, ServiceError, UsageError
from headstart.system.files import create


def graphs(key: str, data: bytes = b"a pickle", **changes: Any) -> Entry:
    """An entry that carries code."""
    return entry(key, kind="graphs", name="graphs", artifacts={"graphs": data}, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "app.bundle", entry(A), entry(B), graphs(C))


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """Somebody's, with a pair that is called release and that they trust."""
    made = Keyring(tmp_path / "config")
    made.trust(made.new("release"))
    return made


def sign_with(keyring: Keyring, *names: str) -> Callable[[int, bytes], list[Signature]]:
    return lambda version, digest: [sign(keyring.secret(name), name, version, digest) for name in names]


def judge(path: Path, keyring: Keyring) -> Verdict:
    return Trust(keyring).judge(Bundle.open(path).index)


def states(path: Path, keyring: Keyring) -> list[State]:
    return [each.state for each in Trust(keyring).inspect(Bundle.open(path).index)]


def rewrite(path: Path, items: list[BundleItem] | None = None, signatures: list[Signature] | None = None) -> None:
    """Another index, or other signatures, with checksums that are right, as somebody would who wants to deceive."""
    index, data = Bundle.open(path).index, path.read_bytes()
    lines = encode_items(index.items.values() if items is None else items)
    kept = list(index.signatures) if signatures is None else signatures
    path.write_bytes(data[: index.offset] + lines + ending(index.offset, len(lines), sha256(lines).digest(), kept))


# What counts


def test_a_bundle_signed_by_a_trusted_key_is_trusted(path: Path, keyring: Keyring) -> None:
    assert judge(path, keyring) == Verdict(False, why_not="it is not signed")
    before = [Bundle.open(path).entry(key).raw() for key in (A, B, C)]
    signed = sign_bundle(path, sign_with(keyring, "release"))
    public = keyring.trusted()[0].public
    assert judge(path, keyring) == Verdict(True, "release", "", (signing.key_id(public),))
    assert [each.name for each in signed.signatures] == ["release"]
    assert [Bundle.open(path).entry(key).raw() for key in (A, B, C)] == before
    assert signed.verify() == []
    assert [item.key for item in signed.code] == [C]


def test_a_bundle_signed_by_the_local_key_is_trusted_here_and_nowhere_else(path: Path, tmp_path: Path) -> None:
    mine, theirs = Keyring(tmp_path / "mine"), Keyring(tmp_path / "theirs")
    secret = mine.local(make=True)
    assert secret is not None
    assert theirs.local(make=True) != secret
    sign_bundle(path, lambda version, digest: [sign_locally(secret, version, digest)])
    assert judge(path, mine) == Verdict(True, "this user's own runs")
    assert judge(path, theirs).why_not == "it is signed by runs of another user, or on another machine"
    assert not judge(path, Keyring(tmp_path / "new")).trusted
    assert not (tmp_path / "new").exists()  # nothing is made by looking


def test_a_key_that_is_not_trusted_does_not_count(path: Path, keyring: Keyring, tmp_path: Path) -> None:
    stranger = Keyring(tmp_path / "stranger")
    stranger.new("release")  # it may call itself what it likes
    sign_bundle(path, sign_with(stranger, "release"))
    verdict = judge(path, keyring)
    assert not verdict.trusted
    assert "it is signed by the unknown key" in verdict.why_not
    assert "which calls itself release" in verdict.why_not
    assert states(path, keyring) == [State.UNKNOWN]


def test_a_pair_of_one_s_own_does_not_count_unless_it_is_trusted(path: Path, keyring: Keyring) -> None:
    keyring.new("mine")
    sign_bundle(path, sign_with(keyring, "mine"))
    assert not judge(path, keyring).trusted


def test_a_key_that_is_forgotten_counts_no_longer(path: Path, keyring: Keyring) -> None:
    sign_bundle(path, sign_with(keyring, "release"))
    keyring.forget("release")
    assert not judge(path, keyring).trusted
    with pytest.raises(UsageError, match="no key release is trusted"):
        keyring.forget("release")


def test_what_own_runs_signed_counts_no_longer_once_the_local_key_is_forgotten(path: Path, keyring: Keyring) -> None:
    secret = keyring.local(make=True)
    assert secret is not None
    sign_bundle(path, lambda version, digest: [sign_locally(secret, version, digest)])
    assert judge(path, keyring).trusted
    keyring.forget("local")
    assert not judge(path, keyring).trusted
    assert keyring.local(make=True) != secret


def test_trust_ends_after_its_last_day(path: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_bundle(path, sign_with(keyring, "release"))
    last = dt.date(2031, 5, 17)
    keyring.trust(keyring.own()[0].path, until=last)
    monkeypatch.setattr(keyring_module, "today", lambda: last)
    assert judge(path, keyring).trusted
    monkeypatch.setattr(keyring_module, "today", lambda: last + dt.timedelta(days=1))
    assert judge(path, keyring).why_not == "it is signed by release, whose trust has expired (until 2031-05-17)"
    assert states(path, keyring) == [State.EXPIRED]


def test_one_trusted_signature_of_several_is_enough(path: Path, keyring: Keyring, tmp_path: Path) -> None:
    others = Keyring(tmp_path / "others")
    for name in ("ci", "vendor"):
        others.new(name)
    sign_bundle(path, sign_with(others, "ci", "vendor"))
    assert not judge(path, keyring).trusted
    sign_bundle(path, sign_with(keyring, "release"))
    assert [each.name for each in Bundle.open(path).signatures] == ["ci", "vendor", "release"]
    assert judge(path, keyring).by == "release"
    assert states(path, keyring) == [State.UNKNOWN, State.UNKNOWN, State.TRUSTED]


def test_what_own_runs_signed_needs_no_look_at_other_signatures(
    path: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = keyring.local(make=True)
    assert secret is not None
    sign_bundle(path, sign_with(keyring, "release"))
    sign_bundle(path, lambda version, digest: [sign_locally(secret, version, digest)])
    monkeypatch.setattr(signing, "_ed25519", lambda: pytest.fail("a package was loaded"))
    assert judge(path, keyring) == Verdict(True, "this user's own runs")


def test_a_wrong_signature_beside_a_right_one_does_no_harm(path: Path, keyring: Keyring) -> None:
    keyring.trust(keyring.new("other"))
    sign_bundle(path, sign_with(keyring, "other", "release"))
    other, release = Bundle.open(path).signatures
    rewrite(path, signatures=[msgspec.structs.replace(other, value=bytes(64)), release])
    assert judge(path, keyring).by == "release"
    assert states(path, keyring) == [State.INVALID, State.TRUSTED]


def test_signing_again_replaces_the_signature(path: Path, keyring: Keyring) -> None:
    for _ in range(2):
        sign_bundle(path, sign_with(keyring, "release"))
    assert len(Bundle.open(path).signatures) == 1
    size = path.stat().st_size
    sign_bundle(path, sign_with(keyring, "release"))
    assert path.stat().st_size == size


def test_merging_leaves_no_signature(path: Path, keyring: Keyring, tmp_path: Path) -> None:
    sign_bundle(path, sign_with(keyring, "release"))
    merge_bundles(tmp_path / "merged.bundle", path)
    merged = Bundle.open(tmp_path / "merged.bundle")
    assert (merged.signatures, len(merged.code)) == ((), 1)


# Attacks


def test_every_flipped_byte_is_noticed(path: Path, keyring: Keyring) -> None:
    sign_bundle(path, sign_with(keyring, "release"))
    data = path.read_bytes()
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 1 << position % 8
        path.write_bytes(altered)
        with pytest.raises(DamagedError):
            read_all(path)


def test_every_truncation_is_noticed(path: Path, keyring: Keyring) -> None:
    sign_bundle(path, sign_with(keyring, "release"))
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(DamagedError):
            Bundle.open(path)


FORGERIES: dict[str, Callable[[list[BundleItem]], list[BundleItem]]] = {
    "reordered": lambda items: items[::-1],
    "cut": lambda items: items[1:],
    "empty": lambda items: [],
    "added": lambda items: [*items, msgspec.structs.replace(items[2], key="dd" * 32)],
    "another kind": lambda items: [msgspec.structs.replace(items[0], kind="graphs"), *items[1:]],
    "a plain kind": lambda items: [*items[:2], msgspec.structs.replace(items[2], kind="kernel")],
    "another place": lambda items: [*items[:2], msgspec.structs.replace(items[2], offset=items[2].offset + 1)],
    "another length": lambda items: [*items[:2], msgspec.structs.replace(items[2], length=items[2].length - 1)],
    "other bytes": lambda items: [*items[:2], msgspec.structs.replace(items[2], sha256=bytes(32))],
    "swapped keys": lambda items: [
        msgspec.structs.replace(items[0], key=items[1].key),
        msgspec.structs.replace(items[1], key=items[0].key),
        items[2],
    ],
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("by", ["release", "local"])
def test_another_index_with_right_checksums_is_not_what_was_signed(
    forgery: str, by: str, path: Path, keyring: Keyring
) -> None:
    secret = keyring.local(make=True)
    assert secret is not None
    ours = sign_with(keyring, "release") if by == "release" else lambda v, d: [sign_locally(secret, v, d)]
    sign_bundle(path, ours)
    rewrite(path)
    assert judge(path, keyring).trusted  # so it is not the rewriting that is noticed
    rewrite(path, FORGERIES[forgery](list(Bundle.open(path))))
    verdict = judge(path, keyring)
    assert not verdict.trusted
    assert verdict.why_not.endswith("is not over what it holds")
    assert states(path, keyring) == [State.INVALID]


@pytest.mark.parametrize("by", ["release", "local"])
def test_a_signature_of_which_anything_is_altered_does_not_count(by: str, path: Path, keyring: Keyring) -> None:
    secret = keyring.local(make=True)
    assert secret is not None
    sign_bundle(path, sign_with(keyring, "release") if by == "release" else lambda v, d: [sign_locally(secret, v, d)])
    (signature,) = Bundle.open(path).signatures
    altered = [
        msgspec.structs.replace(signature, **{field: value[:position] + bytes([byte ^ 1]) + value[position + 1 :]})
        for field, value in (("value", signature.value), ("signer", signature.signer))
        for position, byte in enumerate(value)
    ]
    altered += [
        msgspec.structs.replace(signature, kind="ed25519" if by == "local" else "local"),
        msgspec.structs.replace(signature, kind="future"),
        msgspec.structs.replace(signature, value=b""),
        msgspec.structs.replace(signature, value=signature.value + b"\0"),
        msgspec.structs.replace(signature, signer=b""),
        msgspec.structs.replace(signature, relies_on=(bytes(32),)),
    ]
    for each in altered:
        rewrite(path, signatures=[each])
        assert not judge(path, keyring).trusted, each
        assert states(path, keyring)[0] is not State.TRUSTED
    rewrite(path, signatures=[signature])
    assert judge(path, keyring).trusted


def test_a_signature_over_another_bundle_does_not_count(path: Path, keyring: Keyring, tmp_path: Path) -> None:
    other = write(tmp_path / "other.bundle", entry(A), graphs(C, b"another pickle"))
    sign_bundle(path, sign_with(keyring, "release"))
    rewrite(other, signatures=list(Bundle.open(path).signatures))
    assert judge(other, keyring).why_not == "its signature by release is not over what it holds"


def test_a_signature_is_for_one_version_of_the_format_and_one_kind(path: Path, keyring: Keyring) -> None:
    index = Bundle.open(path).index
    secret = keyring.secret("release")
    for version in (2, 3, index.version + 1):
        rewrite(path, signatures=[sign(secret, "release", version, index.digest)])
        assert not judge(path, keyring).trusted
    said = {
        signing.message(kind, version, digest, relied)
        for kind in (signing.LOCAL, signing.ED25519)
        for version in (4, 5)
        for digest in (bytes(32), b"\1" * 32)
        for relied in ((), (bytes(32),), (bytes(32), bytes(32)))
    }
    assert len(said) == 24


def test_a_bundle_of_before_cannot_be_passed_off_as_signed(path: Path, keyring: Keyring) -> None:
    sign_bundle(path, sign_with(keyring, "release"))
    index, data = Bundle.open(path).index, path.read_bytes()
    old = FOOTER_OF_BEFORE.pack(index.offset, index.length, index.digest, 3, index_module.MAGIC)
    path.write_bytes(data[: index.offset + index.length] + old)
    assert judge(path, keyring).why_not == "it is not signed"


def test_an_index_of_now_without_the_digest_of_an_entry_is_damage(path: Path) -> None:
    first, *others = Bundle.open(path)
    for digest in (b"", bytes(31)):
        rewrite_unread = [msgspec.structs.replace(first, sha256=digest), *others]
        lines = encode_items(rewrite_unread)
        offset = 8 + sum(item.length for item in (first, *others))
        data = path.read_bytes()[:offset]
        broken = path.with_name("broken.bundle")
        broken.write_bytes(data + lines + ending(offset, len(lines), sha256(lines).digest(), []))
        with pytest.raises(DamagedError, match="lacks the SHA-256"):
            Bundle.open(broken)


# What a bundle's end may hold


def with_block(path: Path, block: bytes) -> None:
    """The bundle with these bytes for its signatures, checksum right."""
    index, data = Bundle.open(path).index, path.read_bytes()
    footer = index_module._FOOTER.pack(
        index.offset, index.length, index.digest, len(block), sha256(block).digest(), 4, index_module.MAGIC
    )
    path.write_bytes(data[: index.offset + index.length] + block + footer)


def test_signatures_that_are_none_are_damage(path: Path) -> None:
    good = path.read_bytes()
    encode = msgspec.msgpack.encode
    one = ["ed25519", bytes(32), bytes(64), "release"]
    for block in (
        b"\x90 and more",
        b"garbage",
        encode({}),
        encode([["ed25519"]]),
        encode([["UPPER", b"", b""]]),
        encode([["ed25519", bytes(257), b""]]),
        encode([["ed25519", b"", bytes(40_000)]]),
        encode([["ed25519", b"", b"", "\x1b[2J"]]),  # would be obeyed by a terminal
        encode([[*one, [b"short"]]]),
        encode([one] * (MAX_SIGNATURES + 1)),
    ):
        path.write_bytes(good)
        with_block(path, block)
        with pytest.raises(DamagedError, match="cannot be decoded"):
            Bundle.open(path)
    path.write_bytes(good)
    with_block(path, encode([one]))
    assert len(Bundle.open(path).signatures) == 1


def test_signatures_without_end_are_damage_and_are_not_read(path: Path) -> None:
    with_block(path, bytes(signing.MAX_SIGNATURES_BYTES + 1))
    with pytest.raises(DamagedError, match="bytes of signatures are more than any bundle has"):
        Bundle.open(path)


def test_more_signatures_than_can_be_read_back_are_not_written(path: Path, keyring: Keyring) -> None:
    sign_bundle(path, sign_with(keyring, "release"))
    before = path.read_bytes()
    (signature,) = Bundle.open(path).signatures
    many = [msgspec.structs.replace(signature, signer=bytes([n] * 32)) for n in range(MAX_SIGNATURES)]
    with pytest.raises(ValueError, match="too many for one bundle"):
        sign_bundle(path, lambda version, digest: many)
    with pytest.raises(ValueError):
        sign_bundle(path, lambda version, digest: [msgspec.structs.replace(signature, name="\x1b[2J", signer=b"")])
    assert path.read_bytes() == before


def test_a_damaged_bundle_is_not_signed(path: Path, keyring: Keyring) -> None:
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError):
        sign_bundle(path, sign_with(keyring, "release"))
    assert path.read_bytes() == data
    assert [name for name in os.listdir(path.parent) if name.endswith(".tmp")] == []


@pytest.mark.parametrize("version", [2, 3])
def test_a_bundle_of_before_becomes_one_of_now_when_it_is_signed(version: int, path: Path, keyring: Keyring) -> None:
    raw = {key: Bundle.open(path).entry(key).raw() for key in (A, B, C)}
    if version == 3:
        index, data = Bundle.open(path).index, path.read_bytes()[:-94]
        footer = FOOTER_OF_BEFORE.pack(index.offset, index.length, index.digest, 3, index_module.MAGIC)
        path.write_bytes(data + footer)
    else:
        lines, offset = [], 0
        for each in (entry(A), entry(B), graphs(C)):
            lines.append(BundleItem.of(each.header, offset, each.size))
            offset += each.size
        encoded = encode_items(lines)
        footer = FOOTER_OF_BEFORE.pack(offset, len(encoded), sha256(encoded).digest(), 2, index_module.MAGIC)
        path.write_bytes(b"".join(raw.values()) + encoded + footer)
    assert Bundle.open(path).index.version == version
    assert judge(path, keyring).why_not == "it is not signed"
    sign_bundle(path, sign_with(keyring, "release"))
    assert judge(path, keyring).trusted
    assert {key: Bundle.open(path).entry(key).raw() for key in (A, B, C)} == raw


def test_what_carries_code_is_not_taken_from_a_bundle_that_has_the_name_now(path: Path) -> None:
    bundle = Bundle.open(path)
    held, kernel = bundle.entry(C), bundle.entry(A)
    bundle._unpacked.clear()
    write(path, entry(B), entry(A), graphs(C, b"another pickle", metadata={"other": True}))
    with pytest.raises(DamagedError, match="not what the index says"):
        held.artifact("graphs")
    with pytest.raises(DamagedError, match="not what the index says"):
        bundle.entry(C)
    assert kernel.artifact("cubin") == entry(A).artifact("cubin")  # the very same kernel is there too


def test_kinds_that_are_not_known_count_as_code() -> None:
    assert carries_code("graphs")
    assert carries_code("launcher")
    assert carries_code("of next year")
    assert not any(map(carries_code, ["kernel", FAILURE, "recipe", "tail"]))
    recipes = pytest.importorskip("headstart.describe.recipe_entries")
    cutoff = pytest.importorskip("headstart.worker.cutoff")
    assert (recipes.KIND, cutoff.KIND) == ("recipe", "tail")


# What is signed on the word of others


def test_what_is_passed_on_counts_while_the_key_does_that_vouched_for_it(path: Path, keyring: Keyring) -> None:
    secret = keyring.local(make=True)
    assert secret is not None
    relied = judge(signed(path, keyring), keyring).relies_on
    with BundleWriter(path, lambda version, digest: [sign_locally(secret, version, digest, relied)]) as writer:
        writer.add(graphs(C))
    assert judge(path, keyring) == Verdict(True, "this user's own runs", "", relied)
    (signature,) = Bundle.open(path).signatures
    rewrite(path, signatures=[msgspec.structs.replace(signature, relies_on=())])
    assert not judge(path, keyring).trusted  # so it cannot be taken away
    rewrite(path, signatures=[signature])
    keyring.forget("release")
    assert "on the word of a key that is trusted no longer" in judge(path, keyring).why_not


def signed(path: Path, keyring: Keyring) -> Path:
    sign_bundle(path, sign_with(keyring, "release"))
    return path


# Key files


def test_key_files_are_one_line_of_text_and_secrets_are_their_user_s_alone(keyring: Keyring) -> None:
    before = os.umask(0)
    try:
        keyring.new("open")
        keyring.local(make=True)
    finally:
        os.umask(before)
    keys = keyring.folder / "keys"
    for file in (keys / "open", keyring.folder / "local.key"):
        assert file.stat().st_mode & 0o777 == 0o600
    assert keys.stat().st_mode & 0o777 == 0o700
    word, public, name = (keys / "open.pub").read_text().split()
    assert (word, len(public), name) == ("headstart-ed25519", 44, "open")
    assert (keys / "open").read_text().startswith("headstart-ed25519-secret ")
    assert keyring.local_file.read_text().startswith("headstart-local ")
    assert not [name for name in os.listdir(keys) if name.endswith(".tmp")]


def test_no_key_is_written_over(keyring: Keyring) -> None:
    secret = keyring.secret("release")
    with pytest.raises(UsageError, match="there is a key release already"):
        keyring.new("release")
    assert keyring.secret("release") == secret


def test_a_file_that_is_no_key_of_headstart_s_stays(keyring: Keyring) -> None:
    for name in ("keys/mine.pub", "trusted/other.pub"):
        (keyring.folder / name).write_text("ssh-ed25519 AAAA me@here\n")
    with pytest.raises(UsageError, match="is not a key of headstart's"):
        keyring.new("mine")
    with pytest.raises(UsageError, match="there is no key mine"):
        keyring.secret("mine")  # nor is there half a pair
    keyring.forget("release")
    with pytest.raises(UsageError, match="is not a key of headstart's"):
        keyring.trust(keyring.folder / "keys" / "release.pub", "other")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".hidden", "local", "a.pub", "x" * 64, "é", "a b", "a\n"])
def test_names_that_a_key_cannot_have(name: str, keyring: Keyring) -> None:
    with pytest.raises(UsageError, match="is no name for a key"):
        keyring.new(name)
    if name:
        with pytest.raises(UsageError, match="is no name for a key"):
            keyring.trust(keyring.folder / "keys" / "release.pub", name)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_secret_that_others_can_read_is_refused(mode: int, keyring: Keyring) -> None:
    keyring.local(make=True)
    (keyring.folder / "keys" / "release").chmod(mode)
    keyring.local_file.chmod(mode)
    with pytest.raises(DamagedError, match=r"keys/release: .*(others may read it .*chmod 600|can be written by)"):
        keyring.secret("release")
    with pytest.raises(DamagedError, match=r"local.key: "):
        keyring.local(make=True)
    problems: list[str] = []
    Trust(keyring, problems.append)
    assert "the local key is left out" in problems[0]


def test_a_secret_that_is_a_link_is_refused(keyring: Keyring, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes((keyring.folder / "keys" / "release").read_bytes())
    (keyring.folder / "keys" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="linked"):
        keyring.secret("linked")


def test_a_trusted_key_that_others_can_replace_does_not_count(path: Path, keyring: Keyring) -> None:
    signed(path, keyring)
    (keyring.folder / "trusted" / "release.pub").chmod(0o666)
    problems: list[str] = []
    assert not Trust(keyring, problems.append).judge(Bundle.open(path).index).trusted
    assert "a key is left out" in problems[0]
    assert "can be written by everybody" in problems[0]


@pytest.mark.parametrize("folder", ["", "trusted", "keys"])
def test_in_a_folder_that_others_can_write_no_key_counts(folder: str, path: Path, keyring: Keyring) -> None:
    signed(path, keyring)
    (keyring.folder / folder).chmod(0o777)
    verdict = judge(path, keyring)
    assert not verdict.trusted
    assert "can be written by everybody" in verdict.why_not
    assert "who could add or replace keys" in verdict.why_not
    for attempt in (lambda: keyring.new("x"), lambda: keyring.secret("release"), lambda: keyring.local(make=True)):
        with pytest.raises(DamagedError, match="can be written by everybody"):
            attempt()
    assert not keyring.local_file.exists()


GOOD = "headstart-ed25519 " + "A" * 43 + "= somebody"
GARBAGE = [
    "",
    "\0\1\2",
    "é",
    "headstart-ed25519",
    "headstart-ed25519 AAAA somebody",
    GOOD.replace("A", "!", 1),
    GOOD.rpartition(" ")[0],
    f"{GOOD} more",
    f"{GOOD} until=soon",
    f"{GOOD} until=2030-01-01 more",
    f"{GOOD}\n{GOOD}",
    GOOD.replace("ed25519", "rsa"),
    GOOD.replace("ed25519", "ed25519-secret"),
    GOOD.replace("somebody", "../../x"),
    GOOD.replace("somebody", "local"),
    GOOD + " " * 2000,
]


@pytest.mark.parametrize("text", GARBAGE)
def test_a_public_key_that_is_garbage_is_refused_with_a_line(text: str, keyring: Keyring, tmp_path: Path) -> None:
    file = tmp_path / "some.pub"
    file.write_text(text + "\n")
    with pytest.raises(
        DamagedError, match=r"some.pub: this is no key file: expected one line, headstart-ed25519 BASE64"
    ):
        keyring.trust(file)
    (keyring.folder / "trusted" / "some.pub").write_text(text + "\n")
    problems: list[str] = []
    assert [each.name for each in keyring.trusted(problems.append)] == ["release"]
    assert len(problems) == 1


def test_a_public_key_that_is_no_file_is_refused(keyring: Keyring, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pub")
    with pytest.raises(DamagedError, match="not a regular file"):
        keyring.trust(tmp_path / "pipe.pub")
    with pytest.raises(DamagedError, match="not a regular file"):
        keyring.trust(Path("/dev/zero"))
    (tmp_path / "good.pub").write_text(GOOD + "\n")
    assert keyring.trust(tmp_path / "good.pub").name == "somebody"


def test_a_name_stands_for_one_key_and_a_key_has_one_name(keyring: Keyring, tmp_path: Path) -> None:
    other = Keyring(tmp_path / "other").new("release")
    with pytest.raises(UsageError, match="another key is trusted as release"):
        keyring.trust(other)
    day = dt.date(2099, 1, 1)
    assert keyring.trust(other, "theirs", day) == TrustedKey("theirs", keyring.trusted()[1].public, day)
    with pytest.raises(UsageError, match="trusted already, as theirs"):
        keyring.trust(other, "twice")
    keyring.trust(other, "theirs")
    assert [(each.name, each.until) for each in keyring.trusted()] == [("release", None), ("theirs", None)]


# The local key, made by several at once


def test_whoever_comes_second_gets_the_local_key_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = Keyring(tmp_path / "config"), Keyring(tmp_path / "config")
    found: list[bytes | None] = []

    def create_later(path: Path, data: bytes, mode: int) -> None:
        monkeypatch.setattr(keyring_module, "create", create)
        found.append(theirs.local(make=True))  # between the other's look and its writing
        create(path, data, mode)

    monkeypatch.setattr(keyring_module, "create", create_later)
    found.append(mine.local(make=True))
    assert found[0] is not None
    assert found[0] == found[1]
    assert os.listdir(tmp_path / "config") == ["local.key"]


def test_a_local_key_is_seen_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, seen = os.link, []

    def looking(source: Path, target: Path) -> None:
        seen.append((Path(source).read_bytes(), Path(target).exists()))
        link(source, target)

    monkeypatch.setattr(os, "link", looking)
    keyring = Keyring(tmp_path / "config")
    keyring.local(make=True)
    assert seen == [(keyring.local_file.read_bytes(), False)]


def test_where_there_are_no_links_a_key_is_made_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unable)
    keyring = Keyring(tmp_path / "config")
    assert keyring.local(make=True) == keyring.local(make=True)
    keyring.new("release")
    with pytest.raises(UsageError, match="already"):
        keyring.new("release")
    assert sorted(os.listdir(tmp_path / "config")) == ["keys", "local.key"]


RACE = """
import sys
from headstart.artifacts.keyring import Keyring
sys.stdin.read()  # until all are here
print(Keyring().local(make=True).hex())
"""


def test_processes_that_make_the_local_key_at_once_have_one() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", RACE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(6)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    found = set()
    for process in processes:
        assert process.stdout is not None
        with process.stdout:
            found.add(process.stdout.read())
        assert process.wait(30) == 0
    assert len(found) == 1
    assert os.listdir(os.environ["HEADSTART_CONFIG_DIR"]) == ["local.key"]


# Without the package


@pytest.fixture
def no_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)


def test_without_the_package_ed25519_is_a_clear_line(
    path: Path, keyring: Keyring, request: pytest.FixtureRequest
) -> None:
    signed(path, keyring)
    request.getfixturevalue("no_cryptography")
    with pytest.raises(ServiceError, match=r"pip install 'headstart\[sign\]'"):
        keyring.new("another")
    verdict = judge(path, keyring)
    assert not verdict.trusted
    assert "which cannot be checked" in verdict.why_not
    assert "pip install 'headstart[sign]'" in verdict.why_not


LOCAL_ONLY = """
import sys
from pathlib import Path
from headstart.artifacts.bundle import Bundle, BundleWriter
from headstart.client import vouching
import functools
with BundleWriter(sys.argv[2], functools.partial(vouching.sign, Path(sys.argv[2]), ())) as writer:
    opened = Bundle.open(sys.argv[1])
    for item in opened:
        writer.add(opened.entry(item.key))
assert vouching.judge(Bundle.open(sys.argv[2])).verdict.trusted
assert not vouching.judge(opened).verdict.trusted
print([name for name in ("cryptography", "platformdirs") if name in sys.modules])
"""


def test_the_local_key_needs_no_package_and_unknown_keys_load_none(path: Path, keyring: Keyring) -> None:
    signed(path, keyring)  # by a key that the process below does not know
    command = [sys.executable, "-c", LOCAL_ONLY, str(path), str(path.with_name("new.bundle"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
