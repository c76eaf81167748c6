"""Joints to targets and back within the resolution of each form, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from srattn import SrattnError
from srattn.heads.keypoints import bins, decode_heatmaps, decode_simcc, encode_heatmaps, encode_simcc

SIZE = (40, 56)


def joints(count: int = 200) -> torch.Tensor:
    place = torch.rand(2, count, 2, dtype=torch.float64) * torch.tensor([SIZE[1], SIZE[0]])
    return torch.cat([place, torch.full((2, count, 1), 2.0)], -1)


@pytest.mark.parametrize("grid", [(10, 14), (7, 9), (40, 56)])
def test_heatmaps_and_back(grid: tuple[int, int]) -> None:
    given = joints()
    heatmaps, weights = encode_heatmaps(given, SIZE, grid)
    assert heatmaps.shape == (2, 200, *grid) and bool((weights == 1).all())
    found = decode_heatmaps(heatmaps, SIZE)
    for axis, cells in ((0, grid[1]), (1, grid[0])):
        cell = SIZE[1 - axis] / cells
        place = given[..., axis] / cell
        at_border = (place < 1) | (place > cells - 1)
        distance = (found[..., axis] - given[..., axis]).abs() / cell
        # A quarter of a cell inside, where the neighbours tell the side; half a one at the border.
        assert distance[~at_border].max() <= 0.25 + 1e-9 and distance[at_border].max() <= 0.5 + 1e-9
    assert found[..., 2].max() <= 1 and found[..., 2].min() >= math.exp(-2 * 0.5**2 / (2 * 2.0**2)) - 1e-12


def test_a_heatmap_is_its_formula() -> None:
    given = torch.tensor([[[13.0, 21.5, 1.0]]], dtype=torch.float64)
    heatmaps, _ = encode_heatmaps(given, SIZE, (10, 14), sigma=1.5)
    for row in range(10):
        for column in range(14):
            # Cells are 4 pixels wide, and their centres lie at 2, 6, ...
            distance = math.hypot((4 * column + 2 - 13.0) / 4, (4 * row + 2 - 21.5) / 4)
            assert heatmaps[0, 0, row, column] == pytest.approx(math.exp(-(distance**2) / (2 * 1.5**2)))


def test_the_quarter_follows_each_axis_apart() -> None:
    heatmap = torch.zeros(1, 1, 5, 6)
    heatmap[0, 0, 2, 3], heatmap[0, 0, 1, 3], heatmap[0, 0, 2, 4] = 0.9, 0.4, 0.3
    assert decode_heatmaps(heatmap, (50, 60)).tolist()[0][0] == pytest.approx([37.5, 22.5, 0.9])
    heatmap[0, 0, 2, 5] = 1.0  # at the border along x alone
    assert decode_heatmaps(heatmap, (50, 60)).tolist()[0][0] == pytest.approx([55.0, 25.0, 1.0])
    assert decode_heatmaps(torch.ones(1, 1, 1, 1), (8, 4)).tolist() == [[[2.0, 4.0, 1.0]]]


@pytest.mark.parametrize("split", [1.0, 2.0, 2.5])
def test_simcc_and_back(split: float) -> None:
    given = joints()
    columns, rows, weights = encode_simcc(given, SIZE, split)
    assert columns.shape == (2, 200, int(56 * split)) and rows.shape == (2, 200, int(40 * split))
    assert torch.allclose(columns.sum(-1), weights) and torch.allclose(rows.sum(-1), weights)
    found = decode_simcc(columns.log(), rows.log(), split)
    assert (found[..., :2] - given[..., :2]).abs().max() <= 0.5 / split + 1e-5  # float32 answers
    assert torch.allclose(found[..., 2], torch.minimum(columns.amax(-1), rows.amax(-1)).float())


def test_soft_labels_are_their_formula() -> None:
    given = torch.tensor([[[13.0, 21.5, 1.0]]], dtype=torch.float64)
    columns, _, _ = encode_simcc(given, SIZE, 2.0, sigma=3.0)
    heights = [math.exp(-((i + 0.5 - 26.0) ** 2) / (2 * 3.0**2)) for i in range(112)]
    assert columns[0, 0].tolist() == pytest.approx([height / sum(heights) for height in heights])


def test_joints_that_are_not_learnt_from() -> None:
    given = torch.tensor([[[3.0, 4.0, 0.0], [3.0, 4.0, 1.0], [-0.1, 4.0, 2.0], [3.0, 40.1, 2.0], [56.0, 40.0, 2.0]]])
    heatmaps, weights = encode_heatmaps(given, SIZE, (10, 14))
    assert weights.tolist() == [[0, 1, 0, 0, 1]] == encode_simcc(given, SIZE)[2].tolist()
    assert heatmaps.flatten(2).any(-1).tolist() == [[False, True, False, False, True]]


def test_no_joints_at_all() -> None:
    for shape in ((0, 3, 3), (2, 0, 3)):
        heatmaps, weights = encode_heatmaps(torch.zeros(shape), SIZE, (10, 14))
        assert decode_heatmaps(heatmaps, SIZE).shape == shape and weights.shape == shape[:2]
        columns, rows, _ = encode_simcc(torch.zeros(shape), SIZE)
        assert decode_simcc(columns, rows).shape == shape


def test_what_is_refused() -> None:
    with pytest.raises(SrattnError, match=r"\(B, K, 3\): x, y, visibility; got torch.float32 \(2, 3\)"):
        encode_heatmaps(torch.zeros(2, 3), SIZE, (10, 14))
    with pytest.raises(SrattnError, match=r"got torch.int64"):
        encode_simcc(torch.zeros(1, 2, 3, dtype=torch.int64), SIZE)
    with pytest.raises(SrattnError, match="sigma must be above 0, got 0"):
        encode_heatmaps(torch.zeros(1, 2, 3), SIZE, (10, 14), sigma=0)
    with pytest.raises(SrattnError, match=r"55 times it a whole number, got 1\.5"):
        bins(55, 1.5)
