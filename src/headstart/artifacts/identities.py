"""Sigstore signatures: by whoever proved an identity to an issuer, which a public log has written down.

    bundle statement ─▶ a file ─▶ sigstore sign, elsewhere and with a network ─▶ FILE.sigstore.json
    bundle sign --sigstore FILE.sigstore.json ─▶ the bundle
    at a start, without a network: signature, certificate, the identity in it, and what both logs promised

A signature counts by one identity and issuer that this user has pinned; that it is somebody's is not enough. All of it
is verified by the package `sigstore`, against the root of trust that it brings, or one that was pinned too.
"""

from __future__ import annotations

import base64
import logging
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from headstart.artifacts.signing import SIGSTORE, Signature, message
from headstart.errors import DamagedError, ServiceError

MAX_BYTES = 32 * 2**10  # of a Sigstore bundle, which is about 6,000

_ISSUER = "1.3.6.1.4.1.57264.1.1"  # in a certificate: who vouches for the identity


def identity_id(identity: str, issuer: str) -> bytes:
    """What stands for an identity where a public key stands for others."""
    return sha256(f"sigstore\n{issuer}\n{identity}".encode()).digest()


def signature_of(path: Path, data: bytes, version: int, digest: bytes) -> Signature:
    """The signature that a Sigstore bundle holds, to be put into the bundle whose index has that SHA-256.

    Args:
        path: where `data` comes from.

    Raises:
        DamagedError: it is no Sigstore bundle, or one over something else.
        ServiceError: the package that this takes is not there.
    """
    import json

    models = _package().models
    from cryptography import x509

    try:
        certificate = models.Bundle.from_json(data).signing_certificate
        signed = base64.b64decode(json.loads(data)["messageSignature"]["messageDigest"]["digest"])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found: list[str] = names.get_values_for_type(x509.RFC822Name)
        found += names.get_values_for_type(x509.UniformResourceIdentifier)
        (identity,) = found
        issuer = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(_ISSUER)).value.value.decode()
    except Exception as error:
        raise DamagedError(path, f"this is no Sigstore bundle with an identity ({type(error).__name__})") from error
    if signed != sha256(message(SIGSTORE, version, digest)).digest():
        raise DamagedError(path, "this is a signature over something else: sign what headstart bundle statement writes")
    return Signature(SIGSTORE, identity_id(identity, issuer), data)


def why_not(signature: Signature, version: int, digest: bytes, identity: str, issuer: str, root: Path | None) -> str:
    """Why this is no signature by that identity over the index with that SHA-256; empty if it is one.

    Args:
        root: a trusted root of Sigstore's; None: that of its public service, as the package brings it.

    Raises:
        ServiceError: the package that this takes is not there.
    """
    package = _package()
    try:
        signed = message(SIGSTORE, version, digest, signature.relies_on)
        verifier = package.verify.Verifier
        by = (
            verifier.production(offline=True)
            if root is None
            else verifier(trusted_root=package.models.TrustedRoot.from_file(str(root)))
        )
        pinned = package.verify.policy.Identity(identity=identity, issuer=issuer)
        by.verify_artifact(signed, package.models.Bundle.from_json(signature.value), pinned)
    except Exception as error:  # noqa: BLE001 - whatever it says and however: it was not verified
        return str(error) or type(error).__name__
    return ""


def check_root(path: Path) -> None:
    """Find out whether a file is a trusted root of Sigstore's.

    Raises:
        DamagedError: it is not.
        ServiceError: the package that this takes is not there.
    """
    models = _package().models
    try:
        models.TrustedRoot.from_file(str(path))
    except Exception as error:
        raise DamagedError(path, f"this is no trusted root of Sigstore's ({type(error).__name__})") from error


def _package() -> Any:
    try:
        import sigstore.models
        import sigstore.verify
    except ImportError as error:
        raise ServiceError(
            f"Sigstore signatures need the package sigstore, which is missing here ({error}): "
            "pip install 'headstart[sigstore]'"
        ) from None
    with suppress(AttributeError):
        # That there is no network is what was asked for.
        logging.getLogger("sigstore._internal.tuf").setLevel(logging.ERROR)
    return sigstore
