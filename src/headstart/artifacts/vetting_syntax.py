"""What a function may say, statement by statement: nothing that could become anything but a kernel."""

from __future__ import annotations

import ast
import builtins
import re

from headstart.artifacts.vetting_words import (
    BUILTINS,
    CLOSED_BUILTINS,
    DECORATORS,
    LANGUAGE,
    MODULES_OF_LANGUAGE,
    NAMES,
    OPEN_ATTRIBUTES,
    REFUSED_EXPRESSIONS,
    STATEMENTS,
)
from headstart.model import captured
from headstart.model.captured import Binding


class SourceRefused(Exception):
    """Carries the reason."""


def refuse(node: ast.AST, what: str) -> SourceRefused:
    """Raises `SourceRefused`, with the line."""
    return SourceRefused(f"line {getattr(node, 'lineno', 1)} of its source {what}")


class Scope:
    """What names mean: imported ones by their full name; all others were defined in the text, which is checked.

    Where a name is assigned it need not be bound (yet), and then Python finds its builtin of that name. So names of
    closed builtins mean something else only as parameters, which are always bound. What is imported means the same
    everywhere, and may not be assigned.

    Args:
        tree: a module; or, if `closed`, a function, of which the methods say all that its names mean from outside.
    """

    def __init__(self, tree: ast.AST, *, closed: bool = False) -> None:
        self._closed = closed
        self._unbound: set[str] = set()
        self.imported: dict[str, str] = {}
        self.namespaces: dict[str, captured.Namespace] = {}
        self.parameters: set[str] = set()  # of the function that is being checked
        assigned: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assigned.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assigned.add(node.id)
        self._assigned = assigned | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        self._readable = BUILTINS | (assigned - set(dir(builtins)))

    def stand_for(self, name: str, meaning: str | captured.Namespace) -> None:
        """Have `name` mean a module or a member of one, by its full name, or a namespace."""
        before = self.imported.get(name, self.namespaces.get(name))
        if name in self._assigned or before not in (None, meaning):
            raise SourceRefused(f"its source uses {name} both for what it imports and for something else")
        if name.startswith("__") or name in CLOSED_BUILTINS:
            raise SourceRefused(f"its source gives what it imports the name {name}")
        if isinstance(meaning, str):
            self.imported[name] = meaning
        else:
            self.namespaces[name] = meaning

    def leave_unbound(self, name: str) -> None:
        """Have `name` mean nothing: to read it is an error, unless it is a builtin's."""
        if not hasattr(builtins, name):
            self._unbound.add(name)
            self.know(name)

    def means_nothing(self, name: str) -> bool:
        """Whether to read a name from outside the function is an error."""
        if name in self._unbound:
            return True
        return self._closed and not (self.may_read(name) or hasattr(builtins, name) or name.startswith("__"))

    def know(self, name: str) -> None:
        """Have `name` mean something harmless."""
        self._readable |= {name}

    def may_read(self, name: str) -> bool:
        """Whether a name can only stand for what the text defines, imports, or may use."""
        known = (self.imported, self.namespaces, self.parameters, self._readable)
        return any(name in names for names in known)

    def full_name(self, node: ast.expr) -> str:
        """`tl.float32` as `triton.language.float32`; empty if it is no name, or does not begin with an imported one."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id, "")
        if isinstance(node, ast.Attribute):
            namespace = self.namespace(node.value)
            if namespace is not None:
                return full_name(namespace.members.get(node.attr))
            front = self.full_name(node.value)
            return f"{front}.{node.attr}" if front else ""
        return ""

    def namespace(self, node: ast.expr) -> captured.Namespace | None:
        """The namespace that an expression means, if any."""
        if isinstance(node, ast.Name):
            return self.namespaces.get(node.id)
        outer = self.namespace(node.value) if isinstance(node, ast.Attribute) else None
        found = None if outer is None else outer.members.get(node.attr)  # type: ignore[attr-defined]
        return found if isinstance(found, captured.Namespace) else None


def full_name(binding: Binding | None) -> str:
    """What a binding imports; empty if nothing."""
    match binding:
        case captured.Import(module=module):
            return module
        case captured.Member(module=module, path=path):
            return f"{module}.{path}"
    return ""


def may_import(module: str) -> bool:
    """Whether a module may be named."""
    return module in ("math", "triton") or _is_language(module)


def _is_language(module: str) -> bool:
    return module == LANGUAGE or (
        module.startswith(f"{LANGUAGE}.") and MODULES_OF_LANGUAGE.issuperset(module.split(".")[2:])
    )


def may_take(module: str, name: str) -> bool:
    """Whether `from module import name` leads to nothing but the language."""
    if module in NAMES:
        return name in NAMES[module]
    if module == "math" or (_is_language(module) and module.endswith(".libdevice")):
        return not name.startswith("_") and name not in ("*", "core")
    return _is_language(module) and name in OPEN_ATTRIBUTES


def check_function(function: ast.FunctionDef, scope: Scope) -> None:
    """Raises `SourceRefused`: a function may do something but become a kernel."""
    if not function.decorator_list:
        raise refuse(function, f"defines {function.name}, which is neither a jit nor a constexpr function")
    for decorator in function.decorator_list:
        _check_decorator(decorator, scope)
    check_parameters(function, scope)
    check_statements(function, scope)


def check_parameters(function: ast.FunctionDef, scope: Scope) -> None:
    """Names, annotations and defaults. Triton evaluates annotations and defaults too, where a call relies on them."""
    arguments = function.args
    others = [*arguments.posonlyargs, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    for each in others:
        if each is not None and each.arg in CLOSED_BUILTINS:
            # To Triton only plain parameters are bound; this name would be the builtin's.
            raise refuse(each, f"has a parameter {each.arg}, which is not positional or keyword")
    every = [*arguments.args, *(each for each in others if each is not None)]
    for each in every:
        if each.arg.startswith("__"):
            raise refuse(each, f"has a parameter {each.arg}")
    for annotation in [function.returns, *(each.annotation for each in every)]:
        if annotation is not None and not _means_nothing(annotation, scope):
            check_annotation(annotation, scope)
    for default in [*arguments.defaults, *arguments.kw_defaults]:
        if default is not None and not _means_nothing(default, scope):
            check_constant(default, scope)


def _means_nothing(node: ast.expr, scope: Scope) -> bool:
    """Whether to evaluate an expression is an error at its front, as it is for `torch.Tensor | None` of a live
    function: a worker is not given what the front is."""
    match node:
        case ast.Attribute(value=value, attr=attr):
            namespace = scope.namespace(value)
            return (namespace is not None and attr not in namespace.members) or _means_nothing(value, scope)
        case ast.Subscript(value=value) | ast.BinOp(left=value):
            return _means_nothing(value, scope)
        case ast.Name(id=name):
            return scope.means_nothing(name)
    return False


def check_statements(function: ast.FunctionDef, scope: Scope) -> None:
    """Raises `SourceRefused`: a statement may do something but become a kernel."""
    scope.parameters = {argument.arg for argument in function.args.args}
    for statement in function.body:
        _check_body(statement, scope)
    scope.parameters = set()


def _check_decorator(decorator: ast.expr, scope: Scope) -> None:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if scope.full_name(called) not in DECORATORS:
        raise refuse(decorator, f"decorates a function with {ast.unparse(called)}")
    if isinstance(decorator, ast.Call):
        for value in [*decorator.args, *(keyword.value for keyword in decorator.keywords)]:
            check_constant(value, scope)


def check_constant(node: ast.expr, scope: Scope) -> None:
    """Literals, names from the language or from the text, and what operators and `constexpr` make of them."""
    match node:
        case ast.Constant():
            return
        case ast.Name() | ast.Attribute():
            check_expression(node, scope)
            return
        case ast.Call(func=func, args=[argument], keywords=[]) if _is_constexpr(func, scope):
            check_constant(argument, scope)
            return
        case ast.UnaryOp() | ast.BinOp() | ast.BoolOp() | ast.Compare() | ast.Tuple() | ast.List() | ast.Dict():
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    check_constant(child, scope)
            return
    raise refuse(node, f"computes {ast.unparse(node):.60} where a constant is expected")


def _is_constexpr(function: ast.expr, scope: Scope) -> bool:
    return scope.full_name(function).endswith("language.constexpr")


def check_annotation(node: ast.expr, scope: Scope) -> None:
    """Raises `SourceRefused`: an annotation is more than a type."""
    match node:
        case ast.Subscript(value=value, slice=part):
            check_annotation(value, scope)
            check_annotation(part, scope)
        case _:
            check_constant(node, scope)


def _check_body(node: ast.AST, scope: Scope) -> None:
    """One statement of a function, and all that is in it."""
    if isinstance(node, ast.stmt) and not isinstance(node, STATEMENTS):
        raise refuse(node, f"has {described(node)} inside a function")
    if isinstance(node, ast.expr):
        check_expression(node, scope)
    else:
        for child in ast.iter_child_nodes(node):
            _check_body(child, scope)


def check_expression(node: ast.expr, scope: Scope) -> None:
    """An expression, and all that is in it."""
    if isinstance(node, REFUSED_EXPRESSIONS):
        raise refuse(node, f"has {described(node)} inside a function")
    if isinstance(node, ast.Attribute):
        _check_attribute(node, scope)
    elif isinstance(node, ast.Name):
        _check_name(node, scope)
    for child in ast.iter_child_nodes(node):
        # `triton` alone would be a way around what may be taken from it.
        if not (isinstance(node, ast.Attribute) and scope.full_name(child) in NAMES):  # type: ignore[arg-type]
            _check_body(child, scope)


def _check_attribute(node: ast.Attribute, scope: Scope) -> None:
    if not isinstance(node.ctx, ast.Load):
        raise refuse(node, f"sets {ast.unparse(node):.60}")
    namespace = scope.namespace(node.value)
    if namespace is not None:
        if node.attr not in namespace.members:
            raise refuse(node, f"reads {ast.unparse(node):.60}")
        return
    module = scope.full_name(node.value)
    is_module = module in NAMES or module == "math" or _is_language(module)
    if not (may_take(module, node.attr) if is_module else node.attr in OPEN_ATTRIBUTES):
        raise refuse(node, f"reads {ast.unparse(node):.60}")


def _check_name(node: ast.Name, scope: Scope) -> None:
    if scope.imported.get(node.id) in NAMES:
        raise refuse(node, f"passes the module {node.id} on")
    if node.id.startswith("__"):
        raise refuse(node, f"reads {node.id}")
    if isinstance(node.ctx, ast.Load) and not scope.may_read(node.id):
        raise refuse(node, f"reads {node.id}, which it does not define")


def described(node: ast.AST) -> str:
    """An expression as it is written, for people."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(node).__name__).lower()


def is_tritons(module: str) -> bool:
    """Whether a module is Triton's own."""
    return module.partition(".")[0] == "triton"
