"""Cross entropy and its gradient in one kernel: logits are read twice, written once, and no softmax is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from cases import BRAIN, FULL, INDICES, Case, sweep


@triton.jit
def cross_entropy_kernel(
    logits, labels, losses, stride, classes, inverse_rows, ignored,
    SMOOTHING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Leaves the gradient of the mean loss in place of the logits. Rows whose label is `ignored` count nothing."""
    row = tl.program_id(0)
    start = logits + row.to(tl.int64) * stride
    label = tl.load(labels + row)
    i = tl.arange(0, BLOCK)
    largest = float("-inf")
    total = 0.0
    plain = 0.0
    for first in range(0, classes, BLOCK):
        inside = first + i < classes
        value = tl.load(start + first + i, mask=inside, other=float("-inf")).to(tl.float32)
        new_largest = tl.maximum(largest, tl.max(value, 0))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(value - new_largest), 0)
        largest = new_largest
        if SMOOTHING > 0.0:
            plain += tl.sum(tl.where(inside, value, 0.0), 0)
    log_sum = largest + tl.log(total)
    counts = label != ignored
    chosen = tl.load(start + label, mask=counts, other=0.0).to(tl.float32)
    loss = log_sum - (1.0 - SMOOTHING) * chosen
    if SMOOTHING > 0.0:
        loss -= SMOOTHING * plain / classes
    tl.store(losses + row, tl.where(counts, loss, 0.0))
    for first in range(0, classes, BLOCK):
        column = first + i
        inside = column < classes
        value = tl.load(start + column, mask=inside, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(value - log_sum) - SMOOTHING / classes
        gradient = tl.where(column == label, gradient - (1.0 - SMOOTHING), gradient)
        gradient = tl.where(counts, gradient * inverse_rows, 0.0)
        tl.store(start + column, gradient.to(logits.dtype.element_ty), mask=inside)


def cross_entropy(logits: Any, labels: Any, smoothing: float = 0.0, ignored: int = -100) -> Any:
    """The mean loss; afterwards `logits` holds its gradient."""
    rows, classes = logits.shape
    losses = logits.new_empty(rows).float()
    counting = max(1, int((labels != ignored).sum()))
    block = min(8192, triton.next_power_of_2(classes))
    cross_entropy_kernel[(rows,)](
        logits, labels, losses, logits.stride(0), classes, 1.0 / counting, ignored,
        SMOOTHING=smoothing, BLOCK=block, num_warps=8,
    )  # fmt: skip
    return losses.sum() / counting


def cases() -> Iterator[Case]:
    """Vocabularies of language models."""
    given = {"labels": INDICES, "losses": FULL, "inverse_rows": 1.0 / 4096, "ignored": -100}
    for choice in sweep(pointer=(FULL, BRAIN), classes=(32000, 50257), smoothing=(0.0, 0.1), warps=(8, 16)):
        classes = choice["classes"]
        yield Case(
            cross_entropy_kernel,
            {"logits": choice["pointer"], **given, "stride": classes, "classes": classes},
            {"SMOOTHING": choice["smoothing"], "BLOCK": 8192},
            {"num_warps": choice["warps"]},
        )


def check(torch: Any) -> None:
    """Against torch, on a GPU."""
    for smoothing in (0.0, 0.1):
        logits = torch.randn((64, 5000), device="cuda")
        labels = torch.randint(0, 5000, (64,), device="cuda")
        labels[3] = -100
        leaf = logits.clone().requires_grad_()
        expected = torch.nn.functional.cross_entropy(leaf, labels, label_smoothing=smoothing)
        expected.backward()
        torch.testing.assert_close(cross_entropy(logits, labels, smoothing), expected)
        torch.testing.assert_close(logits, leaf.grad)
