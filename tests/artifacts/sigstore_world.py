"""A Sigstore of one's own, with no network: a certificate authority, its log, and the log of signatures.

What it makes is what Fulcio, the CT log and Rekor (version 1) make, and is verified by the `sigstore` library with the
root of trust that `SigstoreWorld.root` is.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import struct
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

_SCTS = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_ISSUER = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_ISSUER_OF_BEFORE = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ECDSA = ec.ECDSA(hashes.SHA256())
_ORIGIN = "log.example - 1"
_NOW = dt.datetime(2026, 6, 1, 12, tzinfo=dt.timezone.utc)
_LATER = dt.timedelta(minutes=10)


class SigstoreWorld:
    """One root of trust, and whoever signs under it."""

    def __init__(self) -> None:
        self._authority, self._ct, self._log = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "example")])
        self._certificate = (
            x509.CertificateBuilder(name, name, self._authority.public_key(), x509.random_serial_number())
            .not_valid_before(_NOW - dt.timedelta(days=365))
            .not_valid_after(_NOW + dt.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._authority.public_key()), critical=False)
            .sign(self._authority, hashes.SHA256())
        )

    @property
    def root(self) -> str:
        """`trusted_root.json`."""
        start = {"start": _time(_NOW - dt.timedelta(days=365))}

        def log(url: str, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            return {
                "baseUrl": url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": _base64(_der(key)),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": start,
                },
                "logId": {"keyId": _base64(sha256(_der(key)).digest())},
            }

        authority = {
            "subject": {"organization": "example", "commonName": "example"},
            "uri": "https://authority.example",
            "certChain": {"certificates": [{"rawBytes": _base64(self._certificate.public_bytes(Encoding.DER))}]},
            "validFor": start,
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log("https://log.example", self._log)],
                "certificateAuthorities": [authority],
                "ctlogs": [log("https://ct.example", self._ct)],
            }
        )

    def sign(self, data: bytes, identity: str, issuer: str) -> bytes:
        """A Sigstore bundle (JSON) for `data`, by whom the authority believes to be `identity`."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certify(key, identity, issuer)
        signature = key.sign(data, _ECDSA)
        pem = _base64(certificate.public_bytes(Encoding.PEM))
        body = {
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": sha256(data).hexdigest()}},
                "signature": {"content": _base64(signature), "publicKey": {"content": pem}},
            },
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
                "verificationMaterial": {
                    "certificate": {"rawBytes": _base64(certificate.public_bytes(Encoding.DER))},
                    "tlogEntries": [self._entry(_canonical(body))],
                },
                "messageSignature": {
                    "messageDigest": {"algorithm": "SHA2_256", "digest": _base64(sha256(data).digest())},
                    "signature": _base64(signature),
                },
            }
        ).encode()

    def _certify(self, key: ec.EllipticCurvePrivateKey, identity: str, issuer: str) -> x509.Certificate:
        name = x509.UniformResourceIdentifier(identity) if "://" in identity else x509.RFC822Name(identity)
        authority = self._authority.public_key()
        builder = (
            x509.CertificateBuilder(
                self._certificate.subject, x509.Name([]), key.public_key(), x509.random_serial_number()
            )
            .not_valid_before(_NOW)
            .not_valid_after(_NOW + _LATER)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_OF_BEFORE, issuer.encode()), critical=False)
            .add_extension(x509.UnrecognizedExtension(_ISSUER, _utf8(issuer)), critical=False)
        )
        # The log signs what the certificate will be without the log's own signature in it.
        unlogged = builder.sign(self._authority, hashes.SHA256()).tbs_certificate_bytes
        issuer_id = sha256(_der(self._authority)).digest()
        entry = issuer_id + len(unlogged).to_bytes(3, "big") + unlogged
        milliseconds = int(_NOW.timestamp() * 1000)
        signed = struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + struct.pack("!H", 0)
        signature = self._ct.sign(signed, _ECDSA)
        timestamp = struct.pack("!B32sQH", 0, sha256(_der(self._ct)).digest(), milliseconds, 0)
        timestamp += struct.pack("!BBH", 4, 3, len(signature)) + signature  # SHA-256, ECDSA
        listed = struct.pack("!H", len(timestamp)) + timestamp
        listed = struct.pack("!H", len(listed)) + listed
        octets = b"\x04" + _length(len(listed)) + listed
        return builder.add_extension(x509.UnrecognizedExtension(_SCTS, octets), critical=False).sign(
            self._authority, hashes.SHA256()
        )

    def _entry(self, body: bytes) -> dict[str, Any]:
        """The only one of a log."""
        log_id = sha256(_der(self._log)).digest()
        leaf = sha256(b"\0" + body).digest()
        seconds = int((_NOW + _LATER / 2).timestamp())
        note = f"{_ORIGIN}\n1\n{_base64(leaf)}\n"
        signed_note = _base64(log_id[:4] + self._log.sign(note.encode(), _ECDSA))
        promise = {"body": _base64(body), "integratedTime": seconds, "logID": log_id.hex(), "logIndex": 0}
        return {
            "logIndex": "0",
            "logId": {"keyId": _base64(log_id)},
            "kindVersion": {"kind": "hashedrekord", "version": "0.0.1"},
            "integratedTime": str(seconds),
            "inclusionPromise": {"signedEntryTimestamp": _base64(self._log.sign(_canonical(promise), _ECDSA))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": _base64(leaf),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n\u2014 log.example {signed_note}\n"},
            },
            "canonicalizedBody": _base64(body),
        }


def _usage(**granted: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: granted.get(name, False) for name in names})


def _der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _time(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _utf8(text: str) -> bytes:
    data = text.encode()
    return b"\x0c" + _length(len(data)) + data


def _length(size: int) -> bytes:
    """In DER."""
    return bytes([size]) if size < 128 else bytes([0x81, size]) if size < 256 else b"\x82" + size.to_bytes(2, "big")
