"""From a model's outputs to joints, in its input and in the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.heads.keypoints import decode_heatmaps, decode_simcc


@torch.no_grad()
def decode(outputs: Tensor, columns: int | None = None) -> Tensor:
    """Joints (B, K, 3): x and y as parts of the input's width and height, and a score from 0 to 1.

    The score of a heatmap is its highest value, where 1 is what is learnt; that of SimCC is the smaller of the two
    probabilities over that of a perfect answer.

    Args:
        outputs: heatmaps (B, K, h, w), or SimCC's logits of the columns and then of the rows (B, K, columns + rows).
        columns: classes of the columns; half if not given.
    """
    outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
    if outputs.ndim == 4:
        rows, width = outputs.shape[2:]
        found = decode_heatmaps(outputs, (rows, width))
        highest, whole = 1.0, (width, rows)
    else:
        left, right = split_axes(outputs, columns)
        found = decode_simcc(left, right, 1.0)
        whole = (left.shape[2], right.shape[2])
        highest = min(1 / (math.sqrt(2 * math.pi) * simcc_sigma(classes)) for classes in whole)
    size = torch.tensor(whole, dtype=found.dtype, device=found.device)
    return torch.cat([found[..., :2] / size, (found[..., 2:] / highest).clamp(0, 1)], 2)


def in_image(joints: Tensor, matrices: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Joints (N, K, 3) as `decode` gives them, in pixels of the image.

    Args:
        matrices: (N, 2, 3), from the image to each input, as `srattn.data.dense.people.person_windows` gives them.
        size: (height, width) of the input; or (N, 2), width and height of each.

    Returns:
        (N, K, 3): x, y, score, float64 if the matrices are.
    """
    if not isinstance(size, Tensor):
        size = torch.tensor([[size[1], size[0]]], dtype=matrices.dtype, device=joints.device)
    matrices = matrices.to(joints.device)
    place = joints[..., :2].to(matrices.dtype) * size.unsqueeze(1) - matrices[:, None, :, 2]
    place = torch.linalg.solve(matrices[:, None, :, :2], place.unsqueeze(3)).squeeze(3)
    return torch.cat([place, joints[..., 2:].to(matrices.dtype)], 2)


def split_axes(outputs: Tensor, columns: int | None) -> tuple[Tensor, Tensor]:
    """SimCC's logits (B, K, columns + rows) apart.

    Raises:
        SrattnError: another shape.
    """
    width = outputs.shape[-1] // 2 if columns is None else columns
    if outputs.ndim != 3 or not 0 < width < outputs.shape[-1] or (columns is None and outputs.shape[-1] % 2):
        raise SrattnError(
            f"poses are heatmaps (B, K, h, w) or logits of {width} columns and the rows (B, K, columns + rows), got "
            f"{tuple(outputs.shape)}"
        )
    return outputs[..., :width], outputs[..., width:]


def simcc_sigma(classes: int) -> float:
    """Of the soft labels over so many classes (RTMPose, arXiv:2303.07399, section 3.3)."""
    return math.sqrt(classes / 16)


def heatmap_sigma(rows: int, columns: int) -> float:
    """Of the target's Gaussian in cells: 2 on the published grid of 64x48 and in proportion to it, but at least 1."""
    return max(1.0, max(rows, columns) / 32)
