"""flash-linear-attention: gated linear attention, forward and backward, and the gated delta rule, forward."""

import os
import time

begun = time.perf_counter()

import measured  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # noqa: E402
from fla.ops.gla import chunk_gla  # noqa: E402

B, T, H, K = 2, 2048, 8, 128
torch.manual_seed(0)


def made(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


q, k, v = made(B, T, H, K).requires_grad_(), made(B, T, H, K).requires_grad_(), made(B, T, H, K).requires_grad_()
gate = F.logsigmoid(made(B, T, H, K)).requires_grad_()
normal = F.normalize(made(B, T, H, K).float(), dim=-1).bfloat16()
beta, decay = made(B, T, H).sigmoid(), F.logsigmoid(made(B, T, H).float())


def work() -> list[torch.Tensor]:
    for tensor in (q, k, v, gate):
        tensor.grad = None
    o, _ = chunk_gla(q, k, v, gate)
    outputs = [o]
    if os.environ.get("PARTS", "all") != "forward":
        o.sum().backward()
        outputs += [q.grad, k.grad, v.grad, gate.grad]
    if os.environ.get("PARTS", "all") == "all":
        with torch.no_grad():
            outputs.append(chunk_gated_delta_rule(q, normal, v, decay, beta)[0])
    return [output.detach() for output in outputs]


measured.run(work, begun)
