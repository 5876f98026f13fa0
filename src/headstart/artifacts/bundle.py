"""Many entries in one file that can be moved between machines.

Layout:

    bytes  what
    8      magic: 89 "HSB" 0D 0A 1A 0A
    …      entries back to back: each as `entry.py` packs it, or one frame of zstd (RFC 8878) that holds that
    …      index, signatures and footer, as `index.py` has it

Guarantees:

A bundle is written forwards and gets its name last, by rename: it is there whole or not at all, and an older
bundle of that name stays until then.

Opening reads the footer, the index and the signatures, and verifies their checksums. The bytes of an entry must be
those that the index has the SHA-256 of, and what they hold is verified as `entry.py` says, and must be what the index
names: so nobody gets another kernel than the one asked for.

Another bundle may take the name of one that is open. Kernels are then looked for in that one. An entry that carries
code is not: it is what the index says that was read at opening, which may have been signed, or it is an error.

Entries of one name have much in common. The first of a name is the dictionary of the others (raw content): to read one,
at most that one is unpacked besides. Nothing unpacks to more bytes than the index says, nor than `packing.MAX_BYTES`.

Nothing is executed or unpickled. Names in a bundle are not trusted: `extract` writes below its folder only. Signatures
are kept and not judged: see `trust.py`.

This code assumes that:

- a bundle fits a disk twice for a moment: the old one and the new one;

- a writer belongs to one thread. If its process is killed, a hidden `.….tmp` file stays beside the bundle.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

from headstart.artifacts import packing
from headstart.artifacts.container import InMemory, Snapshot, snapshot_of
from headstart.artifacts.entry import Entry
from headstart.artifacts.extracting import extract_entry
from headstart.artifacts.index import MAGIC, VERSION, BundleItem, Index, encode_items, ending, read_index
from headstart.artifacts.kinds import carries_code
from headstart.artifacts.signing import Signature
from headstart.errors import DamagedError
from headstart.system.files import BUNDLE, Replacement

_MAX_DICTIONARIES = 64 * 2**20  # bytes that a writer keeps of entries that are dictionaries
_KEPT = 16  # dictionaries and entries that a reader keeps unpacked

__all__ = ["Bundle", "BundleItem", "BundleWriter", "merge_bundles"]

Signer = Callable[[int, bytes], Sequence[Signature]]  # given the format version and the index's SHA-256


class BundleWriter:
    """Writes a bundle; as a context manager it commits at the end, or aborts after an exception.

    Args:
        path: the bundle. Missing folders are made; a bundle that exists is replaced once this one is complete.
        sign: makes its signatures, when it is committed; without it there is none.

    Raises:
        UsageError: here and in `commit`: another file than a bundle has that name.
        OSError: here and in every method: the bundle cannot be written. Then it can only be aborted.
    """

    def __init__(self, path: str | os.PathLike[str], sign: Signer | None = None) -> None:
        self.path = Path(path).resolve()
        self._sign = sign
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._items: dict[str, BundleItem] = {}
        self._dictionaries: dict[tuple[str, str], tuple[str, Any]] = {}  # by kind and name: key, and the entry
        self._room = _MAX_DICTIONARIES
        self._replacement = Replacement(self.path, BUNDLE)
        self._file = self._replacement.file
        self._end = self._file.write(MAGIC)

    def add(self, entry: Entry) -> bool:
        """Copy an entry, artifacts unverified; False if its key is there already.

        Raises:
            DamagedError: the entry is truncated or gone. The bundle is as it was before.
        """
        if entry.key in self._items:
            return False
        data = entry.raw()
        alike = entry.header.kind, entry.name
        key, dictionary = self._dictionaries.get(alike, ("", None))
        if not key and len(data) <= self._room:
            self._dictionaries[alike] = entry.key, packing.dictionary_of(data)
            self._room -= len(data)
        packed = packing.pack(data, dictionary)
        size = len(data)
        if len(packed) >= len(data):
            packed, size, key = data, 0, ""
        self._file.write(packed)
        digest = sha256(packed).digest()
        self._items[entry.key] = BundleItem.of(entry.header, self._end, len(packed), size, key, digest)
        self._end += len(packed)
        return True

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)

    def commit(self) -> Path:
        """Complete the bundle and give it its name.

        Raises:
            ValueError: it was committed or aborted before, or its index would exceed `MAX_INDEX_BYTES`.
        """
        try:
            index = encode_items(self._items.values())
            digest = sha256(index).digest()
            self._file.write(index)
            signatures = [] if self._sign is None else self._sign(VERSION, digest)
            self._file.write(ending(self._end, len(index), digest, signatures))
            self._replacement.commit()
        except BaseException:
            self.abort()
            raise
        return self.path

    def abort(self) -> None:
        """Remove what was written so far; does nothing after `commit`."""
        self._replacement.abort()

    def __enter__(self) -> BundleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and not self._file.closed:
            self.commit()
        else:
            self.abort()


class Bundle:
    """A complete bundle, to read from; iterating yields its `BundleItem`s. Holds no file descriptor.

    Attributes:
        path: absolute.
        index: what its end said when it was opened.
    """

    def __init__(self, path: Path, index: Index) -> None:
        """Use `open`."""
        self.path = path
        self.index = index
        self._items = index.items
        # The latest last. Several threads may read at once: what one of them drops another has in its hands.
        self._unpacked: dict[str, bytes] = {}
        self._dictionaries: dict[bytes, Any] = {}  # by SHA-256 of what lies there

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the footer and the index.

        Raises:
            DamagedError: it is not a whole bundle; `FutureVersionError` if a newer headstart wrote it.
            OSError: the file cannot be read.
        """
        file = Path(path).absolute()
        with snapshot_of(file) as snapshot:
            return cls(file, read_index(file, snapshot))

    @property
    def signatures(self) -> tuple[Signature, ...]:
        """Whoever they are by, and whether they are right or not; see `headstart.artifacts.trust`."""
        return self.index.signatures

    @functools.cached_property
    def code(self) -> tuple[BundleItem, ...]:
        """The entries that are loaded only if the bundle is trusted."""
        return tuple(item for item in self if carries_code(item.kind))

    @property
    def toolchains(self) -> set[str]:
        """Digests of the toolchains that compiled these kernels."""
        return {item.toolchain for item in self}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[BundleItem]:
        return iter(self._items.values())

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def item(self, key: str) -> BundleItem:
        """The line of the index for a key.

        Raises:
            KeyError: there is none.
        """
        return self._items[key]

    def entry(self, key: str) -> Entry:
        """Open one entry.

        Raises:
            KeyError: there is none with this key.
            DamagedError: there is no whole entry where the index says, or it is another one.
            OSError: the file cannot be read.
        """
        item = self._items[key]
        if item.sha256:
            entry = Entry.of(self.path, lambda: self._unpacking(key))
        else:
            entry = Entry.open(
                self.path,
                offset=item.offset,
                length=item.length,
                locate=lambda snapshot: self._locate(item, snapshot),
            )
        if BundleItem.of(entry.header, item.offset, item.length, item.size, item.dictionary, item.sha256) != item:
            raise DamagedError(self.path, f"{entry!r} lies where the index says {item.name} ({key[:12]})")
        return entry

    def verify(self) -> list[DamagedError]:
        """Read and verify everything; one error per damaged kernel.

        Raises:
            OSError: the file cannot be read.
        """
        return [problem for key in self._items if (problem := self._problem(key)) is not None]

    def extract(self, folder: str | os.PathLike[str], keys: Iterable[str] | None = None) -> list[Path]:
        """Write artifacts and metadata as files: a folder `NAME-KEY` per kernel, in it `NAME.cubin` and so on.

        Args:
            folder: made if need be; a file in it that is another one stays, and is an error.
            keys: which kernels; all by default.

        Returns:
            The kernels' folders. Characters that could lead out of them are percent-encoded.

        Raises:
            KeyError: there is no kernel with one of the keys.
            DamagedError: a kernel is damaged; those before it are written.
            OSError: a file cannot be written.
        """
        wanted = self._items if keys is None else keys
        return [extract_entry(self.entry(key), Path(folder)) for key in wanted]

    def _locate(self, wanted: BundleItem, snapshot: Snapshot) -> tuple[int, int]:
        item = read_index(self.path, snapshot).items.get(wanted.key)
        if item is None:
            raise _gone(self.path, wanted)
        return item.offset, item.length

    @contextmanager
    def _unpacking(self, key: str) -> Iterator[Snapshot]:
        """The bytes of an entry that is packed: those that were unpacked last are kept."""
        data = self._unpacked.get(key)
        if data is None:
            with snapshot_of(self.path) as snapshot:
                data = self._unpack(self._items, key, snapshot)
                # Another bundle may have its name by now, which nobody has looked for signatures in.
                if data is None and not carries_code(self._items[key].kind):
                    items = read_index(self.path, snapshot).items
                    if key not in items:
                        raise _gone(self.path, self._items[key])
                    data = self._unpack(items, key, snapshot)
            if data is None:
                raise DamagedError(self.path, f"{self._items[key].name} ({key[:12]}) is not what the index says")
            _keep(self._unpacked, key, data)
        yield InMemory(data)

    def _unpack(self, items: dict[str, BundleItem], key: str, snapshot: Snapshot) -> bytes | None:
        """The entry of a key as it is packed where `items` say; None if nothing of the kind lies there."""
        item = items.get(key)
        packed = None if item is None else _packed(item, snapshot)
        if item is None or packed is None or not item.size:
            return packed
        dictionary = None
        if item.dictionary:
            first = items.get(item.dictionary)
            if first is None or first.dictionary:  # a dictionary has none itself, so that no chain has to be followed
                return None
            # By its bytes, not its key: another bundle that has the name now may have others.
            dictionary = self._dictionaries.get(first.sha256)
            if dictionary is None:
                data = self._unpack(items, item.dictionary, snapshot)
                if data is None:
                    return None
                dictionary = packing.dictionary_of(data)
                _keep(self._dictionaries, first.sha256, dictionary)
        return packing.unpack(packed, item.size, dictionary)

    def _problem(self, key: str) -> DamagedError | None:
        try:
            self.entry(key).verify()
        except DamagedError as problem:
            return problem
        return None


def merge_bundles(out: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> int:
    """Write the kernels of all `inputs` into one bundle, of those with the same key the first. It has no signature.

    `out` may be one of the inputs. Returns how many kernels it holds now.

    Raises:
        DamagedError: an input is damaged; `out` is as it was before.
        OSError: a file cannot be read or written.
    """
    with BundleWriter(out) as writer:
        for path in inputs:
            bundle = Bundle.open(path)
            for item in bundle:
                if item.key not in writer:
                    writer.add(bundle.entry(item.key))
    return len(writer)


def _gone(path: Path, item: BundleItem) -> DamagedError:
    return DamagedError(path, f"replaced while in use by a bundle without {item.name}")


def _packed(item: BundleItem, snapshot: Snapshot) -> bytes | None:
    data = snapshot.read(item.offset, item.length)
    return data if sha256(data).digest() == item.sha256 else None


def _keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    kept[key] = value
    for old in list(kept)[:-_KEPT]:
        kept.pop(old, None)
