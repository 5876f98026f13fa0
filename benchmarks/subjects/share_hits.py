"""What is in the store already: from the request to the artifact in the client."""

import os
import sys
import time
from pathlib import Path

import headstart
from benchmarks.subjects.common import BINARY, TARGET, report
from benchmarks.subjects.sharing import shared_service, small
from headstart.artifacts.entry import pack_entry
from headstart.model import keys
from headstart.model.environment import fingerprint
from headstart.model.request import CompileRequest
from headstart.model.toolchain import find_toolchain
from headstart.stores.disk import DiskStore

count = int(sys.argv[1])
folder = Path(os.environ["HEADSTART_CACHE_DIR"])
store, toolchain = DiskStore(folder), find_toolchain().digest({}, folder / "toolchains")
kernels = [small(f"kernel{number}") for number in range(count)]
for kernel in kernels:
    request = CompileRequest.make(
        **kernel,
        constants=None,
        attrs=None,
        options=None,
        target=TARGET,
        filename=None,
        module="",
        environment=fingerprint(),
    )
    key = keys.entry_key(toolchain, request.digest())
    entry = pack_entry(
        key=key,
        name=request.name,
        request_digest=request.digest(),
        toolchain=toolchain,
        target=TARGET,
        components=request.components(),
        metadata={"name": request.name, "shared": 0, "num_warps": 4},
        artifacts={"ptx": os.urandom(2000), BINARY: os.urandom(6000)},
        compile_wall_s=0.05,
        compile_cpu_s=0.05,
        triton_version="",
        request=b"",
        output="",
    )
    store.publish(key, entry)
with shared_service(1), headstart.AsyncCompile(TARGET) as client:
    client.triton(**small("warm0")).result()
    begun = time.monotonic()
    futures = [client.triton(**kernel) for kernel in kernels]
    for future in futures:
        assert future.result().asm[BINARY]
    took = time.monotonic() - begun
    assert client.statistics.compiled == 0
report(hit_s=took / count)
