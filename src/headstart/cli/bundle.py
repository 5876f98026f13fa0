"""`headstart bundle`: look into bundles, check and sign them, take them apart and put them together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from headstart.artifacts import identities, signing
from headstart.artifacts.bundle import Bundle, BundleItem, merge_bundles
from headstart.artifacts.container import snapshot_of
from headstart.artifacts.index import VERSION
from headstart.artifacts.keyring import Keyring
from headstart.artifacts.seal import sign_bundle
from headstart.artifacts.signing import ED25519, LOCAL, SIGSTORE, Signature
from headstart.artifacts.trust import Inspected, State, Trust, trust_of_this_user
from headstart.cli import (
    BadInput,
    Failure,
    OutputFile,
    check_output,
    count,
    human_bytes,
    json_line,
    printable,
    printable_lines,
    reading,
    using,
    writing,
)
from headstart.cli.differences import diff
from headstart.cli.registries import pull, push
from headstart.cli.shrinking import prune
from headstart.errors import UsageError
from headstart.system.files import BUNDLE, carries_mark, write_new

_BUNDLE = click.Path(exists=True, dir_okay=False, path_type=Path)
_SHORT_KEY = 12  # hexadecimal digits that tell kernels of one bundle apart


@click.group(short_help="List, compare, sign, merge, prune, push and pull bundles.")
def bundle() -> None:
    """Look into bundles, check and sign them, take them apart and put them together.

    A bundle holds compiled kernels, many in one file. Reading one executes nothing.
    """


bundle.add_command(diff)
bundle.add_command(prune)
bundle.add_command(pull)
bundle.add_command(push)


@bundle.command("list")
@click.argument("path", metavar="BUNDLE", type=_BUNDLE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per kernel.")
def list_(path: Path, as_json: bool) -> None:
    """Show the kernels of BUNDLE: key, target, size and name, and what is kept beside them: known failures, say."""
    opened = _open(path)
    if as_json:
        for item in opened:
            click.echo(json_line(item_fields(item)))
        return
    for item in opened:
        size = human_bytes(item.entry_size)
        kind = "" if item.kind == "kernel" else f"  ({printable(item.kind)})"
        click.echo(f"{item.key[:_SHORT_KEY]}  {printable(item.target):12}  {size:>10}  {printable(item.name)}{kind}")
    total = human_bytes(sum(item.entry_size for item in opened))
    toolchains = count(len(opened.toolchains), "toolchain")
    kernels = sum(item.kind == "kernel" for item in opened)
    others = f" and {len(opened) - kernels} of other kinds" if kernels < len(opened) else ""
    click.echo(f"{count(kernels, 'kernel')}{others}, {total}, compiled by {toolchains}", err=True)


@bundle.command(short_help="Compare BUNDLE with its checksums, and look at its signatures.")
@click.argument("path", metavar="BUNDLE", type=_BUNDLE)
@click.option("--key", "name", metavar="NAME", help="Fail unless it is signed by this key, of yours or trusted.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(path: Path, name: str | None, as_json: bool) -> None:
    """Read all of BUNDLE, compare it with its checksums, and say by whom it is signed.

    Exit code 1 if it is damaged, a signature is not over what BUNDLE holds, or one by --key is missing.
    """
    try:
        opened = _open(path)
    except BadInput as error:
        if carries_mark(path.resolve(), BUNDLE):  # what is wrong with a bundle is what was asked
            raise Failure(error.message) from error
        raise
    with reading(path):
        problems = opened.verify()
    if as_json:
        signatures = [{"state": each.state.value, "detail": each.detail} for each in _signatures(opened) or ()]
        damaged = [str(problem) for problem in problems]
        click.echo(json_line({"path": str(path), "kernels": len(opened), "damaged": damaged, "signatures": signatures}))
    for problem in problems:
        click.echo(printable_lines(str(problem)), err=True)
    if problems:
        raise Failure(f"{path}: {len(problems)} of {count(len(opened), 'kernel')} damaged; build the bundle again")
    if not as_json:
        click.echo(f"{path}: {count(len(opened), 'kernel')}, all good")
    _check_signatures(opened, quiet=as_json)
    if name is not None:
        _require(opened, name)


@bundle.command(short_help="Sign BUNDLE with keys of yours.")
@click.argument("path", metavar="BUNDLE", type=_BUNDLE)
@click.option("--key", "names", metavar="NAME", multiple=True, help="Which key. May be repeated.")
@click.option(
    "--sigstore",
    type=_BUNDLE,
    metavar="F.json",
    help="Put in the signature that `sigstore sign` made of what `headstart bundle statement` wrote.",
)
def sign(path: Path, names: Sequence[str], sigstore: Path | None) -> None:
    """Sign what BUNDLE holds, and so vouch for what of it could run code. Other keys' signatures stay.

    A key is made by `headstart key new NAME`. Signing again with it replaces its signature.
    """
    if not names and sigstore is None:
        raise UsageError("which key? expected --key NAME, or --sigstore F.json")
    keyring = Keyring()
    with using(keyring.folder):
        secrets = {name: keyring.secret(name) for name in dict.fromkeys(names)}
    signers = [*secrets, *([] if sigstore is None else [str(sigstore)])]

    def signer(version: int, digest: bytes) -> list[Signature]:
        made = [signing.sign(secret, name, version, digest) for name, secret in secrets.items()]
        if sigstore is not None:
            made.append(identities.signature_of(sigstore, _small(sigstore), version, digest))
        return made

    with writing(path):
        try:
            signed = sign_bundle(path, signer)
        except ValueError as error:
            raise Failure(f"{path}: {error}; headstart bundle merge makes one without any") from error
    vouched = f"; {count(len(signed.code), 'entry')} of it could run code" if signed.code else ""
    click.echo(f"{path}: {count(len(signed), 'kernel')} signed by {', '.join(signers)}{vouched}")


@bundle.command(short_help="Write what a signature of BUNDLE is over.")
@click.argument("path", metavar="BUNDLE", type=_BUNDLE)
@click.option("-o", "--output", type=OutputFile(), required=True, metavar="F", help="Where it goes; a new file.")
def statement(path: Path, output: Path) -> None:
    """Write what a Sigstore signature of BUNDLE is over, for `sigstore sign F` on a machine with a network.

    `headstart bundle sign BUNDLE --sigstore F.sigstore.json` puts it into BUNDLE, if that is the same still.
    """
    index = _open(path).index
    if index.version != VERSION:
        raise UsageError(f"{path} is of an earlier format: headstart bundle merge {path} {path} makes it one of now")
    with writing(output):
        write_new(output, signing.message(SIGSTORE, index.version, index.digest))
    click.echo(f"{output}: sigstore sign {output}, then headstart bundle sign {path} --sigstore {output}.sigstore.json")


@bundle.command(short_help="Write the kernels of BUNDLE as files.")
@click.argument("path", metavar="BUNDLE", type=_BUNDLE)
@click.argument("kernels", metavar="[KERNEL]...", nargs=-1)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where the files go; made if need be. Default: the bundle's name without .bundle, in the current folder.",
)
def extract(path: Path, kernels: Sequence[str], output: Path | None) -> None:
    """Write the kernels of BUNDLE as files: cubin, ptx, …, and metadata.json, in a folder for each kernel.

    KERNEL is a name, or the beginning of a key as `headstart bundle list` shows it. Default: every kernel.
    """
    opened = _open(path)
    output = output or Path(path.stem if path.suffix else f"{path.name}.files")
    with writing(path):
        folders = opened.extract(output, [item.key for item in _chosen(opened, kernels)])
    click.echo(f"{count(len(folders), 'kernel')} extracted to {output}")


@bundle.command(short_help="Write the kernels of several bundles into one.")
@click.argument("out", type=OutputFile())
@click.argument("paths", metavar="IN...", nargs=-1, required=True, type=_BUNDLE)
def merge(out: Path, paths: Sequence[Path]) -> None:
    """Write the kernels of every bundle IN into one bundle OUT, which may be one of them.

    OUT has no signature, whatever the others have.
    """
    check_output(out, BUNDLE)
    with writing(out):
        kernels = merge_bundles(out, *paths)
    size = human_bytes(out.stat().st_size)
    click.echo(f"{out}: {count(kernels, 'kernel')} of {count(len(paths), 'bundle')}, {size}, not signed")
    if code := len(_open(out).code):
        could = f"{count(code, 'entry')} of it could run code, and will not be used until it is signed"
        click.echo(f"{could}: headstart bundle sign {out} --key NAME", err=True)


def item_fields(item: BundleItem) -> dict[str, str | int]:
    """What `bundle list --json` prints of one kernel."""
    return {
        "key": item.key,
        "name": item.name,
        "target": item.target,
        "toolchain": item.toolchain,
        "request_digest": item.request_digest,
        "bytes": item.entry_size,
        "kind": item.kind,
    }


def _chosen(opened: Bundle, kernels: Sequence[str]) -> list[BundleItem]:
    if not kernels:
        return list(opened)
    chosen: dict[str, BundleItem] = {}
    for kernel in kernels:
        found = [item for item in opened if item.name == kernel or item.key.startswith(kernel)]
        if not found:
            raise UsageError(f"no kernel {kernel!r} in {opened.path}; headstart bundle list shows those that are")
        chosen.update((item.key, item) for item in found)
    return list(chosen.values())


def _signatures(opened: Bundle) -> list[Inspected] | None:
    """What is to be said of each; None: there is no folder for keys, and nothing can be said."""
    trust = trust_of_this_user(lambda text: click.echo(f"headstart: {printable_lines(text)}", err=True))
    return None if trust is None else trust.inspect(opened.index)


def _check_signatures(opened: Bundle, *, quiet: bool) -> None:
    """Say one line of each, unless `quiet`; those that are not over what the bundle holds are a failure."""
    found = _signatures(opened) if opened.signatures else []
    if not opened.signatures:
        lines = ["not signed"]
    elif found is None:
        lines = [f"{count(len(opened.signatures), 'signature')}, by whom cannot be told without a folder for keys"]
    else:
        lines = [f"{each.state.value}: {each.detail}" for each in found]
    for line in () if quiet else lines:
        click.echo(printable_lines(line))
    invalid = [each for each in found or () if each.state is State.INVALID]
    if invalid:
        raise Failure(f"{opened.path}: {invalid[0].detail}; it was altered, or the signature comes from another bundle")


def _require(opened: Bundle, name: str) -> None:
    """Fail unless there is a signature by the key of that name that is right."""
    keyring = Keyring()
    index = opened.index
    if name == LOCAL:
        states = {each.state for each in Trust(keyring).inspect(index) if each.signature.kind == LOCAL}
        if State.TRUSTED not in states:
            raise Failure(f"{opened.path} is not signed by your own runs")
        return
    with using(keyring.folder):
        trusted = {key.name: key for key in keyring.trusted()}
        publics = {key.name: key.public for key in keyring.own()} | {key.name: key.public for key in trusted.values()}
    if name not in publics:
        raise UsageError(f"there is no key {name}; headstart key list shows those that are")
    if name in trusted and trusted[name].has_expired:
        raise Failure(f"{opened.path}: the trust in {name} has expired ({trusted[name].until})")
    if name in trusted and trusted[name].identity:
        found = Trust(keyring).inspect(index)
        ours = [each for each in found if (each.signature.kind, each.signature.signer) == (SIGSTORE, publics[name])]
        if not any(each.state is State.TRUSTED for each in ours):
            why = f": {ours[0].detail}" if ours else ""
            raise Failure(f"{opened.path} is not signed by {name}{why}")
        return
    mine = [each for each in index.signatures if (each.kind, each.signer) == (ED25519, publics[name])]
    if not any(signing.is_by(each, index.version, index.digest) for each in mine):
        raise Failure(f"{opened.path} is not signed by {name}")


def _small(path: Path) -> bytes:
    """A Sigstore bundle's bytes, or enough to see that it is none."""
    with snapshot_of(path) as snapshot:
        return snapshot.read(0, identities.MAX_BYTES)


def _open(path: Path) -> Bundle:
    with reading(path):
        return Bundle.open(path)
