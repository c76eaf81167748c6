"""A window around one person of an image, as it is learnt and measured (top-down, arXiv:1804.06208)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srattn.data.dense.joint import JointAugment
from srattn.data.dense.target import Target
from srattn.data.dense.warp import warp_image
from srattn.data.preprocess import Preprocess, to_tensor

if TYPE_CHECKING:
    from PIL import Image

MARGIN = 1.25
"""What a person's box is enlarged by, as published (after it was brought to the shape of the window)."""


@dataclasses.dataclass(frozen=True)
class PersonAugment(JointAugment):
    """As `JointAugment`, around the middle of a person's box, which a size of 1 shows with its margin.

    Pictures are those of `kept_person`: they show `reach` times the window.
    """

    @property
    def reach(self) -> float:
        """What is seen at most, in windows of size 1: at the smallest size, turned farthest."""
        rows, columns = self.preprocess.size
        longer = max(rows / columns, columns / rows)
        angle = min(math.radians(self.rotate), math.atan(longer))
        return (math.cos(angle) + longer * math.sin(angle)) / min(1.0, self.scale[0])

    def matrix(self, size: tuple[int, int], draws: Sequence[float]) -> Tensor:
        (height, width), (rows, columns) = size, self.preprocess.size
        low, high = self.scale
        drawn = math.exp(math.log(low) + draws[0] * (math.log(high) - math.log(low)))
        factor = drawn * rows * self.reach / height
        angle = math.radians((2 * draws[4] - 1) * self.rotate)
        across = -1.0 if draws[3] < self.flip else 1.0
        down = -1.0 if draws[8] < self.flipv else 1.0
        cos, sin = factor * math.cos(angle), factor * math.sin(angle)
        linear = torch.tensor([[across * cos, -across * sin], [down * sin, down * cos]], dtype=torch.float64)
        return _about(linear, (width / 2, height / 2), (columns / 2, rows / 2))


def kept_person(augment: JointAugment, image: Image.Image, target: Target) -> tuple[Tensor, Target]:
    """What is kept of a training image: the part around one person that may be seen, no finer than it is ever shown.

    Args:
        target: the joints, and the person's box alone.
    """
    assert target.boxes is not None and isinstance(augment, PersonAugment)
    preprocess, reach = augment.preprocess, augment.reach
    rows, columns = preprocess.size
    window = person_matrix(target.boxes[0, :4], preprocess.size)
    detail = min(1 / float(window[0, 0]), max(1.0, augment.scale[1]))
    height = max(1, round(rows * reach * detail))
    detail = height / (rows * reach)
    size = height, max(1, math.ceil(columns * reach * detail))
    step = torch.eye(2, dtype=torch.float64) * detail
    step = _about(step, (columns / 2, rows / 2), (size[1] / 2, size[0] / 2))
    return _cut(image, target, _after(window, step), size, preprocess)


def measured_person(preprocess: Preprocess, image: Image.Image, target: Target) -> tuple[Tensor, Target]:
    """A person as it is measured: the box with its margin."""
    assert target.boxes is not None
    matrix = person_matrix(target.boxes[0, :4], preprocess.size)
    return _cut(image, target, matrix, preprocess.size, preprocess)


def person_matrix(box: Tensor, size: tuple[int, int], margin: float = MARGIN) -> Tensor:
    """(2, 3) float64, from (x, y) of an image to the window of `size` (height, width) around a box x1, y1, x2, y2.

    The box lies in the middle; it is enlarged to the shape of the window and then by `margin`. Its sides count as at
    least a pixel.
    """
    x1, y1, x2, y2 = box.tolist()
    rows, columns = size
    scale = min(columns / max(x2 - x1, 1.0), rows / max(y2 - y1, 1.0)) / margin
    step = torch.eye(2, dtype=torch.float64) * scale
    return _about(step, ((x1 + x2) / 2, (y1 + y2) / 2), (columns / 2, rows / 2))


def person_windows(image: Image.Image, boxes: Tensor, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """The people of an image as a model takes them.

    Args:
        image: decoded, in the model's channels.
        boxes: (N, 4 or more): x1, y1, x2, y2 in pixels of the image, with an area; other columns are not read.

    Returns:
        float32 (N, C, H, W), normalised, and the matrices (N, 2, 3) from the image to each window, with which
        `srattn.tasks.pose.in_image` brings joints back.
    """
    windows, matrices = person_pixels(image, boxes, preprocess)
    return preprocess.normalise(windows.float() / 255), matrices


def person_pixels(image: Image.Image, boxes: Tensor, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """As `person_windows`, the windows uint8 (N, C, H, W) and not normalised."""
    pixels, size = to_tensor(preprocess.inverted(image)), preprocess.size
    matrices = [person_matrix(box[:4], size) for box in boxes]
    if not matrices:
        none = torch.zeros(0, preprocess.channels, *size, dtype=torch.uint8)
        return none, torch.zeros(0, 2, 3, dtype=torch.float64)
    windows = [cut_window(pixels, matrix, size, preprocess.mean) for matrix in matrices]
    return torch.stack(windows), torch.stack(matrices)


def cut_window(pixels: Tensor, matrix: Tensor, size: tuple[int, int], fill: Sequence[float]) -> Tensor:
    """uint8 (C, h, w) seen through `matrix`, uint8 (C, *size); `fill` in [0, 1] where the image ends."""
    corners = torch.tensor([[0, 0, size[1], size[1]], [0, size[0], 0, size[0]]], dtype=torch.float64)
    seen = torch.linalg.solve(matrix[:, :2], corners - matrix[:, 2:])
    rim = 2 + int(1 / float(torch.linalg.det(matrix[:, :2]).abs().sqrt()))  # what sampling looks at beside a pixel
    cut, starts = pixels, []
    for axis, side in ((1, 0), (2, 1)):
        low, high = seen[1 - side].min(), seen[1 - side].max()
        start = min(max(0, math.floor(low) - rim), pixels.shape[axis] - 1)
        stop = max(min(pixels.shape[axis], math.ceil(high) + rim), start + 1)
        cut = cut.narrow(axis, start, stop - start)
        starts.append(start)
    offset = matrix[:, :2] @ torch.tensor([[starts[1]], [starts[0]]], dtype=torch.float64)
    near = torch.cat([matrix[:, :2], matrix[:, 2:] + offset], 1)
    found = warp_image(cut, near, size, torch.tensor(list(fill)))
    return (found * 255).round().clamp(0, 255).to(torch.uint8)


def _cut(
    image: Image.Image, target: Target, matrix: Tensor, size: tuple[int, int], preprocess: Preprocess
) -> tuple[Tensor, Target]:
    assert target.joints is not None
    pixels = cut_window(to_tensor(preprocess.inverted(image)), matrix, size, preprocess.mean)
    return pixels, Target(joints=target.joints.moved(matrix, size))


def _about(linear: Tensor, here: tuple[float, float], there: tuple[float, float]) -> Tensor:
    """(2, 3): `linear` (2, 2), and the point `here` becomes `there`."""
    offset = torch.tensor(there, dtype=torch.float64) - linear @ torch.tensor(here, dtype=torch.float64)
    return torch.cat([linear, offset.unsqueeze(1)], 1)


def _after(first: Tensor, second: Tensor) -> Tensor:
    """(2, 3): one after the other."""
    linear = second[:, :2] @ first[:, :2]
    return torch.cat([linear, second[:, :2] @ first[:, 2:] + second[:, 2:]], 1)
