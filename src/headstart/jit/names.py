"""Which names from outside the text of a kernel uses.

Triton looks a name up first among what the function has assigned so far, then in its globals: names are followed in the
order of the text, not by Python's rule that a name assigned anywhere is local everywhere.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple


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
        defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
        by_keyword = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        for argument, default in [*zip(positional, defaults, strict=True), *by_keyword]:
            # Triton evaluates both once more, from the text.
            if default is not None:
                self._walk(default)
            if argument.annotation is not None:
                self._annotation(argument.annotation)
        self._parameters(arguments)
        for statement in node.body:
            self._walk(statement)

    def _parameters(self, arguments: ast.arguments) -> None:
        every = [
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ]
        self._local |= {argument.arg for argument in every if argument is not None}

    def _annotation(self, node: ast.expr) -> None:
        path = _path(node)
        if path is None:
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.expr):
                    self._annotation(part)
        elif path[0] not in self._local and Use(path) not in self.uses:
            self.uses[Use(path, matters=False)] = None

    def _walk(self, node: ast.AST) -> None:
        visit = self._VISITS.get(type(node))
        if visit is not None:
            visit(self, node)
            return
        for field in node._fields:
            value = getattr(node, field)
            if type(value) is list:
                self._all(value)
            elif isinstance(value, (ast.expr, ast.stmt)):
                self._walk(value)

    def _all(self, nodes: Iterable[Any]) -> None:
        for node in nodes:
            if isinstance(node, ast.AST):
                self._walk(node)

    def _name(self, node: ast.Name) -> None:
        if type(node.ctx) is not ast.Load:
            self._local.add(node.id)
        elif node.id not in self._local:
            self.uses[Use((node.id,))] = None

    def _attribute(self, node: ast.Attribute) -> None:
        path = _path(node)
        if path is None:
            self._walk(node.value)
        elif path[0] not in self._local:
            self.uses[Use(path)] = None

    def _assign(self, node: ast.Assign) -> None:
        self._walk(node.value)
        self._all(node.targets)

    def _augmented(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name) and node.target.id not in self._local:
            self.uses[Use((node.target.id,))] = None
        self._walk(node.value)
        self._walk(node.target)

    def _annotated(self, node: ast.AnnAssign) -> None:
        self._annotation(node.annotation)
        if node.value is not None:
            self._walk(node.value)
        self._walk(node.target)

    def _named(self, node: ast.NamedExpr) -> None:
        self._walk(node.value)
        self._walk(node.target)

    def _loop(self, node: ast.For) -> None:
        self._walk(node.iter)
        self._walk(node.target)
        self._all(node.body)
        self._all(node.orelse)

    def _generator(self, node: ast.comprehension) -> None:
        self._walk(node.iter)
        self._walk(node.target)
        self._all(node.ifs)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> None:
        self._all(node.generators)
        self._walk(node.elt)

    def _dict(self, node: ast.DictComp) -> None:
        self._all([*node.generators, node.key, node.value])

    # In a constexpr function, which is Python:

    def _inner_function(self, node: ast.FunctionDef) -> None:
        self._local.add(node.name)
        self._all([*node.args.defaults, *node.args.kw_defaults])
        self._parameters(node.args)
        self._all(node.body)

    def _lambda(self, node: ast.Lambda) -> None:
        self._all([*node.args.defaults, *node.args.kw_defaults])
        self._parameters(node.args)
        self._walk(node.body)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        self._local |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}

    def _caught(self, node: ast.ExceptHandler) -> None:
        if node.name is not None:
            self._local.add(node.name)
        self._all([node.type, *node.body])

    def _nothing(self, node: ast.AST) -> None:
        pass

    _VISITS: ClassVar[dict[type[ast.AST], Callable[..., None]]] = {
        ast.Name: _name,
        ast.Attribute: _attribute,
        ast.Constant: _nothing,
        ast.Assign: _assign,
        ast.AugAssign: _augmented,
        ast.AnnAssign: _annotated,
        ast.NamedExpr: _named,
        ast.For: _loop,
        ast.comprehension: _generator,
        ast.ListComp: _comprehension,
        ast.SetComp: _comprehension,
        ast.GeneratorExp: _comprehension,
        ast.DictComp: _dict,
        ast.FunctionDef: _inner_function,
        ast.Lambda: _lambda,
        ast.Import: _import,
        ast.ImportFrom: _import,
        ast.ExceptHandler: _caught,
    }


def _path(node: ast.AST) -> tuple[str, ...] | None:
    """`a.b.c` as a path; None for what does not begin with a name."""
    attributes = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else None
