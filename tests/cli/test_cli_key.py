"""`headstart key`, and what `headstart bundle` does with signatures."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import Result
from test_bundle import A, B, C, entry, write
from test_cli import run
from test_signing import graphs, rewrite

from headstart.artifacts import keyring as keyring_module
from headstart.artifacts.bundle import Bundle
from headstart.artifacts.keyring import Keyring
from headstart.artifacts.signing import fingerprint
from headstart.cli import doctor as doctor_module
from headstart.client.bundler import TritonBundler


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def bundle() -> Path:
    return write(Path("some.bundle"), entry(A), entry(B), graphs(C))


def said(result: Result) -> str:
    """What went to stderr; a traceback of ours never does."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.stderr


def make_and_trust(name: str) -> Path:
    assert run("key", "new", name).exit_code == 0
    public = Keyring().own()[0].path.with_name(f"{name}.pub")
    assert run("key", "trust", public).exit_code == 0
    return public


# Keys


def test_a_new_key_says_where_it_is_and_what_to_do_with_it() -> None:
    result = run("key", "new", "release")
    place = Path(os.environ["HEADSTART_CONFIG_DIR"], "keys", "release.pub")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == f"{place}: the public key of release, to be given away"
    assert "headstart bundle sign FILE --key release" in result.stdout
    assert "headstart key trust release.pub" in result.stdout
    assert place.is_file()
    secret = place.with_suffix("").read_text()
    assert secret.split()[1] not in result.output
    again = run("key", "new", "release")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "there is a key release already" in said(again)
    assert place.with_suffix("").read_text() == secret


def test_keys_are_listed() -> None:
    assert "no keys in" in said(run("key", "list"))
    public = make_and_trust("release")
    assert run("key", "trust", public, "--until", "2999-01-31").exit_code == 0
    Keyring().local(make=True)
    (public.parent / "broken.pub").write_text("garbage")
    result = run("key", "list")
    assert "broken.pub: this is no key file" in said(result)
    trusted, own, local = result.stdout.splitlines()
    print_ = fingerprint(Keyring().trusted()[0].public)
    assert trusted.split() == ["trusted", "release", print_, "until", "2999-01-31"]
    assert own.split() == ["own", "release", print_]
    assert local.split()[:2] == ["local", "local"]
    lines = [json.loads(line) for line in run("key", "list", "--json").stdout.splitlines()]
    assert [(line["use"], line["name"], line["until"]) for line in lines] == [
        ("trusted", "release", "2999-01-31"),
        ("own", "release", ""),
        ("local", "local", ""),
    ]
    assert all(Path(line["path"]).is_file() for line in lines)


def test_trusting_says_whom_and_how_long() -> None:
    make_and_trust("release")
    public = Keyring().own()[0].path
    print_ = fingerprint(Keyring().own()[0].public)
    run("key", "forget", "release")
    result = run("key", "trust", public, "--name", "theirs", "--until", "2999-12-31")
    assert result.stdout == f"trusted: theirs, fingerprint {print_}, until 2999-12-31\n"
    for day in ("2999-13-31", "tomorrow", "2001-01-01"):
        refused = run("key", "trust", public, "--until", day)
        assert refused.exit_code == 2
        assert "--until: " in said(refused)


def test_what_is_expired_is_listed_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    public = make_and_trust("release")
    run("key", "trust", public, "--until", "2999-01-31")
    record = Path(os.environ["HEADSTART_CONFIG_DIR"], "trusted", "release.pub")
    record.write_text(record.read_text().replace("2999", "2001"))
    assert "until 2001-01-31 (expired)" in run("key", "list").stdout


def test_forgetting_says_what_follows() -> None:
    make_and_trust("release")
    result = run("key", "forget", "release")
    assert result.exit_code == 0
    assert "what release signed is not trusted any more" in result.stdout
    again = run("key", "forget", "release")
    assert again.exit_code == 2
    assert "no key release is trusted; headstart key list shows" in said(again)


