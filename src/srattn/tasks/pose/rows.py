"""Targets of poses as one tensor: the joints of a person, and where in which image it is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from srattn.data.dense.joints import EXTRA_ROWS
from srattn.errors import SrattnError


class Target(NamedTuple):
    """What `split_target` finds in (B, K + 4, 3).

    Attributes:
        joints: (B, K, 3): x, y in pixels of the model's input, as edges, and visibility, 0 where nothing is known.
        matrix: (B, 2, 3), from (x, y) of the image to the input.
        image: (B,), the number of the image.
        area: (B,), of the person in pixels of the image.
        side: (B,), the longer side of its box in pixels of the image.
        size: (B, 2), width and height of the input.
    """

    joints: Tensor
    matrix: Tensor
    image: Tensor
    area: Tensor
    side: Tensor
    size: Tensor

    @property
    def scale(self) -> Tensor:
        """(B,): pixels of the input in one of the image."""
        return torch.linalg.det(self.matrix[..., :2]).abs().sqrt()


def split_target(targets: Tensor, joints: int) -> Target:
    """(B, K + 4, 3) as `srattn.data.dense.joints.Joints.rows` makes them, in float32 at least.

    Raises:
        SrattnError: another shape.
    """
    if targets.ndim != 3 or tuple(targets.shape[1:]) != (joints + EXTRA_ROWS, 3) or not targets.is_floating_point():
        raise SrattnError(
            f"targets of {joints} joints are numbers (B, {joints + EXTRA_ROWS}, 3): joints, matrix, person, size; got "
            f"{targets.dtype} {tuple(targets.shape)}"
        )
    targets = targets if targets.dtype == torch.float64 else targets.float()
    rest = targets[:, joints:]
    image, area, side = rest[:, 2].unbind(1)
    return Target(targets[:, :joints], rest[:, :2], image, area, side, rest[:, 3, :2])


def join_target(joints: Tensor, size: tuple[int, int]) -> Tensor:
    """Targets (B, K + 4, 3) of joints (B, K, 3) in images of `size` (height, width) that are the model's input
    themselves, and in which the person fills all."""
    batch = len(joints)
    rows = torch.tensor(
        [[1, 0, 0], [0, 1, 0], [0, size[0] * size[1], max(size)], [size[1], size[0], 0]],
        dtype=joints.dtype,
        device=joints.device,
    )
    rows = rows.repeat(batch, 1, 1)
    rows[:, 2, 0] = torch.arange(batch, dtype=joints.dtype, device=joints.device)
    return torch.cat([joints, rows], 1)
