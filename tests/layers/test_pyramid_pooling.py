"""The pyramid pooling reduction of P2T, alone and inside the attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import srattn
from srattn import SpatialReductionAttention, SrattnError
from srattn.layers.pyramid_pooling import Pyramid, PyramidReduction
from srattn.layers.shared import Shared


def reduction(ratios: tuple[float, ...] = (2, 3, 5)) -> PyramidReduction:
    return PyramidReduction(8, ratios).double().eval()


@pytest.mark.parametrize("size", [(14, 14), (9, 22), (1, 1), (3, 40)])
def test_as_published(size: tuple[int, int]) -> None:
    part, x = reduction(), torch.randn(2, *size, 8, dtype=torch.float64)
    images, levels = x.permute(0, 3, 1, 2), []
    for i, ratio in enumerate(part.ratios):
        pooled = F.adaptive_avg_pool2d(images, tuple(max(1, round(s / ratio)) for s in size))
        conv = part.pyramid[i].dwconv
        levels.append((pooled + conv(pooled)).flatten(2).transpose(1, 2))
    expected = F.layer_norm(torch.cat(levels, 1), (8,), part.norm.weight, part.norm.bias, 1e-5)
    found = part(x)
    assert found.shape[1:3] == part.size(*size)
    assert torch.allclose(found.squeeze(1), expected, atol=1e-12)


def test_invalid_tokens_contribute_nothing() -> None:
    attn = SpatialReductionAttention(8, 2, reduction=reduction()).double().eval()
    x = torch.randn(2, 12, 10, 8, dtype=torch.float64)
    mask = torch.rand(2, 12, 10) < 0.3
    other = x.clone()
    other[~mask] = torch.nan
    # A key all of whose sources are invalid is not attended.
    mask[0, :7], other[0, :7] = False, torch.nan
    queries = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    results = [
        attn(queries, key=x, key_mask=mask),
        attn(queries, key=other, key_mask=mask),
    ]
    assert results[0].isfinite().all() and torch.allclose(*results)
    weights = attn.attention_map(queries, x, key_mask=mask)
    lost = attn.reduction.reduce_scores(mask, None).flatten(1).isneginf()
    assert lost[0].any() and (weights[0, :, :, lost[0]] == 0).all()
    everything = torch.ones(2, 12, 10, dtype=torch.bool)
    assert torch.allclose(attn(queries, key=x, key_mask=everything), attn(queries, key=x), atol=1e-12)


def test_a_key_bias_is_averaged_over_each_cell() -> None:
    part, bias = reduction((1, 4)), torch.randn(2, 8, 8)
    found = part.reduce_scores(None, bias).squeeze(1)
    assert torch.allclose(found[:, :64], bias.flatten(1))
    assert torch.allclose(found[:, 64:], F.adaptive_avg_pool2d(bias, 2).flatten(1), atol=1e-6)


@pytest.mark.parametrize("path", ["plain", "sdpa", "absorbed"])
def test_every_path(path: str) -> None:
    attn = SpatialReductionAttention(8, 2, reduction=reduction()).double().eval()
    x = torch.randn(2, 9, 14, 8, dtype=torch.float64)
    with srattn.force_path("plain"):
        expected = attn(x)
    with srattn.force_path(path):  # type: ignore[arg-type]
        assert torch.allclose(attn(x), expected, atol=1e-12)
    assert torch.allclose(attn.attention_map(x).sum(-1), torch.ones((), dtype=torch.float64))


def test_one_pyramid_for_several_reductions() -> None:
    pyramid = Pyramid(8, 2)
    first, second = (PyramidReduction(8, (1, 2), pyramid=Shared(pyramid)) for _ in range(2))
    assert set(first.state_dict()) == {"norm.weight", "norm.bias"}
    x = torch.randn(1, 6, 6, 8)
    assert torch.equal(first(x), second(x))


def test_the_form_that_exports_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    part, x = reduction((1, 2, 3, 4)), torch.randn(2, 7, 11, 8, dtype=torch.float64)
    mask, bias = torch.rand(2, 7, 11) < 0.4, torch.randn(2, 7, 11)
    expected = part(x), part(x, mask), part.reduce_scores(mask, bias)
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", True)
    for a, b in zip((part(x), part(x, mask), part.reduce_scores(mask, bias)), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6 if a.dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("ratios", [(), (0.5, 2), (2, 0)])
def test_ratios_that_enlarge_are_refused(ratios: tuple[float, ...]) -> None:
    with pytest.raises(SrattnError, match="pooling ratios are numbers of at least 1"):
        PyramidReduction(8, ratios)


@pytest.mark.parametrize("size", [(7, 11), (3, 4)])
def test_weights_are_spread_over_the_sources_of_each_cell(size: tuple[int, int]) -> None:
    part = reduction((1, 3))
    grids, weights = part.grids(*size), torch.rand(2, part.size(*size)[1], dtype=torch.float64)
    expected = torch.zeros(2, *size, dtype=torch.float64)
    index = 0
    for rows, columns in grids:
        for i in range(rows):
            for j in range(columns):
                cell = (
                    slice(i * size[0] // rows, -(-(i + 1) * size[0] // rows)),
                    slice(j * size[1] // columns, -(-(j + 1) * size[1] // columns)),
                )
                block = expected[:, cell[0], cell[1]]
                block += (weights[:, index] / block[0].numel()).view(-1, 1, 1)
                index += 1
    with torch.no_grad():
        found = part.spread(weights, *size)
    assert torch.allclose(found, expected, atol=1e-14)
    assert torch.allclose(found.sum((1, 2)), weights.sum(1))
