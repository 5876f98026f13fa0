"""Whether a recipe out of a bundle or the store says nothing but what the program's own source says.

Inductor makes launchers of a recipe's arguments by executing text: names of arguments, expressions for the grid.
Whoever wrote a bundle must not thereby write the program's code. So the program's source is parsed (about a
millisecond), and of a recipe are taken only strings that are literals there, plain names, and numbers. A recipe's text
and module must be those of that source. What is left for somebody else to decide is which kernel is launched, and that
is what a bundle is trusted with (docs/security.md).

Nothing here needs torch: a service looks at what its store has, a client at what its bundle has.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import Any

from headstart.describe import facts, plain
from headstart.describe.recipe import Describe, Recipe, RecipeJob

_TARGET = re.compile(r"[a-z]+:\w+:\d+")
_HASH = re.compile(r"[0-9a-f]{64}")


def is_of_source(recipe: Recipe, source: str) -> bool:
    """Whether a recipe's text is `source`, which it differs from in the white space around it at most."""
    return recipe.text.strip() == source.strip()


def is_own(recipe: Recipe, described: Describe, stem: str) -> bool:
    """Whether a recipe from elsewhere can be used for a source of the program's; `stem`: its key in the code cache."""
    source, function = described.source, recipe.function
    module = facts.module_of_stem(stem)
    return (
        is_of_source(recipe, source)
        and (recipe.stem, function.module, function.name) == (stem, module, described.name)
        and {function.qualname, function.repr} <= {function.name, f"{module}.{function.name}"}
        and _bare(function.src) in _bare(source)
        and isinstance(recipe.arguments, dict)
        and isinstance(recipe.arguments.get("dict"), list)
        and plain.is_encoded(recipe.arguments)
        and _says_only(source, _without_file(recipe.arguments))
        and _says_only(source, function.arg_names)
        and _HASH.fullmatch(function.cache_key) is not None
        and are_own(recipe.jobs, described)
    )


def are_own(jobs: list[RecipeJob], described: Describe) -> bool:
    """The same of jobs, which rescaling adds to a recipe's."""
    return all(
        _HASH.fullmatch(job.hash) is not None
        and job.name == described.name
        and _TARGET.fullmatch(job.target) is not None
        and all(map(plain.is_encoded, (job.constants, job.attrs, job.config)))
        and _says_only(described.source, [job.signature, job.constants, job.attrs, job.options, job.config])
        for job in jobs
    )


def _bare(text: str) -> str:
    """Without white space at the ends of lines, of which `JITFunction.src` has less."""
    return "\n".join(map(str.rstrip, text.split("\n"))).strip()


def _without_file(arguments: Any) -> list[Any]:
    """The one string that the client replaces by its own: where the source lies."""
    return [pair for pair in arguments["dict"] if pair[0] != "filename"]


def _says_only(source: str, value: Any) -> bool:
    literals = _literals(source)
    return all(text.isidentifier() or text in literals for text in _strings(value))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for member in value:
            yield from _strings(member)
    elif isinstance(value, dict):
        for key, member in value.items():
            yield from _strings(key)
            yield from _strings(member)


@functools.lru_cache(maxsize=64)
def _literals(source: str) -> frozenset[str]:
    try:
        nodes = ast.walk(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
    return frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
