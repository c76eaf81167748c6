"""From a picture to what the model takes."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

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


def test_normalise() -> None:
    images = torch.rand(2, 3, 4, 4)
    given = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0)).normalise(images)
    assert torch.allclose(given[:, 1], (images[:, 1] - 0.2) / 0.25)


def test_tensor_and_image_are_each_others_reverse() -> None:
    for channels in (1, 3):
        pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
        assert torch.equal(to_tensor(to_image(pixels)), pixels)
