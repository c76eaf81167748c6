"""E-MHSA of Next-ViT: means over runs of the raster, against the formula and against timm."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import srattn
from srattn import SrattnError
from srattn.layers.raster_reduction import RasterAttention, RasterReduction
from srattn.ops.plan import PATHS


def runs(x: Tensor, run: int, edge: str) -> list[Tensor]:
    """The runs of one map (H, W, C): tokens read line by line, cut off every `run`; the rest too, under `pad`."""
    tokens = [x[i, j] for i in range(x.shape[0]) for j in range(x.shape[1])]
    whole = [torch.stack(tokens[i : i + run]) for i in range(0, len(tokens), run)]
    return [r for r in whole if edge == "pad" or len(r) == run]


def norm(reduction: RasterReduction, x: Tensor) -> Tensor:
    bn = reduction.norm
    assert bn.running_mean is not None and bn.running_var is not None
    return (x - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias


def random(module: Any) -> Any:
    """Parameters and statistics that tell; eval mode, double precision."""
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
        for name, b in module.named_buffers():
            if name.endswith("mean"):
                b.normal_()
            elif name.endswith("var"):
                b.uniform_(0.5, 2)
    return module.double().eval()


@pytest.mark.parametrize("edge", ["pad", "floor"])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (3, 2), (1, 9)])
def test_reduction_is_the_mean_of_each_run(size: tuple[int, int], edge: str) -> None:
    reduction, x = random(RasterReduction(6, 2, edge=edge)), torch.randn(2, *size, 6, dtype=torch.float64)
    expected = torch.stack([torch.stack([r.mean(0) for r in runs(each, 4, edge)]) for each in x])
    found = reduction(x)
    torch.testing.assert_close(found, norm(reduction, expected).unsqueeze(1))
    assert found.shape[1:3] == reduction.size(*size)
    ones = reduction.sum(torch.ones(1, *size))
    assert ones.flatten().tolist() == [len(r) for r in runs(x[0], 4, edge)]


def test_runs_are_no_blocks() -> None:
    """Rows of 4 in runs of 4: every row is a key. In rows of 3, a run goes on in the next row."""
    reduction = RasterReduction(1, 2)
    reduction.norm = torch.nn.Identity()  # type: ignore[assignment]
    rows = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 1)
    assert reduction(rows).flatten().tolist() == [0, 1, 2, 3]
    assert reduction(rows.transpose(1, 2)).flatten().tolist() == [1.5] * 4
    assert reduction(rows[:, :, :3]).flatten().tolist() == [0.25, 1.5, 2.75]


def test_edge_policies() -> None:
    x = torch.randn(1, 3, 3, 4)
    assert RasterReduction(4, 2).size(3, 3) == (1, 3) and RasterReduction(4, 2, edge="floor").size(3, 3) == (1, 2)
    with pytest.raises(SrattnError, match=r"runs of 4 do not divide 9 tokens"):
        RasterReduction(4, 2, edge="error")(x)
    with pytest.raises(SrattnError, match=r"3 tokens are no run of 4"):
        RasterReduction(4, 2, edge="floor")(x[:, :1])
    with pytest.raises(SrattnError, match=r"did you mean 'floor'"):
        RasterAttention(4, 2, head_dim=4, edge="flor")
    with pytest.raises(SrattnError, match=r"one ratio, a positive int"):
        RasterReduction(4, (2, 2))  # type: ignore[arg-type]
    with pytest.raises(SrattnError, match=r"head_dim must divide dim, got dim=48, head_dim=32"):
        RasterAttention(48)


def test_invalid_tokens_contribute_nothing() -> None:
    attn, x = random(RasterAttention(8, 2, head_dim=4)), torch.randn(2, 4, 5, 8, dtype=torch.float64)
    mask = torch.ones(2, 4, 5, dtype=torch.bool)
    mask[0, 2:] = False
    spoiled = torch.where(mask.unsqueeze(-1), x, torch.full_like(x, 1e6))
    with torch.no_grad():
        expected = norm(
            attn.reduction, torch.stack([*[r.mean(0) for r in runs(x[0], 4, "pad")][:2], x[0, 1, 3:].mean(0)])
        )
        torch.testing.assert_close(attn.reduction(x, mask)[0, 0, :3], expected)
        torch.testing.assert_close(attn(spoiled, key_mask=mask)[0, :2], attn(x, key_mask=mask)[0, :2])
        weights = attn.attention_map(x, key_mask=mask)
        torch.testing.assert_close(attn(x, key_mask=torch.ones_like(mask)), attn(x))
    assert (weights[0, ..., 3:] == 0).all() and (weights[0, ..., :3] > 0).all()


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_attention_is_the_same_on_every_path(ratio: int) -> None:
    attn, x = random(RasterAttention(12, ratio, head_dim=4)), torch.randn(2, 7, 5, 12, dtype=torch.float64)
    keys = x.flatten(1, 2)
    if ratio > 1:
        keys = torch.stack([torch.stack([r.mean(0) for r in runs(each, ratio**2, "pad")]) for each in x])
        keys = norm(attn.reduction, keys)
    q, k, v = attn.q(x.flatten(1, 2)), attn.k(keys), attn.v(keys)
    heads = [
        (a @ b.transpose(1, 2) / math.sqrt(4)).softmax(-1) @ c
        for a, b, c in zip(*(t.chunk(3, -1) for t in (q, k, v)), strict=True)
    ]
    expected = attn.proj(torch.cat(heads, -1)).view(x.shape)
    for path in PATHS:
        with srattn.force_path(path):
            torch.testing.assert_close(attn(x), expected)
    assert attn.plan_for(7, 5).cost.macs > 0


def test_exports_with_dynamic_sizes() -> None:
    attn = RasterAttention(8, 2, head_dim=4).eval()
    sizes = {1: torch.export.Dim("h", min=2), 2: torch.export.Dim("w", min=2)}
    exported = torch.export.export(attn, (torch.randn(1, 6, 7, 8),), dynamic_shapes=(sizes,)).module()
    for size in [(3, 3), (8, 5)]:
        x = torch.randn(1, *size, 8)
        assert torch.allclose(exported(x), attn(x), atol=1e-6)


@pytest.fixture(scope="module")
def timm_nextvit() -> Any:
    """timm's module, where timm is installed and imports."""
    try:
        return importlib.import_module("timm.models.nextvit")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs timm: {error}")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("ratio", "size"), [(1, (7, 7)), (2, (8, 6)), (2, (7, 9)), (4, (14, 14)), (8, (28, 20))])
def test_attention_is_that_of_timm(timm_nextvit: Any, ratio: int, size: tuple[int, int], training: bool) -> None:
    theirs = random(timm_nextvit.EfficientAttention(64, sr_ratio=ratio)).float().train(training)
    attn = RasterAttention(64, ratio, edge="floor")
    state = {(f"reduction.{k}" if k.startswith("norm.") else k): v for k, v in theirs.state_dict().items()}
    attn.load_state_dict(state)
    attn.train(training)
    x = torch.randn(3, *size, 64)
    with torch.no_grad():
        expected, found = theirs(x.flatten(1, 2)).view(x.shape), attn(x)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5
    for key, value in theirs.state_dict().items():  # the running statistics move alike
        ours = attn.state_dict()[f"reduction.{key}" if key.startswith("norm.") else key]
        torch.testing.assert_close(ours, value)
