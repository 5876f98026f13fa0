"""Signatures of Sigstore's count by the identity that is pinned, and are verified without a network."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_bundle import A, B, C, entry, write
from test_cli import run
from test_signing import graphs, judge, rewrite, states

from headstart.artifacts import identities, signing
from headstart.artifacts import keyring as keyring_module
from headstart.artifacts.bundle import Bundle, BundleWriter
from headstart.artifacts.identities import identity_id, signature_of
from headstart.artifacts.keyring import Keyring
from headstart.artifacts.seal import sign_bundle
from headstart.artifacts.signing import SIGSTORE, Signature, message, sign_locally
from headstart.artifacts.trust import State
from headstart.errors import DamagedError, ServiceError, UsageError

pytest.importorskip("sigstore")
from sigstore_world import SigstoreWorld

ME = "https://code.example/me/app/.workflows/release.yml@refs/tags/v1"
ISSUER = "https://tokens.code.example"


@pytest.fixture(scope="module")
def world() -> SigstoreWorld:
    return SigstoreWorld()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        pytest.fail(f"connected to {address!r}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home" / "data"))


@pytest.fixture
def root(world: SigstoreWorld, tmp_path: Path) -> Path:
    (tmp_path / "root.json").write_text(world.root)
    return tmp_path / "root.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "app.bundle", entry(A), entry(B), graphs(C))


@pytest.fixture
def keyring(tmp_path: Path, root: Path) -> Keyring:
    """Somebody's who has pinned one identity."""
    made = Keyring(tmp_path / "config")
    made.trust_identity(ME, ISSUER, "ci", root=root)
    return made


def by(world: SigstoreWorld, identity: str = ME, issuer: str = ISSUER) -> Callable[[int, bytes], list[Signature]]:
    def sign(version: int, digest: bytes) -> list[Signature]:
        data = world.sign(message(SIGSTORE, version, digest), identity, issuer)
        return [signature_of(Path("some.json"), data, version, digest)]

    return sign


def test_a_bundle_signed_by_a_pinned_identity_is_trusted(path: Path, keyring: Keyring, world: SigstoreWorld) -> None:
    sign_bundle(path, by(world))
    verdict = judge(path, keyring)
    assert (verdict.trusted, verdict.by, verdict.why_not) == (True, "ci", "")
    assert verdict.relies_on == (signing.key_id(identity_id(ME, ISSUER)),)
    assert states(path, keyring) == [State.TRUSTED]


@pytest.mark.parametrize("who", [("https://code.example/other/app", ISSUER), (ME, "https://other.example")])
def test_any_other_valid_identity_is_not_accepted(
    who: tuple[str, str], path: Path, keyring: Keyring, world: SigstoreWorld
) -> None:
    sign_bundle(path, by(world, *who))
    assert "it is signed by the unknown identity" in judge(path, keyring).why_not
    (signature,) = Bundle.open(path).signatures
    rewrite(path, signatures=[msgspec.structs.replace(signature, signer=identity_id(ME, ISSUER))])
    verdict = judge(path, keyring)
    assert not verdict.trusted
    assert f"or not by {ME}" in verdict.why_not
    assert "do not match" in verdict.why_not or "does not match" in verdict.why_not
    assert states(path, keyring) == [State.INVALID]


def test_an_e_mail_address_is_an_identity_too(path: Path, keyring: Keyring, world: SigstoreWorld, root: Path) -> None:
    keyring.trust_identity("me@example.com", "https://accounts.example", "me", root=root)
    sign_bundle(path, by(world, "me@example.com", "https://accounts.example"))
    assert judge(path, keyring).by == "me"


def test_whoever_has_a_sigstore_of_their_own_does_not_count(path: Path, keyring: Keyring) -> None:
    sign_bundle(path, by(SigstoreWorld()))
    verdict = judge(path, keyring)
    assert not verdict.trusted
    assert "is not over what it holds, or not by" in verdict.why_not


def test_the_public_service_s_root_is_another_one(
    path: Path, tmp_path: Path, world: SigstoreWorld, capfd: pytest.CaptureFixture[str]
) -> None:
    keyring = Keyring(tmp_path / "config")
    keyring.trust_identity(ME, ISSUER, "ci")
    sign_bundle(path, by(world))
    assert not judge(path, keyring).trusted
    assert states(path, keyring) == [State.INVALID]
    assert "offline" not in capfd.readouterr().err


