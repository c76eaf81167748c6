"""The feature pyramid against plain loops, its extra levels, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srattn import SrattnError
from srattn.heads import FPN

CHANNELS = [6, 8, 10]
GRIDS = [(13, 9), (7, 5), (3, 2)]


def maps() -> list[Tensor]:
    return [torch.randn(2, c, *grid, dtype=torch.float64) for c, grid in zip(CHANNELS, GRIDS, strict=True)]


def nearest(x: Tensor, height: int, width: int) -> Tensor:
    """Pixel by pixel: the one of the coarse map in which a pixel's left upper corner lies."""
    out = x.new_empty(*x.shape[:2], height, width)
    for i in range(height):
        for j in range(width):
            out[:, :, i, j] = x[:, :, i * x.shape[2] // height, j * x.shape[3] // width]
    return out


def definition(fpn: FPN, features: list[Tensor]) -> list[Tensor]:
    state = fpn.state_dict()
    inner = [F.conv2d(x, state[f"laterals.{n}.weight"], state[f"laterals.{n}.bias"]) for n, x in enumerate(features)]
    inner[1] = inner[1] + nearest(inner[2], *GRIDS[1])
    inner[0] = inner[0] + nearest(inner[1], *GRIDS[0])
    return [
        F.conv2d(x, state[f"outputs.{n}.weight"], state[f"outputs.{n}.bias"], padding=1) for n, x in enumerate(inner)
    ]


def test_the_pyramid_is_its_definition() -> None:
    fpn, features = FPN(CHANNELS, 12).double(), maps()
    for found, expected, grid in zip(fpn(features), definition(fpn, features), GRIDS, strict=True):
        assert found.shape == (2, 12, *grid)
        assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("source", ["output", "input"])
def test_extra_levels_by_convolution(source: str) -> None:
    fpn, features = FPN(CHANNELS, 12, 2, source).double(), maps()
    pyramid = fpn(features)
    assert [tuple(x.shape[2:]) for x in pyramid] == [*GRIDS, (2, 1), (1, 1)]
    state = fpn.state_dict()
    first = F.conv2d(
        features[-1] if source == "input" else pyramid[2],
        state["extras.0.weight"],
        state["extras.0.bias"],
        stride=2,
        padding=1,
    )
    second = F.conv2d(first.relu(), state["extras.1.weight"], state["extras.1.bias"], stride=2, padding=1)
    assert torch.allclose(pyramid[3], first, atol=1e-12) and torch.allclose(pyramid[4], second, atol=1e-12)


def test_extra_levels_by_pooling() -> None:
    fpn, features = FPN(CHANNELS, 12, 2, "pool").double(), maps()
    pyramid = fpn(features)
    assert torch.equal(pyramid[3], pyramid[2][:, :, ::2, ::2]) and pyramid[4].shape == (2, 12, 1, 1)
    assert fpn.state_dict().keys() == FPN(CHANNELS, 12).state_dict().keys()


@pytest.mark.parametrize("source", ["output", "input", "pool"])
def test_maps_of_one_pixel_and_every_gradient(source: str) -> None:
    fpn = FPN(CHANNELS, 4, 2, source)
    pyramid = fpn([torch.randn(1, c, 1, 1) for c in CHANNELS])
    assert [x.shape for x in pyramid] == 5 * [(1, 4, 1, 1)]
    sum(x.square().sum() for x in fpn([x.float() for x in maps()])).backward()  # type: ignore[union-attr]
    assert [name for name, p in fpn.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_one_map_and_the_configuration() -> None:
    fpn = FPN([5], 4, 1)
    assert [x.shape for x in fpn([torch.randn(1, 5, 3, 3)])] == [(1, 4, 3, 3), (1, 4, 2, 2)]
    config = json.loads(json.dumps(fpn.config))
    assert config.pop("kind") == "fpn" and FPN([5], **config).config == fpn.config


def test_fresh_weights_follow_the_seed() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(FPN([64], 64).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    # Uniform within sqrt(3 / fan-in), and no bias.
    weight = states[0]["outputs.0.weight"]
    assert 0.99 < weight.abs().max() / (3 / (64 * 9)) ** 0.5 <= 1 and not states[0]["outputs.0.bias"].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), r"channels=\[\]"),
        (([4], 0), "width=0"),
        (([4], 8, -1), "extra_levels=-1"),
        (([4], 8, 1, "middle"), "one of output, input, pool, got extra_levels=1, extra_from='middle'"),
    ],
)
def test_numbers_that_make_no_pyramid(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        FPN(*arguments)  # type: ignore[arg-type]


def test_other_maps_are_refused() -> None:
    with pytest.raises(SrattnError, match=r"takes 3 maps .* got \[6, 8\]"):
        FPN(CHANNELS, 4)(maps()[:2])
