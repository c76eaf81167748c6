"""The registered operators on a CPU, where they compute their definition: gradients, opcheck, export, no hidden copies.

What needs a GPU is skipped without one: compilation by Inductor, and CUDA graphs.
"""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import srattn
from srattn.layers.block import Block
from srattn.layers.feed_forward import ConvMlp
from srattn.ops import attend, plan
from srattn.ops.triton import ahead, attention, attention_launch, depthwise, language
from srattn.ops.triton.choices import Blocks
from tests.truth import DOUBLE

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def inputs(dtype: torch.dtype = DOUBLE) -> tuple[Any, ...]:
    """Transposed and expanded ones, none of them contiguous."""
    x = torch.randn(2, 5, 6, dtype=dtype).transpose(1, 2).requires_grad_()
    keys = torch.randn(2, 3, 2, 5, dtype=dtype).transpose(1, 2).requires_grad_()
    values = torch.randn(2, 2, 5, 3, dtype=dtype).transpose(2, 3).requires_grad_()
    key_bias = torch.randn(2, 1, 3, dtype=dtype).requires_grad_()
    bias = torch.randn(1, 2, 6, 3, dtype=dtype).requires_grad_()
    return x, keys, values, key_bias, bias, torch.randn(5, dtype=dtype)


@pytest.mark.parametrize(("add_x", "eps"), [(False, None), (True, 1e-5)])
def test_written_gradients_are_those_of_the_definition(add_x: bool, eps: float | None) -> None:
    given = inputs()

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        x, keys, values, key_bias, bias, out_bias = tensors
        key_bias, bias = key_bias.expand(2, 2, 3), bias.expand(2, 2, 6, 3)
        return attention.attend(x, keys, values, key_bias, bias, out_bias, add_x=add_x, norm_eps=eps)

    assert torch.autograd.gradcheck(run, given, fast_mode=True)


FORMS = [depthwise.Form(*flags) for flags in itertools.product((False, True), repeat=3)]


@pytest.mark.parametrize("form", FORMS)
def test_written_gradients_of_the_convolution(form: depthwise.Form) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=DOUBLE).permute(0, 2, 3, 1).requires_grad_()
    weight, bias = (torch.randn(s, dtype=DOUBLE, requires_grad=True) for s in ((3, 1, 3, 3), (3,)))
    assert torch.autograd.gradcheck(lambda *t: depthwise.depthwise(*t, form=form), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *t: depthwise.depthwise(*t, form=form), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda x: depthwise.depthwise(x, weight.detach(), None, form), (x,))


def test_opcheck() -> None:
    x, keys, values, key_bias, bias, out_bias = inputs(torch.float32)
    key_bias = key_bias.detach().expand(2, 2, 3).requires_grad_()
    bias = bias.detach().expand(2, 2, 6, 3).requires_grad_()
    run = attention.OPERATORS["opaque"]
    torch.library.opcheck(run, (x, keys, values, key_bias, bias, out_bias, None, True, 1e-6, True))
    still = [t.detach() for t in (x, keys, values)]
    torch.library.opcheck(run, (*still, None, None, None, torch.randn(2, 5, 6).transpose(1, 2), False, None, False))
    m = torch.randn(1, 4, 3, 2).permute(0, 2, 3, 1).requires_grad_()
    weight = torch.randn(4, 1, 3, 3, requires_grad=True)
    torch.library.opcheck(depthwise.OPERATORS["opaque"], (m, weight, torch.randn(4), True, False, True))
    torch.library.opcheck(depthwise.OPERATORS["opaque"], (m, weight, None, False, True, False))


