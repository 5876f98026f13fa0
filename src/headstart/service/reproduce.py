"""Writes a failed request down as a plan that `headstart build` can run again."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
from pathlib import Path
from typing import Any

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
        constants={constants},
        attrs={attributes!r},
        options={options},
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
        command=command.replace("\\", "\\\\").replace('"""', '\\"\\"\\"'),
        source=_literal(request.source),
        signature=request.signature,
        constants=_expression({_position(key): value for key, value in request.constants.items()}),
        attributes={_position(key): facts for key, facts in request.attributes.items()},
        options=_expression(request.options),
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


def _expression(value: Any) -> str:
    """`repr`, for infinities as well."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if isinstance(value, list):
        return "[" + ", ".join(_expression(member) for member in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_expression(member)}" for key, member in value.items()) + "}"
    return repr(value)


def _position(key: str) -> str | tuple[int, ...]:
    return tuple(int(index) for index in key[1:].split(".")) if key.startswith("#") else key


def _forget_oldest(folder: Path) -> None:
    plans = sorted(folder.glob("*.py"), key=lambda path: path.stat().st_mtime)
    for path in plans[:-_KEPT]:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
