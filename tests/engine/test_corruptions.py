"""Corruptions: the same for an image in any batch, worse with severity, and what each claims to be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srattn.engine.corruptions import CORRUPTIONS, corrupt
from srattn.errors import SrattnError


def pictures(count: int = 3, side: int = 32, channels: int = 3) -> Tensor:
    """Smooth shapes with edges, on 8-bit levels."""
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    levels = [0.5 + 0.3 * torch.sin(3 * x + n + c) + 0.2 * (y > 0.2 * c) for n in range(count) for c in range(channels)]
    images = torch.stack(levels).view(count, channels, side, side).clamp(0, 1)
    return (images * 255).round() / 255


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (112, 3), (8, 1)])
def test_same_for_an_image_in_any_batch(kind: str, side: int, channels: int) -> None:
    images = pictures(3, side, channels)
    whole = corrupt(images, kind, 3, [4, 5, 6])
    alone = torch.cat([corrupt(images[i : i + 1], kind, 3, [4 + i]) for i in range(3)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1 / 255 + 1e-6)  # rounding may tip over
    assert (whole != alone).double().mean() < 1e-3
    assert whole.shape == images.shape and whole.min() >= 0 and whole.max() <= 1
    levels = whole * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert torch.equal(images, pictures(3, side, channels))


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("side", [32, 112])
def test_severity_takes_the_image_further_away(kind: str, side: int) -> None:
    images = pictures(4, side)
    away = [float((corrupt(images, kind, s, range(4)) - images).square().mean()) for s in (1, 3, 5)]
    if kind == "jpeg":  # smooth pictures survive it alike
        assert away[2] > 0
    else:
        assert away[0] < away[1] < away[2]


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "motion_blur", "fog"])
def test_random_ones_differ_by_image_and_not_by_severity(kind: str) -> None:
    same = pictures(1).expand(2, -1, -1, -1)
    first, second = corrupt(same, kind, 5, [0, 1])
    assert (first - second).abs().mean() > 1e-3


def test_noise_has_its_strength() -> None:
    grey = torch.full((8, 3, 32, 32), 0.5)
    noise = corrupt(grey, "gaussian_noise", 1, range(8)) - grey
    assert float(noise.std()) == pytest.approx(0.04, rel=0.03)
    # A Poisson count has the variance of its mean: level / strength.
    noise = corrupt(grey, "shot_noise", 5, range(8)) - grey
    assert float(noise.var()) == pytest.approx(0.5 / 50, rel=0.05)


@pytest.mark.parametrize("kind", ["gaussian_blur", "defocus_blur", "motion_blur", "pixelate", "contrast"])
@pytest.mark.parametrize("side", [32, 112])
def test_filters_keep_the_mean_and_flat_images(kind: str, side: int) -> None:
    images = pictures(2, side)
    for severity in (1, 5):
        flat = torch.full_like(images, 128 / 255)
        torch.testing.assert_close(corrupt(flat, kind, severity, range(2)), flat, rtol=0, atol=1.01 / 255)
        change = (corrupt(images, kind, severity, range(2)) - images).mean((2, 3))
        assert float(change.abs().max()) < 0.03


def test_brightness_raises_the_value_and_keeps_the_hue() -> None:
    image = torch.tensor([102, 51, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 4) / 255
    brighter = corrupt(image, "brightness", 5, [0])[0, :, 0, 0] * 255
    assert brighter.round().tolist() == [178, 89, 0] or brighter.round().tolist() == [179, 89, 0]
    black = torch.zeros(1, 1, 4, 4)
    assert float(corrupt(black, "brightness", 3, [0]).mean()) == pytest.approx(0.15, abs=1 / 255)


def test_unknown_is_named() -> None:
    with pytest.raises(SrattnError, match="no corruption 'foggy'; did you mean 'fog'"):
        corrupt(pictures(), "foggy", 1, range(3))
    with pytest.raises(SrattnError, match="severity is 1 to 5, got 6"):
        corrupt(pictures(), "fog", 6, range(3))
    with pytest.raises(SrattnError, match="3 images need as many indices, got 2"):
        corrupt(pictures(), "fog", 1, range(2))
