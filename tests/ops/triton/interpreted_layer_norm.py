"""Runs the kernels of the layer norm in Triton's interpreter; see `interpreter`."""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest import mock

from tests.ops.triton.interpreter import answer


class Case(NamedTuple):
    """One layer norm to be checked."""

    shape: tuple[int, ...]
    x: str
    add: str | None = None
    y: str | None = None
    parameters: str = "float32"
    mean: float = 0.0
    use_s: bool = True
    """Whether s has a gradient of its own."""
    expanded: bool = False
    """Whether the gradient of y is one number, seen at every place."""


CASES = {
    "fp32, tail, loops": Case((3, 13, 130), "float32"),
    "fp32, added, loops": Case((39, 130), "float32", add="float32"),
    "autocast": Case((2, 9, 128), "float32", add="bfloat16", y="bfloat16"),
    "autocast, nothing added": Case((17, 320), "float32", y="bfloat16"),
    "bf16": Case((2, 5, 320), "bfloat16", add="bfloat16", parameters="bfloat16"),
    "bf16, wider added": Case((7, 33), "bfloat16", add="float32"),
    "fp16, s unused": Case((9, 48), "float16", add="float16", parameters="float16", use_s=False),
    "fp16, expanded": Case((9, 48), "float16", parameters="float16", expanded=True),
    "one channel": Case((131, 1), "float32", add="float16"),
    "five channels": Case((131, 5), "float32", add="bfloat16"),
    "one row": Case((1, 130), "float32", add="bfloat16", y="bfloat16"),
    "one row, 1024 channels": Case((1, 1, 1024), "bfloat16", y="float32"),
    "a large mean": Case((11, 128), "float32", add="float32", mean=1000.0),
}


def check(case: Case) -> list[str]:
    """Twice the error of plain torch in the same types is allowed, as `srattn.bench.gpu_check` says."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from srattn.bench import gpu_check
    from srattn.ops.triton import layer_norm

    torch.manual_seed(0)
    kind = lambda name: getattr(torch, name)  # noqa: E731
    channels, dtype = case.shape[-1:], kind(case.y or case.x)
    given = {
        "x": (torch.randn(case.shape) + case.mean).to(kind(case.x)),
        "weight": torch.randn(channels).to(kind(case.parameters)),
        "bias": torch.randn(channels).to(kind(case.parameters)),
    }
    if case.add is not None:
        given["add"] = torch.randn(case.shape).to(kind(case.add))
    dy, ds = (torch.randn(case.shape).to(t) for t in (dtype, kind(case.x)))
    dy = torch.tensor(0.5, dtype=dtype).expand(case.shape) if case.expanded else dy

    def plain(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s = x if add is None else (x + add).to(x.dtype)
        y = F.layer_norm(s, channels, weight.to(x.dtype), bias.to(x.dtype), 1e-6)
        return y.to(torch.float64 if x.dtype == torch.float64 else dtype), s

    def ours(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return layer_norm.layer_norm(x, weight, bias, 1e-6, add, dtype)

    def results(call: Any, tensors: dict[str, Tensor]) -> list[Tensor]:
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        y, s = call(**leaves)
        outputs = [(y, dy.to(y.dtype)), (s, ds.to(s.dtype))][: 2 if case.use_s else 1]
        grads = torch.autograd.grad([o for o, _ in outputs], list(leaves.values()), [g for _, g in outputs])
        return [y.detach(), s.detach(), *grads]

    truth = results(plain, {name: t.double() for name, t in given.items()})
    rough, found = results(plain, given), results(ours, given)
    names, rows = ["y", "s", *(f"gradient of {name}" for name in given)], given["x"][..., 0].numel()
    wrong = gpu_check.failures(names, found, rough, truth, max(rows, *channels))
    wrong += [f"{n} is {a.dtype}" for n, a, b in zip(names, found, rough, strict=True) if a.dtype != b.dtype]
    if case.shape == (39, 130):
        again = results(ours, given)
        wrong += [f"{n}: other bits" for n, a, b in zip(names, found, again, strict=True) if not torch.equal(a, b)]
    return wrong


def launches() -> list[str]:
    """Two programs and tiles of few rows: that the cases above are computed by kernels, and that these loop."""
    import torch

    from srattn.ops.triton import ahead, layer_norm

    x, w = torch.randn(39, 130), torch.randn(130)
    made = layer_norm._forward_like(x, w, w, None, 1e-6, None)
    found = ahead.record(layer_norm.OPERATORS["opaque"], x, w, w, None, 1e-6, None)
    found += ahead.record(layer_norm.slopes, x, None, x, w, *made[2:], made[0], None)
    grids = [launch.grid[0] for launch in found]
    return [] if grids == [10, 2] else [f"the grids are {grids}"]


def one(name: str) -> list[str]:
    """In tiles and programs so few that loops run more than once."""
    from srattn.ops.triton import layer_norm

    few = {"FORWARD_TILE": 1024, "PROGRAMS": 2, "multiprocessors": lambda _: 1}
    with mock.patch.multiple(layer_norm, **few):
        return check(CASES[name]) if name in CASES else launches()


if __name__ == "__main__":
    answer([*CASES, "launches"], one)
