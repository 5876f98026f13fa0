"""Adding signatures to a bundle that is there.

sign_bundle ─▶ verify everything ─▶ copy entries and index as they are ─▶ signatures, footer ─▶ rename
"""

from __future__ import annotations

import os
from pathlib import Path

from headstart.artifacts.bundle import Bundle, BundleWriter, Signer
from headstart.artifacts.container import snapshot_of
from headstart.artifacts.index import VERSION, ending, read_index
from headstart.errors import DamagedError
from headstart.system.files import BUNDLE, Replacement
from headstart.system.locks import locked

_COPIED = 2**20  # bytes at a time


def sign_bundle(path: str | os.PathLike[str], sign: Signer) -> Bundle:
    """Write a bundle anew with the signatures that `sign` makes, in the place of those by the same keys.

    Everything in it is verified first. One of an earlier format becomes one of now, and its entries are packed anew.

    Returns:
        The bundle, as it was signed.

    Raises:
        DamagedError: it is damaged, and stays as it was.
        ValueError: there would be more signatures than a bundle may have.
        OSError: it cannot be read or written.
    """
    place = Path(os.path.realpath(path))
    with locked(place):
        return _signed(place, sign)


def _signed(path: Path, sign: Signer) -> Bundle:
    bundle = Bundle.open(path)
    if problems := bundle.verify():
        raise problems[0]
    if bundle.index.version != VERSION:
        with BundleWriter(path, sign) as writer:
            for item in bundle:
                writer.add(bundle.entry(item.key))
        return Bundle.open(path)
    index = bundle.index
    made = {(each.kind, each.signer): each for each in (*index.signatures, *sign(index.version, index.digest))}
    replacement = Replacement(path, BUNDLE)
    try:
        with snapshot_of(path) as snapshot:
            end = index.offset + index.length
            for offset in range(0, end, _COPIED):
                replacement.file.write(snapshot.read(offset, min(_COPIED, end - offset)))
            written = read_index(path, snapshot)
        if written != index:
            raise DamagedError(path, "replaced while it was signed; nothing was changed")
        replacement.file.write(ending(index.offset, index.length, index.digest, list(made.values())))
    except BaseException:
        replacement.abort()
        raise
    replacement.commit()
    return Bundle.open(path)
