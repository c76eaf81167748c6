"""Each operation of the augmentation against Pillow's, or against what its range says at its ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from srattn.data import geometry, mix, randaugment
from srattn.data.preprocess import Preprocess, to_image, to_tensor

pytest.importorskip("kornia", reason="needs the extra train")
SIDES = (24, 30)


@pytest.fixture
def picture() -> Tensor:
    return torch.randint(0, 256, (3, *SIDES), dtype=torch.uint8)


def ours(name: str, picture: Tensor, sign: int, strength: float) -> Tensor:
    """One operation of RandAugment on a picture, in levels."""
    draws = torch.tensor([[(randaugment.OPS.index(name) + 0.5) / len(randaugment.OPS), 0.25 if sign < 0 else 0.75]])
    return 255 * randaugment.randaugment(picture.unsqueeze(0).float() / 255, draws, 1, strength)[0]


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("colour", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("brightness", ImageEnhance.Brightness),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_strengths_of_enhancements(name: str, enhance: Any, sign: int, strength: float, picture: Tensor) -> None:
    theirs = to_tensor(enhance(to_image(picture)).enhance(1 + sign * 0.9 * strength))
    # Pillow rounds the grey or smooth picture to levels, times at most 0.9, and then the result.
    assert float((ours(name, picture, sign, strength) - theirs).abs().max()) <= 2


@pytest.mark.parametrize("strength", [0.3, 0.9])
def test_strengths_of_levels(strength: float, picture: Tensor) -> None:
    image = to_image(picture)
    solarized = to_tensor(ImageOps.solarize(image, 255 * (1 - strength)))  # type: ignore[arg-type]
    assert torch.allclose(ours("solarize", picture, 1, strength), solarized.float(), atol=1e-3)
    bits = 8 - round(4 * strength)
    posterized = to_tensor(ImageOps.posterize(image, bits))
    assert torch.allclose(ours("posterize", picture, 1, strength), posterized.float(), atol=1e-3)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_where_pixels_go(name: str, sign: int, picture: Tensor) -> None:
    height, width = SIDES
    amount = 0.7 * sign
    angle = math.radians(30 * amount) if name == "rotate" else 0.0
    along = {"shear_x": (0.3 * amount, 0.0), "shear_y": (0.0, 0.3 * amount)}.get(name, (0.0, 0.0))
    moved = {"translate_x": (0.45 * amount * width, 0.0), "translate_y": (0.0, 0.45 * amount * height)}
    forth = torch.eye(3, dtype=torch.float64)
    forth[0, :2] = torch.tensor([math.cos(angle), along[0] - math.sin(angle)])
    forth[1, :2] = torch.tensor([along[1] + math.sin(angle), math.cos(angle)])
    forth[:2, 2] = torch.tensor(moved.get(name, (0.0, 0.0)))
    about = torch.eye(3, dtype=torch.float64)
    about[:2, 2] = torch.tensor([width / 2, height / 2])  # Pillow counts from the edge of the first pixel
    back = torch.linalg.inv(about @ forth @ torch.linalg.inv(about))[:2].flatten().tolist()
    image = to_image(picture)
    theirs = to_tensor(image.transform(image.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR))
    whole = Image.new("L", image.size, 255)
    inside = to_tensor(whole.transform(image.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR))[0] == 255
    inside &= torch.nn.functional.max_pool2d(1.0 - inside.float()[None], 3, 1, 1)[0] == 0  # a rim is each one's own
    assert int(inside.sum()) > 150
    difference = (ours(name, picture, sign, 0.7) - theirs).abs()[:, inside]
    assert float(difference.max()) <= 1.001  # Pillow cuts to whole levels


def test_jitter_is_brightness_then_contrast_then_saturation(picture: Tensor) -> None:
    draws = torch.tensor([[0.2, 0.9, 0.6]])
    image = to_image(picture)
    for enhance, draw in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), draws[0].tolist(), strict=True
    ):
        image = enhance(image).enhance(1 + (2 * draw - 1) * 0.4)
    found = 255 * randaugment.jitter(picture.unsqueeze(0).float() / 255, draws, 0.4)[0]
    assert float((found - to_tensor(image)).abs().max()) <= 4  # three times rounded


def test_affine_turns_about_the_middle(picture: Tensor) -> None:
    images, half_turn = picture.unsqueeze(0).float(), torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    turned = geometry.affine(images, half_turn, 0.0, 0.0, 180.0, "border")
    assert torch.allclose(turned, images.flip(2, 3), atol=0.05)
    larger = geometry.affine(images, torch.tensor([[0.0, 0.0, 1.0, 0.0]]), 0.0, 1.0, 0.0, "border")
    middle = larger[:, :, SIDES[0] // 2 - 1 : SIDES[0] // 2 + 1, SIDES[1] // 2 - 1 : SIDES[1] // 2 + 1].mean((2, 3))
    own = images[:, :, SIDES[0] // 2 - 1 : SIDES[0] // 2 + 1, SIDES[1] // 2 - 1 : SIDES[1] // 2 + 1].mean((2, 3))
    assert torch.allclose(middle, own, atol=0.05)


def test_a_crop_of_all_is_the_whole_picture_in_the_shape_of_the_result(picture: Tensor) -> None:
    images = picture.unsqueeze(0).float()
    whole = geometry.crop_together(images, SIDES, torch.tensor([[1.0, 0.5, 0.5, 0.5]], dtype=torch.float64), 0.3)
    assert torch.allclose(whole, images, atol=1e-2)
    assert geometry.only_enlarges((3, *SIDES), SIDES)
    assert not geometry.only_enlarges((3, SIDES[0] + 1, SIDES[1]), SIDES)
    assert not geometry.only_enlarges((3, SIDES[0], SIDES[1] + 1), SIDES)


@pytest.mark.parametrize(("share", "area"), [(0.0, 0.02), (0.8, 0.268)])
@pytest.mark.parametrize(("turn", "shape"), [(0.0, 3 / 10), (1.0, 10 / 3)])
def test_the_ends_of_what_is_erased(share: float, area: float, turn: float, shape: float) -> None:
    side = 400
    draws = torch.tensor([[0.0, share, turn, 0.4, 0.7]], dtype=torch.float64)
    gone = mix.erase(torch.ones(1, 1, side, side), draws, 0.5, (0.0,))[0, 0] == 0
    rows, columns = int(gone.any(1).sum()), int(gone.any(0).sum())
    assert rows * columns == int(gone.sum())
    assert rows / columns == pytest.approx(shape, rel=0.02)
    assert rows * columns / side**2 == pytest.approx(area, rel=0.02)
    top, left = int(gone.any(1).float().argmax()), int(gone.any(0).float().argmax())
    assert (top, left) == (int(0.4 * (side - rows + 1)), int(0.7 * (side - columns + 1)))


def test_both_ways_of_mixing_have_half_of_the_pictures() -> None:
    images = torch.rand(2000, 1, 8, 8)
    draws = torch.rand(2000, 5, dtype=torch.float64)
    labels = torch.arange(2000) % 2
    mixed, _ = mix.mix(images, labels, draws, 2, 1.0, 1.0, 1.0)
    partner = images.view(1000, 2, 64).flip(1).view(2000, 64)
    cut = ((mixed.view(2000, 64) == images.view(2000, 64)) | (mixed.view(2000, 64) == partner)).all(1)
    assert 0.45 < float(cut.float().mean()) < 0.55
    alone, _ = mix.mix(images, labels, draws, 2, 0.0, 1.0, 1.0)  # without mixup all are cut
    assert bool(((alone.view(2000, 64) == images.view(2000, 64)) | (alone.view(2000, 64) == partner)).all())
    assert float((alone != images).flatten(1).any(1).float().mean()) > 0.9


@pytest.mark.parametrize(
    "draws", [(0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 1.0, 0.0), (0.3, 0.5, 0.25, 0.75), (0.2, 0.4, 0.5, 0.5)]
)
def test_a_crop_is_the_part_that_its_draws_say(draws: tuple[float, float, float, float]) -> None:
    """Each picture's levels tell its places, and the result is not square."""
    have, size, area = (40, 60), (48, 96), 0.2
    kept = 40 * 60 * (area + (1 - area) * draws[0])
    shape = 96 / 48 * (4 / 3) ** (2 * draws[1] - 1)  # width to height
    width, height = min(60, math.sqrt(kept * shape)), min(40, math.sqrt(kept / shape))
    left, top = draws[2] * (60 - width), draws[3] * (40 - height)
    x = left + (torch.arange(96) + 0.5) / 96 * width
    y = top + (torch.arange(48) + 0.5) / 48 * height
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    levels = torch.stack([4 * columns + 2, 4 * rows + 2, 0 * rows])
    inside = ((y > 1) & (y < 39))[:, None] & ((x > 1) & (x < 59))
    together = geometry.crop_together(levels[None].double(), size, torch.tensor([draws], dtype=torch.float64), area)[0]
    alone = geometry.crop_one(levels.to(torch.uint8), Preprocess(size=size), draws, area).double()
    assert together.shape == alone.shape == (3, *size) and geometry.only_enlarges(have, size)
    for found, most in ((together, 1e-4), (alone, 1.01)):  # of places in float32, and of whole levels
        assert float((found[0] - 4 * x)[inside].abs().max()) <= most
        assert float((found[1] - 4 * y[:, None])[inside].abs().max()) <= most
