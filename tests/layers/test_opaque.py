"""Modules that torch.compile leaves to the kernels: when, with which weights, and that graphs stay whole and shared."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import srattn
from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.block import Block
from srattn.layers.feed_forward import ConvMlp
from srattn.layers.opaque import _module
from srattn.layers.patch_embed import PatchEmbed
from srattn.models import build_model
from srattn.ops import native as kernels
from tests.truth import spread_out

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no compiled kernels here: {kernels.why_not()}")


@pytest.fixture(autouse=True)
def _anew() -> None:
    torch.compiler.reset()


class Graphs:
    """A backend that runs graphs as they are, and counts them and the modules that stayed whole in the last."""

    def __init__(self) -> None:
        self.count = self.whole = 0

    def __call__(self, graph: torch.fx.GraphModule, example: Any) -> Callable[..., Any]:
        self.count += 1
        self.whole = sum("srattn.module" in str(node.target) for node in graph.graph.nodes)
        return graph.forward


def compiled(module: nn.Module, **options: Any) -> tuple[Any, Graphs]:
    graphs = Graphs()
    return torch.compile(module, fullgraph=True, backend=graphs, **options), graphs


def block_of(dim: int = 32) -> Block:
    return spread_out(Block(dim, SpatialReductionAttention(dim, 2, 2), ConvMlp(dim, 4 * dim))).eval()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("pvt_v2_b0", 8),
        ("pvt_v2_b2_li", 8),
        ("mit_b0", 8),
        ("pvt_tiny", 8),
        ("twins_svt_small", 12),
        ("cvt_13", 6),
        ("mvitv2_tiny", 6),
    ],
)
def test_models_in_one_graph_of_any_size(name: str, whole: int) -> None:
    """A stage's blocks are one operator, with a class token too, or each is where a stage does more; and so is each
    embedding."""
    depths = {"twins_svt_small": [2, 2, 2, 2], "cvt_13": [1, 1, 2]}.get(name, [1, 2, 1, 1])
    model = spread_out(build_model(name, depths=depths, num_classes=10)).eval()
    run, graphs = compiled(model)
    with torch.no_grad():
        for batch, height, width in [(2, 64, 96), (1, 96, 64), (3, 128, 160), (2, 70, 90)]:
            x = torch.randn(batch, 3, height, width)
            assert torch.allclose(run(x), model(x), atol=1e-5)
            assert graphs.whole == whole
    assert graphs.count <= 3, "one of the first size, one of any, and one of a batch of one"


def test_gradients_training_and_forced_paths_are_the_compilers() -> None:
    block, x = block_of(), torch.randn(2, 6, 8, 32)
    run, graphs = compiled(block)
    assert run(x).requires_grad and graphs.whole == 0
    with torch.no_grad():
        assert torch.allclose(run(x), block(x), atol=1e-5) and graphs.whole == 1
        with srattn.force_path("sdpa"):
            assert torch.allclose(run(x), block(x), atol=1e-5) and graphs.whole == 0
        block.train()
        assert torch.allclose(run(x), block(x), atol=1e-5) and graphs.whole == 0
        block.eval().mlp.drop.train()
        run(x)
        assert graphs.whole == 0, "Monte Carlo dropout"
        double = copy.deepcopy(block).eval().double()
        run, graphs = compiled(double)
        assert torch.allclose(run(x.double()), double(x.double())) and graphs.whole == 0


def test_parts_of_another_form_are_the_compilers() -> None:
    class Adapted(nn.Linear):
        pass

    block, x = block_of(), torch.randn(2, 6, 8, 32)
    block.attn.q = Adapted(32, 32)  # type: ignore[assignment]
    block.mlp.fc1 = Adapted(32, 128)  # type: ignore[assignment]
    run, graphs = compiled(block.eval())
    with torch.no_grad():
        assert torch.allclose(run(x), block(x), atol=1e-5) and graphs.whole == 0


def test_a_subclass_that_does_more_is_right() -> None:
    class Doubled(PatchEmbed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(2 * x)

    embed, x = spread_out(Doubled(3, 16, 4)).eval(), torch.randn(2, 3, 13, 8)
    run, graphs = compiled(embed)
    with torch.no_grad():
        assert torch.allclose(run(x), embed(x), atol=1e-5) and graphs.whole == 0


def test_weights_are_those_of_the_call() -> None:
    """After a step, a hook, a number set; those of another module with the same graph; those that stand in."""
    block, x = block_of(), torch.randn(2, 6, 8, 32)
    run, _ = compiled(block)

    def same() -> bool:
        with torch.no_grad():
            with srattn.force_path("plain"):
                truth = block(x)
            return torch.allclose(run(x), truth, rtol=1e-4, atol=1e-4 * truth.abs().max().item())

    assert same()
    with torch.no_grad():
        for p in block.parameters():
            p.mul_(1.5)
    assert same()
    block.load_state_dict({name: torch.randn_like(p) for name, p in block.state_dict().items()}, assign=True)
    assert same()
    block.norm1.eps = 0.5
    assert same()
    block.mlp.fc1 = spread_out(nn.Linear(32, 128)).eval()  # type: ignore[assignment]
    assert same()
    block.attn.proj.bias = None  # type: ignore[union-attr]
    assert same()
    heard: list[int] = []
    block.attn.register_forward_hook(lambda *args: heard.append(1))
    assert same() and len(heard) == 2, "of both"


def test_weights_that_stand_in() -> None:
    block, x = block_of(), torch.randn(2, 6, 8, 32)
    other = {name: 0.5 * p.detach() for name, p in block.named_parameters()}

    def call(x: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(block, weights, (x,))

    graphs = Graphs()
    run = torch.compile(call, fullgraph=True, backend=graphs)
    with torch.no_grad():
        for weights in (other, {name: 2 * w for name, w in other.items()}):
            assert torch.allclose(run(x, weights), call(x, weights), atol=1e-5)
    assert graphs.whole == 1


def test_copies_are_modules_of_their_own() -> None:
    block, x = block_of(), torch.randn(2, 6, 8, 32)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert not torch.equal(other.number, block.number)
        run, graphs = compiled(other)
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(0.7)
            assert torch.allclose(run(x), other(x), atol=1e-5) and graphs.whole == 1
            assert not torch.allclose(run(x), block(x), atol=1e-3)
    assert "number" not in block.state_dict()


def test_one_graph_serves_modules_of_one_form() -> None:
    graphs, x = Graphs(), torch.randn(2, 6, 8, 32)
    blocks = [block_of() for _ in range(12)]
    with torch.no_grad():
        expected = [block(x) for block in blocks]
        for block in blocks:
            block.compile(fullgraph=True, backend=graphs)
        assert all(torch.allclose(block(x), y, atol=1e-5) for block, y in zip(blocks, expected, strict=True))
    assert graphs.count == 1 and graphs.whole == 1


@pytest.mark.parametrize("within", [True, False])
def test_autocast(within: bool) -> None:
    """Around the call, and inside of what is compiled."""
    block, x = block_of(), torch.randn(2, 6, 8, 32)

    def inside(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return block(x)

    graphs = Graphs()
    run = torch.compile(inside if within else block, fullgraph=True, backend=graphs)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not within):
        result = run(x)
    with torch.no_grad():
        exact = block(x)
        expected = inside(x)
    assert graphs.whole == 1 and result.dtype == expected.dtype == torch.float32
    assert torch.allclose(result, expected, atol=1e-6)
    wide = kernels.available() and not kernels.available("bfloat16")  # products of float32, which are more exact
    assert torch.allclose(result, exact, atol=1e-5) == wide


def test_half_precision_and_inference_mode() -> None:
    model = build_model("pvt_v2_b0", depths=[1, 1, 1, 1], num_classes=10).eval().bfloat16()
    run, graphs = compiled(model)
    with torch.inference_mode():
        x = torch.randn(2, 3, 64, 64, dtype=torch.bfloat16)
        assert torch.equal(run(x), model(x)) and graphs.whole == 8


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_through_the_whole_compiler() -> None:
    model = spread_out(build_model("pvt_v2_b0", depths=[1, 1, 1, 1], num_classes=10)).eval()
    run = torch.compile(model, fullgraph=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(run(x), model(x), atol=1e-5)
    loss = run(x).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_exported_models_have_no_such_operator() -> None:
    block = block_of()
    with torch.no_grad():
        program = torch.export.export(block, (torch.randn(2, 6, 8, 32),))
    assert not any("srattn" in str(node.target) for node in program.graph.nodes)


def test_the_operator_by_torchs_own_checks() -> None:
    block, x = block_of(), torch.randn(2, 6, 8, 32)
    with torch.no_grad():
        torch.library.opcheck(_module, (x, list(x.shape), block.number, list(block.parameters()), None, []))


def test_empty_batches() -> None:
    block = block_of()
    run, _ = compiled(block)
    with torch.no_grad():
        assert run(torch.randn(0, 6, 8, 32)).shape == (0, 6, 8, 32)
