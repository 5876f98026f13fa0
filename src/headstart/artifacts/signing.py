"""Signatures over a bundle's index: who made it, or looked at it, says that these entries are what they were.

    kind      by whom                                          with what
    local     this user's own runs, where their key file is    HMAC-SHA256, standard library
    ed25519   whoever has the private key                      Ed25519 (RFC 8032), the package `cryptography`
    sigstore  whoever proved an identity to an issuer          see `identities.py`, the package `sigstore`

What is signed (`message`): which kind of signature this is, the bundle's format version, the SHA-256 of its index, and
the keys that the signature relies on. The index has each entry's key, kind, place, length and SHA-256, in order: so an
entry that is altered, moved, added, left out or called something else makes another index.

Not signed: the name that a signer gives itself, which nobody should believe, and other signatures.

A signature proves nothing by itself: `headstart.artifacts.trust` says whose count.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Any

import msgspec

from headstart.errors import ServiceError

LOCAL = "local"
ED25519 = "ed25519"
SIGSTORE = "sigstore"
KEY_BYTES = 32  # of a secret of either kind, and of a public key
MAX_SIGNATURES = 64
MAX_RELIED_ON = 64  # keys, for one signature
MAX_SIGNATURES_BYTES = 64 * 2**10  # of all of them, as they lie in a bundle

_CONTEXT = b"headstart bundle signature 1\n"

NAME = r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,62}"  # of a key

KeyId = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Signature(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One signature, as it lies in a bundle.

    Attributes:
        kind: `LOCAL`, `ED25519` or `SIGSTORE`; others may be invented later, and count for nothing here.
        signer: which key: the public key; of a local one the `local_id`; of an identity what it claims to be, as
            `identities.identity_id` has it.
        value: the signature itself.
        name: what the signer calls the key.
        relies_on: `key_id` of the keys without whose trust this signature is none: entries in the bundle came from
            bundles that they had signed.
    """

    kind: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,32}\Z")]
    signer: Annotated[bytes, msgspec.Meta(max_length=256)]
    value: Annotated[bytes, msgspec.Meta(max_length=32 * 2**10)]
    name: Annotated[str, msgspec.Meta(pattern=rf"^({NAME})?\Z")] = ""
    relies_on: Annotated[tuple[KeyId, ...], msgspec.Meta(max_length=MAX_RELIED_ON)] = ()


_encoder = msgspec.msgpack.Encoder()
decoder = msgspec.msgpack.Decoder(Annotated[list[Signature], msgspec.Meta(max_length=MAX_SIGNATURES)])


def encode(signatures: Sequence[Signature]) -> bytes:
    """The block of a bundle that holds them; empty if there are none.

    Raises:
        ValueError: there are more than a bundle may have, or one of them could not be read back.
    """
    data = _encoder.encode(list(signatures)) if signatures else b""
    if len(signatures) > MAX_SIGNATURES or len(data) > MAX_SIGNATURES_BYTES:
        raise ValueError(f"{len(signatures)} signatures are too many for one bundle")
    if data:
        decoder.decode(data)  # what is wrong with them is a ValueError
    return data


def message(kind: str, version: int, digest: bytes, relies_on: Sequence[bytes] = ()) -> bytes:
    """What is signed; see above."""
    parts = [kind.encode(), str(version).encode(), digest, *relies_on]
    return _CONTEXT + b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def key_id(public: bytes) -> bytes:
    """What stands for a public key in `relies_on`."""
    return sha256(public).digest()


def local_id(secret: bytes) -> bytes:
    """Names a local key, and tells nothing about it."""
    return sha256(b"headstart local key\n" + secret).digest()


def fingerprint(signer: bytes) -> str:
    """A key for people: enough of it that nobody makes another one of that name."""
    import base64  # for people only

    return base64.b32encode(key_id(signer)).decode()[:24].lower()


def sign_locally(secret: bytes, version: int, digest: bytes, relies_on: Sequence[bytes] = ()) -> Signature:
    """The signature of this user's own run over the index with that SHA-256."""
    relied = tuple(sorted(set(relies_on)))
    value = _mac(secret, version, digest, relied)
    return Signature(LOCAL, local_id(secret), value, LOCAL, relied)


def is_by_local(signature: Signature, secret: bytes, version: int, digest: bytes) -> bool:
    """Whether it is what `sign_locally` would have made."""
    return hmac.compare_digest(_mac(secret, version, digest, signature.relies_on), signature.value)


def _mac(secret: bytes, version: int, digest: bytes, relies_on: Sequence[bytes]) -> bytes:
    return hmac.digest(secret, message(LOCAL, version, digest, relies_on), "sha256")


def new_secret() -> bytes:
    """Of either kind."""
    return os.urandom(KEY_BYTES)


def public_of(secret: bytes) -> bytes:
    """The public key of an Ed25519 secret.

    Raises:
        ServiceError: the package that this takes is not there.
    """
    return bytes(_ed25519().Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())


def sign(secret: bytes, name: str, version: int, digest: bytes) -> Signature:
    """An Ed25519 signature over the index with that SHA-256.

    Raises:
        ServiceError: the package that this takes is not there.
    """
    private = _ed25519().Ed25519PrivateKey.from_private_bytes(secret)
    value = private.sign(message(ED25519, version, digest))
    return Signature(ED25519, private.public_key().public_bytes_raw(), value, name)


def is_by(signature: Signature, version: int, digest: bytes) -> bool:
    """Whether an Ed25519 signature is by the key that it names, and over the index with that SHA-256.

    Raises:
        ServiceError: the package that this takes is not there.
    """
    from_public_bytes = _ed25519().Ed25519PublicKey.from_public_bytes
    from cryptography.exceptions import InvalidSignature

    try:
        signed = message(ED25519, version, digest, signature.relies_on)
        from_public_bytes(signature.signer).verify(signature.value, signed)
    except (InvalidSignature, ValueError):  # or the signer is no public key
        return False
    return True


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ServiceError(
            f"Ed25519 keys need the package cryptography, which is missing here ({error}): "
            "pip install 'headstart[sign]'"
        ) from None
    return ed25519
