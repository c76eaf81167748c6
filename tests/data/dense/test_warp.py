"""Images, masks and boxes through one matrix: compared with plain loops, and with each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from srattn.data.dense.target import VOID, Target, moved_boxes, stacked
from srattn.data.dense.warp import warp_image, warp_mask

IDENTITY = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
# Positions are computed in float32 from sides of at most 64 pixels: some 64 x 2**-24 x 16 of a pixel, 6e-5. A level in
# [0, 1] changes by at most 1 a pixel in each direction.
CLOSE = 2e-4


def turned(angle: float, factor: float, size: tuple[int, int], window: tuple[int, int], mirrored: bool) -> Tensor:
    """About the middles of both."""
    cos, sin, sign = factor * math.cos(angle), factor * math.sin(angle), -1 if mirrored else 1
    linear = torch.tensor([[sign * cos, -sign * sin], [sin, cos]], dtype=torch.float64)
    middle, target = (torch.tensor([side[1] / 2, side[0] / 2], dtype=torch.float64) for side in (size, window))
    return torch.cat([linear, (target - linear @ middle).unsqueeze(1)], 1)


def places(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W, 2): where the centre of each new pixel lies in the old image, x and y as edges count."""
    inverse = torch.linalg.inv(matrix[:, :2])
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) + 0.5 for side in size), indexing="ij")
    return (torch.stack([x, y], -1) - matrix[:, 2]) @ inverse.T


def plain_mask(mask: Tensor, matrix: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The nearest pixel's number, and where rounding decides which that is."""
    found, close = torch.full(size, VOID, dtype=torch.uint8), torch.zeros(size, dtype=torch.bool)
    for y, row in enumerate(places(matrix, size).tolist()):
        for x, (u, v) in enumerate(row):
            close[y, x] = min(abs(u - round(u)), abs(v - round(v))) < 1e-3
            if 0 <= u < mask.shape[1] and 0 <= v < mask.shape[0]:
                found[y, x] = mask[math.floor(v), math.floor(u)]
    return found, close


def plain_image(image: Tensor, matrix: Tensor, size: tuple[int, int], fill: Tensor) -> Tensor:
    """Bilinear, every pixel outside being the filling."""
    channels, height, width = image.shape
    found = torch.zeros(channels, *size, dtype=torch.float64)
    for y, row in enumerate(places(matrix, size).tolist()):
        for x, (u, v) in enumerate(row):
            left, top = math.floor(u - 0.5), math.floor(v - 0.5)
            for column in (left, left + 1):
                for line in (top, top + 1):
                    weight = (1 - abs(u - 0.5 - column)) * (1 - abs(v - 0.5 - line))
                    inside = 0 <= column < width and 0 <= line < height
                    found[:, y, x] += weight * (image[:, line, column].double() / 255 if inside else fill)
    return found


MATRICES = [
    pytest.param(0.0, 1.0, False, id="same"),
    pytest.param(0.0, 1.7, True, id="larger, mirrored"),
    pytest.param(0.4, 1.0, False, id="turned"),
    pytest.param(-1.1, 0.8, True, id="turned, smaller, mirrored"),
]


@pytest.mark.parametrize(("angle", "factor", "mirrored"), MATRICES)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1), (9, 12)])
@pytest.mark.parametrize("window", [(1, 1), (11, 8)])
def test_as_a_plain_loop_does(
    angle: float, factor: float, mirrored: bool, size: tuple[int, int], window: tuple[int, int]
) -> None:
    matrix = turned(angle, factor, size, window, mirrored)
    matrix[:, 2] += torch.tensor([0.3, -0.2], dtype=torch.float64)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    mask = torch.randint(0, 256, size, dtype=torch.uint8)
    fill = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    found = warp_image(image, matrix, window, fill.float())
    assert found.dtype == torch.float32 and found.shape == (3, *window)
    assert (found - plain_image(image, matrix, window, fill)).abs().max() < CLOSE
    expected, close = plain_mask(mask, matrix, window)
    numbers = warp_mask(mask, matrix, window)
    assert numbers.dtype == torch.uint8 and torch.equal(numbers[~close], expected[~close])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 1), (30, 45)])
