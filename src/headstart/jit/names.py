"""Which names from outside the text of a kernel uses.

Triton looks a name up first among what the function has assigned so far, then in its globals: names are followed in the
order of the text, not by Python's rule that a name assigned anywhere is local everywhere.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import NamedTuple


class Use(NamedTuple):
    """One use of a name: `tl.math.exp` is the path `("tl", "math", "exp")`.

    Attributes:
        path: the name, then attributes.
        matters: False in an annotation, of which Triton only wants to know whether it is constexpr.
    """

    path: tuple[str, ...]
    matters: bool = True

    def rest(self) -> Use:
        """What is left of the path after its first step."""
        return Use(self.path[1:], self.matters)


def names_used(text: str) -> list[Use]:
    """The distinct uses of names that the function in `text` does not define itself, in order.

    Args:
        text: of one function, not indented.
    """
    walker = _Walker()
    (definition,) = ast.parse(text).body
    assert isinstance(definition, ast.FunctionDef)
    walker.function(definition)
    return list(walker.uses)


class _Walker:
    def __init__(self) -> None:
        self.uses: dict[Use, None] = {}
        self._local: set[str] = set()

    def function(self, node: ast.FunctionDef) -> None:
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        with_default = positional[len(positional) - len(arguments.defaults) :]
        by_keyword = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        for argument, default in [*zip(with_default, arguments.defaults, strict=True), *by_keyword]:
            if default is not None:
                # Triton evaluates both once more, from the text.
                self._walk(default)
                if argument.annotation is not None:
                    self._annotation(argument.annotation)
        self._parameters(arguments)
        for statement in node.body:
            self._walk(statement)

    def _parameters(self, arguments: ast.arguments) -> None:
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        self._local |= {argument.arg for argument in every if argument is not None}

    def _annotation(self, node: ast.expr) -> None:
        path = _path(node)
        if path is not None and path[0] not in self._local and Use(path) not in self.uses:
            self.uses[Use(path, matters=False)] = None

    def _walk(self, node: ast.AST) -> None:
        kind = type(node)
        if kind is ast.Constant:
            return
        if kind in (ast.Name, ast.Attribute):
            self._name(node)
        elif isinstance(node, ast.Assign):
            self._walk(node.value)
            for target in node.targets:
                self._walk(target)
        elif isinstance(node, ast.AugAssign):
            if isinstance(node.target, ast.Name) and node.target.id not in self._local:
                self.uses[Use((node.target.id,))] = None
            self._walk(node.value)
            self._walk(node.target)
        elif isinstance(node, ast.AnnAssign):
            self._annotation(node.annotation)
            if node.value is not None:
                self._walk(node.value)
            self._walk(node.target)
        elif isinstance(node, ast.NamedExpr):
            self._walk(node.value)
            self._walk(node.target)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._walk(node.iter)
            self._walk(node.target)
            self._all(node.ifs if isinstance(node, ast.comprehension) else [*node.body, *node.orelse])
        elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            self._all(node.generators)
            self._all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        elif isinstance(node, (ast.FunctionDef, ast.Lambda)):
            # In a constexpr function, which is Python.
            self._parameters(node.args)
            if isinstance(node, ast.FunctionDef):
                self._local.add(node.name)
            self._all(ast.iter_child_nodes(node))
        else:
            self._all(ast.iter_child_nodes(node))

    def _all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self._walk(node)

    def _name(self, node: ast.AST) -> None:
        path = _path(node)
        if path is None:
            assert isinstance(node, ast.Attribute)
            self._walk(node.value)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            self._local.add(node.id)
        elif path[0] not in self._local:
            self.uses[Use(path)] = None


def _path(node: ast.AST) -> tuple[str, ...] | None:
    """`a.b.c` as a path; None for what does not begin with a name."""
    attributes = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else None
