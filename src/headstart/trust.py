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
is why the kernel's worker is confined (`headstart.service.confinement`); there `check_parsed` looks once more, at each
function as Triton parsed it and at what its names are bound to.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from headstart import captured
from headstart.captured import Binding, CapturedFunction, CapturedSource
from headstart.environment import OUTCOME_VARIABLES, TOOL_VARIABLES
from headstart.request import CompileRequest, Source, TupleType

# What may be taken from modules other than the language's.
_NAMES = {
    "__future__": {"annotations"},
    "triton": {"cdiv", "constexpr_function", "jit", "language", "next_power_of_2"},
    "triton.runtime.jit": {"constexpr_function", "jit"},
}
_DECORATORS = {
    f"{module}.{name}" for module, names in _NAMES.items() for name in names & {"constexpr_function", "jit"}
}
_LANGUAGE = "triton.language"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MODULES_OF_LANGUAGE = _words("core cuda extra hip libdevice math random standard target_info utils")
# `triton.language.__all__` of Triton 3.6 to 3.9 without `str_to_ty`, which evaluates text.
LANGUAGE_NAMES = _MODULES_OF_LANGUAGE | _words(
    """
    PropagateNan TRITON_MAX_TENSOR_NUMEL abs add advance arange argmax argmin associative_scan assume atomic_add
    atomic_and atomic_cas atomic_load atomic_max atomic_min atomic_or atomic_poll atomic_store atomic_xchg
    atomic_xor bfloat16 bitonic_merge block_type broadcast broadcast_to cast cat cdiv ceil clamp condition const
    constexpr constexpr_type cos cumprod cumsum debug_barrier device_assert device_print div_rn dot dot_scaled
    dtype erf exp exp2 expand_dims expect_zero fdiv flip float16 float32 float64 float8e4b15 float8e4b8
    float8e4nv float8e5 float8e5b16 floor fma full gather histogram inline_asm_elementwise int1 int16 int32
    int64 int8 interleave join load load_tensor_descriptor log log2 make_block_ptr make_tensor_descriptor
    map_elementwise max max_constancy max_contiguous maximum min minimum mul multiple_of num_programs
    pair_uniform_to_normal permute philox philox_impl pi32_t pointer_type program_id rand rand4x randint
    randint4x randn randn4x range ravel reduce reduce_or reshape rsqrt sigmoid sin slice softmax sort split sqrt
    sqrt_rn squeeze static_assert static_print static_range store store_tensor_descriptor sub sum swizzle2d
    tensor tensor_descriptor tensor_descriptor_type to_tensor topk trans tuple tuple_type uint16 uint32 uint64
    uint8 uint_to_uniform_float umulhi unsqueeze view void where xor_sum zeros zeros_like
    """
)
# Of tensors, descriptors, types and constants; of Python's own containers; of `triton.language.core` and `.math`
# besides those above; of `triton.language.extra.cuda` and `.target_info`.
_VALUE_NAMES = _words(
    """
    T block_shape element_ty get_block_shapes int_bitwidth int_signedness is_bf16 is_block is_bool is_const
    is_dtype is_floating is_fp16 is_fp32 is_fp64 is_fp8 is_int is_int1 is_int16 is_int32 is_int64 is_int8
    is_int_signed is_int_unsigned is_ptr item logical_and logical_or name nbytes numel primitive_bitwidth scalar
    scatter shape strides to type value

    append bit_length count extend index items keys values

    CONSTEXPR_0 _log2 get_int_dtype tanh

    gdc gdc_launch_dependents gdc_wait globaltimer num_threads num_warps smid is_cuda is_hip is_hip_cdna3
    is_hip_cdna4 cuda_capability_geq current_target
    """
)
_OPEN_ATTRIBUTES = LANGUAGE_NAMES | _VALUE_NAMES
_BUILTINS = _words(
    """
    AssertionError NotImplementedError RuntimeError TypeError ValueError abs all any bin bool chr complex dict
    divmod enumerate filter float frozenset hash hex id input int isinstance iter len list map max min next ord
    pow print range reversed round set slice sorted str sum tuple zip
    """
)
_STATEMENTS = (
    ast.AnnAssign, ast.Assert, ast.Assign, ast.AugAssign, ast.Break, ast.Continue, ast.Expr, ast.For, ast.If, ast.Pass,
    ast.Raise, ast.Return, ast.While, ast.With,
)  # fmt: skip
_REFUSED_EXPRESSIONS = (ast.Await, ast.Lambda, ast.Yield, ast.YieldFrom)
_OF_EVERY_CLASS = _words(
    "__module__ __qualname__ __dict__ __weakref__ __doc__ __firstlineno__ __static_attributes__ __annotations__"
)
_DEEPEST = 16  # levels of containers that a constant may have
_PLAIN_TYPE = re.compile(r"\*?k?\w+|tensordesc(_im2col)?<\w+\[[\d, ]+\](,input_rank=\d+)?>", re.ASCII)
# Python would take them for ends of lines, or not, depending on who reads: what is looked at must be what is compiled.
_ODD_LINE_ENDS = re.compile("[\r\v\f\x1a\x1c-\x1e\x85\u2028\u2029]")
_CLOSED_BUILTINS = frozenset(dir(builtins)) - _BUILTINS
_READS_A_FILE = re.compile(r"\.\s*(incbin|include)\b", re.IGNORECASE)  # in inline assembly
_ENTRY_NAME = re.compile(r"[\w.$]{1,1024}", re.ASCII)
_OPEN_OPTIONS = frozenset({"extern_libs", "ir_override", "ptx_options"})
_OPEN_VARIABLES = frozenset({"PTXAS_OPTIONS"})


