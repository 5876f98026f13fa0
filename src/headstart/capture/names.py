"""Which names from outside the text of a kernel uses, or may use.

Two rules of scope, since two things read such a text:

* Triton compiles the body of a jit function statement by statement. It looks a name up among what the function has
  assigned on the way there, then among its globals. So a name that is assigned on one branch only, in a loop that may
  not run, or in a comprehension, can still be the global of that name further down.
* A constexpr function is Python: a name that is assigned anywhere in a function is local everywhere in it.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


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
    """The distinct uses of names in a jit function that are, or may be, its globals, in the order of the text.

    Args:
        text: of the function as Triton parses it.
    """
    flow = _Flow()
    flow.function(_definition(text))
    return list(flow.uses)


def names_used_in_python(text: str) -> list[Use]:
    """The same of a function that Python runs; its names are those that are local to no scope in the text."""
    scopes = _Scopes()
    scopes.nested(_definition(text))  # decorators and defaults were evaluated when the function was made
    return list(scopes.uses)


def assigned_names(text: str) -> frozenset[str]:
    """Names that a function assigns anywhere, parameters included."""
    every = list(ast.walk(ast.parse(textwrap.dedent(text))))
    stored = {node.id for node in every if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return frozenset(stored | {node.arg for node in every if isinstance(node, ast.arg)})


def imports_of(text: str) -> list[str]:
    """Modules that a function imports when it runs; a relative import begins with a dot."""
    found = []
    for node in ast.walk(ast.parse(textwrap.dedent(text))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append("." * node.level + (node.module or ""))
    return found


def _definition(text: str) -> ast.FunctionDef:
    (definition,) = ast.parse(text).body
    if not isinstance(definition, ast.FunctionDef):
        raise SyntaxError("the text is not that of one function")
    return definition


class _Uses:
    """Uses, each once; one that matters takes the place of one that does not."""

    def __init__(self) -> None:
        self.uses: dict[Use, None] = {}

    def add(self, path: tuple[str, ...], matters: bool = True) -> None:
        if matters:
            self.uses[Use(path)] = None
        elif Use(path) not in self.uses:
            self.uses[Use(path, matters=False)] = None

    def annotation(self, node: ast.expr) -> None:
        """Only whether an annotation is constexpr decides anything."""
        path = path_of(node)
        if path is not None:
            self.add(path, matters=False)
            return
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.expr):
                self.annotation(part)


class _Flow(_Uses):
    """Follows a jit function as Triton's code generator does; `self._local` is what has certainly been assigned."""

    def __init__(self) -> None:
        super().__init__()
        self._local: frozenset[str] = frozenset()

    def function(self, node: ast.FunctionDef) -> None:
        arguments = node.args
        for argument in _arguments(arguments):
            if argument.annotation is not None:
                self.annotation(argument.annotation)
        for default in (*arguments.defaults, *arguments.kw_defaults):
            # Triton evaluates a default once more, from the text, before the parameters are there.
            if default is not None:
                self._expression(default)
        self._assign(argument.arg for argument in _arguments(arguments))
        self._block(node.body)

    def _assign(self, names: Iterable[str]) -> None:
        self._local |= frozenset(names)

    def _block(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _branches(self, *blocks: Iterable[ast.stmt]) -> None:
        """One of the blocks is compiled, or all of them. A `return` in one does not end what comes after them."""
        before = self._local
        after = []
        for block in blocks:
            self._local = before
            self._block(block)
            after.append(self._local)
        self._local = frozenset.intersection(*after)

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.If(test=test, body=body, orelse=orelse):
                self._expression(test)
                self._branches(body, orelse)
            case ast.For(target=target, iter=iterated, body=body, orelse=orelse):
                self._expression(iterated)
                before = self._local
                self._target(target)
                self._block(body)
                self._local = before  # it may not run, and Triton forgets what only a loop assigns
                self._block(orelse)
                self._local = before
            case ast.While(test=test, body=body, orelse=orelse):
                self._expression(test)
                self._branches(body, orelse)
            case ast.With(items=items, body=body):
                for item in items:
                    self._expression(item.context_expr)
                    if item.optional_vars is not None:
                        self._target(item.optional_vars)
                self._block(body)
            case ast.Assign(targets=targets, value=value):
                self._expression(value)
                for target in targets:
                    self._target(target)
            case ast.AugAssign(target=target, value=value):
                if isinstance(target, ast.Name):
                    self._load((target.id,))
                self._expression(value)
                self._target(target)
            case ast.AnnAssign(target=target, annotation=annotation, value=value):
                self.annotation(annotation)
                if value is not None:  # else it only announces a type
                    self._expression(value)
                    self._target(target)
            case _:
                self._others(node)

    def _target(self, node: ast.expr) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                self._assign([part.id])
            elif isinstance(part, ast.Name):
                self._load((part.id,))

    def _expression(self, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                self._load((name,))
            case ast.Attribute():
                path = path_of(node)
                if path is None:
                    self._expression(node.value)
                else:
                    self._load(path)
            case ast.NamedExpr(target=target, value=value):
                self._expression(value)
                self._target(target)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self._expression(test)
                self._perhaps(body)
                self._perhaps(orelse)
            case ast.BoolOp(values=[first, *others]):
                self._expression(first)
                for other in others:
                    self._perhaps(other)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                self._comprehension(node)
            case ast.Lambda():
                # Triton refuses it. Whatever it is, what it needs is not what its parameters hide.
                for default in (*node.args.defaults, *node.args.kw_defaults):
                    if default is not None:
                        self._expression(default)
                before = self._local
                self._assign(argument.arg for argument in _arguments(node.args))
                self._expression(node.body)
                self._local = before
            case _:
                self._others(node)

    def _perhaps(self, node: ast.expr) -> None:
        """An expression that may not be evaluated: what it assigns is not certain."""
        before = self._local
        self._expression(node)
        self._local = before

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        before = self._local
        for generator in node.generators:
            self._expression(generator.iter)
            self._target(generator.target)
            for condition in generator.ifs:
                self._expression(condition)
        for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self._expression(part)
        self._local = before

    def _others(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self._statement(child)
            else:
                self._expression(child)

    def _load(self, path: tuple[str, ...]) -> None:
        if path[0] not in self._local:
            self.add(path)


class _Scopes(_Uses):
    """Walks a function with Python's rules of scope."""

    def __init__(self) -> None:
        super().__init__()
        self._enclosing: list[frozenset[str]] = []  # of functions around, outermost first

    def nested(self, node: ast.AST) -> None:
        """What is in a function, a class or a comprehension, once what is evaluated outside of it was visited."""
        if isinstance(node, _FUNCTIONS):
            body = node.body if isinstance(node.body, list) else [node.body]
            self._inside(frozenset(_bound(node)), body)
        elif isinstance(node, _COMPREHENSIONS):
            first, *others = node.generators
            parts: list[ast.AST] = [*first.ifs]
            for generator in others:
                parts += [generator.iter, *generator.ifs]
            parts += [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            self._inside(frozenset(_bound(node)), parts)
        elif isinstance(node, ast.ClassDef):
            # Its names are seen by its own statements and not by its methods; a use before the assignment is outside's.
            for statement in node.body:
                self.visit(statement)

    def _inside(self, names: frozenset[str], parts: Iterable[ast.AST]) -> None:
        self._enclosing.append(names)
        for part in parts:
            self.visit(part)
        self._enclosing.pop()

    def visit(self, node: ast.AST) -> None:
        path = path_of(node)
        if path is not None:
            if isinstance(getattr(node, "ctx", None), ast.Load):
                self._load(path)
            elif len(path) > 1:  # an attribute that is set
                self._load(path[:1])
            return
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            self._load((node.target.id,))
        if isinstance(node, ast.AnnAssign):
            # Python does not evaluate the annotation of a local name.
            self.visit(node.target)
            if node.value is not None:
                self.visit(node.value)
            return
        if isinstance(node, (*_FUNCTIONS, *_COMPREHENSIONS, ast.ClassDef)):
            for part in _outside(node):
                self.visit(part)
            self.nested(node)
            return
        for child in ast.iter_child_nodes(node):
            self.visit(child)

    def _load(self, path: tuple[str, ...]) -> None:
        if not any(path[0] in names for names in self._enclosing):
            self.add(path)


def _outside(node: ast.AST) -> Iterator[ast.AST]:
    """What of a function, a class or a comprehension is evaluated in the scope around it."""
    if isinstance(node, _COMPREHENSIONS):
        yield node.generators[0].iter
        return
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield from node.decorator_list
    if isinstance(node, ast.ClassDef):
        yield from (*node.bases, *node.keywords)
    if isinstance(node, _FUNCTIONS):
        yield from (default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None)
        yield from (each.annotation for each in _arguments(node.args) if each.annotation is not None)
        if not isinstance(node, ast.Lambda) and node.returns is not None:
            yield node.returns


def _bound(scope: ast.AST) -> Iterator[str]:
    """Names that are local to a function or a comprehension."""
    if isinstance(scope, _FUNCTIONS):
        yield from (argument.arg for argument in _arguments(scope.args))
    if isinstance(scope, _COMPREHENSIONS):
        targets = [generator.target for generator in scope.generators]
        yield from (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
        return
    body = scope.body if isinstance(scope.body, list) else [scope.body]  # type: ignore[attr-defined]
    declared = {name for node in _own(body) if isinstance(node, (ast.Global, ast.Nonlocal)) for name in node.names}
    yield from (name for node in _own(body) for name in _binds(node) if name not in declared)


def _own(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes below, those in scopes of their own left out; but for `:=` in a comprehension, which binds outside."""
    for node in nodes:
        yield node
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            continue
        if isinstance(node, _COMPREHENSIONS):
            yield from (part for part in ast.walk(node) if isinstance(part, ast.NamedExpr))
            continue
        yield from _own(ast.iter_child_nodes(node))


def _binds(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.NamedExpr(target=ast.Name(id=name)):
            yield name
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in aliases)
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    every: list[Any] = [
        *arguments.posonlyargs,
        *arguments.args,
        arguments.vararg,
        *arguments.kwonlyargs,
        arguments.kwarg,
    ]
    return [argument for argument in every if argument is not None]


def path_of(node: ast.AST) -> tuple[str, ...] | None:
    """`a.b.c` as a path; None for what does not begin with a name."""
    attributes = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else None
