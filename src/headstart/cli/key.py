"""`headstart key`: keys that sign bundles, and those whose signatures count."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import NamedTuple

import click

from headstart.artifacts.keyring import Keyring, TrustedKey, today
from headstart.artifacts.signing import LOCAL, fingerprint, local_id
from headstart.cli import json_line, reading, using
from headstart.errors import DamagedError, UsageError

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class _Row(NamedTuple):
    """What `key list --json` prints of one key. Own ones have no last day, and keys no identity."""

    use: str
    name: str
    fingerprint: str
    path: str
    until: str = ""
    identity: str = ""
    issuer: str = ""


@click.group(short_help="Make, trust and forget keys that sign bundles.")
def key() -> None:
    """Make, trust and forget keys that sign bundles.

    What could run code in a bundle (launchers, what torch.compile keeps) is loaded only if the bundle is signed by a
    key that you trust, or by your own runs. Keys lie under HEADSTART_CONFIG_DIR, by default in the platform's
    configuration folder.
    """


@key.command(short_help="Make a pair of keys.")
@click.argument("name")
def new(name: str) -> None:
    """Make a pair of Ed25519 keys called NAME. The secret one is not encrypted: whoever reads your files can sign."""
    keyring = Keyring()
    with using(keyring.folder):
        path = keyring.new(name)
    click.echo(f"{path}: the public key of {name}, to be given away")
    click.echo(f"sign with it:              headstart bundle sign FILE --key {name}")
    click.echo(f"where its bundles are run: headstart key trust {path.name}")


@key.command(short_help="Have signatures by a key count.")
@click.argument("file", metavar="[FILE.pub]", required=False, type=_FILE)
@click.option("--name", default="", metavar="NAME", help="What it is called here. Default: as in the file.")
@click.option("--until", metavar="DATE", help="The last day on which they count, in UTC, as 2027-01-31.")
@click.option("--identity", metavar="ID", help="Instead of FILE.pub: an identity of Sigstore's, as me@example.com.")
@click.option("--issuer", metavar="URL", help="Who vouches for --identity, as https://accounts.google.com.")
@click.option("--root", type=_FILE, metavar="F", help="Sigstore's trusted root. Default: its public service's.")
def trust(
    file: Path | None, name: str, until: str | None, identity: str | None, issuer: str | None, root: Path | None
) -> None:
    """Have signatures by the public key in FILE.pub count, from now on; or by an --identity, which needs a --name.

    Whoever has the secret key can then have code run as you, by a bundle that you use. Compare the fingerprint with one
    that did not come with the file.
    """
    day = None if until is None else _day(until)
    keyring = Keyring()
    if file is not None:
        if identity or issuer or root is not None:
            raise UsageError("FILE.pub and --identity, --issuer, --root exclude each other")
        with using(keyring.folder):
            keyring.trusted()
        with reading(file):
            trusted = keyring.trust(file, name, day)
        click.echo(f"trusted: {trusted.name}, fingerprint {fingerprint(trusted.public)}{_until(trusted)}")
        return
    if not (identity and issuer and name):
        raise UsageError("expected FILE.pub, or all of --identity, --issuer and --name")
    with using(keyring.folder):
        trusted = keyring.trust_identity(identity, issuer, name, day, root)
    click.echo(f"trusted: {name}, {identity} by {issuer}{_until(trusted)}")


@key.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per key.")
def list_(as_json: bool) -> None:
    """Show your keys: those you trust, pairs of your own, and the local one that signs what your runs write."""
    keyring = Keyring()
    with using(keyring.folder):
        rows = _rows(keyring)
    for row in rows:
        if as_json:
            click.echo(json_line(row._asdict()))
        else:
            end = f"  until {row.until}{_passed(row.until)}" if row.until else ""
            who = f"{row.identity} by {row.issuer}" if row.identity else row.fingerprint
            click.echo(f"{row.use:8} {row.name:20} {who}{end}")
    if not rows and not as_json:
        click.echo(f"no keys in {keyring.folder}", err=True)


@key.command()
@click.argument("name")
def forget(name: str) -> None:
    """Have signatures by the trusted key NAME count no longer. `local`: those by your own runs until now."""
    keyring = Keyring()
    with using(keyring.folder):
        path = keyring.forget(name)
    click.echo(f"removed {path}: what {'your own runs' if name == LOCAL else name} signed is not trusted any more")


def _rows(keyring: Keyring) -> list[_Row]:
    rows = []
    for each in keyring.trusted(_tell):
        print_ = "" if each.identity else fingerprint(each.public)
        file, end = str(keyring.trusted_file(each)), str(each.until or "")
        rows.append(_Row("trusted", each.name, print_, file, end, each.identity, each.issuer))
    rows += [_Row("own", each.name, fingerprint(each.public), str(each.path)) for each in keyring.own(_tell)]
    try:
        secret = keyring.local()
    except (DamagedError, OSError) as error:
        _tell(f"the local key is left out: {error}")
        secret = None
    if secret is not None:
        rows.append(_Row(LOCAL, LOCAL, fingerprint(local_id(secret)), str(keyring.local_file)))
    return rows


def _tell(text: str) -> None:
    click.echo(f"headstart: {text}", err=True)


def _day(text: str) -> dt.date:
    try:
        day = dt.date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--until: expected a day such as 2027-01-31, got {text!r}") from None
    if day < today():
        raise UsageError(f"--until: {day} is over")
    return day


def _until(trusted: TrustedKey) -> str:
    return "" if trusted.until is None else f", until {trusted.until}"


def _passed(end: str) -> str:
    return " (expired)" if end and dt.date.fromisoformat(end) < today() else ""
