"""Preprocessing in the graph gives what Pillow gives, for every way of fitting, filtering and inverting."""

from __future__ import annotations

import itertools

import pytest
import torch
from PIL import Image

from srattn.data.preprocess import Preprocess, to_image, to_tensor
from srattn.export.pictures import Pictures


def picture(height: int, width: int, channels: int, dark: bool) -> Image.Image:
    """Smooth shapes with noise, light on dark or dark on light."""
    rows, columns = torch.linspace(0, 9, height)[:, None], torch.linspace(0, 7, width)[None]
    levels = 60 * (torch.sin(rows) * torch.cos(columns)) + 10 * torch.rand(channels, height, width)
    levels = levels + (60 if dark else 190)
    return to_image(levels.clamp(0, 255).to(torch.uint8))


SIZES = [(90, 133), (24, 40), (17, 11), (32, 24)]
HARDLY_LARGER = [(35, 25), (33, 60)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("fit", "size"),
    [
        *itertools.product(["crop", "centre", "squash", "inside"], SIZES),
        *itertools.product(["centre"], HARDLY_LARGER),
    ],
)
def test_resizes_as_pillow_does(size: tuple[int, int], interpolation: str, fit: str) -> None:
    preprocess = Preprocess(size=(32, 24), fit=fit, crop_fraction=0.9, interpolation=interpolation)
    image = picture(*size, 3, dark=True)
    wanted = preprocess.normalise(preprocess.pixels(image)[None].float() / 255)
    found = Pictures(preprocess)(to_tensor(image).permute(1, 2, 0)[None])
    level = 1 / (255 * min(preprocess.std))
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 2.01 * level, "a level at most in each direction"
    assert float(((found - wanted).abs() > 0.01 * level).float().mean()) < 0.1, "and where a sum ends in a half"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("invert", ["never", "always", "auto"])
def test_inverts_as_the_reader_does(channels: int, invert: str) -> None:
    mean, std = (0.5,) * channels, (0.25,) * channels
    preprocess = Preprocess(channels=channels, size=(20, 20), mean=mean, std=std, fit="squash", invert=invert)
    for dark in (True, False):
        image = picture(20, 20, channels, dark)
        wanted = preprocess.normalise(preprocess.pixels(image)[None].float() / 255)
        found = Pictures(preprocess)(to_tensor(image).permute(1, 2, 0)[None])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