class _Refused(Exception):
    """Carries the reason."""


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
        elif variable not in OUTCOME_VARIABLES - _OPEN_VARIABLES:
            return f"it asks for the environment variable {variable}"
    return None


def check_request(request: CompileRequest, tools: Mapping[str, str] = {}) -> str | None:
    """Why this request is not compiled without trust, one line; None if it may be. `tools`: see `check_environment`."""
    signature = request.signature
    for text in signature.split(",") if isinstance(signature, str) else _type_names(signature.values()):
        name = text.partition(":")[0].strip()
        if not _PLAIN_TYPE.fullmatch(name) and not _is_number(name):
            return f"its signature has {text!r}, which is not the name of a type"
    for option in sorted(_OPEN_OPTIONS & request.options.keys()):
        return f"its option {option} names files or arguments for a tool"
    reason = check_environment(request, tools)
    if reason is not None:
        return reason
    if request.module and _is_tritons(request.module):
        return f"it says that it is Triton's module {request.module}"
    return check_source(request.source)


def _is_tritons(module: str) -> bool:
    return module.partition(".")[0] == "triton"


def _type_names(types: Iterable[str | TupleType]) -> Iterator[str]:
    for given in types:
        if isinstance(given, TupleType):
            yield from _type_names(given.types)
        else:
            yield given


def check_source(source: Source) -> str | None:
    """Why this source is not compiled without trust, one line; None if it may be."""
    if not isinstance(source, str) and source.entry_name and not _ENTRY_NAME.fullmatch(source.entry_name):
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
    except _Refused as refused:
        return str(refused)
    except RecursionError:
        return "its source is nested too deeply"
    return None


def _parse(text: str) -> ast.Module:
    odd = _ODD_LINE_ENDS.search(text.replace("\r\n", "\n"))
    if odd is not None:
        raise _Refused(f"its source has a character that some take for the end of a line, {odd[0]!r}")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _Refused(f"its source does not parse: {error}") from None
    lines = text.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            _check_that_it_begins_at_its_def(node, lines)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _READS_A_FILE.search(node.value):
            raise _refuse(node, "has assembly that reads a file")
    return tree


