"""The tensor programs that the example generates kernels for: the pieces of training and serving transformers.

Each function yields graphs. Sizes and dtypes follow published models; programs share kernels, as they do in
practice, and the driver generates those once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from kernelgen.ir import Graph, Node, attention, cast, iota, load, matmul, op, reduce, tanh


def programs() -> Iterator[Graph]:
    yield from blocks()
    yield from attentions()
    yield from projections()
    yield from activations()
    yield from norms()
    yield from softmaxes()
    yield from losses()
    yield from optimizers()
    yield from quantizers()
    yield from vision()


# Activations and their derivatives


def gelu(x: Node) -> Node:
    return 0.5 * x * (1.0 + op("erf", x * math.sqrt(0.5)))


def gelu_tanh(x: Node) -> Node:
    return 0.5 * x * (1.0 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def silu(x: Node) -> Node:
    return x * op("sigmoid", x)


def softplus(x: Node) -> Node:
    # log(1 + exp(x)) without overflow.
    return op("maximum", x, 0.0) + op("log", 1.0 + op("exp", -op("abs", x)))


def mish(x: Node) -> Node:
    return x * tanh(softplus(x))


def relu(x: Node) -> Node:
    return op("maximum", x, 0.0)


def hardswish(x: Node) -> Node:
    return x * op("minimum", op("maximum", x + 3.0, 0.0), 6.0) / 6.0


def elu(x: Node) -> Node:
    return op("where", x > 0.0, x, op("exp", op("minimum", x, 0.0)) - 1.0)


def softsign(x: Node) -> Node:
    return x / (1.0 + op("abs", x))


def clipped(x: Node) -> Node:
    return op("minimum", op("maximum", x, -1.0), 1.0)


def shrunk(x: Node) -> Node:
    return x - clipped(x)


def logistic(x: Node) -> Node:
    return op("sigmoid", x)


def leaky(x: Node) -> Node:
    return op("where", x > 0.0, x, x * 0.01)


def quick_gelu(x: Node) -> Node:
    return x * op("sigmoid", 1.702 * x)


def squared_relu(x: Node) -> Node:
    return relu(x) * relu(x)


def snake(x: Node) -> Node:
    wave = op("sin", 3.0 * x)
    return x + wave * wave / 3.0


FORWARD: dict[str, Callable[[Node], Node]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "softplus": softplus,
    "mish": mish,
    "hardswish": hardswish,
    "elu": elu,
    "leaky": leaky,
    "softsign": softsign,
    "tanh": tanh,
    "logistic": logistic,
    "relu": relu,
    "clipped": clipped,
    "shrunk": shrunk,
    "quick_gelu": quick_gelu,
    "squared_relu": squared_relu,
    "snake": snake,
}


def gelu_slope(x: Node) -> Node:
    return 0.5 * (1.0 + op("erf", x * math.sqrt(0.5))) + x * op("exp", -0.5 * x * x) / math.sqrt(2 * math.pi)


def silu_slope(x: Node) -> Node:
    s = op("sigmoid", x)
    return s * (1.0 + x * (1.0 - s))


def elu_slope(x: Node) -> Node:
    return op("where", x > 0.0, 1.0, op("exp", op("minimum", x, 0.0)))


def gelu_tanh_slope(x: Node) -> Node:
    k = math.sqrt(2 / math.pi)
    t = tanh(k * (x + 0.044715 * x * x * x))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * k * (1.0 + 0.134145 * x * x)


def mish_slope(x: Node) -> Node:
    t = tanh(softplus(x))
    return t + x * (1.0 - t * t) * op("sigmoid", x)


SLOPE: dict[str, Callable[[Node], Node]] = {
    "gelu": gelu_slope,
    "gelu_tanh": gelu_tanh_slope,
    "silu": silu_slope,
    "elu": elu_slope,
    "mish": mish_slope,
    "softplus": lambda x: op("sigmoid", x),
    "squared_relu": lambda x: 2.0 * relu(x),
}


def activations() -> Iterator[Graph]:
    for i, (name, f) in enumerate(FORWARD.items()):
        for dtype in ("bf16", "fp32") if i % 2 else ("fp16", "bf16"):
            x = load("x", (8192, 3072), dtype)
            yield Graph(f"{name}_{dtype}", {"y": f(x)})
    for name, f in SLOPE.items():
        x, g = load("x", (8192, 3072), "bf16"), load("g", (8192, 3072), "bf16")
        yield Graph(f"{name}_backward", {"dx": g * f(x)})
    for name in ("gelu", "silu", "gelu_tanh", "squared_relu"):
        shape = (4096, 11008)
        gate, up, g = load("gate", shape, "bf16"), load("up", shape, "bf16"), load("g", shape, "bf16")
        yield Graph(f"{name}_glu", {"y": FORWARD[name](gate) * up})
        yield Graph(f"{name}_glu_backward", {"dgate": g * up * SLOPE[name](gate), "dup": g * FORWARD[name](gate)})
    for dtype in ("fp16", "fp32"):
        x, keep, bias = (
            load("x", (8192, 768), dtype),
            load("keep", (8192, 768), "i8"),
            load("b", (1, 768), dtype),
        )
        residual = load("r", (8192, 768), dtype)
        dropped = op("where", keep > 0, (x + bias) / 0.9, 0.0)
        yield Graph(f"bias_dropout_add_{dtype}", {"y": dropped + residual})
    # Rotary embedding of two halves; positions are rows.
    shape = (65536, 64)
    a, b, angle = load("a", shape, "bf16"), load("b", shape, "bf16"), load("angle", shape)
    c, s = op("cos", angle), op("sin", angle)
    yield Graph("rotary", {"a": cast(a * c - b * s, "bf16"), "b": cast(b * c + a * s, "bf16")})
    yield Graph("rotary_backward", {"a": cast(a * c + b * s, "bf16"), "b": cast(b * c - a * s, "bf16")})


# Norms


def layer_norm(x: Node, weight: Node | None, bias: Node | None, eps: float = 1e-5) -> Node:
    centred = x - reduce("mean", x)
    y = centred / op("sqrt", reduce("mean", centred * centred) + eps)
    y = y * weight if weight is not None else y
    return cast(y + bias if bias is not None else y, x.dtype)


def rms_norm(x: Node, weight: Node, eps: float = 1e-6) -> Node:
    return cast(x / op("sqrt", reduce("mean", x * x) + eps) * weight, x.dtype)


def norms() -> Iterator[Graph]:
    for width, dtype in ((768, "fp32"), (1024, "fp16"), (4096, "bf16")):
        x, r = load("x", (8192, width), dtype), load("r", (8192, width), dtype)
        w, b, g = load("w", (1, width), dtype), load("b", (1, width), dtype), load("g", (8192, width), dtype)
        h = x + r
        yield Graph(f"layer_norm_{width}_{dtype}", {"y": layer_norm(x, w, b)})
        yield Graph(f"add_layer_norm_{width}_{dtype}", {"h": h, "y": layer_norm(h, w, b)})
        yield Graph(f"rms_norm_{width}_{dtype}", {"y": rms_norm(x, w)})
        yield Graph(f"add_rms_norm_{width}_{dtype}", {"h": h, "y": rms_norm(h, w)})
        rstd, mean = load("rstd", (8192, 1)), load("mean", (8192, 1))
        hat = (x - mean) * rstd
        scaled = g * w
        dx = (scaled - reduce("mean", scaled) - hat * reduce("mean", scaled * hat)) * rstd
        gradients = {"dw": reduce("sum", g * hat, 0), "db": reduce("sum", g, 0)}
        yield Graph(f"layer_norm_backward_{width}_{dtype}", {"dx": cast(dx, dtype), **gradients})
    for dtype in ("bf16", "fp32"):
        x, w = load("x", (16384, 128), dtype), load("w", (1, 128), dtype)
        yield Graph(f"qk_norm_{dtype}", {"y": rms_norm(x, w)})
        length = op("rsqrt", reduce("sum", x * x) + 1e-12)
        yield Graph(f"unit_{dtype}", {"y": cast(x * length, dtype), "length": length})


# Softmax


def softmax(x: Node) -> Node:
    e = op("exp", x - reduce("max", x))
    return e / reduce("sum", e)


def log_softmax(x: Node) -> Node:
    shifted = x - reduce("max", x)
    return shifted - op("log", reduce("sum", op("exp", shifted)))


def softmaxes() -> Iterator[Graph]:
    for width, dtype in ((512, "fp16"), (2048, "bf16"), (32000, "fp32")):
        x, mask, g, y = (load(name, (16384, width), dtype) for name in ("x", "mask", "g", "y"))
        yield Graph(f"softmax_{width}", {"y": cast(softmax(x), dtype)})
        yield Graph(f"log_softmax_{width}", {"y": cast(log_softmax(x), dtype)})
        yield Graph(f"softmax_backward_{width}", {"dx": cast(y * (g - reduce("sum", g * y)), dtype)})
        if width < 32000:  # scores of attention, not logits of a vocabulary
            yield Graph(f"masked_softmax_{width}", {"y": cast(softmax(0.125 * x + mask), dtype)})
            yield Graph(f"capped_softmax_{width}", {"y": cast(softmax(30.0 * tanh(x / 30.0)), dtype)})
    x = load("x", (1024, 128))
    position, row = iota((1024, 128), 1), iota((1024, 128), 0)
    causal = op("where", op("ge", row, position), x, -1e9)
    yield Graph("causal_softmax", {"y": softmax(causal)})
    temperature, gates = load("t", (16384, 1)), load("x", (16384, 64))
    probabilities = softmax(gates / temperature)
    entropy = -reduce("sum", probabilities * op("log", probabilities + 1e-9))
    yield Graph("router", {"p": probabilities, "entropy": entropy, "load": reduce("mean", probabilities, 0)})


# Losses


def losses() -> Iterator[Graph]:
    for classes, dtype in ((1000, "fp32"), (50257, "bf16")):
        x, label = load("x", (4096, classes), dtype), load("label", (4096, 1), "i32")
        hit = op("eq", iota((4096, classes), 1), label)
        peak = reduce("max", x)
        total = peak + op("log", reduce("sum", op("exp", x - peak)))
        loss = total - reduce("sum", op("where", hit, x, 0.0))
        yield Graph(f"cross_entropy_{classes}", {"loss": loss, "lse": total})
        yield Graph(f"cross_entropy_mean_{classes}", {"loss": reduce("mean", loss + 1e-4 * total * total, 0)})
        lse, scale = load("lse", (4096, 1)), load("scale", (1, 1))
        gradient = (op("exp", x - lse) - op("where", hit, 1.0, 0.0)) * scale
        yield Graph(f"cross_entropy_backward_{classes}", {"dx": cast(gradient, dtype)})
    shape = (4096, 512)
    x, y = load("x", shape), load("y", shape)
    d = x - y
    s = op("abs", d)
    huber = op("where", s < 1.0, 0.5 * d * d, s - 0.5)
    p = op("sigmoid", x)
    bce = op("maximum", x, 0.0) - x * y + op("log", 1.0 + op("exp", -op("abs", x)))
    miss = 1.0 - (p * y + (1.0 - p) * (1.0 - y))
    student, teacher = log_softmax(x), log_softmax(y)
    dot = reduce("sum", x * y)
    norm = op("sqrt", reduce("sum", x * x)) * op("sqrt", reduce("sum", y * y))
    for name, per_row in {
        "mse": reduce("mean", d * d),
        "huber": reduce("mean", huber),
        "bce": reduce("mean", bce),
        "focal": reduce("mean", 0.25 * miss * miss * bce),
        "distill": reduce("sum", op("exp", teacher) * (teacher - student)),
        "cosine": 1.0 - dot / op("maximum", norm, 1e-8),
    }.items():
        yield Graph(f"{name}_loss", {"rows": per_row, "loss": reduce("mean", per_row, 0)})
    yield Graph("huber_backward", {"dx": op("minimum", op("maximum", d, -1.0), 1.0)})
    yield Graph("bce_backward", {"dx": p - y})


# Optimizers


def optimizers() -> Iterator[Graph]:
    for dtype in ("fp32", "bf16"):
        shape = (4096, 4096)
        p, g = load("p", shape), load("g", shape, dtype)
        m, v = load("m", shape), load("v", shape)
        lr, correction1, correction2 = load("lr", (1, 1)), load("c1", (1, 1)), load("c2", (1, 1))
        mean, square = 0.9 * m + 0.1 * g, 0.999 * op("abs", v) + 0.001 * g * g
        step = (mean / correction1) / (op("sqrt", square / op("abs", correction2)) + 1e-8)
        low = {"low": cast(p * (1.0 - 0.1 * lr) - lr * step, dtype)} if dtype == "bf16" else {}
        new = p * (1.0 - 0.1 * lr) - lr * step
        yield Graph(f"adamw_{dtype}", {"p": new, "m": mean, "v": square, **low})
        momentum = 0.9 * m + g
        yield Graph(f"sgd_{dtype}", {"p": p - lr * (g + 0.9 * momentum), "m": momentum})
        blend = 0.9 * m + 0.1 * g
        sign = op("where", blend > 0.0, 1.0, op("where", blend < 0.0, -1.0, 0.0))
        yield Graph(f"lion_{dtype}", {"p": p - lr * (sign + 0.1 * p), "m": 0.99 * m + 0.01 * g})
        energy = op("abs", v) + g * g
        yield Graph(f"adagrad_{dtype}", {"p": p - lr * g / (op("sqrt", energy) + 1e-10), "v": energy})
        decayed = 0.99 * op("abs", v) + 0.01 * g * g
        yield Graph(f"rmsprop_{dtype}", {"p": p - lr * g / op("sqrt", decayed + 1e-8), "v": decayed})
        norm = op("sqrt", reduce("sum", g * g))
        scale = op("minimum", 1.0 / (norm + 1e-6), 1.0)
        yield Graph(f"clip_rows_{dtype}", {"g": cast(g * scale, dtype), "norm": norm})
        ema = load("ema", shape)
        yield Graph(f"ema_{dtype}", {"ema": ema + 0.001 * (g - ema)})


# Quantization


def quantizers() -> Iterator[Graph]:
    for width, dtype in ((4096, "bf16"), (11008, "fp16")):
        x = load("x", (2048, width), dtype)
        scale = reduce("max", op("abs", x)) / 127.0 + 1e-9
        q = op("floor", x / scale + 0.5)
        yield Graph(f"quantize_rows_{width}", {"q": cast(q, "i8"), "scale": scale})
        yield Graph(f"fake_quantize_{width}", {"y": cast(q * scale, dtype)})
        low, high = reduce("min", x), reduce("max", x)
        step = (high - low) / 255.0 + 1e-9
        asymmetric = op("floor", (x - low) / step + 0.5) - 128.0
        yield Graph(f"quantize_asymmetric_{width}", {"q": cast(asymmetric, "i8"), "step": step, "low": low})
        packed, scales = load("q", (2048, width), "i8"), load("s", (2048, 1))
        per_column = load("c", (1, width))
        yield Graph(f"dequantize_rows_{width}", {"x": cast(packed * scales, dtype)})
        yield Graph(f"dequantize_both_{width}", {"x": cast(packed * scales * per_column, dtype)})
    for width in (1024, 4096):
        x, w = load("x", (2048, width), "fp16"), load("w", (1, width), "fp16")
        y = x / op("sqrt", reduce("mean", x * x) + 1e-6) * w
        scale = reduce("max", op("abs", y)) / 127.0 + 1e-9
        yield Graph(f"rms_norm_quantize_{width}", {"q": cast(op("floor", y / scale + 0.5), "i8"), "scale": scale})


# Vision


def vision() -> Iterator[Graph]:
    # Batch norm with channels last: pixels are rows, channels columns.
    x, shortcut = load("x", (25088, 256), "fp16"), load("s", (25088, 256), "fp16")
    w, b, mean, variance = (load(name, (1, 256)) for name in ("w", "b", "mean", "var"))
    y = (x - mean) / op("sqrt", op("abs", variance) + 1e-5) * w + b
    yield Graph("batch_norm_inference", {"y": cast(relu(y), "fp16")})
    yield Graph("batch_norm_add_relu", {"y": cast(relu(y + shortcut), "fp16")})
    mu = reduce("mean", x, 0)
    yield Graph("batch_statistics", {"mean": mu, "var": reduce("mean", (x - mu) * (x - mu), 0)})
    pixels, low, high = load("px", (50176, 3), "i8"), load("lo", (1, 3)), load("hi", (1, 3))
    yield Graph("normalise_pixels", {"y": cast((pixels / 255.0 - low) / (op("abs", high) + 0.1), "fp16")})
    gate, skip = load("gate", (128, 256)), load("skip", (128, 256), "fp16")
    squeeze = op("sigmoid", gate)
    yield Graph("squeeze_excite", {"y": skip * squeeze, "peak": reduce("max", squeeze, 0)})


# Products


def projections() -> Iterator[Graph]:
    x, w = load("x", (256, 1024), "fp16"), load("w", (512, 1024), "fp16")
    bias, other = load("b", (1, 512), "fp16"), load("o", (256, 512), "fp16")
    product = matmul(x, w, transposed=True)
    yield Graph("linear", {"y": product})
    yield Graph("linear_hardswish", {"y": hardswish(product + bias)})
    yield Graph("linear_gate", {"y": op("sigmoid", product + bias) * other})
    scales, columns = load("s", (256, 1)), load("c", (1, 512))
    yield Graph("linear_rescaled", {"y": cast(product * scales * columns, "fp16")})
    logits = matmul(load("h", (256, 768), "bf16"), load("e", (1000, 768), "bf16"), transposed=True)
    yield Graph("logits", {"y": cast(30.0 * tanh(logits / 30.0), "fp32")})
    a, b = load("a", (512, 500), "fp32"), load("b", (500, 384), "fp32")
    yield Graph("product_fp32", {"y": matmul(a, b) + load("c", (512, 384), "fp32")})
    dy, weight = load("dy", (256, 512), "bf16"), load("w", (512, 1024), "bf16")
    inner = load("x", (256, 1024), "bf16")
    yield Graph("linear_backward_silu", {"dx": cast(matmul(dy, weight) * silu_slope(inner), "bf16")})


def attentions() -> Iterator[Graph]:
    for name, shape, dtype, how in (
        ("full", (96, 1024, 64), "fp16", {}),
        ("causal", (96, 1024, 64), "bf16", {"causal": True}),
        ("windowed", (32, 2048, 64), "fp16", {"causal": True, "window": 256}),
        ("capped", (128, 512, 32), "bf16", {"causal": True, "softcap": 50.0}),
    ):
        q, k, v = (load(x, shape, dtype) for x in "qkv")
        gate = load("gate", shape, dtype)
        yield Graph(f"attention_{name}", {"y": attention(q, k, v, **how) * op("sigmoid", gate)})


def blocks() -> Iterator[Graph]:
    """Whole feed-forward halves of transformer blocks, which fusion has to cut well."""
    for name, tokens, width, inner, dtype, normalise, activation in (
        ("gpt2", 256, 768, 3072, "fp16", "layer", gelu_tanh),
        ("llama", 256, 1024, 2816, "bf16", "rms", silu),
    ):
        x, attended = load("x", (tokens, width), dtype), load("attended", (tokens, width), dtype)
        w1, w2 = load("w1", (width, inner), dtype), load("w2", (inner, width), dtype)
        g, b = load("g", (1, width), dtype), load("b", (1, width), dtype)
        h = x + attended
        if normalise == "layer":
            b1, b2 = load("b1", (1, inner), dtype), load("b2", (1, width), dtype)
            y = matmul(activation(matmul(layer_norm(h, g, b), w1) + b1), w2) + b2 + h
        else:
            normal = rms_norm(h, g)
            w3 = load("w3", (width, inner), dtype)
            y = matmul(activation(matmul(normal, w1)) * matmul(normal, w3), w2) + h
        after = layer_norm(y, g, None) if normalise == "layer" else rms_norm(y, g)
        yield Graph(f"{name}_feed_forward", {"y": y, "normal": after})