def test_a_signature_over_another_bundle_does_not_count(
    path: Path, keyring: Keyring, world: SigstoreWorld, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.bundle", graphs(C, b"another pickle"))
    sign_bundle(path, by(world))
    rewrite(other, signatures=list(Bundle.open(path).signatures))
    assert not judge(other, keyring).trusted
    rewrite(path, list(Bundle.open(path))[1:])
    assert not judge(path, keyring).trusted


def altered(value: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(value)
    change(document)
    return json.dumps(document).encode()


def _of_log(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["verificationMaterial"]["tlogEntries"][0].update({name: value})


def _of_message(document: dict[str, Any]) -> None:
    document["messageSignature"]["signature"] = base64.b64encode(bytes(70)).decode()


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "signature": _of_message,
    "no log entry": lambda document: document["verificationMaterial"].update(tlogEntries=[]),
    "time": _of_log("integratedTime", "1893456000"),
    "promise": _of_log("inclusionPromise", {"signedEntryTimestamp": base64.b64encode(bytes(70)).decode()}),
    "no promise": _of_log("inclusionPromise", None),
    "no proof": _of_log("inclusionProof", None),
    "body": _of_log("canonicalizedBody", base64.b64encode(b"{}").decode()),
    "certificate": lambda document: document["verificationMaterial"]["certificate"].update(rawBytes="AAAA"),
    "nothing": lambda document: document.clear(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_signature_of_which_anything_is_altered_does_not_count(
    what: str, path: Path, keyring: Keyring, world: SigstoreWorld
) -> None:
    sign_bundle(path, by(world))
    (signature,) = Bundle.open(path).signatures
    rewrite(path, signatures=[msgspec.structs.replace(signature, value=altered(signature.value, lambda _: None))])
    assert judge(path, keyring).trusted
    value = altered(signature.value, CHANGES[what])
    rewrite(path, signatures=[msgspec.structs.replace(signature, value=value)])
    assert not judge(path, keyring).trusted
    assert states(path, keyring) == [State.INVALID]


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"\0" * 100, b"null", b"\xff"])
def test_what_is_no_signature_at_all_raises_nothing(value: bytes, path: Path, keyring: Keyring) -> None:
    rewrite(path, signatures=[Signature(SIGSTORE, identity_id(ME, ISSUER), value)])
    assert not judge(path, keyring).trusted
    with pytest.raises(DamagedError, match="this is no Sigstore bundle"):
        signature_of(Path("some.json"), value, 4, bytes(32))


def test_an_identity_is_not_a_key(path: Path, keyring: Keyring, world: SigstoreWorld) -> None:
    sign_bundle(path, by(world))
    (signature,) = Bundle.open(path).signatures
    for kind in ("ed25519", "local"):
        rewrite(path, signatures=[msgspec.structs.replace(signature, kind=kind)])
        assert not judge(path, keyring).trusted


def test_an_identity_that_is_forgotten_or_expired_counts_no_longer(
    path: Path, keyring: Keyring, world: SigstoreWorld, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_bundle(path, by(world))
    keyring.trust_identity(ME, ISSUER, "ci", dt.date(2999, 1, 1), root)
    assert judge(path, keyring).trusted
    monkeypatch.setattr(keyring_module, "today", lambda: dt.date(2999, 1, 2))
    assert "whose trust has expired" in judge(path, keyring).why_not
    monkeypatch.undo()
    keyring.forget("ci")
    assert os.listdir(keyring.folder / "trusted") == []
    assert not judge(path, keyring).trusted


def test_what_is_passed_on_counts_while_the_identity_does(path: Path, keyring: Keyring, world: SigstoreWorld) -> None:
    secret = keyring.local(make=True)
    assert secret is not None
    sign_bundle(path, by(world))
    relied = judge(path, keyring).relies_on
    with BundleWriter(path, lambda version, digest: [sign_locally(secret, version, digest, relied)]) as writer:
        writer.add(graphs(C))
    assert judge(path, keyring).trusted
    keyring.forget("ci")
    assert not judge(path, keyring).trusted


def test_nothing_is_loaded_for_identities_that_are_not_trusted(
    path: Path, keyring: Keyring, world: SigstoreWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_bundle(path, by(world, "https://code.example/other/app"))
    monkeypatch.setattr(identities, "_package", lambda: pytest.fail("the package was loaded"))
    assert states(path, keyring) == [State.UNKNOWN]
    assert not judge(path, keyring).trusted


def test_without_the_package_there_is_one_line(
    path: Path, keyring: Keyring, world: SigstoreWorld, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_bundle(path, by(world))
    for name in [each for each in sys.modules if each.split(".")[0] == "sigstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sigstore", None)
    verdict = judge(path, keyring)
    assert not verdict.trusted
    assert "pip install 'headstart[sigstore]'" in verdict.why_not
    with pytest.raises(ServiceError, match=r"pip install 'headstart\[sigstore\]'"):
        keyring.trust_identity("x", "y", "z", root=root)


# Files


def test_a_root_that_is_gone_or_that_others_can_write_is_no_root(
    path: Path, keyring: Keyring, world: SigstoreWorld
) -> None:
    sign_bundle(path, by(world))
    root = keyring.folder / "trusted" / "ci.root.json"
    root.chmod(0o666)
    problems: list[str] = []
    assert keyring.trusted(problems.append) == []
    assert "can be written by everybody" in problems[0]
    root.unlink()
    assert keyring.trusted(problems.append) == []
    assert not judge(path, keyring).trusted


def test_a_root_that_is_garbage_is_refused(keyring: Keyring, tmp_path: Path) -> None:
    (tmp_path / "garbage.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"garbage.json: this is no trusted root"):
        keyring.trust_identity("x", "y", "z", root=tmp_path / "garbage.json")
    assert [each.name for each in keyring.trusted()] == ["ci"]


GOOD = f"headstart-sigstore {ME} {ISSUER} ci own"
GARBAGE = ["", "\0", "é", "headstart-sigstore", GOOD[:-4], f"{GOOD} more", f"{GOOD} until=soon", f"{GOOD}\n{GOOD}"]
GARBAGE += [GOOD.replace(" own", " their"), GOOD.replace("sigstore", "ed25519"), GOOD.replace(ME, "")]


@pytest.mark.parametrize("text", GARBAGE)
def test_an_identity_that_is_garbage_is_left_out(text: str, keyring: Keyring) -> None:
    (keyring.folder / "trusted" / "ci.identity").write_text(text)
    problems: list[str] = []
    assert keyring.trusted(problems.append) == []
    assert "this is no identity: expected one line, headstart-sigstore IDENTITY ISSUER NAME" in problems[0]


@pytest.mark.parametrize("words", [("", "x"), ("x", ""), ("a b", "x"), ("x", "a\nb"), ("é", "x"), ("x" * 501, "x")])
def test_identities_are_one_word_each(words: tuple[str, str], keyring: Keyring) -> None:
    with pytest.raises(UsageError, match="are one word each"):
        keyring.trust_identity(*words, "z")


# The commands


def test_a_bundle_is_signed_elsewhere_and_verified_here(path: Path, world: SigstoreWorld, root: Path) -> None:
    trust = ["key", "trust", "--identity", ME, "--issuer", ISSUER, "--name", "ci", "--root", root]
    result = run(*trust, "--until", "2999-01-01")
    assert result.stdout == f"trusted: ci, {ME} by {ISSUER}, until 2999-01-01\n"
    assert run("key", "list").stdout.split() == ["trusted", "ci", ME, "by", ISSUER, "until", "2999-01-01"]
    statement = path.with_name("app.statement")
    assert run("bundle", "statement", path, "-o", statement).exit_code == 0
    signed = path.with_name("app.statement.sigstore.json")
    signed.write_bytes(world.sign(statement.read_bytes(), ME, ISSUER))
    result = run("bundle", "sign", path, "--sigstore", signed)
    assert (result.exit_code, result.stderr) == (0, "")
    result = run("bundle", "verify", path, "--key", "ci")
    assert result.exit_code == 0
    assert "trusted: it is signed by ci" in result.stdout


def test_a_signature_over_something_else_is_not_put_in(path: Path, world: SigstoreWorld) -> None:
    before = path.read_bytes()
    signed = path.with_name("app.sigstore.json")
    signed.write_bytes(world.sign(b"something else", ME, ISSUER))
    result = run("bundle", "sign", path, "--sigstore", signed)
    assert result.exit_code == 2
    assert "this is a signature over something else: sign what headstart bundle statement writes" in result.stderr
    signed.write_bytes(b"garbage")
    assert run("bundle", "sign", path, "--sigstore", signed).exit_code == 2
    assert path.read_bytes() == before


def test_verify_says_why_an_identity_did_not_sign(path: Path, world: SigstoreWorld, root: Path) -> None:
    run("key", "trust", "--identity", ME, "--issuer", ISSUER, "--name", "ci", "--root", root)
    result = run("bundle", "verify", path, "--key", "ci")
    assert result.exit_code == 1
    assert "is not signed by ci" in result.stderr
    sign_bundle(path, by(SigstoreWorld()))
    result = run("bundle", "verify", path, "--key", "ci")
    assert result.exit_code == 1
    assert "invalid: " in result.stdout


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--identity", "x", "--issuer", "y"],
        ["--identity", "x", "--name", "z"],
        ["--issuer", "y", "--name", "z"],
        ["ci.pub", "--identity", "x", "--issuer", "y"],
        ["ci.pub", "--issuer", "y"],
    ],
)
def test_trusting_takes_a_key_or_all_of_an_identity(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ci.pub").write_text("headstart-ed25519 " + "A" * 43 + "= ci\n")
    assert run("key", "trust", *options).exit_code == 2
    assert Keyring().trusted() == []
