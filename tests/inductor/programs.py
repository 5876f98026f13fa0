"""Runs `program.py`, each time in a process and a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import headstart

HERE = Path(__file__).parent
_LONGEST = 280.0  # seconds for one program, on a busy machine


class Programs:
    """Runs `program.py` in folders below one of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = 0

    def run(self, order: dict[str, Any], *, caches: str = "", **variables: str) -> dict[str, Any]:
        """What a program printed; `log` is what it logged. `caches` names the folder of a store that is kept."""
        self._number += 1
        folder = self.folder / str(self._number)
        result = self._finish(self._start(order, folder, self.folder / caches if caches else folder, **variables))
        assert not list((folder / "runtime" / "headstart").glob("*")), "the service left something behind"
        return {**result, "folder": folder}

    def run_ranks(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        """What two ranks of one job printed, which ran at the same time and have Inductor caches of their own."""
        self._number += 1
        folder = self.folder / str(self._number)
        job = {"TORCHELASTIC_RUN_ID": "7", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        ranks = []
        for rank in range(2):
            cache = str(folder / f"cache {rank}")
            mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHINDUCTOR_CACHE_DIR": cache}
            ranks.append(self._start(order, folder, folder, **job, **mine))
        results = [self._finish(rank) for rank in ranks]
        assert not list((folder / "runtime" / "headstart").glob("*")), "the service left something behind"
        return results

    def _start(self, order: dict[str, Any], folder: Path, kept: Path, **variables: str) -> subprocess.Popen[str]:
        runtime = folder / "runtime"
        runtime.mkdir(parents=True, mode=0o700, exist_ok=True)
        source = Path(headstart.__file__).parent.parent
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TRITON_", "TORCH", "HEADSTART")) or name == "HEADSTART_TEST_CACHE"
        }
        environment = {
            **inherited,
            "PYTHONPATH": os.pathsep.join([str(source), str(HERE)]),
            "XDG_RUNTIME_DIR": str(runtime),
            "HEADSTART_CACHE_DIR": str(kept / "headstart"),
            "HEADSTART_CONFIG_DIR": str(self.folder / "config"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "2",
            "GPULESS_LOG": str(folder / "log"),
            **variables,
        }
        program = [sys.executable, str(HERE / "program.py"), json.dumps(order)]
        pipe = subprocess.PIPE
        return subprocess.Popen(program, env=environment, cwd=folder, stdout=pipe, stderr=pipe, text=True)

    @staticmethod
    def _finish(process: subprocess.Popen[str]) -> dict[str, Any]:
        try:
            output, log = process.communicate(timeout=_LONGEST)
        finally:
            process.kill()
        assert process.returncode == 0, log[-4000:]
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        return {**result, "log": log}
