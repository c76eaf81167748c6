"""The feed-forward in training: every path against the plain one in float64, forward and every gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from srattn.layers.feed_forward import ConvMlp, Mlp
from srattn.ops import feed_forward as ops
from srattn.ops import feed_forward_kernel as kernel
from srattn.ops.feed_forward import Weights, plain
from tests.truth import error

# (batch, height, width, in, hidden, out, relu, convolution): odd sizes, one token, one column, several groups.
SHAPES = [
    (2, 5, 7, 8, 24, 8, False, True),
    (3, 9, 1, 13, 37, 13, True, True),
    (1, 1, 1, 5, 3, 5, False, True),
    (3, 4, 6, 16, 40, 9, False, False),
    (2, 1, 9, 7, 33, 7, True, True),
    (5, 3, 3, 40, 100, 40, True, True),
    (2, 11, 6, 35, 130, 35, False, True),
]


def weights(
    dim: int, hidden: int, out: int, conv: bool, bias: bool = True, dtype: torch.dtype = torch.float32
) -> Weights:
    def make(*shape: int) -> Tensor:
        fan_in = max(torch.Size(shape[1:]).numel(), 1)
        return (torch.randn(*shape) / fan_in**0.5).to(dtype).requires_grad_()

    return Weights(
        make(hidden, dim),
        make(hidden) if bias else None,
        make(hidden, 1, 3, 3) if conv else None,
        make(hidden) if conv and bias else None,
        make(out, hidden),
        make(out) if bias else None,
    )


def everything(run, x: Tensor, w: Weights, dy: Tensor) -> list[Tensor]:
    """Output and all gradients."""
    x = x.detach().clone().requires_grad_()
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *(t for t in w if t is not None)], dy)]


def double(w: Weights) -> Weights:
    return Weights(*(None if t is None else t.detach().double().requires_grad_() for t in w))


def by(path: str, relu: bool, rows: int, w: Weights):
    if path == "kernel":
        needs_kernel()
    return lambda x: ops._Recomputed.apply(x, relu, rows, path == "kernel", *w)


def needs_kernel() -> None:
    if (reason := kernel.reason_against(torch.float32, True, False)) is not None:
        pytest.skip(f"no compiled kernel: {reason}")


@pytest.mark.parametrize("path", ["kernel", "bands"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_path_equals_the_plain_one(shape: tuple, path: str) -> None:
    batch, height, width, dim, hidden, out, relu, conv = shape
    x, dy = torch.randn(batch, height, width, dim), torch.randn(batch, height, width, out)
    for bias in (True, False):
        w = weights(dim, hidden, out, conv, bias)
        w64 = double(w)
        truth = everything(lambda x, w64=w64: plain(x, w64, relu), x.double(), w64, dy.double())
        ours = everything(lambda x, w=w: plain(x, w, relu), x, w, dy)
        for rows in (1, 2, 5, height, 2 * height):
            found = everything(by(path, relu, rows, w), x, w, dy)
            for got, expected, torchs in zip(found, truth, ours, strict=True):
                assert got.shape == expected.shape
                # Twice the error of the plain path, and what the rounding of one number of this size may be.
                rounding = expected.abs().max().item() * torch.finfo(torch.float32).eps
                assert error(got, expected) <= 2 * error(torchs, expected) + 4 * rounding


@pytest.mark.parametrize("conv", [True, False])
def test_bands_have_the_gradients_of_finite_differences(conv: bool) -> None:
    w = double(weights(3, 4, 2, conv))
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    for rows in (1, 2, 6):
        assert torch.autograd.gradcheck(
            lambda x, *w, rows=rows: ops._Recomputed.apply(x, False, rows, False, *w),
            (x, *(t if t is not None else None for t in w)),
        )


def test_bands_in_double_are_the_plain_path_to_the_last_digits() -> None:
    w = double(weights(6, 20, 6, True))
    x, dy = torch.randn(2, 7, 5, 6, dtype=torch.float64), torch.randn(2, 7, 5, 6, dtype=torch.float64)
    truth = everything(lambda x: plain(x, w, True), x, w, dy)
    for got, expected in zip(everything(by("bands", True, 2, w), x, w, dy), truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_half_precision_sums_in_float32() -> None:
    w = weights(16, 64, 16, True, dtype=torch.bfloat16)
    x, dy = torch.randn(2, 9, 8, 16).bfloat16(), torch.randn(2, 9, 8, 16).bfloat16()
    w64 = double(w)
    truth = everything(lambda x: plain(x, w64), x.double(), w64, dy.double())
    torchs = everything(lambda x: plain(x, w), x, w, dy)
    assert ops.choose(x.requires_grad_(), w, memory="lean").path == "bands"
    for got, expected, theirs in zip(everything(by("bands", False, 3, w), x, w, dy), truth, torchs, strict=True):
        assert got.dtype == torch.bfloat16
        rounding = expected.abs().max().item() * torch.finfo(torch.bfloat16).eps
        assert error(got, expected) <= 2 * error(theirs, expected) + rounding


def test_maps_and_gradients_of_any_strides() -> None:
    w = weights(8, 40, 8, True)
    wide = torch.randn(3, 7, 12, 8)
    views = (wide[:, :, ::2], wide.permute(0, 2, 1, 3), wide.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    for view in views:
        dy = torch.randn(view.shape[0], view.shape[2], view.shape[1], 8).transpose(1, 2)
        w64 = double(w)
        truth = everything(lambda x, w64=w64: plain(x, w64), view.double(), w64, dy.double())
        for memory in ("fast", "lean"):
            found = everything(lambda x, memory=memory: ops.feed_forward(x, w, memory=memory), view, w, dy)
            for got, expected in zip(found, truth, strict=True):
                torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-5)


def test_tokens_without_a_raster_go_the_same_ways() -> None:
    w = weights(8, 24, 5, False)
    x = torch.randn(2, 11, 8, requires_grad=True)
    for memory in ops.MEMORIES:
        assert torch.allclose(ops.feed_forward(x, w, memory=memory), plain(x, w), atol=1e-6)
    empty = torch.zeros(2, 0, 3, 8, requires_grad=True)
    assert ops.feed_forward(empty, w, memory="lean").shape == (2, 0, 3, 5)


@pytest.mark.parametrize("memory", ops.MEMORIES)
def test_a_gradient_can_be_differentiated(memory: str) -> None:
    w = double(weights(3, 5, 3, True))
    x = torch.randn(1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    flat = tuple(t for t in w if t is not None)
    assert torch.autograd.gradgradcheck(lambda x, *w: ops.feed_forward(x, Weights(*w), memory=memory), (x, *flat))
    needs_kernel()
    w32 = weights(3, 5, 3, True)
    y = torch.randn(1, 3, 3, 3, requires_grad=True)
    assert ops.choose(y, w32, memory=memory).path == "kernel"

    def penalty(run) -> Tensor:
        (g,) = torch.autograd.grad(run(y).square().sum(), y, create_graph=True)
        return torch.autograd.grad(g.square().sum(), w32.taps)[0]

    ours, truth = penalty(lambda x: ops.feed_forward(x, w32, memory=memory)), penalty(lambda x: plain(x, w32))
    torch.testing.assert_close(ours, truth)


def test_what_needs_no_gradient_gets_none() -> None:
    w = weights(4, 8, 4, True)
    frozen = Weights(*(None if t is None else t.detach() for t in w))
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    for memory in ops.MEMORIES:
        (dx,) = torch.autograd.grad(ops.feed_forward(x, frozen, memory=memory).sum(), x)
        (truth,) = torch.autograd.grad(plain(x, frozen).sum(), x)
        torch.testing.assert_close(dx, truth)
        (dt,) = torch.autograd.grad(ops.feed_forward(x.detach(), w, memory=memory).sum(), w.taps)
        assert dt.shape == (8, 1, 3, 3)
    with torch.no_grad():
        assert ops.choose(x, w).path == "plain"


def test_a_weight_changed_before_backward_is_an_error() -> None:
    w = weights(4, 8, 4, True)
    y = ops.feed_forward(torch.randn(1, 4, 4, 4, requires_grad=True), w, memory="lean")
    with torch.no_grad():
        w.fc1.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_nothing_hidden_is_saved() -> None:
    x = torch.randn(2, 8, 8, 8, requires_grad=True)

    def saved(memory: str, w: Weights) -> int:
        sizes: dict[int, int] = {}
        count = lambda t: sizes.setdefault(t.data_ptr(), t.numel()) and t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            ops.feed_forward(x.to(w.fc1.dtype), w, memory=memory)
        return sum(sizes.values())

    w = double(weights(8, 64, 8, True))
    own = sum(t.numel() for t in w if t is not None)
    assert saved("lean", w) == x.numel() + own, "the map and the weights alone"
    assert saved("fast", w) > x.numel() + own + 2 * 128 * 64


@pytest.mark.parametrize("memory", ops.MEMORIES)
@pytest.mark.parametrize("module", [ConvMlp(6, 20, drop=0.5), Mlp(6, 20, out_dim=4, drop=0.5)])
def test_dropout_draws_what_torch_draws(module: torch.nn.Module, memory: str) -> None:
    x = torch.randn(2, 4, 5, 6)
    results = []
    for own in (True, False):
        part = copy.deepcopy(module).train()
        part.memory = memory
        torch.manual_seed(3)
        y = part(x) if own else part._by_parts(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in part.parameters())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("memory", ops.MEMORIES)
def test_under_autocast(memory: str) -> None:
    part, x = ConvMlp(8, 24), torch.randn(2, 5, 6, 8, requires_grad=True)
    part.memory = memory
    with torch.autocast("cpu", torch.bfloat16):
        y, other = part(x), part._by_parts(x)
    assert y.dtype == other.dtype == torch.bfloat16
    exact = copy.deepcopy(part).double()._by_parts(x.double()).detach()
    allowed = 2 * torch.finfo(torch.bfloat16).eps * float(exact.abs().max())  # of what is hidden, and of the result
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=allowed)
    torch.testing.assert_close(other.double(), exact, rtol=0, atol=allowed)
    y.float().sum().backward()
    assert part.fc1.weight.grad is not None and part.fc1.weight.grad.dtype == torch.float32


def test_hooks_and_replaced_parts_are_called() -> None:
    part, seen = ConvMlp(4, 8), []
    assert part.dwconv is not None
    handle = part.dwconv.register_forward_hook(lambda *a: seen.append(1))
    x = torch.randn(1, 3, 3, 4)
    part(x)
    handle.remove()
    assert seen == [1]
    part.fc1 = torch.nn.Sequential(part.fc1, torch.nn.Dropout(1.0))
    part.fc1.out_features = 8
    assert torch.allclose(part(x), part._by_parts(x))
    assert part.plan_for(3, 3).path == "plain"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, in forward differentiation
@pytest.mark.parametrize("memory", ops.MEMORIES)
def test_torch_func_and_forward_differentiation(memory: str) -> None:
    part, x = ConvMlp(4, 8), torch.randn(3, 2, 5, 5, 4)
    part.memory = memory
    params = dict(part.named_parameters())

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(part, p, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    for i in range(3):
        part.zero_grad()
        part(x[i]).square().sum().backward()
        for name, p in part.named_parameters():
            torch.testing.assert_close(each[name][i], p.grad, rtol=1e-4, atol=1e-5)
    _, tangent = torch.func.jvp(lambda x: part(x), (x[0],), (torch.ones_like(x[0]),))
    assert tangent.shape == x[0].shape


@pytest.mark.parametrize("memory", ops.MEMORIES)
def test_compiles_without_a_graph_break(memory: str) -> None:
    torch.compiler.reset()
    part, x = ConvMlp(4, 8), torch.randn(2, 5, 5, 4, requires_grad=True)
    part.memory = memory
    compiled = torch.compile(part, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), part._by_parts(x))
    compiled(x).sum().backward()
    assert x.grad is not None


def test_the_same_bits_at_every_call() -> None:
    needs_kernel()
    w = weights(16, 96, 16, True)
    x, dy = torch.randn(3, 9, 8, 16), torch.randn(3, 9, 8, 16)
    first, second = (everything(by("kernel", False, 3, w), x, w, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_several_threads_share_the_units() -> None:
    needs_kernel()
    w = weights(16, 70, 16, True)
    x, dy = torch.randn(5, 6, 4, 16), torch.randn(5, 6, 4, 16)
    alone = everything(by("kernel", False, 2, w), x, w, dy)
    torch.set_num_threads(3)
    try:
        together = everything(by("kernel", False, 2, w), x, w, dy)
    finally:
        torch.set_num_threads(1)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_choice_says_why() -> None:
    part = ConvMlp(32, 256)
    for memory, paths in (("fast", {"kernel", "plain"}), ("lean", {"kernel", "bands"})):
        part.memory = memory
        choice = part.plan_for(56, 56, 8)
        assert choice.path in paths
        assert choice.reason in ops.words(choice, 56)
    part.memory = "lean"
    assert part.plan_for(56, 56, dtype=torch.float64).path == "whole", "weights of another precision: autocast, say"
    assert part.double().plan_for(56, 56, dtype=torch.float64).path == "bands"
    assert part.plan_for(56, 56, device="cuda").path == "whole"
    assert "2 whole maps" in ops.words(ops.Choice("bands", 14, "as an example"), 7)
    assert "3 of 7 rows" in ops.words(ops.Choice("bands", 3, "as an example"), 7)
    with pytest.raises(ops.SrattnError, match="'lean' or 'fast'"):
        ops.check_memory("leen")
