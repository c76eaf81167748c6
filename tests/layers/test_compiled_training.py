"""Training steps under torch.compile on a CPU: they keep the kernels, and their numbers are those of eager steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor import config as inductor
from torch.nn.functional import gelu

from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.batch_norm import TokenBatchNorm
from srattn.layers.block import Block
from srattn.layers.depthwise_reduction import DepthwiseReduction
from srattn.layers.feed_forward import ConvMlp, Mlp
from srattn.layers.local_perception import LocalPerception
from srattn.models import build_model
from srattn.ops import batch_norm, depthwise, feed_forward, reduce
from srattn.ops import native as kernels
from tests.models.small import short_numbers
from tests.truth import spread_out

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no compiled kernels here: {kernels.why_not()}")


@pytest.fixture(autouse=True)
def _anew() -> None:
    torch.compiler.reset()


class Graphs:
    """A backend that runs graphs as AOTAutograd makes them, and counts the operators of ours in them, by name."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self.count = 0
        self.backend = aot_autograd(fw_compiler=self._read, bw_compiler=self._read)

    def _read(self, graph: torch.fx.GraphModule, example: Any) -> Callable[..., Any]:
        for node in graph.graph.nodes:
            name = str(node.target).removesuffix(".default")
            if name.startswith("srattn."):
                self.found[name.removeprefix("srattn.cpu_")] = self.found.get(name.removeprefix("srattn.cpu_"), 0) + 1
        return make_boxed_func(graph.forward)

    def __call__(self, graph: torch.fx.GraphModule, example: Any) -> Callable[..., Any]:
        self.count += 1
        return self.backend(graph, example)


def compiled(module: Any, **options: Any) -> tuple[Any, Graphs]:
    graphs = Graphs()
    return torch.compile(module, fullgraph=True, backend=graphs, **options), graphs


def step(run: Any, module: nn.Module, x: Tensor, autocast: bool = False) -> dict[str, Tensor]:
    """The output, the gradient of x and of every parameter, and the buffers, by name; seeded."""
    torch.manual_seed(3)
    module.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = run(x)
    y.to(x.dtype).square().sum().backward()
    assert x.grad is not None
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads, **{name: b.clone() for name, b in module.named_buffers()}}


def check_as_near(found: dict[str, Tensor], eager: dict[str, Tensor], truth: dict[str, Tensor], unit: float) -> None:
    """At most twice as far from the truth as eager steps, or by some units of what is largest among the gradients."""
    assert found.keys() == eager.keys() == truth.keys()
    largest = max(float(t.double().norm()) for name, t in truth.items() if name != "y")
    for name, exact in truth.items():
        error, allowed = (float((f[name].double() - exact.double()).norm()) for f in (found, eager))
        assert error <= 2 * allowed + 4 * unit * max(1.0, largest), f"{name}: {error} against {allowed}"


FAMILIES = {
    "pvt_v2_b2_li": {"feed_forward": 2},
    "pvt_tiny": {"feed_forward": 2},
    "twins_svt_small": {"feed_forward": 2, "depthwise": 2},
    "cvt_13": {"feed_forward": 2, "batch_norm": 6},
    "p2t_tiny": {"depthwise": 10},
    "cmt_ti": {"depthwise": 4, "batch_norm": 11, "taps": 1},
}
"""Operators in the graphs of two stages of one block."""


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_models_keep_the_kernels_and_the_gradients(name: str, autocast: bool) -> None:
    torch.manual_seed(0)
    model = spread_out(build_model(name, **short_numbers(name))).train()
    x = torch.randn(3, 3, 64, 96)
    truth = step(double := copy.deepcopy(model).double(), double, x.double())
    eager = step(other := copy.deepcopy(model), other, x, autocast)
    run, graphs = compiled(model, dynamic=False)
    found = step(run, model, x, autocast)
    check_as_near(found, eager, truth, torch.finfo(torch.bfloat16 if autocast else torch.float32).eps)
    # As in eager mode: the kernel of the feed-forward is for float32, the sum of taps for bfloat16.
    expected = {op: n for op, n in FAMILIES[name].items() if op != ("feed_forward" if autocast else "taps")}
    assert graphs.found == expected | {f"{op}_backward": count for op, count in expected.items()}


def block_of(drop_path: float = 0.0) -> Block:
    torch.manual_seed(1)
    block = Block(32, SpatialReductionAttention(32, 2, 2), ConvMlp(32, 64), drop_path=drop_path)
    return spread_out(block).train()  # type: ignore[return-value]


