"""Runs the kernels of batch norm in Triton's interpreter; see `interpreter`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.ops.triton.interpreter import answer

if TYPE_CHECKING:
    from torch import Tensor

CASES = {
    # shape, dtype, whether GELU stands before it
    "one tile": ((37, 5), "float32", False),
    "one tile, gelu": ((37, 5), "bfloat16", True),
    "two walks, blocks of channels": ((3, 11, 130), "bfloat16", False),
    "two walks, blocks of channels, gelu": ((3, 11, 130), "float32", True),
    "many walks": ((2, 5, 20, 40), "float16", False),
    "many walks, gelu": ((2, 5, 20, 40), "float16", True),
    "many walks, gelu, bf16": ((2, 5, 20, 40), "bfloat16", True),
    "longer walks, gelu": ((3, 100, 20), "float32", True),
}
NAMES = ("y", "mean", "var", "dx", "dw", "db")


def run(function: Any, x: Tensor, w: Tensor, b: Tensor, gelu: bool, dy: Tensor) -> list[Tensor]:
    """y, mean, var, and the gradients of x, weight and bias."""
    import torch

    leaves = [t.detach().requires_grad_() for t in (x, w, b)]
    y, mean, var = function(*leaves, 1e-5, gelu)
    assert y.requires_grad and not mean.requires_grad and not var.requires_grad
    return [y.detach(), mean, var, *torch.autograd.grad(y, leaves, dy)]


def compare(x: Tensor, w: Tensor, b: Tensor, gelu: bool, dy: Tensor) -> list[str]:
    """Twice as far from float64 as plain torch in the same type is right, and a few units of the last place.

    That is four of fp32's; of bf16's one, since the interpreter does not round to bf16 but cuts off.
    """
    import torch

    from srattn.ops.batch_norm import plain
    from srattn.ops.triton.batch_norm import batch_norm

    truth = run(plain, x.double(), w.double(), b.double(), gelu, dy.double())
    usual, found = run(plain, x, w, b, gelu, dy), run(batch_norm, x, w, b, gelu, dy)
    wrong = []
    for name, exact, theirs, ours in zip(NAMES, truth, usual, found, strict=True):
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            wrong.append(f"{name} is {ours.dtype} {tuple(ours.shape)}")
        off, may = (float((t.double() - exact).abs().max()) for t in (ours, theirs))
        unit = 4 * torch.finfo(torch.float32).eps if ours.dtype != torch.bfloat16 else torch.finfo(torch.bfloat16).eps
        if not off <= 2 * may + unit * float(exact.abs().max()):
            wrong.append(f"{name} is {off:.1e} off where {may:.1e} is usual")
    return wrong


def inputs(shape: tuple[int, ...], dtype: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, and dy with other strides."""
    import torch

    torch.manual_seed(0)
    c, kind = shape[-1], getattr(torch, dtype)
    dy = torch.randn(c, *shape[:-1]).to(kind).movedim(0, -1)
    return (torch.randn(shape) * 2 + 1).to(kind), torch.rand(c) + 0.5, torch.randn(c), dy


def one(name: str) -> list[str]:
    from srattn.ops.triton import batch_norm

    shape, dtype, gelu = CASES[name]
    x, w, b, dy = inputs(shape, dtype)
    with mock.patch.object(batch_norm, "multiprocessors", lambda _: 1 if name.startswith("longer") else 132):
        return compare(x, w, b, gelu, dy)


def parameters_in_bf16() -> list[str]:
    x, w, b, dy = inputs((70, 16), "bfloat16")
    return compare(x, w.bfloat16(), b.bfloat16(), True, dy)


def variance() -> list[str]:
    """Neither a large mean nor a first row unlike the others costs digits of the variance."""
    import torch

    from srattn.ops.triton.batch_norm import batch_norm

    wrong = []
    torch.manual_seed(0)
    far = torch.randn(200, 20) + 100
    odd = torch.randn(200, 20)
    odd[0] = 300.0
    for name, x in (("mean 100", far), ("an odd row", odd)):
        _, mean, var = batch_norm(x, torch.ones(20), torch.zeros(20))
        if not torch.allclose(var.double(), x.double().var(0, correction=0), rtol=1e-5, atol=0):
            wrong.append(f"{name}: the variance is off")
        if not torch.allclose(mean.double(), x.double().mean(0), rtol=1e-5, atol=1e-6):
            wrong.append(f"{name}: the mean is off")
    return wrong


def one_row() -> list[str]:
    import torch

    from srattn.ops.triton.batch_norm import batch_norm

    x, w, b, dy = inputs((1, 20), "float32")
    y, mean, var, dx, dw, db = run(batch_norm, x, w, b, False, dy)
    expected = (b[None], x[0], torch.zeros(20), torch.zeros(1, 20), torch.zeros(20), dy[0])
    found = zip(NAMES, (y, mean, var, dx, dw, db), expected, strict=True)
    return [f"{name} is {a}" for name, a, truth in found if not torch.allclose(a, truth, atol=1e-4)]


def same_bits() -> list[str]:
    import torch

    from srattn.ops.triton.batch_norm import batch_norm

    x, w, b, dy = inputs((3, 50, 16), "bfloat16")
    runs = zip(NAMES, *(run(batch_norm, x, w, b, True, dy) for _ in range(2)), strict=True)
    return [f"{name} differs" for name, first, second in runs if not torch.equal(first, second)]


OTHERS = {
    "parameters in bf16": parameters_in_bf16,
    "variance": variance,
    "one row": one_row,
    "the same bits twice": same_bits,
}


if __name__ == "__main__":
    answer([*CASES, *OTHERS], lambda name: one(name) if name in CASES else OTHERS[name]())
