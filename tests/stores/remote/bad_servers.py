"""Servers that fail: they never answer, talk nonsense, or die in the middle of a reply; and one that gives tokens."""

from __future__ import annotations

import base64
import datetime as dt
import http.server
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID


@contextmanager
def serving(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on which each connection is handed to `serve`, in a thread of its own, and closed afterwards."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_now: list[socket.socket] = []

    def one(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            serve(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_now.append(connection)
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in open_now:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        acceptor.join(10)


def never_answering(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def saying(reply: bytes) -> Callable[[socket.socket], None]:
    """Answers whatever it is asked with the same, and hangs up."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(reply)

    return serve


def dying_after(count: int, port: int) -> Callable[[socket.socket], None]:
    """Passes everything on to and from the server at `port`, and hangs up after `count` bytes of its answers."""
    return _passing_on(count, port, lambda connection: connection.shutdown(socket.SHUT_RDWR))


def silent_after(count: int, port: int) -> Callable[[socket.socket], None]:
    """As `dying_after`, but it does not hang up: nothing comes any more, as from a host that has lost its network."""
    return _passing_on(count, port, never_answering)


def _passing_on(count: int, port: int, end: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:

            def upward() -> None:
                with suppress(OSError):
                    while data := connection.recv(65536):
                        server.sendall(data)

            threading.Thread(target=upward, daemon=True).start()
            left = count
            while left > 0 and (data := server.recv(min(left, 65536))):
                connection.sendall(data)
                left -= len(data)
            end(connection)

    return serve


def certificate(folder: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """A certificate that nobody trusts, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, secret


class TokenServer:
    """Gives tokens for a registry to one user, as services of registries do: JWTs (RFC 7519) by a key of its own.

    Attributes:
        settings: for the registry's configuration.
        asked: the Authorization headers of those who asked.
    """

    def __init__(self, folder: Path, user: str, password: str) -> None:
        self._certificate, secret = certificate(folder)
        self._key = serialization.load_pem_private_key(secret.read_bytes(), None)
        self._expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = self.headers.get("Authorization", "")
                outer.asked.append(given)
                is_known = given == outer._expected
                body = outer._token(self.path) if is_known else b"{}"
                self.send_response(200 if is_known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.settings = {
            "realm": f"http://127.0.0.1:{self._server.server_address[1]}/token?from=tests",
            "service": "registry of tests",
            "issuer": "tests",
            "rootcertbundle": str(self._certificate),
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _token(self, path: str) -> bytes:
        asked = parse_qs(urlsplit(path).query)
        kind, name, actions = asked.get("scope", ["::"])[0].split(":")
        now = int(dt.datetime.now(dt.timezone.utc).timestamp())
        claims = {
            "iss": "tests",
            "aud": asked["service"][0],
            "sub": "tester",
            "nbf": now - 60,
            "iat": now,
            "exp": now + 300,
            "jti": os.urandom(8).hex(),
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        der = x509.load_pem_x509_certificate(self._certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        signed = f"{_url64(json.dumps(header).encode())}.{_url64(json.dumps(claims).encode())}"
        assert isinstance(self._key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        token = f"{signed}.{_url64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
        return json.dumps({"token": token, "expires_in": 300}).encode()


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