def test_the_identity_changes_no_pixel(size: tuple[int, int]) -> None:
    image, mask = torch.randint(0, 256, (3, *size), dtype=torch.uint8), torch.randint(0, 256, size, dtype=torch.uint8)
    assert (255 * warp_image(image, IDENTITY, size, torch.zeros(3)) - image).abs().max() < 255 * CLOSE
    assert torch.equal(warp_mask(mask, IDENTITY, size), mask)
    strided = image.flip(0).transpose(1, 2)  # not contiguous
    assert torch.equal((255 * warp_image(strided, IDENTITY, size[::-1], torch.zeros(3))).round().byte(), strided)
    assert torch.equal(warp_mask(mask.T, IDENTITY, size[::-1]), mask.T)


def test_outside_is_void_and_filled() -> None:
    moved = torch.tensor([[1.0, 0, 3], [0, 1, -2]], dtype=torch.float64)
    image, mask = torch.full((1, 5, 6), 255, dtype=torch.uint8), torch.full((5, 6), 7, dtype=torch.uint8)
    inside = torch.zeros(5, 9, dtype=torch.bool)
    inside[:3, 3:] = True
    assert torch.equal(warp_mask(mask, moved, (5, 9)), torch.where(inside, 7, VOID).byte())
    shown = warp_image(image, moved, (5, 9), torch.tensor([0.25]))[0]
    assert torch.allclose(shown, torch.where(inside, 1.0, 0.25), atol=CLOSE)
    far = torch.tensor([[1.0, 0, 100], [0, 1, 0]], dtype=torch.float64)
    assert (warp_mask(mask, far, (5, 9)) == VOID).all()
    assert torch.allclose(warp_image(image, far, (5, 9), torch.tensor([0.25])), torch.tensor(0.25))


def test_shrinking_takes_the_mean_of_blocks() -> None:
    """A board of single pixels becomes its mean and not whichever pixel was nearest."""
    board = ((torch.arange(32).view(-1, 1) + torch.arange(40)) % 2 * 255).byte().unsqueeze(0)
    matrix = torch.tensor([[0.25, 0, 0], [0, 0.25, 0]], dtype=torch.float64)
    assert torch.allclose(warp_image(board, matrix, (8, 10), torch.zeros(1)), torch.tensor(0.5), atol=CLOSE)
    line = torch.full((1, 1, 40), 255, dtype=torch.uint8)  # one block may be larger than a side
    assert warp_image(line, matrix, (1, 10), torch.zeros(1)).isfinite().all()


def grown(pixels: Tensor, reach: int) -> Tensor:
    """Every pixel with one of `pixels` within so many rows and columns; beyond the border there may be one anywhere."""
    padded = F.pad(pixels.float()[None, None], (reach,) * 4, value=1.0)
    return F.max_pool2d(padded, 2 * reach + 1, 1)[0, 0] > 0


MOVES = st.tuples(st.floats(-3.1, 3.1), st.floats(0.3, 2.5), st.booleans(), st.floats(-4, 4), st.floats(-4, 4))


@settings(max_examples=60)
@given(MOVES, st.integers(20, 40), st.integers(20, 40), st.integers(2, 8), st.integers(2, 8))
def test_a_rectangle_its_mask_and_its_box_stay_together(
    move: tuple[float, float, bool, float, float], height: int, width: int, top: int, left: int
) -> None:
    angle, factor, mirrored, right, down = move
    window = (48, 52)
    matrix = turned(angle, factor, (height, width), window, mirrored)
    matrix[:, 2] += torch.tensor([right, down], dtype=torch.float64)
    image, mask = torch.zeros(1, height, width, dtype=torch.uint8), torch.zeros(height, width, dtype=torch.uint8)
    place = slice(top, top + 9), slice(left, left + 11)
    image[0][place], mask[place] = 255, 5
    box = torch.tensor([[left, top, left + 11, top + 9, 5.0]])
    shown = warp_image(image, matrix, window, torch.zeros(1))[0]
    numbers = warp_mask(mask, matrix, window)
    held = numbers == 5
    # Bilinear sampling mixes what is within half a pixel of the old image in both directions, and where that shrinks,
    # within one and a half of its blocks. Farther from the border both must agree; one pixel more for sharp corners,
    # which pass between the centres.
    blocks = max(1, int(1 / factor))
    reach = math.ceil(math.sqrt(2) * factor * blocks * (0.5 if blocks == 1 else 1.5)) + 1
    around, within = grown(held, reach), ~grown(~held, reach)
    assert (shown[within] > 0.99).all() and (shown[~around] < 0.01).all()
    (found,) = moved_boxes(box, matrix, window, drop=False)
    if held.any():
        rows, columns = torch.nonzero(held.any(1)).flatten(), torch.nonzero(held.any(0)).flatten()
        edges = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        # A pixel is held by its centre, so half of it may stand out of the box.
        assert (edges[:2] >= found[:2] - 0.51).all() and (edges[2:] <= found[2:4] + 0.51).all()
        if (found[:2] > 0).all() and found[2] < window[1] and found[3] < window[0]:
            # A right angle's corner is at least a pixel wide half a pixel within, so less than 1.5 pass unheld.
            assert (edges - found[:4]).abs().max() < 2.01


