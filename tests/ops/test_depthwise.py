"""The kernel of the depthwise convolution against its definition in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from srattn.layers.local_perception import LocalPerception, depthwise_of
from srattn.ops import depthwise as ops

SHAPES = [(2, 5, 7, 33), (1, 1, 1, 1), (3, 1, 9, 16), (2, 40, 30, 8), (1, 2, 70, 46), (2, 8, 1, 5)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    return x, torch.randn(shape[-1], 1, 3, 3, generator=generator), torch.randn(shape[-1], generator=generator)


def needs_kernel() -> None:
    if (reason := ops.reason_against(*inputs((1, 1, 1, 2)))) is not None:
        pytest.skip(reason)


def run(function: object, given: tuple[Tensor | None, ...], residual: bool, g: Tensor) -> list[Tensor]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in given]
    y = function(*leaves, residual)  # type: ignore[operator]
    return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], g)]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_every_gradient(shape: tuple[int, ...], dtype: torch.dtype, residual: bool) -> None:
    needs_kernel()
    x, w, b = inputs(shape, dtype)
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    truth = run(ops.plain, (x.double(), w.double(), b.double()), residual, g.double())
    found = run(ops.depthwise, (x, w, b), residual, g)
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]
    # What is stored in x's precision is rounded once; sums are float32 over at most about 1,024 tokens.
    for name, exact, ours, rounded in zip(
        ("y", "dx", "dw", "db"), truth, found, (True, True, False, False), strict=True
    ):
        scale = float(exact.abs().max().clamp(min=1e-3))
        allowed = (torch.finfo(dtype).eps if rounded else 0.0) + 2e-6
        error = float((ours.double() - exact).abs().max()) / scale
        assert error <= allowed, f"{name}: {error} against {allowed}"


def test_without_bias_and_strided() -> None:
    needs_kernel()
    x, w, _ = inputs((6, 8, 10, 12))
    x = x.transpose(0, 1)[:, :, ::2].transpose(1, 2)
    g = torch.randn(12, *x.shape[:3]).permute(1, 2, 3, 0)
    truth = run(ops.plain, (x.double(), w.double(), None), True, g.double())
    for exact, ours in zip(truth, run(ops.depthwise, (x, w, None), True, g), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_only_the_gradients_that_are_wanted() -> None:
    needs_kernel()
    x, w, b = inputs((2, 4, 5, 8))
    ops.depthwise(x, w.requires_grad_(), b).sum().backward()
    assert x.grad is None and b.grad is None and w.grad is not None
    x.requires_grad_()
    ops.depthwise(x, w.detach(), b, True).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, run(ops.depthwise, (x, w, b), True, torch.ones_like(x))[1])


def test_gradients_of_gradients() -> None:
    needs_kernel()
    x, w, b = (t.requires_grad_() for t in inputs((2, 3, 4, 5)))
    grads = []
    for function in (ops.depthwise, ops.plain):
        y = function(x, w, b, True)
        first = torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)
        grads.append(torch.autograd.grad(sum(t.square().sum() for t in first), (x, w, b)))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_the_sums_do_not_depend_on_threads() -> None:
    needs_kernel()
    given, g = inputs((3, 40, 30, 16)), torch.randn(3, 40, 30, 16)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(ops.depthwise, given, True, g))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_maps_without_tokens() -> None:
    x, w, b = inputs((0, 4, 5, 8))
    assert "no token" in str(ops.reason_against(x, w, b))
    assert ops.depthwise(x, w, b, True).shape == (0, 4, 5, 8)


def test_whoever_reads_the_model_sees_torch() -> None:
    needs_kernel()
    layer, x = LocalPerception(8), torch.randn(1, 4, 5, 8)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 20 * 9 * 8
    program = torch.export.export(layer, (x,))
    assert any("conv2d" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(torch.vmap(layer)(x.unsqueeze(0)), layer(x).unsqueeze(0))
    seen: list[nn.Module] = []
    layer.dwconv.register_forward_hook(lambda module, *_: seen.append(module))
    layer(x)
    assert seen == [layer.dwconv]


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2, "padding": 2}, {"kernel_size": 5, "padding": 2}])
def test_other_convolutions_are_torchs(options: dict[str, Any]) -> None:
    conv = nn.Conv2d(6, 6, **{"kernel_size": 3, "padding": 1, "groups": 6, **options})
    x = torch.randn(2, 9, 8, 6)
    torch.testing.assert_close(depthwise_of(conv, x), conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_under_autocast_a_bfloat16_map_stays_one() -> None:
    needs_kernel()
    layer, x = LocalPerception(8), torch.randn(2, 4, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.bfloat16
        assert layer(x).dtype == torch.float32
    exact = x + F.conv2d(x.permute(0, 3, 1, 2), layer.dwconv.weight, layer.dwconv.bias, 1, 1, 1, 8).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), exact, rtol=1e-5, atol=1e-5)