def check_equal(found: dict[str, Tensor], eager: dict[str, Tensor]) -> None:
    assert found.keys() == eager.keys()
    largest = max(float(t.detach().abs().max()) for t in eager.values() if t.numel())  # some gradients vanish
    for name, expected in eager.items():
        torch.testing.assert_close(found[name].detach(), expected.detach(), rtol=1e-5, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_stochastic_depth_draws_what_it_draws_in_eager_mode(checkpointed: bool) -> None:
    torch.manual_seed(0)
    model = build_model("pvt_v2_b0", **short_numbers("pvt_v2_b0"), drop_path_rate=0.5, proj_drop_rate=0.0).train()
    model.set_grad_checkpointing(checkpointed)
    x = torch.randn(8, 3, 64, 64)
    eager = step(model, model, x)
    run, graphs = compiled(model)
    check_equal(step(run, model, x), eager)
    assert graphs.found["feed_forward_backward"] == 2
    torch.manual_seed(4)
    assert not torch.allclose(run(x), eager["y"], atol=1e-3), "another seed, other blocks"


def test_checkpointed_statistics_count_a_batch_once() -> None:
    model = build_model("cmt_ti", **short_numbers("cmt_ti")).train()
    model.set_grad_checkpointing()
    x = torch.randn(4, 3, 64, 64)
    eager = step(other := copy.deepcopy(model), other, x)
    run, _ = compiled(model)
    found = step(run, model, x)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(found[name], eager[name], rtol=1e-4, atol=1e-5)
        assert not name.endswith("num_batches_tracked") or int(buffer) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_optimiser_steps_through_the_whole_compiler() -> None:
    block, x = block_of(0.4), torch.randn(4, 6, 8, 32)
    other = copy.deepcopy(block)
    run = torch.compile(block, fullgraph=True)
    ways = [(m, f, torch.optim.AdamW(m.parameters(), lr=1e-3)) for m, f in ((block, run), (other, other))]
    for _ in range(2):
        with inductor.patch(fallback_random=True):  # else its random numbers are its own
            found, eager = (step(f, m, x) for m, f, _ in ways)
        check_equal(found, eager)
        for _, _, optimiser in ways:
            optimiser.step()


def test_sizes_may_be_dynamic() -> None:
    """One graph for all sizes, empty batches and single images aside."""
    part = spread_out(nn.Sequential(ConvMlp(8, 24), LocalPerception(8), TokenBatchNorm(8))).train()
    run, graphs = compiled(part, dynamic=True)
    step(run, part, torch.randn(4, 7, 6, 8))
    first = graphs.count
    for size in [(2, 5, 7, 8), (3, 9, 4, 8), (5, 6, 6, 8)]:
        x = torch.randn(size)
        other = copy.deepcopy(part)
        check_equal(step(run, part, x), step(other, other, x))
    assert graphs.count == first
    ours = ("feed_forward", "depthwise", "batch_norm")
    assert graphs.found == {name + end: 1 for name in ours for end in ("", "_backward")}
    empty = nn.Sequential(ConvMlp(8, 24), LocalPerception(8))
    run, _ = compiled(empty)
    assert step(run, empty, torch.randn(0, 5, 7, 8))["0.fc1.weight"].count_nonzero() == 0


def test_tokens_of_any_raster_strided_and_without_biases() -> None:
    part = spread_out(Mlp(8, 20, out_dim=12)).train()
    part.fc1.bias = None  # type: ignore[assignment]
    run, graphs = compiled(part)
    for x in (torch.randn(3, 8), torch.randn(5, 3, 8), torch.randn(8, 5, 2, 3).permute(3, 1, 2, 0)):
        check_equal(step(run, part, x), step(part, part, x))
    conv = ConvMlp(8, 20)
    conv.dwconv.bias = None  # type: ignore[union-attr]
    whole, more = compiled(conv)
    x = torch.randn(8, 5, 2, 3).permute(3, 1, 2, 0)
    check_equal(step(whole, conv, x), step(conv, conv, x))
    assert graphs.found["feed_forward_backward"] == 3 and more.found["feed_forward_backward"] == 1


def test_only_the_gradients_that_are_wanted() -> None:
    part, x = ConvMlp(8, 24).train(), torch.randn(2, 5, 7, 8)
    part.fc1.requires_grad_(False)
    run, graphs = compiled(part)
    run(x).sum().backward()
    assert part.fc1.weight.grad is None and part.fc2.weight.grad is not None
    assert graphs.found == {"feed_forward": 1, "feed_forward_backward": 1}
    frozen, graphs = compiled(copy.deepcopy(part).requires_grad_(False))
    assert not frozen(x).requires_grad and graphs.found == {}


@pytest.mark.parametrize("lean", [False, True])
def test_what_is_kept_for_backward(lean: bool) -> None:
    """x and the weights, nothing that is hidden."""
    part = ConvMlp(8, 64).train()
    part.memory = "lean" if lean else "fast"
    kept: list[int] = []
    run, _ = compiled(part)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        run(torch.randn(2, 12, 12, 8, requires_grad=True))
    assert max(kept) == 2 * 12 * 12 * 8


def test_weights_that_stand_in_get_the_gradients() -> None:
    block, x = block_of(), torch.randn(2, 6, 8, 32)
    others = [{name: (f * p.detach()).requires_grad_() for name, p in block.named_parameters()} for f in (0.5, 0.7)]

    def call(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(block, weights, (x,))

    run, graphs = compiled(call)
    for weights in others:
        found, expected = (torch.autograd.grad(f(x, weights).square().sum(), [*weights.values()]) for f in (run, call))
        check_equal(dict(zip(weights, found, strict=True)), dict(zip(weights, expected, strict=True)))
    assert graphs.found["feed_forward_backward"] == 1
    assert all(p.grad is None for p in block.parameters())


def test_second_derivatives_are_right_or_refused() -> None:
    part = spread_out(nn.Sequential(ConvMlp(8, 24), LocalPerception(8), TokenBatchNorm(8))).train()
    x = torch.randn(2, 4, 5, 8, requires_grad=True)

    def second(run: Any, x: Tensor) -> list[Tensor]:
        (g,) = torch.autograd.grad(run(x).pow(3).sum(), x, create_graph=True)
        return [
            *torch.autograd.grad(g.square().sum(), [x, *part.parameters()], allow_unused=True, materialize_grads=True)
        ]

    eager = second(part, x)
    for found, expected in zip(second(torch.compile(part, fullgraph=True, backend="eager"), x), eager, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match="double backward"):
        second(compiled(part)[0], x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_transformations_see_torchs_operators() -> None:
    part, x = spread_out(nn.Sequential(ConvMlp(8, 24), LocalPerception(8))).train(), torch.randn(2, 4, 6, 8)
    weights = {name: p.detach() for name, p in part.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(part, weights, (x,)).square().sum()

    def each(x: Tensor) -> dict[str, Tensor]:
        return torch.vmap(torch.func.grad(loss), (None, 0))(weights, x.unsqueeze(1))

    def tangent(x: Tensor) -> dict[str, Tensor]:
        return {"tangent": torch.func.jvp(lambda x: gelu(part(x)), (x,), (x,))[1]}

    for transformed in (each, tangent):
        run, graphs = compiled(transformed)
        check_equal(run(x), transformed(x))
        assert graphs.found == {}


@pytest.mark.parametrize("is_compiled", [False, True])
def test_transformations_of_a_reduction_in_halves(is_compiled: bool) -> None:
    part, x = DepthwiseReduction(8, 2).bfloat16(), torch.randn(2, 4, 6, 8).bfloat16()
    part.norm = nn.Identity()  # type: ignore[assignment]

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: part(x).float().square().sum())(x)

    y = x.clone().requires_grad_()
    part(y).float().square().sum().backward()
    assert y.grad is not None
    run, graphs = compiled(gradient) if is_compiled else (gradient, Graphs())
    torch.testing.assert_close(run(x), y.grad, rtol=2**-6, atol=2**-7)
    assert graphs.found == {}


def test_parts_that_somebody_listens_to_are_heard() -> None:
    part, x = ConvMlp(8, 24).train(), torch.randn(2, 4, 5, 8)
    part.fc1.register_forward_hook(lambda *call: 2 * call[-1])
    run, graphs = compiled(part)
    check_equal(step(run, part, x), step(part, part, x))
    assert "feed_forward" not in graphs.found


def test_models_exported_in_training_have_no_such_operators() -> None:
    part = nn.Sequential(ConvMlp(8, 24), LocalPerception(8), TokenBatchNorm(8)).train()
    program = torch.export.export(part, (torch.randn(2, 4, 5, 8),))
    assert not any("srattn" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_by_torchs_own_checks(dtype: torch.dtype) -> None:
    """And one gradient alone: of x, or of the weights."""
    mlp, taps = ConvMlp(6, 10, extra_relu=True), nn.Conv2d(6, 6, 3, padding=1, groups=6)
    for x_learns, weights_learn in [(True, True), (False, True), (True, False)]:
        x = torch.randn(2, 3, 4, 6, dtype=dtype, requires_grad=x_learns)
        for module in (mlp, taps):
            module.requires_grad_(weights_learn)
        tokens = x.detach().flatten(0, 2).requires_grad_(x_learns)
        scale = torch.randn(6, requires_grad=weights_learn)
        if dtype == torch.float32:
            torch.library.opcheck(feed_forward._operator, (x, *mlp._weights(), True))
            bare = mlp._weights()._replace(fc1_bias=None, taps=None, taps_bias=None, fc2_bias=None)
            torch.library.opcheck(feed_forward._operator, (x, *bare, False))
        for bias in (taps.bias, None):
            torch.library.opcheck(depthwise._operator, (x, taps.weight, bias, True))
        if dtype == torch.bfloat16:
            even = x.detach()[:, :2].requires_grad_(x_learns)
            torch.library.opcheck(reduce._operator, (even, taps.weight[..., :2, :2].detach().bfloat16()))
        for affine in ((scale, scale.detach()), (None, None)):
            torch.library.opcheck(batch_norm._operator, (tokens, *affine, 1e-5, True))
