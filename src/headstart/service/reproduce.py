"""Writes a failed request down as a plan that `headstart build` can run again."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path

from headstart.request import CompileRequest

_KEPT = 100  # plans; older ones make room

_PLAN = '''\
"""{name} for {target}, which failed to compile. Run it again with

    {command}
"""

import headstart

SOURCE = {source}


def kernels():
    yield headstart.KernelSpec(
        SOURCE,
        name={name!r},
        signature={signature!r},
        constants={constants!r},
        attrs={attributes!r},
        options={options!r},
        target={target!r},
        filename={filename!r},
    )
'''


def write_plan(folder: Path, request: CompileRequest) -> str:
    """Write the plan of `request` into `folder`.

    Returns:
        The shell command that runs it; empty if it could not be written.
    """
    path = folder / f"{request.name[:60]}-{request.digest()[:12]}.py"
    variables = [f"{name}={shlex.quote(value)}" for name, value in sorted(request.environment.items())]
    command = " ".join([*variables, "headstart", "build", shlex.quote(str(path))])
    text = _PLAN.format(
        name=request.name,
        target=request.target,
        command=command.replace("\\", "\\\\"),
        source=_literal(request.source),
        signature=request.signature,
        constants=request.constants,
        attributes={_position(key): facts for key, facts in request.attributes.items()},
        options=request.options,
        filename=request.filename,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8", errors="surrogatepass")
        os.replace(temporary, path)
        _forget_oldest(folder)
    except OSError:
        return ""
    return command


def _literal(source: str) -> str:
    plain = source.replace("\n", "").isprintable() and "'''" not in source and "\\" not in source
    return f"'''{source}'''" if plain and not source.endswith("'") else repr(source)


def _position(key: str) -> str | tuple[int, ...]:
    return tuple(int(index) for index in key[1:].split(".")) if key.startswith("#") else key


def _forget_oldest(folder: Path) -> None:
    plans = sorted(folder.glob("*.py"), key=lambda path: path.stat().st_mtime)
    for path in plans[:-_KEPT]:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
