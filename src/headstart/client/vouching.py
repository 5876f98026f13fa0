"""What this process makes of signatures: whose bundles it takes code from, and what it signs itself.

What looks at keys is imported when there is code in a bundle, or one is written: many starts need neither.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from headstart.artifacts.bundle import Bundle, BundleItem
from headstart.artifacts.kinds import GRAPHS, LAUNCHER, Verdict
from headstart.artifacts.signing import MAX_RELIED_ON, Signature, sign_locally
from headstart.errors import DamagedError, ServiceError, UsageError

_REMEDY = (
    "If you know where it comes from, `headstart key trust FILE.pub` with its maker's key, "
    "or for once `headstart run --trust` (trust_bundle=True)"
)

_log = logging.getLogger("headstart")
_said: set[str] = set()


class Source(NamedTuple):
    """A bundle that was read.

    Attributes:
        bundle: itself.
        verdict: what its signatures say.
        at_own_risk: whether the user wants what carries code from it whatever they say.
    """

    bundle: Bundle
    verdict: Verdict
    at_own_risk: bool = False

    @property
    def gives_code(self) -> bool:
        """Whether what carries code may be loaded from it."""
        return self.verdict.trusted or self.at_own_risk

    @property
    def is_a_risk(self) -> bool:
        """Whether code may be loaded from it that nobody whom this user trusts has signed."""
        return self.at_own_risk and not self.verdict.trusted and bool(self.bundle.code)


def judge(bundle: Bundle, *, at_own_risk: bool = False) -> Source:
    """Find out whether this user trusts a bundle that was just opened, if there is code in it."""
    if not bundle.code:
        return Source(bundle, Verdict(False), at_own_risk)
    from headstart.artifacts.trust import trust_of_this_user

    trust = trust_of_this_user(_say_once)
    if trust is None:
        return Source(bundle, Verdict(False, why_not="there is no folder for this user's keys"), at_own_risk)
    return Source(bundle, trust.judge(bundle.index), at_own_risk)


def say_held_back(source: Source) -> None:
    """That what carries code in this bundle is not used, and why; once for each bundle."""
    _say_once(
        f"{source.bundle.path}: {_counted(source.bundle.code)} are held back, because "
        f"{source.verdict.why_not}. Its kernels are used. {_REMEDY}"
    )


def say_left_out(path: Path, source: Source, left_out: Sequence[BundleItem]) -> None:
    """That what carries code in this bundle was not copied to `path`."""
    whose = "" if source.bundle.path == path else f" of {source.bundle.path}"
    _say_once(
        f"{path}: {_counted(left_out)}{whose} are left out as it was written anew, because {source.verdict.why_not}"
    )


def sign(path: Path, relies_on: Collection[bytes], version: int, digest: bytes) -> Sequence[Signature]:
    """The local key's signature for a bundle that this process writes; none if there can be no such key.

    Args:
        path: of the bundle.
        relies_on: see `Signature`.
        version, digest: of the bundle's index.
    """
    from headstart.artifacts.keyring import Keyring

    try:
        secret = Keyring().local(make=True)
    except (UsageError, ServiceError, DamagedError, OSError) as error:
        _log.info("%s is written without a signature: %s", path, error)
        return []
    if secret is None or len(relies_on) > MAX_RELIED_ON:
        _log.info("%s is written without a signature: code in it is by %d keys", path, len(relies_on))
        return []
    return [sign_locally(secret, version, digest, tuple(relies_on))]


def _counted(items: Sequence[BundleItem]) -> str:
    """`"entries that could run code (1 graphs, 12 launcher)"`."""
    # What is called otherwise may be called anything, and this is for a terminal.
    kinds = Counter(each.kind if each.kind in (GRAPHS, LAUNCHER) else "unknown" for each in items)
    return f"entries that could run code ({', '.join(f'{number} {kind}' for kind, number in sorted(kinds.items()))})"


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        _log.warning("%s", text)
