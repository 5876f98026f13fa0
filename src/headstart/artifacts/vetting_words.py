"""What a source that nobody vouches for may name, and what it may not. `vetting` holds sources to it."""

from __future__ import annotations

import ast
import builtins
import re

# What may be taken from modules other than the language's.
NAMES = {
    "__future__": {"annotations"},
    "triton": {"cdiv", "constexpr_function", "jit", "language", "next_power_of_2"},
    "triton.runtime.jit": {"constexpr_function", "jit"},
}


DECORATORS = {f"{module}.{name}" for module, names in NAMES.items() for name in names & {"constexpr_function", "jit"}}


LANGUAGE = "triton.language"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODULES_OF_LANGUAGE = _words("core cuda extra hip libdevice math random standard target_info utils")


# `triton.language.__all__` of Triton 3.6 to 3.9 without `str_to_ty`, which evaluates text.
LANGUAGE_NAMES = MODULES_OF_LANGUAGE | _words(
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
VALUE_NAMES = _words(
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


OPEN_ATTRIBUTES = LANGUAGE_NAMES | VALUE_NAMES


BUILTINS = _words(
    """
    AssertionError NotImplementedError RuntimeError TypeError ValueError abs all any bin bool chr complex dict
    divmod enumerate filter float frozenset hash hex id input int isinstance iter len list map max min next ord
    pow print range reversed round set slice sorted str sum tuple zip
    """
)


STATEMENTS = (
    ast.AnnAssign, ast.Assert, ast.Assign, ast.AugAssign, ast.Break, ast.Continue, ast.Expr, ast.For, ast.If, ast.Pass,
    ast.Raise, ast.Return, ast.While, ast.With,
)  # fmt: skip


REFUSED_EXPRESSIONS = (ast.Await, ast.Lambda, ast.Yield, ast.YieldFrom)


OF_EVERY_CLASS = _words(
    "__module__ __qualname__ __dict__ __weakref__ __doc__ __firstlineno__ __static_attributes__ __annotations__"
)


DEEPEST = 16  # levels of containers that a constant may have


PLAIN_TYPE = re.compile(r"\*?k?\w+|tensordesc(_im2col)?<\w+\[[\d, ]+\](,input_rank=\d+)?>", re.ASCII)


# Python would take them for ends of lines, or not, depending on who reads: what is looked at must be what is compiled.
ODD_LINE_ENDS = re.compile("[\r\v\f\x1a\x1c-\x1e\x85\u2028\u2029]")


CLOSED_BUILTINS = frozenset(dir(builtins)) - BUILTINS


READS_A_FILE = re.compile(r"\.\s*(incbin|include)\b", re.IGNORECASE)  # in inline assembly


ENTRY_NAME = re.compile(r"[\w.$]{1,1024}", re.ASCII)


OPEN_OPTIONS = frozenset({"extern_libs", "ir_override", "ptx_options"})


OPEN_VARIABLES = frozenset({"PTXAS_OPTIONS"})
