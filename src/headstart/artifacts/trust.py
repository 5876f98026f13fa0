"""Whose signatures count: what of a bundle may be loaded that carries code.

    judge(index)     is it trusted, by whom, or why not: for whoever loads entries
    inspect(index)   what became of each signature: for people

A bundle is trusted if one of its signatures is right and by this user's local key, or by a key that they trust and
whose time has not passed. Whatever else is wrong with a bundle's signatures does not matter then; whatever cannot be
checked does not count. Nothing here raises because of what a bundle or a key file says.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from headstart.artifacts import identities, signing
from headstart.artifacts.keyring import Keyring, TrustedKey
from headstart.artifacts.kinds import Verdict
from headstart.artifacts.signing import ED25519, LOCAL, SIGSTORE, Signature
from headstart.errors import DamagedError, ServiceError, UsageError

BY_LOCAL = "this user's own runs"

# In which order signatures are looked at, what has to be loaded for them being what they cost.
_COSTS = {LOCAL: 0, ED25519: 1, SIGSTORE: 2}


class State(enum.Enum):
    """What became of one signature."""

    TRUSTED = "trusted"
    EXPIRED = "expired"
    UNKNOWN = "unknown"  # right, but by a key that is not trusted; or it cannot be told
    INVALID = "invalid"  # not by that key over this index


class Signed(Protocol):
    """What signatures are over: a bundle's index, say."""

    @property
    def version(self) -> int:
        """Of its format."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of it."""

    @property
    def signatures(self) -> Sequence[Signature]:
        """Those that lie with it."""


class Inspected(NamedTuple):
    """One signature, looked at.

    Attributes:
        signature: as it lies in the bundle.
        state: whether it counts.
        who: whose it is, for people.
        detail: the same with the reason, as a sentence without its full stop.
    """

    signature: Signature
    state: State
    who: str
    detail: str


class Trust:
    """What one user trusts, as it is now: key files are read once.

    Args:
        keyring: their keys.
        problem: told of each file of theirs that is left out, and why.
    """

    def __init__(self, keyring: Keyring, problem: Callable[[str], None] = lambda text: None) -> None:
        self._why_none = ""
        self._local: bytes | None = None
        self._keys: dict[tuple[str, bytes], TrustedKey] = {}
        try:
            self._keys = {(key.kind, key.public): key for key in keyring.trusted(problem)}
        except (DamagedError, OSError) as error:
            self._why_none = str(error)
        self._by_id = {signing.key_id(key.public): key for key in self._keys.values()}
        if self._why_none:
            return
        try:
            self._local = keyring.local()
        except (DamagedError, OSError) as error:
            problem(f"the local key is left out: {error}")

    def judge(self, index: Signed) -> Verdict:
        """Whether a bundle with this index is trusted. Only signatures that could make it so are looked at."""
        if not index.signatures:
            return Verdict(False, why_not="it is not signed")
        if self._why_none:
            return Verdict(False, why_not=self._why_none)
        why_not = []
        for signature in sorted(index.signatures, key=lambda each: _COSTS.get(each.kind, 0)):
            inspected = self._inspect(signature, index, judging=True)
            if inspected.state is State.TRUSTED:
                own = () if signature.kind == LOCAL else (signing.key_id(signature.signer),)
                return Verdict(True, inspected.who, "", (*own, *signature.relies_on))
            why_not.append(inspected.detail)
        return Verdict(False, why_not="; ".join(why_not))

    def inspect(self, index: Signed) -> list[Inspected]:
        """What became of each signature."""
        return [self._inspect(signature, index) for signature in index.signatures]

    def _inspect(self, signature: Signature, index: Signed, *, judging: bool = False) -> Inspected:
        if signature.kind == LOCAL:
            state, who, detail = self._inspect_local(signature, index)
        elif signature.kind in (ED25519, SIGSTORE):
            state, who, detail = self._inspect_other(signature, index, judging)
        else:
            who = f"a signer of kind {signature.kind!r}"
            state, detail = State.UNKNOWN, f"it is signed by {who}, which this headstart does not know"
        return Inspected(signature, state, who, detail)

    def _inspect_local(self, signature: Signature, index: Signed) -> tuple[State, str, str]:
        if self._local is None or signature.signer != signing.local_id(self._local):
            who = "runs of another user, or on another machine"
            return State.UNKNOWN, who, f"it is signed by {who}"
        if not signing.is_by_local(signature, self._local, index.version, index.digest):
            return State.INVALID, BY_LOCAL, f"its signature by {BY_LOCAL} is not over what it holds"
        for each in signature.relies_on:
            key = self._by_id.get(each)
            if key is None or key.has_expired:
                whose = "a key that is trusted no longer" if key is None else f"{key.name}, whose trust has expired"
                detail = f"it is signed by {BY_LOCAL}, on the word of {whose}"
                return (State.UNKNOWN if key is None else State.EXPIRED), BY_LOCAL, detail
        return State.TRUSTED, BY_LOCAL, f"it is signed by {BY_LOCAL}"

    def _inspect_other(self, signature: Signature, index: Signed, judging: bool) -> tuple[State, str, str]:
        key = self._keys.get((signature.kind, signature.signer))
        what = "identity" if signature.kind == SIGSTORE else "key"
        who = f"the unknown {what} {signing.fingerprint(signature.signer)}" if key is None else key.name
        detail = f"it is signed by {who}"
        if key is None:
            detail += f", which calls itself {signature.name}" if signature.name else ""
            if judging or signature.kind == SIGSTORE:  # nobody could say by which root that is to be verified
                return State.UNKNOWN, who, detail
        try:
            wrong = _what_is_wrong(signature, index, key)
        except ServiceError as error:
            return State.UNKNOWN, who, f"{detail}, which cannot be checked: {error}"
        if wrong:
            return State.INVALID, who, f"its signature by {who} is not over what it holds{wrong}".rstrip()
        if key is None:
            return State.UNKNOWN, who, detail
        if key.has_expired:
            return State.EXPIRED, who, f"it is signed by {who}, whose trust has expired (until {key.until})"
        return State.TRUSTED, who, detail


def _what_is_wrong(signature: Signature, index: Signed, key: TrustedKey | None) -> str:
    """Empty if it is right; else a space, or what there is to add.

    Raises:
        ServiceError: the package that this takes is not there.
    """
    if key is None or not key.identity:
        return "" if signing.is_by(signature, index.version, index.digest) else " "
    why = identities.why_not(signature, index.version, index.digest, key.identity, key.issuer, key.root)
    return f", or not by {key.identity} ({why})" if why else ""


def trust_of_this_user(problem: Callable[[str], None] = lambda text: None) -> Trust | None:
    """What the user of this process trusts; None if they can have no keys, of which `problem` is told."""
    try:
        return Trust(Keyring(), problem)
    except (UsageError, ServiceError) as error:
        problem(str(error))
        return None