def _check_that_it_begins_at_its_def(function: ast.FunctionDef, lines: list[str]) -> None:
    # Triton takes for the function what follows the first line that begins with "def", in a decorator's argument too.
    first = min((decorator.lineno for decorator in function.decorator_list), default=function.lineno)
    for number in range(first, function.lineno):
        if lines[number - 1].lstrip().startswith("def"):
            raise _Refused(f"line {number} of its source looks like the beginning of another function")


def _refuse(node: ast.AST, what: str) -> _Refused:
    return _Refused(f"line {getattr(node, 'lineno', 1)} of its source {what}")


class _Scope:
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
        self._readable = _BUILTINS | (assigned - set(dir(builtins)))

    def stand_for(self, name: str, meaning: str | captured.Namespace) -> None:
        """Have `name` mean a module or a member of one, by its full name, or a namespace."""
        before = self.imported.get(name, self.namespaces.get(name))
        if name in self._assigned or before not in (None, meaning):
            raise _Refused(f"its source uses {name} both for what it imports and for something else")
        if name.startswith("__") or name in _CLOSED_BUILTINS:
            raise _Refused(f"its source gives what it imports the name {name}")
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
                return _full_name(namespace.members.get(node.attr))
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


# Live functions


def _check_captured(source: CapturedSource) -> None:
    for function in source.functions:
        try:
            _check_captured_function(function, len(source.functions))
        except _Refused as refused:
            raise _Refused(f"{function.qualname}: {refused}") from None


def _check_captured_function(function: CapturedFunction, functions: int) -> None:
    if _is_tritons(function.module):
        raise _Refused(f"it says that it is of Triton's module {function.module}")
    if function.replaced:
        raise _Refused("its text was replaced after it was defined")
    tree = _parse(textwrap.dedent(function.text))
    match tree.body:
        case [ast.FunctionDef(name=function.name) as definition]:
            pass
        case _:
            raise _Refused(f"its text is not the one function {function.name}")
    # Its decorators are not evaluated; what its names stand for is not in the text.
    scope = _Scope(definition, closed=True)
    for name, binding in function.names.items():
        _check_binding(binding, functions)
        if isinstance(binding, captured.Namespace):
            scope.stand_for(name, binding)
        elif full_name := _full_name(binding):
            scope.stand_for(name, full_name)
        elif isinstance(binding, captured.Unbound):
            scope.leave_unbound(name)
        else:
            scope.know(name)
    for binding in function.defaults.values():
        _check_binding(binding, functions)
    _check_parameters(definition, scope)
    _check_statements(definition, scope)


def _full_name(binding: Binding | None) -> str:
    """What a binding imports; empty if nothing."""
    match binding:
        case captured.Import(module=module):
            return module
        case captured.Member(module=module, path=path):
            return f"{module}.{path}"
    return ""


def _check_binding(binding: Binding, functions: int) -> None:
    match binding:
        case captured.Import(module=module, submodules=submodules):
            for name in [module, *submodules]:
                if not _may_import(name):
                    raise _Refused(f"it imports {name}")
        case captured.Member(module=module, path=path):
            first, *rest = path.split(".")
            if not _may_take(module, first) or not _OPEN_ATTRIBUTES.issuperset(rest):
                raise _Refused(f"it imports {path} from {module}")
        case captured.FunctionRef(index=index):
            if not 0 <= index < functions:
                raise _Refused(f"it calls function {index} of {functions}")
        case captured.Constant(value=str(text)) if _READS_A_FILE.search(text):
            raise _Refused("it has assembly that reads a file")
        case captured.Namespace(name=name, members=members):
            # Triton puts modules of its own in the place of some that have a certain name.
            if _is_tritons(name) or name == "math":
                raise _Refused(f"what it calls the module {name} is not that module")
            for member in members:
                if member.startswith("__"):
                    raise _Refused(f"it has {member} in {name}")
        case captured.NamedTuple(name=name, fields=fields):
            # These become attributes that any value may be asked for.
            for field in fields:
                if field not in _OPEN_ATTRIBUTES:
                    raise _Refused(f"its named tuple {name} has a field {field}, which may be anything's attribute")
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


