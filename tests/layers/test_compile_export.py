"""The operator under torch.compile and torch.export: masks, biases, cross-attention, dynamic sizes, every path."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim, export

import srattn
from srattn import SpatialReductionAttention
from srattn.ops.plan import PATHS
from tests.truth import error, spread_out

OPTIONS = {
    "strided": {"dim": 8, "num_heads": 2, "ratio": (2, 3)},
    "one head": {"dim": 8, "num_heads": 1, "ratio": 2},
    "pooled": {"dim": 8, "num_heads": 2, "linear": True, "pool_size": 3},
}


class Masked(torch.nn.Module):
    """Every input as a positional argument, as export wants them."""

    def __init__(self, attn: SpatialReductionAttention) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return self.attn(x, key=key, key_mask=mask, key_bias=bias)


def inputs(batch: int, size: tuple[int, int], key_size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    mask = torch.rand(batch, *key_size) < 0.7
    return torch.randn(batch, *size, 8), torch.randn(batch, *key_size, 8), mask, torch.randn(batch, *key_size)


@pytest.mark.parametrize("path", [None, *PATHS])
@pytest.mark.parametrize("kind", OPTIONS)
def test_compiles_without_a_graph_break(kind: str, path: str | None) -> None:
    torch.compiler.reset()
    module = Masked(spread_out(SpatialReductionAttention(**OPTIONS[kind])))
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for sizes in [(2, (5, 7), (4, 9)), (3, (6, 4), (8, 5))]:
        arguments = inputs(*sizes)
        if path is None:
            assert error(compiled(*arguments), module(*arguments).double()) < 1e-5
        else:
            with srattn.force_path(path):
                assert error(compiled(*arguments), module(*arguments).double()) < 1e-5


@pytest.mark.parametrize("kind", OPTIONS)
def test_exports_with_every_size_dynamic(kind: str) -> None:
    module = Masked(spread_out(SpatialReductionAttention(**OPTIONS[kind]))).eval()
    batch, height, width = (Dim(name, min=2) for name in ("b", "h", "w"))
    # Torch's convolutions take a result larger than 1x1 for granted: a dynamic key grid exceeds the ratio.
    key_height, key_width = (Dim(name, min=4) for name in ("kh", "kw"))
    grid = {0: batch, 1: key_height, 2: key_width}
    shapes = ({0: batch, 1: height, 2: width}, grid, grid, grid)
    program = export(module, inputs(2, (5, 7), (6, 9)), dynamic_shapes=shapes)
    for sizes in [(3, (6, 4), (8, 5)), (2, (2, 3), (7, 13))]:
        arguments = inputs(*sizes)
        assert error(program.module()(*arguments), module(*arguments).double()) < 1e-5


def test_a_static_export_keeps_the_planned_path() -> None:
    attn = SpatialReductionAttention(64, 1, 8).eval()
    assert attn.plan_for(16, 16).path == "absorbed"
    program = export(attn, (torch.randn(1, 16, 16, 64),))
    products = [node for node in program.graph.nodes if "linear" in str(node.target)]
    assert len(products) == 2, "W^K and W^V alone: W^Q and W^O are absorbed"
