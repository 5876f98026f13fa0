"""What a kernel's source from elsewhere (a manifest, say) may hold: imports from Triton, literals, kernels.

A compile runs Python that a source carries: Triton evaluates constant expressions, and runs `constexpr_function`s. The
check here keeps out what no kernel needs: imports of anything but Triton and `math`, names of builtins that reach the
system, attributes through which Python's insides are reached. It is not a sandbox: who compiles a stranger's manifest
should still do so in a container.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator

from headstart import captured
from headstart.captured import Binding, CapturedFunction, CapturedSource

_BUILTINS = {
    *(
        "abs",
        "all",
        "any",
        "bool",
        "dict",
        "divmod",
        "enumerate",
        "filter",
        "float",
        "frozenset",
        "getattr",
        "hasattr",
    ),
    *(
        "hash",
        "int",
        "isinstance",
        "issubclass",
        "len",
        "list",
        "map",
        "max",
        "min",
        "object",
        "pow",
        "print",
        "range",
    ),
    *("repr", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple", "type", "zip"),
    *("ArithmeticError", "AssertionError", "Exception", "RuntimeError", "TypeError", "ValueError"),
}
# Modules that Triton's own import: `tl.core.builtins` would be a way to everything.
_CLOSED_ATTRIBUTES = (sys.stdlib_module_names - {"copy", "math", "random"}) | {
    *("knobs", "runtime", "compiler", "backends", "tools", "testing"),
}
_DECORATORS = {"jit", "triton.jit", "constexpr_function", "triton.constexpr_function"}


def check_safe(source: str | CapturedSource) -> str | None:
    """Why a source is not to be compiled unless somebody trusts it; None if there is nothing against it."""
    problems = _of_captured(source) if isinstance(source, CapturedSource) else _of_text(source)
    return next(problems, None)


def _of_captured(source: CapturedSource) -> Iterator[str]:
    for function in source.functions:
        problems = _of_function(function, len(source.functions))
        yield from (f"{function.qualname}: {problem}" for problem in problems)


def _of_function(function: CapturedFunction, functions: int) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(function.text))
    except (SyntaxError, ValueError, RecursionError) as error:
        yield f"its text does not parse: {error}"
        return
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        yield "its text is not one function"
        return
    definition = tree.body[0]
    if definition.name != function.name:
        yield f"its text defines {definition.name}"
    for name, binding in [*function.names.items(), *function.defaults.items()]:
        yield from (f"{name}: {problem}" for problem in _of_binding(binding, functions))
    # Decorators of a captured function are not evaluated.
    definition.decorator_list = []
    # Neither are annotations of its parameters.
    definition.returns = None
    for argument in ast.walk(definition.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    yield from _of_code(definition, set(function.names))


def _of_binding(binding: Binding, functions: int) -> Iterator[str]:
    match binding:
        case captured.Import(module, submodules):
            yield from (f"it imports {name}" for name in [module, *submodules] if not _may_import(name))
        case captured.Member(module, path):
            if not _may_import(module):
                yield f"it imports {module}"
            yield from (f"it uses {module}.{path}" for part in path.split(".") if not _is_open(part))
        case captured.FunctionRef(index):
            if not 0 <= index < functions:
                yield f"there is no function {index}"
        case captured.Constexpr(value):
            yield from _of_binding(value, functions)
        case captured.Items(_, items):
            for item in items:
                yield from _of_binding(item, functions)
        case captured.Table(items):
            for pair in items:
                for item in pair:
                    yield from _of_binding(item, functions)
        case captured.Namespace(_, members):
            for member in members.values():
                yield from _of_binding(member, functions)
        case captured.NamedTuple(_, _, _, defaults):
            for default in defaults:
                yield from _of_binding(default, functions)


def _may_import(module: str) -> bool:
    if module == "math":
        return True
    first, *parts = module.split(".")
    return first == "triton" and all(map(_is_open, parts))


def _is_open(attribute: str) -> bool:
    return not attribute.startswith("__") and attribute not in _CLOSED_ATTRIBUTES


def _of_code(code: ast.AST, known: set[str]) -> Iterator[str]:
    nodes = list(ast.walk(code))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield f"it imports within a function: {ast.unparse(node)}"
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            yield f"it changes what lies outside of it: {ast.unparse(node)}"
        elif isinstance(node, ast.Attribute) and not _is_open(node.attr):
            yield f"it uses {ast.unparse(node)}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("__"):
            yield f"it names {node.value!r}"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            name = node.id
            if name not in bound and name not in known and name not in _BUILTINS:
                yield f"it uses {name}, which is neither defined nor a harmless builtin"


def _of_text(text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        yield f"it does not parse: {error}"
        return
    known: set[str] = set()
    for node in tree.body:
        match node:
            case ast.Import(names):
                yield from (f"it imports {alias.name}" for alias in names if not _may_import(alias.name))
                known |= {alias.asname or alias.name.partition(".")[0] for alias in names}
            case ast.ImportFrom(module, names, level):
                inner = [f"{module}.{alias.name}" for alias in names]
                closed = level or module is None or "*" in {alias.name for alias in names}
                if closed or (module not in ("math", "__future__") and not all(map(_may_import, inner))):
                    yield f"it imports: {ast.unparse(node)}"
                known |= {alias.asname or alias.name for alias in names}
            case ast.Expr(ast.Constant()):
                pass
            case ast.Assign([ast.Name(name)], value) if _is_literal(value):
                known.add(name)
            case ast.AnnAssign(ast.Name(name), annotation, value) if _is_literal(value):
                known.add(name)
                yield from _of_code(annotation, known)
            case ast.FunctionDef(name):
                known.add(name)
                for decorator in node.decorator_list:
                    yield from _of_decorator(decorator)
                defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
                yield from (
                    f"a default of {name} is computed: {ast.unparse(value)}"
                    for value in defaults
                    if not _is_literal(value) and not isinstance(value, (ast.Name, ast.Attribute))
                )
            case _:
                yield f"line {node.lineno} is neither an import, nor a literal, nor a kernel: {ast.unparse(node):.60}"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
            yield from (f"{node.name}: {problem}" for problem in _of_code(node, known))


def _of_decorator(decorator: ast.expr) -> Iterator[str]:
    function, given = decorator, []
    if isinstance(decorator, ast.Call):
        function = decorator.func
        given = [*decorator.args, *(keyword.value for keyword in decorator.keywords)]
    if ast.unparse(function) not in _DECORATORS or not all(map(_is_literal, given)):
        yield f"it is decorated with {ast.unparse(decorator)}"


def _is_literal(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call) and ast.unparse(value.func) in (
        "tl.constexpr",
        "triton.language.constexpr",
    ):
        return not value.keywords and all(map(_is_literal, value.args))
    if value is None:
        return True
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True