def check_parsed(tree: ast.Module, bound: Mapping[str, Any]) -> str | None:
    """Why Triton may not compile this function, one line; None if it may.

    Args:
        tree: what Triton has made of its text, its decorators left out.
        bound: what the names mean that it does not define itself: its globals, and its closure's.
    """
    try:
        match tree.body:
            case [ast.FunctionDef(decorator_list=[]) as definition]:
                pass
            case _:
                raise _Refused("what Triton parsed is not one function")
        scope = _Scope(definition, closed=True)
        for name in {node.id for node in ast.walk(definition) if isinstance(node, ast.Name)}:
            if name not in bound:
                continue
            meaning = _meaning(bound[name], name)
            if meaning is None:
                scope.know(name)
            else:
                scope.stand_for(name, meaning)
        _check_parameters(definition, scope)
        _check_statements(definition, scope)
    except _Refused as refused:
        return str(refused)
    except RecursionError:
        return "its source is nested too deeply"
    return None


def _meaning(value: Any, name: str, depth: int = 0) -> str | captured.Namespace | None:
    """What `_Scope.stand_for` is told of a value; None: it is only a value, and harmless."""
    if isinstance(value, types.ModuleType):
        if sys.modules.get(value.__name__) is value:
            if not _may_import(value.__name__):
                raise _Refused(f"it uses the module {value.__name__}")
            return value.__name__
        if _is_tritons(value.__name__) or value.__name__ == "math":
            raise _Refused(f"what it calls the module {value.__name__} is not that module")
    elif not _is_place(value):
        _check_value(value, name, depth)
        return None
    if depth >= _DEEPEST:
        raise _Refused(f"{name} is nested too deeply")
    members: dict[str, Binding] = {}
    for member, each in vars(value).items():
        if not member.startswith("__"):
            meaning = _meaning(each, f"{name}.{member}", depth + 1)
            if isinstance(meaning, str):
                members[member] = captured.Import(meaning)
            else:
                members[member] = captured.Constant(None) if meaning is None else meaning
    return captured.Namespace(name, members)


def _is_place(value: Any) -> bool:
    """Whether this is a class that does nothing of its own: a place for constants and functions."""
    return (
        type(value) is type
        and value.__bases__ == (object,)
        and not _is_tritons(value.__module__)
        and all(member in _OF_EVERY_CLASS for member in vars(value) if member.startswith("__"))
    )


def _check_value(value: Any, name: str, depth: int = 0) -> None:
    """What a name, not of a module, is bound to."""
    cls = type(value)
    if value is None or cls in (bool, int, float, complex, str, bytes, slice, type(...)):
        if cls is str and _READS_A_FILE.search(value):
            raise _Refused(f"{name} is assembly that reads a file")
        return
    if depth < _DEEPEST:
        if cls in (list, tuple, set, frozenset) or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
            for member in value:
                _check_value(member, name, depth + 1)
            return
        if cls is dict:
            for pair in value.items():
                _check_value(pair, name, depth + 1)
            return
        if cls.__module__ == f"{_LANGUAGE}.core" and cls.__name__ == "constexpr":
            _check_value(value.value, name, depth + 1)
            return
    if cls.__module__ == "triton.runtime.jit" and cls.__name__ in ("JITFunction", "ConstexprFunction"):
        return  # which is looked at when Triton comes to it, or was when it was defined
    if cls.__module__ == f"{_LANGUAGE}.core" and not callable(value):
        return  # a type
    if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields"):
        return
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        module, path = value.__module__ or "", value.__qualname__
        if _may_take(module, path) or (module == "builtins" and path in _BUILTINS):
            return
    raise _Refused(f"{name} is {_described_value(value)}, which no kernel needs")


