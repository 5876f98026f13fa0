"""Pages that are followed as a reader would: files are written, commands run, and what they print is compared.

In a page, a Python block that begins with `# name.py` is that file, an `sh` block is run by a shell beside it, and a
`text` block after it has lines that it prints, in this order and among others; `…` stands for anything.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def follow(page: str, folder: Path, *, timeout: float = 100) -> int:
    """Do what a page says, in an empty folder. Returns how many commands were run."""
    programs = folder / "bin"
    programs.mkdir()
    for name, arguments in {"python": "", "headstart": " -c 'from headstart.cli import main; main()'"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable}{arguments} "$@"\n')
        (programs / name).chmod(0o755)
    work = folder / "work"
    work.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HEADSTART_CACHE_DIR": str(folder / "cache"),
        "HEADSTART_CONFIG_DIR": str(folder / "config"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    ran, printed = 0, ""
    for language, text in _BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if language == "python" and (name := re.match(r"# (\w+\.py)\n", text)):
            (work / name[1]).write_text(text, encoding="utf-8")
        elif language == "sh":
            printed, ran = run(text, work, environment, timeout), ran + 1
        elif language == "text":
            check(text, printed)
    return ran


def run(text: str, folder: Path, environment: dict[str, str], timeout: float) -> str:
    """What a shell prints, on stdout and stderr. What it started ends with it, however long that would take."""
    shell = subprocess.Popen(
        ["bash", "-ec", text],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = shell.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        raise
    assert shell.returncode == 0, f"{text}\n{printed}"
    return printed


def check(expected: str, printed: str) -> None:
    """Whether the lines are printed, in this order."""
    lines = iter(printed.splitlines())
    for line in expected.splitlines():
        pattern = re.compile(re.sub(r"(\\ )*…(\\ )*", ".*", re.escape(line)))
        assert any(pattern.fullmatch(each.rstrip()) for each in lines), f"not printed: {line}\n{printed}"
