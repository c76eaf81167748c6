"""What the detectors' heads have in common: towers of convolutions, shared by all maps of the pyramid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.heads.parts import ConvNormReLU


class Tower(nn.Sequential):
    """`convs` 3x3 convolutions that keep width and grid, each with a norm ("batch", "group" or "none") and ReLU."""

    def __init__(self, width: int, convs: int, norm: str, *, device: Any = None, dtype: Any = None) -> None:
        factory = {"device": device, "dtype": dtype}
        if norm == "none":
            layers = [m for _ in range(convs) for m in (output(width, width, **factory), nn.ReLU())]
        else:
            layers = [ConvNormReLU(width, width, norm=norm, **factory) for _ in range(convs)]
        super().__init__(*layers)


def output(width: int, channels: int, *, rare: float | None = None, device: Any = None, dtype: Any = None) -> nn.Conv2d:
    """A 3x3 convolution drawn with a standard deviation of 0.01; its logits begin at a probability of `rare`.

    Otherwise the many places without an object would drown the first steps (arXiv:1708.02002, section 4.1).
    """
    conv = nn.Conv2d(width, channels, 3, padding=1, device=device, dtype=dtype)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, 0.0 if rare is None else -math.log((1 - rare) / rare))
    return conv


def by_place(x: Tensor, values: int) -> Tensor:
    """(B, A * values, H, W) to (B, H * W * A, values), row by row."""
    return x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, values))


def check_detector(kind: str, width: int, num_classes: int, strides: Sequence[int], convs: int) -> None:
    """Refuses numbers that make no detector."""
    if min(width, num_classes) < 1 or convs < 0 or not strides or min(strides) < 1:
        raise SrattnError(
            f"a {kind} head needs a width, classes and strides of at least 1, got {width=}, {num_classes=}, "
            f"strides={list(strides)}, {convs=}"
        )
    for fine, coarse in itertools.pairwise(strides):
        if coarse != 2 * fine:
            raise SrattnError(f"the strides of a {kind} head double from map to map, got {list(strides)}")