class Allocations(TorchDispatchMode):
    """Bytes that torch's operators bring forth, and their names."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.names = 0, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(out, torch.Tensor):
            self.bytes += out.nbytes
            self.names.add(func.overloadpacket.__name__)
        return out


@pytest.mark.parametrize("layout", ["channels first", "strided map"])
def test_strided_inputs_are_not_copied(layout: str) -> None:
    b, n, c, h, m = 2, 64, 32, 2, 5
    x = torch.randn(b, c, n).transpose(1, 2)
    if layout == "strided map":
        x = torch.randn(b, 16, 16, c)[:, ::2, ::2]
    keys, values = torch.randn(b, m, h, c).transpose(1, 2), torch.randn(b, h, c, m).transpose(2, 3)
    key_bias = torch.randn(1, h, m).expand(b, h, m)
    given = (x, keys, values, key_bias, None, None, None, True, 1e-6)
    with Allocations() as seen:
        out, lse = attention._forward_like(*given, True)
        launches = ahead.record(attention_launch.forward, *given, out, lse, True, Blocks("whole", 16, 0, 4, 1))
    assert seen.bytes == out.nbytes + lse.nbytes and seen.names == {"new_empty"}
    arguments = launches[0].arguments
    for name, tensor in (("x", x), ("k", keys), ("v", values), ("c", key_bias)):
        assert arguments[f"{name}_ptr"] is tensor
    assert arguments["GRID"] is (layout == "strided map")
    assert arguments["x_c"] == x.stride(-1) and arguments["c_b"] == 0

    grad = torch.ones(1).expand(x.shape)  # as the gradient of a sum is
    made = attention._backward_like(grad, *given[:5], lse, True, 1e-6, False, True)
    for blocks in (Blocks("whole", 16, 0, 4, 1), Blocks("blocked", 16, 16, 4, 1)):
        launches = ahead.record(attention_launch.backward, grad, *given[:5], lse, True, 1e-6, made, blocks)
        assert all(launch.arguments["do_ptr"] is grad and launch.arguments["x_ptr"] is x for launch in launches)
        assert all(launch.arguments["do_w"] == 0 for launch in launches)


@pytest.mark.parametrize(("batch", "tokens", "keys"), [(0, 4, 3), (2, 0, 3), (2, 4, 0), (1, 1, 1)])
def test_empty_maps_and_single_tokens(batch: int, tokens: int, keys: int) -> None:
    x = torch.randn(batch, tokens, 8, requires_grad=True)
    k, v = (torch.randn(batch, 2, keys, 8, requires_grad=True) for _ in range(2))
    out = attention.attend(x, k, v, out_bias=torch.ones(8), add_x=True)
    assert out.shape == x.shape
    if not keys:
        assert torch.equal(out, x + 1)
    for grad, of in zip(torch.autograd.grad(out.sum(), (x, k, v)), (x, k, v), strict=True):
        assert grad.shape == of.shape and grad.isfinite().all()
    if batch:
        x, w = torch.randn(batch, 3, tokens, 4, requires_grad=True), torch.randn(4, 1, 3, 3, requires_grad=True)
        out = depthwise.depthwise(x, w)
        by_x, by_w = torch.autograd.grad(out.sum(), (x, w))
        assert out.shape == by_x.shape == x.shape and bool(by_w.any()) is (tokens > 0)


def test_attention_dropout_takes_the_plain_path() -> None:
    attn, x = srattn.SpatialReductionAttention(8, 1, 2, attn_drop=0.5).train(), torch.randn(2, 4, 4, 8)
    kernel = mock.Mock(side_effect=attend.absorbed_kernel)
    with mock.patch.multiple(plan, KERNEL_DEVICES={"cpu"}, KERNEL_MIN_BYTES=0):
        with mock.patch.object(attend, "absorbed_kernel", kernel):
            assert not torch.equal(attn(x), attn(x))
            assert kernel.call_count == 0
            attn.eval()(x)
        assert kernel.call_count == 1


@pytest.mark.parametrize(("dim", "given"), [(8, (True, 1e-6)), (264, (False, None))])
def test_a_block_hands_its_norm_and_its_sum_to_the_kernel(dim: int, given: tuple[bool, float | None]) -> None:
    """A norm needs all channels of a token at once: beyond that, only the sum is the kernel's."""
    block = Block(dim, srattn.SpatialReductionAttention(dim, 1, 2), ConvMlp(dim, 16)).train()
    torch.nn.init.normal_(block.norm1.weight)
    torch.nn.init.normal_(block.norm1.bias)
    x = torch.randn(2, 4, 5, dim, requires_grad=True)
    leaves = [x, *(p for name, p in block.named_parameters() if name != "attn.k.bias")]  # whose gradient is zero
    truth = block(x)
    expected = torch.autograd.grad(truth.square().mean(), leaves)
    asked: list[Any] = []
    attend_once, convolve = attention.attend, depthwise.depthwise

    def attending(*arguments: Any) -> torch.Tensor:
        asked.append(arguments[7:])
        return attend_once(*arguments)

    def convolving(*arguments: Any) -> torch.Tensor:
        asked.append("convolution")
        return convolve(*arguments)

    with (
        mock.patch.multiple(plan, KERNEL_DEVICES={"cpu"}, KERNEL_MIN_BYTES=0),
        mock.patch.object(attention, "attend", attending),
        mock.patch.object(depthwise, "depthwise", convolving),
    ):
        found = block(x)
        compiled = torch.compile(block, fullgraph=True, backend="eager")(x)
    assert asked[:2] == [given, "convolution"]
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled, truth, rtol=1e-4, atol=1e-4)
    for a, b in zip(torch.autograd.grad(found.square().mean(), leaves), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_hooks_and_dropout_keep_the_parts_of_a_block() -> None:
    block, x = Block(8, srattn.SpatialReductionAttention(8, 1, 2), ConvMlp(8, 16)), torch.randn(1, 4, 4, 8)
    seen: list[str] = []
    with mock.patch.multiple(plan, KERNEL_DEVICES={"cpu"}, KERNEL_MIN_BYTES=0):
        handle = block.attn.register_forward_hook(lambda *_: seen.append("attn"))
        block(x)
        handle.remove()
        assert seen == ["attn"]
        block.drop_path.p = 0.5
        assert not block.train()._is_plain() and block.eval()._is_plain()


def test_exporting_takes_the_plain_path() -> None:
    attn = srattn.SpatialReductionAttention(8, 1, 2).eval()
    with mock.patch.object(plan, "KERNEL_DEVICES", {"cuda", "cpu"}), mock.patch.object(plan, "KERNEL_MIN_BYTES", 0):
        assert attn.plan_for(4, 4).reason.startswith("one kernel")
        program = torch.export.export(attn, (torch.randn(1, 4, 4, 8),))
    assert not [node for node in program.graph.nodes if "srattn" in str(node.target)]


@pytest.mark.parametrize("training", [False, True])
def test_the_planned_kernel_runs_and_is_captured_whole(training: bool) -> None:
    attn, x = srattn.SpatialReductionAttention(8, 2, 2), torch.randn(2, 4, 4, 8, requires_grad=training)
    truth = attn(x)
    with mock.patch.object(plan, "KERNEL_DEVICES", {"cuda", "cpu"}), mock.patch.object(plan, "KERNEL_MIN_BYTES", 0):
        assert attn.plan_for(4, 4, 2, training=training).streamed
        kernel = mock.Mock(side_effect=attend.absorbed_kernel)
        with mock.patch.object(attend, "absorbed_kernel", kernel):
            torch.testing.assert_close(attn(x), truth)
        assert kernel.call_count == 1
        with mock.patch.object(attention, "WHILE_COMPILING", "opaque"):
            found = torch.compile(attn, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, truth)
    if training:
        expected, grads = (torch.autograd.grad(y.square().sum(), [x, *attn.parameters()]) for y in (truth, found))
        for a, b in zip(grads, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs_triton
def test_inductor_sees_the_kernels() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        x = torch.empty(2, 64, 32, device="cuda", dtype=torch.bfloat16)
        keys = torch.empty(2, 1, 5, 32, device="cuda", dtype=torch.bfloat16)
    graph = make_fx(attention._forward, tracing_mode="fake")(x, keys, keys, None, None, None, None, True, 1e-6, False)
    assert [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]


@needs_triton
def test_a_launch_is_wrapped_for_those_alone_who_trace() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    direct, wrapped = mock.MagicMock(), mock.MagicMock()
    with mock.patch.object(torch.library, "wrap_triton", return_value=wrapped) as wrap:
        language.launch(direct, (1, 2, 3), {"rows": 5}, num_warps=4)
        direct.__getitem__.assert_called_once_with((1, 2, 3))
        direct.__getitem__.return_value.assert_called_once_with(rows=5, num_warps=4)
        assert not wrap.called
        with FakeTensorMode():
            language.launch(direct, (1, 2, 3), {"rows": 5}, num_warps=4)
    wrap.assert_called_once_with(direct)
    wrapped.__getitem__.return_value.assert_called_once_with(rows=5, num_warps=4)


@needs_gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_on_a_gpu(mode: str) -> None:
    attn = srattn.SpatialReductionAttention(64, 1, 8).cuda().bfloat16().eval()
    run = torch.compile(attn, fullgraph=True, mode=mode, dynamic=False)
    with torch.no_grad(), srattn.force_path("absorbed"):
        for batch in (8, 4, 8, 4):
            x = torch.randn(batch, 56, 56, 64, device="cuda", dtype=torch.bfloat16)
            torch.testing.assert_close(run(x).clone(), attn(x), rtol=2e-2, atol=2e-2)


@needs_gpu
def test_recorded_into_a_cuda_graph() -> None:
    x = torch.randn(4, 3136, 64, device="cuda", dtype=torch.bfloat16)
    keys = torch.randn(4, 1, 49, 64, device="cuda", dtype=torch.bfloat16)
    expected = attention.attend(x, keys, keys)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention.attend(x, keys, keys)
    graph.replay()
    assert torch.equal(out, expected)