def _described_value(value: Any) -> str:
    cls = type(value)
    return f"a {cls.__module__}.{cls.__qualname__}"


# Texts


def _check_module(module: ast.Module) -> None:
    scope = _Scope(module)
    for statement in module.body:
        match statement:
            case ast.Import() | ast.ImportFrom():
                for alias, full_name in _imports(statement):
                    scope.stand_for(alias, full_name)
            case ast.Expr(value=ast.Constant()):
                pass  # a docstring
            case ast.Assign(targets=targets, value=value):
                _check_constant(value, scope)
                for target in targets:
                    _check_expression(target, scope)
            case ast.AnnAssign(target=target, annotation=annotation, value=given):
                _check_annotation(annotation, scope)
                _check_expression(target, scope)
                if given is not None:
                    _check_constant(given, scope)
            case ast.FunctionDef():
                _check_function(statement, scope)
            case _:
                raise _refuse(statement, f"is {_described(statement)}, which no kernel needs")


def _imports(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """The names that an import binds, and what they stand for."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if not _may_import(alias.name):
                raise _refuse(statement, f"imports {alias.name}")
            bound = alias.name if alias.asname else alias.name.partition(".")[0]
            yield alias.asname or bound, bound
        return
    module = statement.module or ""
    for alias in statement.names:
        if statement.level or not _may_take(module, alias.name):
            raise _refuse(statement, f"imports {alias.name} from {'.' * statement.level}{module}")
        yield alias.asname or alias.name, f"{module}.{alias.name}"


def _may_import(module: str) -> bool:
    return module in ("math", "triton") or _is_language(module)


def _is_language(module: str) -> bool:
    return module == _LANGUAGE or (
        module.startswith(f"{_LANGUAGE}.") and _MODULES_OF_LANGUAGE.issuperset(module.split(".")[2:])
    )


def _may_take(module: str, name: str) -> bool:
    """Whether `from module import name` leads to nothing but the language."""
    if module in _NAMES:
        return name in _NAMES[module]
    if module == "math" or (_is_language(module) and module.endswith(".libdevice")):
        return not name.startswith("_") and name not in ("*", "core")
    return _is_language(module) and name in _OPEN_ATTRIBUTES


def _check_function(function: ast.FunctionDef, scope: _Scope) -> None:
    if not function.decorator_list:
        raise _refuse(function, f"defines {function.name}, which is neither a jit nor a constexpr function")
    for decorator in function.decorator_list:
        _check_decorator(decorator, scope)
    _check_parameters(function, scope)
    _check_statements(function, scope)


def _check_parameters(function: ast.FunctionDef, scope: _Scope) -> None:
    """Names, annotations and defaults. Triton evaluates annotations and defaults too, where a call relies on them."""
    arguments = function.args
    others = [*arguments.posonlyargs, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    for each in others:
        if each is not None and each.arg in _CLOSED_BUILTINS:
            # To Triton only plain parameters are bound; this name would be the builtin's.
            raise _refuse(each, f"has a parameter {each.arg}, which is not positional or keyword")
    every = [*arguments.args, *(each for each in others if each is not None)]
    for each in every:
        if each.arg.startswith("__"):
            raise _refuse(each, f"has a parameter {each.arg}")
    for annotation in [function.returns, *(each.annotation for each in every)]:
        if annotation is not None and not _means_nothing(annotation, scope):
            _check_annotation(annotation, scope)
    for default in [*arguments.defaults, *arguments.kw_defaults]:
        if default is not None and not _means_nothing(default, scope):
            _check_constant(default, scope)


def _means_nothing(node: ast.expr, scope: _Scope) -> bool:
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


def _check_statements(function: ast.FunctionDef, scope: _Scope) -> None:
    scope.parameters = {argument.arg for argument in function.args.args}
    for statement in function.body:
        _check_body(statement, scope)
    scope.parameters = set()


def _check_decorator(decorator: ast.expr, scope: _Scope) -> None:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if scope.full_name(called) not in _DECORATORS:
        raise _refuse(decorator, f"decorates a function with {ast.unparse(called)}")
    if isinstance(decorator, ast.Call):
        for value in [*decorator.args, *(keyword.value for keyword in decorator.keywords)]:
            _check_constant(value, scope)


def _check_constant(node: ast.expr, scope: _Scope) -> None:
    """Literals, names from the language or from the text, and what operators and `constexpr` make of them."""
    match node:
        case ast.Constant():
            return
        case ast.Name() | ast.Attribute():
            _check_expression(node, scope)
            return
        case ast.Call(func=func, args=[argument], keywords=[]) if _is_constexpr(func, scope):
            _check_constant(argument, scope)
            return
        case ast.UnaryOp() | ast.BinOp() | ast.BoolOp() | ast.Compare() | ast.Tuple() | ast.List() | ast.Dict():
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    _check_constant(child, scope)
            return
    raise _refuse(node, f"computes {ast.unparse(node):.60} where a constant is expected")


def _is_constexpr(function: ast.expr, scope: _Scope) -> bool:
    return scope.full_name(function).endswith("language.constexpr")


def _check_annotation(node: ast.expr, scope: _Scope) -> None:
    match node:
        case ast.Subscript(value=value, slice=part):
            _check_annotation(value, scope)
            _check_annotation(part, scope)
        case _:
            _check_constant(node, scope)


def _check_body(node: ast.AST, scope: _Scope) -> None:
    """One statement of a function, and all that is in it."""
    if isinstance(node, ast.stmt) and not isinstance(node, _STATEMENTS):
        raise _refuse(node, f"has {_described(node)} inside a function")
    if isinstance(node, ast.expr):
        _check_expression(node, scope)
    else:
        for child in ast.iter_child_nodes(node):
            _check_body(child, scope)


def _check_expression(node: ast.expr, scope: _Scope) -> None:
    """An expression, and all that is in it."""
    if isinstance(node, _REFUSED_EXPRESSIONS):
        raise _refuse(node, f"has {_described(node)} inside a function")
    if isinstance(node, ast.Attribute):
        _check_attribute(node, scope)
    elif isinstance(node, ast.Name):
        _check_name(node, scope)
    for child in ast.iter_child_nodes(node):
        # `triton` alone would be a way around what may be taken from it.
        if not (isinstance(node, ast.Attribute) and scope.full_name(child) in _NAMES):  # type: ignore[arg-type]
            _check_body(child, scope)


def _check_attribute(node: ast.Attribute, scope: _Scope) -> None:
    if not isinstance(node.ctx, ast.Load):
        raise _refuse(node, f"sets {ast.unparse(node):.60}")
    namespace = scope.namespace(node.value)
    if namespace is not None:
        if node.attr not in namespace.members:
            raise _refuse(node, f"reads {ast.unparse(node):.60}")
        return
    module = scope.full_name(node.value)
    is_module = module in _NAMES or module == "math" or _is_language(module)
    if not (_may_take(module, node.attr) if is_module else node.attr in _OPEN_ATTRIBUTES):
        raise _refuse(node, f"reads {ast.unparse(node):.60}")


def _check_name(node: ast.Name, scope: _Scope) -> None:
    if scope.imported.get(node.id) in _NAMES:
        raise _refuse(node, f"passes the module {node.id} on")
    if node.id.startswith("__"):
        raise _refuse(node, f"reads {node.id}")
    if isinstance(node.ctx, ast.Load) and not scope.may_read(node.id):
        raise _refuse(node, f"reads {node.id}, which it does not define")


def _described(node: ast.AST) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(node).__name__).lower()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("True", "False", "None")
    return True
