"""The kernel of the batch norm against its definition in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.layers.batch_norm import TokenBatchNorm, after_gelu
from srattn.ops import batch_norm as ops


def inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=generator) * 2 + 1).to(dtype)
    return x, torch.rand(shape[-1], generator=generator) + 0.5, torch.randn(shape[-1], generator=generator)


def needs_kernel() -> None:
    if (reason := ops.reason_against(torch.ones(2, 1), None, None)) is not None:
        pytest.skip(reason)


def run(function: object, x: Tensor, w: Tensor | None, b: Tensor | None, gelu: bool, g: Tensor) -> list[Tensor]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, w, b)]
    y, mean, var = function(*leaves, 1e-5, gelu)  # type: ignore[operator]
    wanted = [t for t in leaves if t is not None]
    return [y.detach(), mean, var, *torch.autograd.grad(y, wanted, g)]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 7, 33), (1, 1, 2, 1), (3, 20, 10, 16), (4, 46)])
def test_forward_and_every_gradient(shape: tuple[int, ...], dtype: torch.dtype, gelu: bool) -> None:
    needs_kernel()
    x, w, b = inputs(shape, dtype)
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    truth = run(ops.plain, x.double(), w.double(), b.double(), gelu, g.double())
    plain = run(ops.plain, x, w, b, gelu, g)
    found = run(ops.batch_norm, x, w, b, gelu, g)
    for name, exact, theirs, ours in zip(("y", "mean", "var", "dx", "dw", "db"), truth, plain, found, strict=True):
        scale = exact.abs().max().clamp(min=1e-3)
        error, allowed = (ours.double() - exact).abs().max() / scale, (theirs.double() - exact).abs().max() / scale
        assert error <= 2 * allowed + 2e-5, f"{name}: {float(error)} against {float(allowed)}"


def test_without_weights_and_strided() -> None:
    needs_kernel()
    x, _, _ = inputs((6, 8, 5, 12), torch.float32)
    x = x.transpose(0, 1)[:, ::2]
    g = torch.randn(x.shape)
    truth = run(ops.plain, x.double(), None, None, True, g.double())
    for exact, ours in zip(truth, run(ops.batch_norm, x, None, None, True, g), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_gradients(dtype: torch.dtype, gelu: bool) -> None:
    needs_kernel()
    x, w, b = inputs((5, 2, 7, 33), dtype)
    s = torch.randn(2, 5, 7, 33, generator=torch.Generator().manual_seed(1)).to(dtype)

    def second(function: object, wide: bool) -> list[Tensor]:
        leaves = [(t.double() if wide else t).detach().clone().requires_grad_() for t in (x, w, b)]
        y, *_ = function(leaves[0].transpose(0, 1), *leaves[1:], 1e-5, gelu)  # type: ignore[operator]
        first = torch.autograd.grad((y.pow(3) * s).sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)]

    with_kernel, in_plain, truth = second(ops.batch_norm, False), second(ops.plain, False), second(ops.plain, True)
    for exact, theirs, ours in zip(truth, in_plain, with_kernel, strict=True):
        error, allowed = ((t.double() - exact).norm() / exact.norm() for t in (ours, theirs))
        assert ours.dtype == theirs.dtype and error <= 2 * allowed + 1e-5, f"{float(error)} against {float(allowed)}"


@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 2)])
def test_gradients_of_gradients_of_some_inputs_alone(wanted: tuple[int, ...]) -> None:
    needs_kernel()
    given = inputs((4, 3, 8), torch.float32)
    found = []
    for function in (ops.batch_norm, ops.plain):
        leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(given)]
        some = [leaves[i] for i in wanted]
        first = torch.autograd.grad(function(*leaves)[0].pow(3).sum(), some, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), some))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_gradients_of_gradients_count_the_batch_once() -> None:
    norm, x = TokenBatchNorm(6), inputs((2, 3, 3, 6), torch.float32)[0].requires_grad_()
    y = after_gelu(norm, x)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    (g,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    g.square().sum().backward()
    assert int(norm.num_batches_tracked or 0) == 1
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_whatever_type_torch_makes_by_default(default: torch.dtype) -> None:
    needs_kernel()
    x, w, b = inputs((2, 5, 7, 130), torch.float32)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    expected = run(ops.batch_norm, x, w, b, True, g)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        found = run(ops.batch_norm, x, w, b, True, g)
    finally:
        torch.set_default_dtype(before)
    assert all(t.dtype == torch.float32 and torch.equal(t, e) for t, e in zip(found, expected, strict=True))


def test_whatever_device_torch_makes_by_default() -> None:
    needs_kernel()
    x, w, b = inputs((2, 5, 7, 13), torch.float32)
    expected = run(ops.batch_norm, x, w, b, False, x)
    with torch.device("meta"):
        found = run(ops.batch_norm, x, w, b, False, x)
    assert all(torch.equal(t, e) for t, e in zip(found, expected, strict=True))


def test_a_large_mean_loses_no_variance() -> None:
    needs_kernel()
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)) + 3000
    _, mean, var = ops.batch_norm(x, None, None)
    torch.testing.assert_close(var.double(), x.double().var(0, correction=0), rtol=1e-4, atol=0)
    torch.testing.assert_close(mean.double(), x.double().mean(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_sums_do_not_depend_on_threads(threads: int) -> None:
    needs_kernel()
    x, w, b = inputs((3, 40, 10, 16), torch.float32)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = run(ops.batch_norm, x, w, b, True, g)
        torch.set_num_threads(1)
        alone = run(ops.batch_norm, x, w, b, True, g)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_module_as_torch(momentum: float | None) -> None:
    ours = TokenBatchNorm(10, momentum=momentum)
    theirs = torch.nn.BatchNorm2d(10, momentum=momentum)
    for seed in range(3):
        x, _, _ = inputs((2, 4, 3, 10), torch.float32, seed)
        y, reference = ours(x), theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(y, reference, rtol=1e-5, atol=1e-5)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    x, _, _ = inputs((2, 4, 3, 10), torch.float32, 9)
    ours.eval(), theirs.eval()
    reference = theirs(F.gelu(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(after_gelu(ours, x), reference, rtol=1e-5, atol=1e-5)


def test_one_token_without_running_statistics_is_refused_while_training() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        TokenBatchNorm(4, track_running_stats=False)(torch.ones(1, 1, 1, 4))


def test_a_replaced_norm_gets_gelu_too() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(after_gelu(torch.nn.Identity(), x), F.gelu(x))


def test_reasons() -> None:
    assert "float64" in str(ops.reason_against(torch.ones(2, 3, dtype=torch.float64), None, None))
    assert "no token" in str(ops.reason_against(torch.ones(0, 3), None, None))
