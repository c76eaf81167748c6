"""`without_kernels`: torch computes, here and now alone, in inference, training and compiled models; plans say so."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import srattn
from srattn.layers import native
from srattn.layers.batch_norm import TokenBatchNorm
from srattn.layers.feed_forward import ConvMlp
from srattn.layers.local_perception import LocalPerception
from srattn.models import build_model
from srattn.ops import batch_norm, depthwise, plan
from srattn.ops import native as kernels
from srattn.ops.native import library
from srattn.ops.native.calls import BlocksKernel
from srattn.ops.switch import OFF, is_off
from tests.truth import spread_out

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=f"no compiled kernels here: {kernels.why_not()}")


def calls(run: Callable[[], Any]) -> int:
    """How often `run` goes into the kernels for blocks, from whatever thread."""
    count, original = 0, BlocksKernel.__call__

    def counted(self: BlocksKernel, *args: Any) -> Any:
        nonlocal count
        count += 1
        return original(self, *args)

    with mock.patch.object(BlocksKernel, "__call__", counted):
        run()
    return count


@pytest.fixture
def model() -> nn.Module:
    return spread_out(build_model("pvt_v2_b0", depths=(1, 1, 1, 1), num_classes=10)).eval()


def test_it_is_open_where_it_stands() -> None:
    @srattn.without_kernels()
    def decorated() -> bool:
        return is_off()

    assert not is_off() and decorated() and not is_off()
    with pytest.raises(ZeroDivisionError), srattn.without_kernels():
        with srattn.without_kernels():
            assert is_off()
        assert is_off(), "the outer one is still open"
        raise ZeroDivisionError
    assert not is_off()


@needs_kernels
def test_torch_computes_the_same_in_inference(model: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        fast = model(x)
        with srattn.without_kernels():
            assert native.reason_against(x) == OFF
            assert calls(lambda: model(x)) == 0
            own = model(x)
        truth = model.double()(x.double())
        model.float()
        assert calls(lambda: model(x)) == 4, "and afterwards the kernels again"
    assert not torch.equal(fast, own)
    assert (fast - truth).abs().max() <= 2 * (own - truth).abs().max() + 1e-6 * truth.abs().max()


@needs_kernels
def test_it_counts_in_its_thread_alone(model: nn.Module) -> None:
    def run() -> int:
        with torch.inference_mode():
            return calls(lambda: model(torch.randn(1, 3, 64, 64)))

    with ThreadPoolExecutor(1) as pool, srattn.without_kernels():
        assert pool.submit(run).result() == 4
        assert run() == 0


@needs_kernels
def test_training_takes_torchs_operators() -> None:
    x, weight = torch.randn(2, 6, 6, 8), torch.randn(8, 1, 3, 3)
    mlp = ConvMlp(8, 32)
    spread_out(mlp)

    def step() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = mlp(depthwise.depthwise(leaf, weight, None))
        return [y, *torch.autograd.grad(y.square().sum(), [leaf, *mlp.parameters()])]

    assert depthwise.reason_against(x, weight, None) is None and batch_norm.has_kernel(x, None, None)
    mlp.memory = "lean"
    assert mlp.plan_for(6, 6).path == "kernel"
    by_kernels = step()
    with srattn.without_kernels():
        assert depthwise.reason_against(x, weight, None) == OFF and not batch_norm.has_kernel(x, None, None)
        assert mlp.plan_for(6, 6).path == "bands" and OFF in mlp.plan_for(6, 6).reason
        by_torch = step()
    for ours, theirs in zip(by_kernels, by_torch, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_the_way_back_is_that_of_the_way_there() -> None:
    x, weight = torch.randn(2, 6, 6, 8, requires_grad=True), torch.randn(8, 1, 3, 3)
    y = depthwise.depthwise(x, weight, None)
    with srattn.without_kernels():
        (within,) = torch.autograd.grad(y.sum(), x)
        y = depthwise.depthwise(x, weight, None)
    (after,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(within, after)


@needs_kernels
@pytest.mark.parametrize("first", ["within", "without"])
def test_a_compiled_model_follows_it(model: nn.Module, first: str) -> None:
    torch.compiler.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    run, x = torch.compile(model, fullgraph=True, backend=backend), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        if first == "without":
            assert calls(lambda: run(x)) == 4
        for _ in range(2):
            with srattn.without_kernels():
                assert calls(lambda: run(x)) == 0
                torch.testing.assert_close(run(x), model(x))
            assert calls(lambda: run(x)) == 4
    assert len(graphs) == 1, "nothing was compiled again"


@needs_kernels
@pytest.mark.parametrize("first", ["within", "without"])
@pytest.mark.parametrize(
    "make", [lambda: LocalPerception(8), lambda: ConvMlp(8, 16), lambda: TokenBatchNorm(8)], ids=["conv", "mlp", "norm"]
)
def test_a_compiled_training_step_follows_it(make: Callable[[], nn.Module], first: str) -> None:
    torch.compiler.reset()
    module, x = make(), torch.randn(2, 6, 7, 8)
    run = torch.compile(module, fullgraph=True, backend="aot_eager")

    def step(wanted: int) -> list[Tensor]:
        """Output and gradients, for which the kernels were called so often."""
        leaf = x.clone().requires_grad_()
        with mock.patch.object(library, "check", wraps=library.check) as check:
            y = run(leaf)
            found = [y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])]
        assert check.call_count == wanted
        return found

    if first == "without":
        step(2)
    for _ in range(2):
        with srattn.without_kernels():
            by_torch = step(0)
        for ours, theirs in zip(step(2), by_torch, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("name", ["pvt_v2_b0", "mvitv2_tiny", "cvt_13"])
def test_plans_say_so(name: str) -> None:
    model = build_model(name, device="meta")
    with srattn.without_kernels():
        rows = list(srattn.plan(model, 64))
        assert all(row.reason.startswith(f"kernels {OFF}; ") for row in rows)
        assert all(row.feed_forward == f"torch: {OFF}" for row in rows)
        assert "no kernel (" + OFF in next(iter(srattn.plan(model, 64, device="cuda"))).reason or name != "pvt_v2_b0"
    assert not any(OFF in row.reason + row.feed_forward for row in srattn.plan(model, 64))


def test_attention_on_a_gpu_is_not_planned_for_the_kernel() -> None:
    shape = plan.Shape(8, 3136, 49, 64, 1, 64, itemsize=2, device="cuda")
    with mock.patch.object(plan, "_look_around", lambda: None), mock.patch.dict(plan._answers, clear=True):
        assert plan.takes_kernel(shape)
        with srattn.without_kernels():
            assert not plan.takes_kernel(shape) and plan.why_no_kernel(shape) == OFF
        assert plan.takes_kernel(shape)