@pytest.mark.parametrize("text", ["", "\0", "ssh-ed25519 AAAA me", "headstart-ed25519 AAAA me"])
def test_a_public_key_that_is_garbage_is_one_line(text: str) -> None:
    Path("some.pub").write_text(text)
    result = run("key", "trust", "some.pub")
    assert result.exit_code == 2
    assert said(result).startswith(
        "headstart: some.pub: this is no key file: expected one line, headstart-ed25519 BASE64"
    )
    assert run("key", "trust", "no-such.pub").exit_code == 2


def test_in_a_folder_that_others_can_write_nothing_is_done() -> None:
    make_and_trust("release")
    folder = Path(os.environ["HEADSTART_CONFIG_DIR"])
    folder.chmod(0o777)
    for command in (["new", "other"], ["list"], ["trust", folder / "keys" / "release.pub"]):
        result = run("key", *command)
        assert result.exit_code == 1
        assert "can be written by everybody" in said(result)


def test_somebody_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CONFIG_DIR", "~nobody-of-that-name/x")
    result = run("key", "list")
    assert result.exit_code == 2
    assert "HEADSTART_CONFIG_DIR" in said(result)


def test_doctor_says_what_keeps_bundles_from_being_signed_or_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[doctor_module.Check]:
        return list(doctor_module.check_keys())

    folder = Path(os.environ["HEADSTART_CONFIG_DIR"])
    assert found() == []
    assert not folder.exists()  # looking makes nothing
    make_and_trust("release")
    Keyring().local(make=True)
    assert found() == []
    (folder / "trusted" / "other.pub").write_text("garbage")
    (check,) = found()
    assert (check.name, check.status) == ("keys", "warn")
    assert "other.pub: this is no key file" in check.found
    (folder / "local.key").chmod(0o644)
    (check,) = found()
    assert "others may read it" in check.found
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    monkeypatch.setenv("HEADSTART_CONFIG_DIR", str(folder / "new"))
    (check,) = found()
    assert "bundles are written without a signature" in check.found
    assert "HEADSTART_CONFIG_DIR" in check.remedy


# Signing


def test_a_bundle_is_signed_and_verified(bundle: Path) -> None:
    make_and_trust("release")
    result = run("bundle", "verify", bundle)
    assert result.stdout.splitlines() == ["some.bundle: 3 kernels, all good", "not signed"]
    result = run("bundle", "sign", bundle, "--key", "release")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "some.bundle: 3 kernels signed by release; 1 entry of it could run code\n"
    result = run("bundle", "verify", bundle, "--key", "release")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:] == ["trusted: it is signed by release"]
    assert set(os.listdir()) == {"some.bundle", ".some.bundle.lock"}


def test_several_keys_sign_at_once_and_later(bundle: Path) -> None:
    for name in ("first", "second", "third"):
        run("key", "new", name)
    assert "signed by first, second" in run("bundle", "sign", bundle, "--key", "first", "--key", "second").stdout
    run("bundle", "sign", bundle, "--key", "third")
    run("bundle", "sign", bundle, "--key", "first")
    assert sorted(each.name for each in Bundle.open(bundle).signatures) == ["first", "second", "third"]
    for name in ("first", "second", "third"):
        assert run("bundle", "verify", bundle, "--key", name).exit_code == 0


