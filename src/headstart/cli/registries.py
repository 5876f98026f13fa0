"""`headstart bundle push` and `pull`: bundles in OCI registries."""

from __future__ import annotations

from pathlib import Path

import click

from headstart.cli import OutputFile, check_output, human_bytes, reading, using
from headstart.cli.transfer import transferring
from headstart.system.files import BUNDLE

_BUNDLE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(short_help="Put BUNDLE into a container registry.")
@click.argument("path", metavar="BUNDLE", type=_BUNDLE)
@click.argument("url", metavar="oci://HOST/REPOSITORY[:TAG]")
def push(path: Path, url: str) -> None:
    """Put BUNDLE into a container registry, as an artifact of its own kind. Without a TAG it is `latest`.

    Prints its name by digest, with which nothing else can be pulled. Who may push there is as for docker push.
    """
    from headstart.artifacts.bundle import Bundle
    from headstart.stores.remote.oci_bundles import push_bundle  # other commands start faster without

    with reading(path):
        Bundle.open(path)  # what goes wrong after that is the registry's
    pushed = push_bundle(path, url)
    click.echo(f"{path}: pushed, {human_bytes(pushed.size)}", err=True)
    click.echo(pushed.name)


@click.command(short_help="Get a bundle from a container registry.")
@click.argument("url", metavar="oci://HOST/REPOSITORY[:TAG][@sha256:DIGEST]")
@click.option("-o", "--output", type=OutputFile(), required=True, metavar="FILE", help="Where it goes.")
@click.option("-q", "--quiet", is_flag=True, help="Do not show how far it is.")
def pull(url: str, output: Path, quiet: bool) -> None:
    """Get a bundle from a container registry into FILE, which is replaced if it is a bundle, and only then.

    What comes is compared with its digest. By whom it is signed headstart bundle verify says.
    """
    from headstart.stores.remote.oci_bundles import pull_bundle, shown

    check_output(output, BUNDLE)
    with using(output), transferring(f"pulling {shown(url)}", quiet=quiet) as tell:
        pulled = pull_bundle(url, output, tell)
    click.echo(f"{output}: {human_bytes(pulled.size)}, from {pulled.name}")
