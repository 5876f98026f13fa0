"""liger-kernel: RMSNorm, SwiGLU, rotary embedding and cross-entropy, forward and backward."""

import time

begun = time.perf_counter()

import measured  # noqa: E402
import torch  # noqa: E402
from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction  # noqa: E402
from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # noqa: E402
from liger_kernel.ops.rope import LigerRopeFunction  # noqa: E402
from liger_kernel.ops.swiglu import LigerSiLUMulFunction  # noqa: E402

torch.manual_seed(0)


def made(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)


x, weight, up = made(4, 512, 2048), made(2048), made(4, 512, 2048)
q, k = made(4, 16, 512, 128), made(4, 16, 512, 128)
angles = torch.randn(1, 512, 128, device="cuda", dtype=torch.bfloat16)
logits, target = made(512, 32000), torch.randint(0, 32000, (512,), device="cuda")


def work() -> list[torch.Tensor]:
    # The kernels write into what they are given: each run gets a copy.
    y = LigerRMSNormFunction.apply(x.clone(), weight, 1e-6)
    z = LigerSiLUMulFunction.apply(y, up.clone())
    rotated, _ = LigerRopeFunction.apply(q.clone(), k.clone(), angles.cos(), angles.sin())
    loss = LigerCrossEntropyFunction.apply(logits.clone(), target, None)
    loss = loss[0] if isinstance(loss, tuple) else loss
    (z.sum() + rotated.sum() + loss).backward()
    outputs = [z, rotated, loss, x.grad, weight.grad, logits.grad]
    found = [output.detach().clone() for output in outputs]
    for tensor in (x, weight, up, q, k, logits):
        tensor.grad = None
    return found


measured.run(work, begun)