def test_boxes_are_cut_and_dropped() -> None:
    window = (20, 30)
    boxes = torch.tensor(
        [
            [2, 3, 8, 9, 0],  # inside
            [-10, 5, 10, 15, 1],  # half outside: cut
            [-30, 5, 5, 15, 2],  # a seventh inside: gone
            [25, 15, 40, 30, 3],  # an eighth to be seen
            [40, 2, 50, 8, 4],  # outside
            [10, 10, 10.9, 18, 5],  # narrower than a pixel
            [10, 10, 11, 11, 6],  # one pixel
        ],
        dtype=torch.float32,
    )
    kept = moved_boxes(boxes, IDENTITY, window)
    assert kept.tolist() == [[2, 3, 8, 9, 0], [0, 5, 10, 15, 1], [10, 10, 11, 11, 6]]
    every = moved_boxes(boxes, IDENTITY, window, drop=False)
    assert every[:, 4].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert (every[:, [0, 2]] <= 30).all() and (every[:, [1, 3]] <= 20).all() and (every >= 0).all()
    assert moved_boxes(torch.zeros(0, 5), IDENTITY, window).shape == (0, 5)
    assert moved_boxes(boxes[2:3], IDENTITY, window).shape == (0, 5)


def test_a_turned_box_is_around_its_corners() -> None:
    quarter = torch.tensor([[0.0, -1, 20], [1, 0, 0]], dtype=torch.float64)  # (x, y) to (20 - y, x)
    assert moved_boxes(torch.tensor([[2.0, 3, 8, 5, 1]]), quarter, (30, 20)).tolist() == [[15, 2, 17, 8, 1]]
    eighth = turned(math.pi / 4, 1.0, (10, 10), (20, 20), False)
    (found,) = moved_boxes(torch.tensor([[3.0, 3, 7, 7, 0]]), eighth, (20, 20))
    half = 2 * math.sqrt(2)
    assert torch.allclose(found[:4], torch.tensor([10 - half, 10 - half, 10 + half, 10 + half]), atol=1e-5)


def test_targets_move_whole_and_stack() -> None:
    target = Target(mask=torch.arange(12).view(3, 4).byte(), boxes=torch.tensor([[1.0, 1, 3, 3, 2]]))
    assert target.bytes() == 12 + 20 and Target().bytes() == 0
    twice = target.moved(2 * IDENTITY, (6, 8))
    assert twice.mask is not None and twice.boxes is not None
    assert torch.equal(twice.mask, target.mask.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert twice.boxes.tolist() == [[2, 2, 6, 6, 2]]
    assert Target().moved(IDENTITY, (3, 4)) == Target()
    masks = stacked([Target(mask=target.mask), Target(mask=target.mask)])
    assert masks.shape == (2, 3, 4) and masks.dtype == torch.int64
    boxes = stacked([Target(boxes=torch.zeros(0, 5)), Target(boxes=torch.ones(2, 5)), Target(boxes=torch.ones(1, 5))])
    assert boxes.shape == (3, 2, 5) and boxes[:, :, 4].tolist() == [[-1, -1], [1, 1], [1, -1]]
    assert stacked([Target(boxes=torch.zeros(0, 5))]).shape == (1, 0, 5)