def test_verify_says_what_it_can_to_somebody_without_a_folder_for_keys(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_and_trust("release")
    run("bundle", "sign", bundle, "--key", "release")
    monkeypatch.setenv("HEADSTART_CONFIG_DIR", "~nobody-of-that-name/x")
    result = run("bundle", "verify", bundle)
    assert result.exit_code == 0
    assert "1 signature, by whom cannot be told" in result.stdout
    assert "HEADSTART_CONFIG_DIR" in said(result)
    assert run("bundle", "verify", bundle, "--key", "release").exit_code == 2


def test_verify_demands_the_key_that_it_is_asked_for(bundle: Path) -> None:
    for name in ("release", "other"):
        run("key", "new", name)
    run("bundle", "sign", bundle, "--key", "other")
    result = run("bundle", "verify", bundle, "--key", "release")
    assert result.exit_code == 1
    assert "some.bundle is not signed by release" in said(result)
    assert "unknown: it is signed by the unknown key" in result.stdout
    assert run("bundle", "verify", bundle).exit_code == 0
    result = run("bundle", "verify", bundle, "--key", "nobody")
    assert result.exit_code == 2
    assert "there is no key nobody; headstart key list shows" in said(result)
    assert run("bundle", "verify", bundle, "--key", "local").exit_code == 1


def test_verify_knows_what_own_runs_wrote() -> None:
    bundler = TritonBundler(len)
    bundler.begin_compile()
    bundler.put(A, lambda: entry(A))
    bundler.collect("own.bundle")
    result = run("bundle", "verify", "own.bundle", "--key", "local")
    assert result.exit_code == 0
    assert "trusted: it is signed by this user's own runs" in result.stdout


def test_verify_fails_for_a_signature_over_something_else(bundle: Path) -> None:
    make_and_trust("release")
    run("bundle", "sign", bundle, "--key", "release")
    rewrite(bundle, list(Bundle.open(bundle))[1:])
    for options in ([], ["--key", "release"]):
        result = run("bundle", "verify", bundle, *options)
        assert result.exit_code == 1
        assert "invalid: its signature by release is not over what it holds" in result.stdout
        assert "it was altered, or the signature comes from another bundle" in said(result)


def test_verify_fails_for_an_expired_key_that_is_asked_for(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = make_and_trust("release")
    run("key", "trust", public, "--until", "2999-01-31")
    run("bundle", "sign", bundle, "--key", "release")
    monkeypatch.setattr(keyring_module, "today", lambda: dt.date(2999, 2, 1))
    result = run("bundle", "verify", bundle)
    assert result.exit_code == 0
    assert "expired: it is signed by release, whose trust has expired (until 2999-01-31)" in result.stdout
    result = run("bundle", "verify", bundle, "--key", "release")
    assert result.exit_code == 1
    assert "the trust in release has expired" in said(result)


def test_what_cannot_be_signed_says_why_and_stays(bundle: Path) -> None:
    before = bundle.read_bytes()
    assert run("bundle", "sign", bundle).exit_code == 2
    result = run("bundle", "sign", bundle, "--key", "release")
    assert result.exit_code == 2
    assert "there is no key release of yours: headstart key new release makes one" in said(result)
    run("key", "new", "release")
    secret = Path(os.environ["HEADSTART_CONFIG_DIR"], "keys", "release")
    secret.chmod(0o644)
    result = run("bundle", "sign", bundle, "--key", "release")
    assert result.exit_code == 1
    assert "others may read it (mode 0644); have it be yours alone: chmod 600" in said(result)
    secret.chmod(0o600)
    assert bundle.read_bytes() == before
    bundle.write_bytes(before[:40] + b"\0" + before[41:])
    result = run("bundle", "sign", bundle, "--key", "release")
    assert result.exit_code == 2
    assert "some.bundle: " in said(result)
    bundle.write_bytes(before[:-3])
    assert run("bundle", "sign", bundle, "--key", "release").exit_code == 2


def test_without_the_package_there_is_one_line(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_and_trust("release")
    run("bundle", "sign", bundle, "--key", "release")
    for name in [each for each in sys.modules if each.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for command in (["key", "new", "x"], ["bundle", "sign", bundle, "--key", "release"]):
        result = run(*command)
        assert result.exit_code == 1
        assert "pip install 'headstart[sign]'" in said(result)
    result = run("bundle", "verify", bundle)
    assert result.exit_code == 0
    assert "which cannot be checked" in result.stdout
    assert run("bundle", "verify", bundle, "--key", "release").exit_code == 1


def test_a_merged_bundle_is_not_signed_and_says_so(bundle: Path) -> None:
    make_and_trust("release")
    run("bundle", "sign", bundle, "--key", "release")
    result = run("bundle", "merge", "out.bundle", bundle)
    assert result.exit_code == 0
    assert result.stdout.endswith(", not signed\n")
    assert "1 entry of it could run code, and will not be used until it is signed" in said(result)
    assert "headstart bundle sign out.bundle --key NAME" in said(result)
    assert run("bundle", "verify", "out.bundle", "--key", "release").exit_code == 1
