"""Pictures of masks, boxes and depths: the colours stand where they should, and labels stay inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from srattn import SrattnError
from srattn.data.palette import UNCOUNTED, Palette, standard_palette
from srattn.explain.box_pictures import draw_boxes, ink_on, label_place
from srattn.explain.depth_pictures import NOTHING, colour_depth
from srattn.explain.lettering import fitted, font_of
from srattn.explain.overlay import WRONG, edges, legend, overlay, panels, side_by_side

TWO = Palette(("a", "b"), ((200, 0, 0), (0, 100, 250)))


def grey(height: int, width: int, level: int = 100) -> torch.Tensor:
    return torch.full((3, height, width), level, dtype=torch.uint8)


def test_colours_lie_over_the_image() -> None:
    mask = torch.zeros(5, 7, dtype=torch.uint8)
    mask[:, 4:] = 1
    mask[4] = 255
    picture = np.asarray(overlay(grey(5, 7), mask, TWO, alpha=0.25, boundaries=False))
    # 100 + a quarter of the way to the colour.
    assert (picture[:4, :4] == (125, 75, 75)).all() and (picture[:4, 4:] == (75, 100, 138)).all()
    assert (picture[4] == 100).all()
    for alpha, expected in [(0.0, (100, 100, 100)), (1.0, TWO.colours[0])]:
        assert (np.asarray(overlay(grey(2, 2), torch.zeros(2, 2).long(), TWO, alpha)) == expected).all()


def test_boundaries_are_in_full_colour() -> None:
    mask = torch.zeros(6, 6, dtype=torch.uint8)
    mask[2:4, 2:4] = 1
    picture = np.asarray(overlay(grey(6, 6), mask, TWO, alpha=0.5))
    number = mask.numpy()
    for y in range(6):
        for x in range(6):
            near = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            edge = any(number[v, u] != number[y, x] for v, u in near if 0 <= v < 6 and 0 <= u < 6)
            assert edges(number)[y, x] == edge
            colour = np.array(TWO.colours[number[y, x]])
            assert (picture[y, x] == (colour if edge else (100 + colour) // 2)).all()


def test_grey_images_and_pixels_that_lie_apart() -> None:
    image = torch.randint(0, 256, (1, 4, 6), dtype=torch.uint8)
    mask = torch.randint(0, 2, (6, 4)).T
    three = image.expand(3, 4, 6)
    assert np.array_equal(np.asarray(overlay(image, mask, TWO)), np.asarray(overlay(three, mask.contiguous(), TWO)))


def test_overlays_that_do_not_fit() -> None:
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    with pytest.raises(SrattnError, match=r"shape of the image, \(4, 5\), got \(4, 4\)"):
        overlay(grey(4, 5), mask, TWO)
    with pytest.raises(SrattnError, match=r"alpha must be from 0 to 1, got 2"):
        overlay(grey(4, 4), mask, TWO, alpha=2)
    with pytest.raises(SrattnError, match=r"value 2 .* below the 2 classes"):
        overlay(grey(4, 4), mask + 2, TWO)
    for image in (torch.rand(3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(3, 0, 4).byte()):
        with pytest.raises(SrattnError, match="an image must be a uint8 tensor"):
            overlay(image, mask, TWO)


def colours_in(picture: Image.Image) -> set[tuple[int, ...]]:
    return set(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))


@pytest.mark.parametrize("width", [80, 200, 1000])
def test_a_legend_shows_every_class_inside_of_its_width(width: int) -> None:
    names = ["one", "a name that is much longer than any legend of eighty pixels is wide", "", "\n$x_1$", "five"]
    palette = standard_palette(names)
    strip = legend(palette, width=width)
    assert strip.width == width and set(palette.colours) <= colours_in(strip)
    pixels = np.asarray(strip)
    assert (pixels[:, -2:] == 255).all() and (pixels[-2:] == 255).all()  # nothing is cut off
    only = legend(palette, [1], width=width)
    assert palette.colours[1] in colours_in(only) and palette.colours[4] not in colours_in(only)


def test_legends_that_cannot_be() -> None:
    with pytest.raises(SrattnError, match="class 2 has no colour in a palette of 2 classes"):
        legend(TWO, [2])
    with pytest.raises(SrattnError, match="at least 80 pixels wide, got 20"):
        legend(TWO, width=20)


def test_errors_are_marked_and_counted() -> None:
    truth = torch.zeros(60, 80, dtype=torch.uint8)
    truth[:, 40:] = 1
    truth[:30] = 255
    prediction = torch.zeros(60, 80, dtype=torch.uint8)
    prediction[:, 60:] = 1
    told: list[str] = []
    sheet = side_by_side(grey(60, 80), truth, prediction, TWO, title="street.png")
    with pytest.MonkeyPatch.context() as patch:
        import srattn.explain.overlay as module

        def watch(pictures: list[tuple[str, Image.Image]], title: str = "") -> Image.Image:
            told.extend(words for words, _ in pictures)
            shown = np.asarray(pictures[3][1])
            expected = np.zeros((60, 80), bool)
            expected[30:, 40:60] = True
            assert np.array_equal((shown == WRONG).all(-1), expected)
            assert (shown[:30] == 255).all() and (shown[30:, :40] == 146).all()  # 100 / 2 + 96
            return panels(pictures, title)

        patch.setattr(module, "panels", watch)
        again = side_by_side(grey(60, 80), truth, prediction, TWO, title="street.png")
    assert told == ["image", "truth", "prediction", "wrong: 25.0 % of pixels"]
    assert np.array_equal(np.asarray(sheet), np.asarray(again))


@pytest.mark.parametrize("size", [(1, 1), (700, 300), (3, 2000), (64, 65)])
def test_sheets_of_any_size(size: tuple[int, int]) -> None:
    truth = torch.randint(0, 3, size, dtype=torch.uint8)
    sheet = side_by_side(grey(*size), truth, truth, standard_palette(3), side=200)
    assert sheet.width <= 4 * 200 + 5 * 6 and sheet.height <= 200 + 90
    nothing = torch.full(size, 255, dtype=torch.uint8)
    assert (
        side_by_side(grey(*size), nothing, nothing, TWO).width
        == side_by_side(grey(*size), truth, truth, standard_palette(3)).width
    )
    with pytest.raises(SrattnError, match="at least one"):
        panels([])


def test_text_fits_into_its_width() -> None:
    font = font_of(13)
    for text in ("short", "a rather long line of text " * 20, "\x00\n", "i" * 50, "电脑"):
        for width in (0, 5, 20, 77, 300):
            line = fitted(text, font, width)
            assert font.getlength(line) <= width and "\n" not in line
    assert fitted("short", font, 300) == "short"
    assert fitted("a long name that ends", font, 90).endswith("ends")


def test_boxes_are_drawn_around_their_pixels() -> None:
    boxes = torch.tensor([[10.0, 40.0, 60.0, 90.0, 0.9, 1.0], [0, 0, 0, 0, 0, -1]])
    picture = np.asarray(draw_boxes(grey(100, 100), boxes, ["a", "b"], TWO))
    drawn = (picture == TWO.colours[1]).all(-1)
    assert drawn[40:90, 10].all() and drawn[40:90, 59].all() and drawn[40, 10:60].all() and drawn[89, 10:60].all()
    inside = np.zeros((100, 100), bool)
    inside[40:90, 10:60] = True
    outside = (picture != 100).any(-1) & ~inside
    assert outside[:40].any() and not outside[40:].any()  # the label stands above, and nothing else
    assert (picture[41:89, 11:59] == 100).all()
    bare = np.asarray(draw_boxes(grey(100, 100), boxes, ["a", "b"], TWO, scores=False))
    widths = [np.flatnonzero((shown[:40] != 100).any(axis=(0, 2))).max() for shown in (picture, bare)]
    assert widths[0] > widths[1] + 20  # " 0.90"


def test_what_is_ignored_is_dashed_in_grey() -> None:
    boxes = torch.tensor([[10.0, 40.0, 60.0, 90.0, 1.0, 1.0], [70.0, 40.0, 90.0, 60.0, 1.0, 0.0]])
    out = torch.tensor([True, False])
    picture = np.asarray(draw_boxes(grey(100, 100), boxes, ["a", "b"], TWO, scores=False, ignored=out))
    dashes, between = ((picture == colour).all(-1) for colour in (UNCOUNTED, (255, 255, 255)))
    for edge in (np.s_[40:90, 10], np.s_[40:90, 59], np.s_[40, 10:60], np.s_[89, 10:60]):
        assert (dashes | between)[edge].all() and dashes[edge].sum() >= 25 and between[edge].sum() >= 20
    assert not (picture == TWO.colours[1]).all(-1).any() and (picture == TWO.colours[0]).all(-1)[40, 70:90].all()
    plain = np.asarray(draw_boxes(grey(100, 100), boxes, ["a", "b"], TWO, scores=False))
    widths = [np.flatnonzero((shown[:40, :65] != 100).any(axis=(0, 2))).max() for shown in (picture, plain)]
    assert widths[0] > widths[1] + 20  # ", ignored"


def test_the_surest_box_lies_on_top() -> None:
    boxes = torch.tensor([[0, 0, 9, 9, 0.9, 1], [0, 0, 9, 9, 0.3, 0]], dtype=torch.float64)
    for order in ([0, 1], [1, 0]):
        assert np.asarray(draw_boxes(grey(9, 9), boxes[order], ["a", "b"], TWO))[0, 0].tolist() == [0, 100, 250]


@pytest.mark.parametrize("size", [(1, 1), (9, 200), (200, 9), (40, 30), (400, 300)])
def test_boxes_at_and_beyond_every_border(size: tuple[int, int]) -> None:
    height, width = size
    boxes = torch.tensor(
        [
            [-50, -50, -10, -10, 0.1, 0],
            [width + 5, height + 5, width + 50, height + 50, 0.2, 1],
            [-1e9, -1e9, 1e9, 1e9, 0.3, 0],
            [width - 1, 0, width, 1, 0.4, 1],
            [5, 5, 5, 5, 0.5, 0],
            [7, 7, 2, 2, 0.6, 0],
        ]
    )
    names = ["a", "a name that is longer than most pictures are wide, and then some"]
    picture = draw_boxes(grey(*size), boxes, names)
    assert picture.size == (width, height)
    assert draw_boxes(grey(*size), torch.zeros(0, 6), []).tobytes() == bytes([100]) * (3 * height * width)


@pytest.mark.parametrize("corner", [(0, 0), (5, 3), (95, 0), (99, 79), (0, 79), (50, 40), (60, 12)])
@pytest.mark.parametrize("label", [(1, 1), (30, 12), (100, 80)])
def test_labels_stay_inside(corner: tuple[int, int], label: tuple[int, int]) -> None:
    place = label_place((100, 80), corner, label)
    assert place is not None
    x, y = place
    assert 0 <= x <= 100 - label[0] and 0 <= y <= 80 - label[1]
    if corner[1] >= label[1]:
        assert y == corner[1] - label[1]
    assert label_place((100, 80), corner, (101, 1)) is None and label_place((100, 80), corner, (1, 81)) is None


def test_letters_have_contrast_on_every_colour() -> None:
    assert ink_on((0, 0, 0)) == (255, 255, 255) and ink_on((255, 255, 255)) == (0, 0, 0)
    assert ink_on((240, 228, 66)) == (0, 0, 0) and ink_on((0, 0, 255)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (torch.zeros(2, 5), r"boxes must be \(N, 6\): x1, y1, x2, y2, score, class; got \(2, 5\)"),
        (torch.tensor([[0, 0, 1, float("nan"), 1, 0]]), "finite"),
        (torch.tensor([[0, 0, 1, 1, 1, 2.0]]), "a box has class 2, there are 2 names and 2 colours"),
    ],
)
def test_boxes_that_cannot_be_drawn(boxes: torch.Tensor, message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        draw_boxes(grey(8, 8), boxes, ["a", "b"])


def test_near_is_bright_and_far_is_dark() -> None:
    depth = torch.tensor([[1.0, 2.0, 5.0], [0.0, -1.0, float("nan")], [0.5, 9.0, float("inf")]])
    levels = np.asarray(colour_depth(depth, 1, 5)).astype(int)
    light = levels.sum(-1)
    assert light[0, 0] > light[0, 1] > light[0, 2]
    assert (levels[2, 0] == levels[0, 0]).all() and (levels[2, 1] == levels[0, 2]).all()
    assert all(tuple(levels[y, x]) == NOTHING for y, x in [(1, 0), (1, 1), (1, 2), (2, 2)])
    own = np.asarray(colour_depth(depth[:1])).astype(int)
    assert (own == levels[:1]).all()
    assert np.asarray(colour_depth(torch.full((2, 2), 3.0))).min() == np.asarray(colour_depth(torch.ones(2, 2))).min()
    assert colours_in(colour_depth(torch.zeros(2, 3))) == {NOTHING}


def test_depths_that_are_none() -> None:
    for depth in (torch.zeros(1, 2, 2), torch.zeros(2, 2).long(), torch.zeros(0, 2)):
        with pytest.raises(SrattnError, match=r"depths must be floating-point numbers \(H, W\)"):
            colour_depth(depth)
    with pytest.raises(SrattnError, match="from low to high, got low=5 and high=1"):
        colour_depth(torch.ones(2, 2), 5, 1)
