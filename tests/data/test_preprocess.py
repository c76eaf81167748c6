"""From a picture to what the model takes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from PIL import Image

from srattn.data.decode import BadImage
from srattn.data.preprocess import Preprocess, to_image, to_tensor
from srattn.errors import SrattnError


def test_through_json_and_back() -> None:
    one = Preprocess(channels=1, size=(8, 12), mean=(0.3,), std=(0.2,), fit="squash", invert="auto")
    assert Preprocess.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 2},
        {"size": [10**9, 4]},
        {"size": [0, 4]},
        {"size": "8x8"},
        {"size": 5},
        {"mean": [0.1]},
        {"std": [0.0, 1, 1]},
        {"std": ["a", "b", "c"]},
        {"mean": [float("nan")] * 3},
        {"fit": "melt"},
        {"invert": True},
        {"crop_fraction": 0},
        {"extra": 1},
    ],
)
def test_wrong_values_from_a_file(change: dict[str, object]) -> None:
    with pytest.raises(SrattnError, match="preprocess"):
        Preprocess.from_dict(Preprocess().to_dict() | change)
    with pytest.raises(SrattnError, match="expected the names"):
        Preprocess.from_dict({})


def test_crop_takes_the_centre_and_keeps_the_shape() -> None:
    image = Image.new("L", (40, 20), 0)
    image.paste(200, (10, 0, 30, 20))  # the middle square
    crop = Preprocess(1, (10, 10), (0.0,), (1.0,), crop_fraction=0.9)
    assert torch.equal(crop.pixels(image), torch.full((1, 10, 10), 200, dtype=torch.uint8))
    squash = Preprocess(1, (10, 10), (0.0,), (1.0,), fit="squash")
    assert squash.pixels(image)[0, 5].tolist()[0] == 0
    wide = Preprocess(1, (5, 10), (0.0,), (1.0,), crop_fraction=1.0)
    assert wide.pixels(image)[0, 2].float().mean() == pytest.approx(100, abs=2)


@pytest.mark.parametrize("have", [(10, 10), (11, 10), (10, 11), (11, 13), (9, 9), (5, 8), (30, 50), (12, 12)])
def test_a_centre_is_never_blurred(have: tuple[int, int]) -> None:
    """Pictures of the size wanted, or hardly larger, keep their pixels; of larger ones it is the crop, shrunk."""
    torch.manual_seed(0)
    pixels = torch.randint(256, (1, *have), dtype=torch.uint8)
    image = Image.fromarray(pixels[0].numpy())
    centre = Preprocess(1, (10, 10), (0.0,), (1.0,), fit="centre")
    found, (left, top, right, bottom) = centre.pixels(image), centre.part(*have)
    short = min(have)
    if short >= 12:  # 10 / 0.9 is 11.1
        crop = dataclasses.replace(centre, fit="crop")
        assert torch.equal(found, crop.pixels(image)) and (left, top, right, bottom) == crop.part(*have)
    elif short >= 10:
        y, x = (have[0] - 10) // 2, (have[1] - 10) // 2
        assert torch.equal(found, pixels[:, y : y + 10, x : x + 10]) and (left, top) == (x, y)
    else:
        assert right - left == bottom - top == short and (left, top) == ((have[1] - short) / 2, (have[0] - short) / 2)


@pytest.mark.parametrize("have", [(20, 40), (40, 20), (7, 7), (1, 1), (1, 30), (99, 100)])
@pytest.mark.parametrize("size", [(16, 16), (12, 30)])
def test_fits_that_keep_the_shape(have: tuple[int, int], size: tuple[int, int]) -> None:
    image = Image.new("RGB", (have[1], have[0]), (200, 100, 50))
    shorter = Preprocess(size=size, fit="shorter")
    rows, columns = shorter.sides(*have)
    assert shorter.pixels(image).shape == (3, rows, columns) and shorter.corner(*have) == (0, 0)
    assert rows >= size[0] and columns >= size[1] and (rows == size[0] or columns == size[1])
    inside = Preprocess(size=size, fit="inside", mean=(0.2, 0.4, 0.6))
    pixels, (rows, columns), (top, left) = inside.pixels(image), inside.sides(*have), inside.corner(*have)
    assert pixels.shape == (3, *size) and rows <= size[0] and columns <= size[1]
    assert rows == size[0] or columns == size[1]
    held = torch.zeros(size, dtype=torch.bool)
    held[top : top + rows, left : left + columns] = True
    assert 0 <= size[0] - rows - 2 * top <= 1 and 0 <= size[1] - columns - 2 * left <= 1
    assert torch.equal(pixels[:, held].unique(dim=1), torch.tensor([[200], [100], [50]], dtype=torch.uint8))
    if not held.all():
        assert torch.equal(pixels[:, ~held].unique(dim=1), torch.tensor([[51], [102], [153]], dtype=torch.uint8))
    for one in (shorter, inside):
        factor = one.factor(*have)
        assert all(
            abs(side - factor * old) <= 0.5 or side == 1 for side, old in zip(one.sides(*have), have, strict=True)
        )


def test_the_picture_lies_where_it_is_said_to() -> None:
    image = to_image(torch.randint(0, 256, (1, 8, 16), dtype=torch.uint8))
    inside = Preprocess(1, (16, 16), (0.5,), (0.5,), fit="inside")
    assert inside.factor(8, 16) == 1 and inside.corner(8, 16) == (4, 0)
    assert torch.equal(inside.pixels(image)[:, 4:12], to_tensor(image))
    assert torch.equal(Preprocess(1, (8, 8), (0.5,), (0.5,), fit="shorter").pixels(image), to_tensor(image))


def test_a_line_of_pixels_does_not_fill_the_memory() -> None:
    line = Image.new("L", (9000, 1))
    with pytest.raises(BadImage, match=r"9000x1 would become 288000x32, more than the 4,194,304 pixels .*; cut it"):
        Preprocess(1, (512, 512), (0.5,), (0.5,), fit="shorter").pixels(line)
    assert Preprocess(1, (512, 512), (0.5,), (0.5,), fit="inside").pixels(line).shape == (1, 512, 512)
    for wide, high in ((16, 1), (17, 1), (50, 1), (1, 300), (5000, 100)):  # enlarged, as far as the pixels go
        rows, columns = Preprocess(1, (512, 512), (0.5,), (0.5,), fit="shorter").sides(high, wide)
        assert rows * columns == pytest.approx(min(16, max(wide / high, high / wide)) * 512 * 512, rel=0.01)
        assert max(rows, columns) / min(rows, columns) == pytest.approx(max(wide / high, high / wide), rel=0.01)
    strip = Preprocess(1, (64, 64), (0.5,), (0.5,), fit="shorter")
    assert strip.sides(80, 80_000) == (64, 64_000)  # what is made smaller keeps its height
    assert strip.pixels(Image.new("L", (16_000, 80))).shape == (1, 64, 12_800)


def test_normalise() -> None:
    images = torch.rand(2, 3, 4, 4)
    given = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0)).normalise(images)
    assert torch.allclose(given[:, 1], (images[:, 1] - 0.2) / 0.25)


def test_tensor_and_image_are_each_others_reverse() -> None:
    for channels in (1, 3):
        pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
        assert torch.equal(to_tensor(to_image(pixels)), pixels)


def test_parts_of_a_picture_by_hand() -> None:
    crop = Preprocess(size=(20, 40), crop_fraction=0.8)
    # Of 120 x 100 the largest part as wide again as high is 100 x 50; of 60 x 200 it is 120 x 60.
    assert crop.part(120, 100) == pytest.approx((10, 40, 90, 80))
    assert crop.part(60, 200) == pytest.approx((52, 6, 148, 54))
    centre = dataclasses.replace(crop, fit="centre")
    assert centre.part(120, 100) == crop.part(120, 100)
    assert centre.part(23, 45) == (2, 1, 42, 21)  # of its own size, on whole pixels
    assert centre.part(10, 30) == pytest.approx((5, 0, 25, 10))  # smaller than wanted: all that has the shape
    for fit in ("squash", "shorter", "inside"):
        assert dataclasses.replace(crop, fit=fit).part(120, 100) == (0, 0, 100, 120)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_filters_are_pillow_s(interpolation: str) -> None:
    image = to_image(torch.randint(0, 256, (3, 30, 50), dtype=torch.uint8))
    filtered = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    for fit, size, box in (
        ("squash", (12, 16), (0, 0, 50, 30)),
        ("crop", (12, 12), (11.5, 1.5, 38.5, 28.5)),
        ("shorter", (20, 10), (0, 0, 50, 30)),
    ):
        one = Preprocess(size=size, fit=fit, interpolation=interpolation)
        rows, columns = (20, 33) if fit == "shorter" else size
        expected = to_tensor(image.resize((columns, rows), filtered, box=box))
        assert torch.equal(one.pixels(image), expected), fit


@pytest.mark.parametrize(
    ("border", "middle", "light"), [(200, 0, True), (20, 255, False), (128, 0, True), (127, 255, False)]
)
def test_the_border_says_whether_a_picture_is_inverted(border: int, middle: int, light: bool) -> None:
    image = Image.new("RGB", (9, 7), (border,) * 3)
    image.paste((middle,) * 3, (1, 1, 8, 6))
    plain = Preprocess(size=(7, 9), fit="squash")
    never, always, auto = (
        dataclasses.replace(plain, invert=invert).pixels(image) for invert in ("never", "always", "auto")
    )
    assert torch.equal(never, to_tensor(image)) and torch.equal(always, 255 - never)
    assert torch.equal(auto, always if light else never)
