"""What of a manifest may be compiled although nobody vouches for it.

Compiling a kernel runs Python that it carries: its source is executed to define it, Triton calls constant functions
while it compiles, and reads some types of a signature with `eval`. In the user's own program, or a plan, that is
the user's code. In a manifest from elsewhere it need not be. So a request out of a manifest is compiled only if

* its source holds nothing but imports of what kernels are written in, constants, and `jit` and `constexpr` functions;
* these functions use names of their own and of a few builtins, and attributes that tensors, types and the language
  have. All others are closed: Triton's modules hold Python's (`triton.language.extra.modules` is `sys.modules`), and
  its functions hand out their globals;
* its signature names plain types, its options and environment name no files, plug-ins or arguments of tools.

What is refused may still be harmless, as kernels in Gluon are. Whoever knows where a manifest comes from says
`--trust`.

These are lists of what is allowed, written against Triton 3.6 to 3.9. They answer fast, and in words that help whoever
wrote the kernel. They are no boundary: what Triton compiles is found by other means than what is looked at here. That
is why the kernel's worker is confined (`headstart.system.confinement`); there `check_parsed` looks once more, at each
function as Triton parsed it and at what its names are bound to.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Iterator, Mapping

from headstart.artifacts.vetting_syntax import (
    Scope,
    SourceRefused,
    check_annotation,
    check_constant,
    check_expression,
    check_function,
    check_parameters,
    check_statements,
    described,
    full_name,
    is_tritons,
    may_import,
    may_take,
    refuse,
)
from headstart.artifacts.vetting_words import (
    ENTRY_NAME,
    ODD_LINE_ENDS,
    OPEN_ATTRIBUTES,
    OPEN_OPTIONS,
    OPEN_VARIABLES,
    PLAIN_TYPE,
    READS_A_FILE,
)
from headstart.model import captured
from headstart.model.captured import Binding, CapturedFunction, CapturedSource
from headstart.model.environment import OUTCOME_VARIABLES, TOOL_VARIABLES
from headstart.model.request import KERNEL, CompileRequest, Source, TupleType


def unvouched(reason: str) -> str:
    """`reason`, with what to do about it."""
    return f"{reason}; if you know where its source comes from, pass --trust"


def check_environment(request: CompileRequest, tools: Mapping[str, str]) -> str | None:
    """Why this request is not given the environment that it asks for; None if it may be.

    Args:
        request: see there.
        tools: variables of `TOOL_VARIABLES` that are set on this machine, which may be asked for.
    """
    for variable, value in sorted(request.environment.items()):
        if variable in TOOL_VARIABLES:
            if tools.get(variable) != value:
                return f"it asks for {variable}, which names a tool or a plug-in, and is not set so here"
        elif variable not in OUTCOME_VARIABLES - OPEN_VARIABLES:
            return f"it asks for the environment variable {variable}"
    return None


def check_request(request: CompileRequest, tools: Mapping[str, str] = {}) -> str | None:
    """Why this request is not compiled without trust, one line; None if it may be. `tools`: see `check_environment`."""
    if request.kind != KERNEL:
        return f"it is no kernel, but a {request.kind}, which is built from C"
    signature = request.signature
    for text in signature.split(",") if isinstance(signature, str) else _type_names(signature.values()):
        name = text.partition(":")[0].strip()
        if not PLAIN_TYPE.fullmatch(name) and not _is_number(name):
            return f"its signature has {text!r}, which is not the name of a type"
    for option in sorted(OPEN_OPTIONS & request.options.keys()):
        return f"its option {option} names files or arguments for a tool"
    reason = check_environment(request, tools)
    if reason is not None:
        return reason
    if request.module and is_tritons(request.module):
        return f"it says that it is Triton's module {request.module}"
    return check_source(request.source)


def _type_names(types: Iterable[str | TupleType]) -> Iterator[str]:
    for given in types:
        if isinstance(given, TupleType):
            yield from _type_names(given.types)
        else:
            yield given


def check_source(source: Source) -> str | None:
    """Why this source is not compiled without trust, one line; None if it may be."""
    if not isinstance(source, str) and source.entry_name and not ENTRY_NAME.fullmatch(source.entry_name):
        return f"it is to be called {source.entry_name[:40]!r}, which is no name of a kernel"
    # A captured source's identity is all of it that is looked at from here on, and hashed much faster.
    key = source if isinstance(source, str) else source.identity
    if key not in _verdicts:
        _verdicts[key] = _verdict(source)
    return _verdicts[key]


# By source: looking takes a millisecond, and a manifest has few sources for its many kernels.
_verdicts: dict[str, str | None] = {}


def _verdict(source: Source) -> str | None:
    try:
        if isinstance(source, str):
            _check_module(_parse(source))
        else:
            _check_captured(source)
    except SourceRefused as refused:
        return str(refused)
    except RecursionError:
        return "its source is nested too deeply"
    return None


def _parse(text: str) -> ast.Module:
    odd = ODD_LINE_ENDS.search(text.replace("\r\n", "\n"))
    if odd is not None:
        raise SourceRefused(f"its source has a character that some take for the end of a line, {odd[0]!r}")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SourceRefused(f"its source does not parse: {error}") from None
    lines = text.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            _check_that_it_begins_at_its_def(node, lines)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and READS_A_FILE.search(node.value):
            raise refuse(node, "has assembly that reads a file")
    return tree


def _check_that_it_begins_at_its_def(function: ast.FunctionDef, lines: list[str]) -> None:
    # Triton takes for the function what follows the first line that begins with "def", in a decorator's argument too.
    first = min((decorator.lineno for decorator in function.decorator_list), default=function.lineno)
    for number in range(first, function.lineno):
        if lines[number - 1].lstrip().startswith("def"):
            raise SourceRefused(f"line {number} of its source looks like the beginning of another function")


# Live functions


def _check_captured(source: CapturedSource) -> None:
    for function in source.functions:
        try:
            _check_captured_function(function, len(source.functions))
        except SourceRefused as refused:
            raise SourceRefused(f"{function.qualname}: {refused}") from None


def _check_captured_function(function: CapturedFunction, functions: int) -> None:
    if is_tritons(function.module):
        raise SourceRefused(f"it says that it is of Triton's module {function.module}")
    if function.replaced:
        raise SourceRefused("its text was replaced after it was defined")
    tree = _parse(textwrap.dedent(function.text))
    match tree.body:
        case [ast.FunctionDef(name=function.name) as definition]:
            pass
        case _:
            raise SourceRefused(f"its text is not the one function {function.name}")
    # Its decorators are not evaluated; what its names stand for is not in the text.
    scope = Scope(definition, closed=True)
    for name, binding in function.names.items():
        _check_binding(binding, functions)
        if isinstance(binding, captured.Namespace):
            scope.stand_for(name, binding)
        elif stands_for := full_name(binding):
            scope.stand_for(name, stands_for)
        elif isinstance(binding, captured.Unbound):
            scope.leave_unbound(name)
        else:
            scope.know(name)
    for binding in function.defaults.values():
        _check_binding(binding, functions)
    check_parameters(definition, scope)
    check_statements(definition, scope)


def _check_binding(binding: Binding, functions: int) -> None:
    match binding:
        case captured.Import(module=module, submodules=submodules):
            for name in [module, *submodules]:
                if not may_import(name):
                    raise SourceRefused(f"it imports {name}")
        case captured.Member(module=module, path=path):
            first, *rest = path.split(".")
            if not may_take(module, first) or not OPEN_ATTRIBUTES.issuperset(rest):
                raise SourceRefused(f"it imports {path} from {module}")
        case captured.FunctionRef(index=index):
            if not 0 <= index < functions:
                raise SourceRefused(f"it calls function {index} of {functions}")
        case captured.Constant(value=str(text)) if READS_A_FILE.search(text):
            raise SourceRefused("it has assembly that reads a file")
        case captured.Namespace(name=name, members=members):
            # Triton puts modules of its own in the place of some that have a certain name.
            if is_tritons(name) or name == "math":
                raise SourceRefused(f"what it calls the module {name} is not that module")
            for member in members:
                if member.startswith("__"):
                    raise SourceRefused(f"it has {member} in {name}")
        case captured.NamedTuple(name=name, fields=fields):
            # These become attributes that any value may be asked for.
            for field in fields:
                if field not in OPEN_ATTRIBUTES:
                    raise SourceRefused(
                        f"its named tuple {name} has a field {field}, which may be anything's attribute"
                    )
    for inner in _bindings_in(binding):
        _check_binding(inner, functions)


def _bindings_in(binding: Binding) -> list[Binding]:
    match binding:
        case captured.Constexpr(value=value):
            return [value]
        case captured.Items(items=items):
            return items
        case captured.Table(items=pairs):
            return [each for pair in pairs for each in pair]
        case captured.Namespace(members=members):
            return list(members.values())
        case captured.NamedTuple(defaults=defaults):
            return defaults
        case captured.NamedTupleValue(cls=cls, items=items):
            return [cls, *items]
    return []


# Functions as Triton parsed them


# Texts


def _check_module(module: ast.Module) -> None:
    scope = Scope(module)
    for statement in module.body:
        match statement:
            case ast.Import() | ast.ImportFrom():
                for alias, full_name in _imports(statement):
                    scope.stand_for(alias, full_name)
            case ast.Expr(value=ast.Constant()):
                pass  # a docstring
            case ast.Assign(targets=targets, value=value):
                check_constant(value, scope)
                for target in targets:
                    check_expression(target, scope)
            case ast.AnnAssign(target=target, annotation=annotation, value=given):
                check_annotation(annotation, scope)
                check_expression(target, scope)
                if given is not None:
                    check_constant(given, scope)
            case ast.FunctionDef():
                check_function(statement, scope)
            case _:
                raise refuse(statement, f"is {described(statement)}, which no kernel needs")


def _imports(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """The names that an import binds, and what they stand for."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if not may_import(alias.name):
                raise refuse(statement, f"imports {alias.name}")
            bound = alias.name if alias.asname else alias.name.partition(".")[0]
            yield alias.asname or bound, bound
        return
    module = statement.module or ""
    for alias in statement.names:
        if statement.level or not may_take(module, alias.name):
            raise refuse(statement, f"imports {alias.name} from {'.' * statement.level}{module}")
        yield alias.asname or alias.name, f"{module}.{alias.name}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("True", "False", "None")
    return True
