"""What the training of poses minimises, as sums over joints."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from srattn.heads.keypoints import encode_heatmaps, encode_simcc
from srattn.tasks.pose.decode import heatmap_sigma, simcc_sigma, split_axes
from srattn.tasks.pose.rows import Target


def loss_sums(outputs: Tensor, target: Target, columns: int | None = None) -> tuple[Tensor, Tensor]:
    """The losses of all joints that are labelled and in the input, added up, and how many they are.

    - Of heatmaps (arXiv:1804.06208, section 2): squared differences, added up over the cells and divided by what the
      target's own squares add up to, pi sigma ** 2, so that a head that knows nothing has a loss of 1 on any grid.
    - Of SimCC (arXiv:2107.03332, section 3.3): the divergence of the soft labels from the probabilities (0 is perfect),
      the mean of the two axes.

    Args:
        outputs: heatmaps (B, K, h, w) or logits (B, K, columns + rows).
    """
    outputs = outputs.float() if outputs.element_size() < 4 else outputs
    if outputs.ndim == 4:
        return _heatmaps(outputs, target)
    return _axes(*split_axes(outputs, columns), target)


def _heatmaps(outputs: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    rows, columns = outputs.shape[2:]
    sigma = heatmap_sigma(rows, columns)
    joints = _on(target, columns, rows)
    wanted, weights = encode_heatmaps(joints, (rows, columns), (rows, columns), sigma)
    squares = (outputs - wanted).square().sum((2, 3)) / (math.pi * sigma**2)
    return (squares * weights).sum(), weights.sum()


def _axes(columns: Tensor, rows: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    width, height = columns.shape[2], rows.shape[2]
    joints = _on(target, width, height)
    wide, _, weights = encode_simcc(joints, (height, width), 1.0, simcc_sigma(width))
    _, high, _ = encode_simcc(joints, (height, width), 1.0, simcc_sigma(height))
    both = [
        F.kl_div(logits.log_softmax(2), wanted, reduction="none").sum(2)
        for logits, wanted in ((columns, wide), (rows, high))
    ]
    return ((both[0] + both[1]) / 2 * weights).sum(), weights.sum()


def _on(target: Target, columns: int, rows: int) -> Tensor:
    """Joints (B, K, 3) in cells of a grid over the input."""
    grid = target.size.new_tensor([columns, rows])
    joints = target.joints.clone()
    # Stand-ins, with which a process without images keeps step, have no size and no joint that counts.
    joints[..., :2] *= (grid / target.size.clamp(min=1)).unsqueeze(1)
    return joints
