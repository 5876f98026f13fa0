"""Writes a failed request down as a plan that `headstart build` can run again."""

from __future__ import annotations

import math
import re
import shlex
import time
from pathlib import Path
from typing import Any

from headstart.errors import UsageError
from headstart.model.captured import CapturedSource
from headstart.model.request import CompileRequest
from headstart.system.files import Format, carries_mark, replace
from headstart.system.private import Swept, make_folder, refusal

_KEPT = 100  # plans; older ones make room
_ABANDONED_AGE = 3600.0  # seconds after which a half-written one has no writer any more
_NAME = re.compile(r".+-[0-9a-f]{12}\.py")
_TEMPORARY = re.compile(r"\..+-[0-9a-f]{12}\.py\.[0-9a-f]{16}\.tmp|\.[0-9a-f]{64}\.json\.[0-9a-f]{16}\.tmp")

# The first line tells them from a user's own plans, which may lie in the same folder.
PLAN = Format("a plan of a failure", begins=(b"# A failure that headstart wrote down.\n",))

_PLAN = '''\
# A failure that headstart wrote down.
"""{name} for {target}, which failed to compile. Run it again with

    {command}
"""

{imports}
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

_IMPORTS = """\
import headstart
from headstart.model.captured import CapturedSource
from headstart.model.request import TupleType
from headstart.model.values import Encoded
"""


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
        imports=_IMPORTS,
        source=_source(request.source),
        signature=request.signature,
        constants=_constants(request.constants),
        attributes={_position(key): facts for key, facts in request.attributes.items()},
        options=_expression(request.options),
        filename=request.filename,
    )
    try:
        make_folder(folder)
        if refusal(folder):  # then it would be others who say what is run again
            return ""
        replace(path, text.encode(errors="surrogatepass"), PLAN)
        _forget_oldest(folder)
    except (OSError, UsageError):
        return ""
    return command


def _source(source: str | CapturedSource) -> str:
    if isinstance(source, str):
        return _literal(source)
    functions = ",\n".join(_function(function) for function in source.plain()["functions"])
    return (
        f"CapturedSource.from_plain({{\n'type': 'captured', 'entry_name': {source.entry_name!r}, 'functions': [\n"
        f"{functions},\n]}})"
    )


def _function(function: dict[str, Any]) -> str:
    """One captured function, a line for each of its fields, and its text as it was written."""
    fields = [
        f"'text': {_literal(value)}" if field == "text" else f"{field!r}: {_expression(value)}"
        for field, value in function.items()
    ]
    return "{" + ",\n".join(fields) + "}"


def _literal(source: str) -> str:
    plain = source.replace("\n", "").isprintable() and "'''" not in source and "\\" not in source
    return f"'''{source}'''" if plain and not source.endswith("'") else repr(source)


def _expression(value: Any) -> str:
    """`repr`, for infinities as well."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_expression(member) for member in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_expression(member)}" for key, member in value.items()) + "}"
    return repr(value)


def _constants(constants: dict[str, Any]) -> str:
    """Constants are plain data already, which a plan has to say of those that have members."""
    shown = [f"{_position(key)!r}: {_constant(value)}" for key, value in constants.items()]
    return "{" + ", ".join(shown) + "}"


def _constant(value: Any) -> str:
    return f"Encoded({_expression(value)})" if isinstance(value, (list, dict)) else _expression(value)


def _position(key: str) -> str | tuple[int, ...]:
    return tuple(int(index) for index in key[1:].split(".")) if key.startswith("#") else key


def _forget_oldest(folder: Path) -> None:
    oldest = time.time() - _ABANDONED_AGE
    with Swept(folder) as swept:
        files = sorted(swept.files(), key=lambda file: file[1].st_mtime)
        plans = [name for name, _ in files if _NAME.fullmatch(name) and carries_mark(folder / name, PLAN)]
        # Hidden ones are being written, or were when their writer was killed.
        abandoned = [name for name, status in files if _TEMPORARY.fullmatch(name) and status.st_mtime < oldest]
        for name in [*plans[:-_KEPT], *abandoned]:
            swept.remove(name)
