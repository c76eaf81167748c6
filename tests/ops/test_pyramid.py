"""Pooling to several grids: against torch's adaptive pooling, and the form that exports against the form that runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from srattn.ops import pyramid

SIZES = [(56, 56), (13, 29), (8, 40), (5, 4), (1, 1), (1, 90)]
RATIOS = (12, 16, 20, 24)


def grids_of(height: int, width: int, ratios: tuple[float, ...] = RATIOS) -> list[tuple[int, int]]:
    return [(pyramid.rounded(height, r), pyramid.rounded(width, r)) for r in ratios]


def stacked(x: torch.Tensor, grids: list[tuple[int, int]], mean: bool) -> torch.Tensor:
    return pyramid.stacked(x, grids, pyramid.cells_of(grids, x.device), mean)


def test_sides_are_rounded_half_to_even_and_never_empty() -> None:
    assert [pyramid.rounded(56, r) for r in RATIOS] == [5, 4, 3, 2]
    assert [pyramid.rounded(size, 4) for size in (1, 2, 6, 10, 14)] == [1, 1, 2, 2, 4]
    assert pyramid.rounded(5, 2.5) == 2
    for ratio in range(1, 26):
        assert all(pyramid.rounded(size, ratio) == max(1, round(size / ratio)) for size in range(300))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ratios", [RATIOS, (1, 2, 3, 4), (2,)])
def test_levels_are_adaptive_average_pooling(size: tuple[int, int], ratios: tuple[float, ...]) -> None:
    x = torch.randn(2, *size, 3, dtype=torch.float64, requires_grad=True)
    grids = grids_of(*size, ratios)
    expected = [F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), grid).flatten(2).transpose(1, 2) for grid in grids]
    found = [level.flatten(1, 2) for level in pyramid.pooled_levels(x, grids)]
    weights = [torch.randn_like(level) for level in expected]
    gradients = []
    for levels in (expected, found):
        total = sum((level * weight).sum() for level, weight in zip(levels, weights, strict=True))
        gradients.append(torch.autograd.grad(total, x)[0])
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-14)
    assert torch.allclose(*gradients, atol=1e-14)
    assert torch.allclose(stacked(x, grids, mean=True), torch.cat(expected, 1), atol=1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_sums_on_one_row_count_every_window(size: tuple[int, int]) -> None:
    grids = grids_of(*size, (1, 2, 3, 4))
    x = torch.randn(2, *size, 1, dtype=torch.float64)
    mean, area = stacked(x, grids, mean=True), stacked(torch.ones_like(x), grids, mean=False)
    assert torch.allclose(stacked(x, grids, mean=False), mean * area, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_neighbours_are_a_depthwise_convolution_of_each_level(size: tuple[int, int]) -> None:
    grids = grids_of(*size, (1, 2, 3, 4))
    weight, bias = torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    maps = [torch.randn(2, *grid, 3, dtype=torch.float64) for grid in grids]
    expected = [
        F.conv2d(m.permute(0, 3, 1, 2), weight[i].unsqueeze(1), bias[i], padding=1, groups=3).flatten(2).transpose(1, 2)
        for i, m in enumerate(maps)
    ]
    row = torch.cat([m.flatten(1, 2) for m in maps], 1)
    found = pyramid.neighbours(row, pyramid.cells_of(grids, row.device), weight, bias)
    assert torch.allclose(found, torch.cat(expected, 1), atol=1e-13)


def test_a_large_half_precision_map_does_not_overflow() -> None:
    x = torch.full((1, 448, 448, 2), 100.0, dtype=torch.float16)
    for level in pyramid.pooled_levels(x, grids_of(448, 448)):
        assert torch.equal(level, torch.full_like(level, 100.0))
