"""Not timed: three bundles of as many kernels as asked for, unsigned, signed by the local key, and by an Ed25519 key.

The first has kernels only: what is looked at there is what was looked at before there were signatures.
"""

import sys
from pathlib import Path

from benchmarks.subjects.common import report
from headstart.artifacts.bundle import BundleWriter
from headstart.artifacts.entry import Entry, pack_entry
from headstart.artifacts.keyring import Keyring
from headstart.artifacts.signing import sign, sign_locally

number, folder = int(sys.argv[1]), Path(sys.argv[2])


def entry(key: str, kind: str) -> Entry:
    parts = pack_entry(
        key=key,
        kind=kind,
        name=f"triton_poi_fused_add_mul_relu_{key[-4:]}",
        request_digest=key[::-1],
        toolchain="ab" * 32,
        target="cuda:90",
        components=[],
        metadata={},
        artifacts={"cubin": bytes.fromhex(key)},
        compile_wall_s=0.5,
        compile_cpu_s=0.5,
        triton_version="3.9.0",
        request=b"",
        output="",
    )
    return Entry.from_bytes(b"".join(parts))


keyring = Keyring()
keyring.trust(keyring.new("release"))
local, release = keyring.local(make=True), keyring.secret("release")
signers = {
    "unsigned": None,
    "local": lambda version, digest: [sign_locally(local, version, digest)],
    "ed25519": lambda version, digest: [sign(release, "release", version, digest)],
}
for name, signer in signers.items():
    with BundleWriter(folder / f"{name}.bundle", signer) as writer:
        for each in range(number):
            writer.add(entry(f"{each:064x}", "kernel"))
        if signer is not None:
            writer.add(entry(f"{number:064x}", "graphs"))
report(kernels=number)
