"""What is known of an image, place by place, and what becomes of it when the image is moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.data.dense.joints import EXTRA_ROWS, Joints

VOID = 255
"""The class number of pixels that belong to no class."""
NO_BOX = -1.0
"""The class of rows that only fill up."""
_LEAST_SIDE = 1.0  # pixels of a box that is still learnt from
_LEAST_PART = 0.25  # of a box's area that must be left inside


@dataclasses.dataclass(frozen=True)
class Target:
    """A mask, boxes, depths or a person's joints, as far as they are known.

    Attributes:
        mask: class numbers uint8 (H, W), `VOID` where there is none.
        boxes: float32 (N, 5): x1, y1, x2, y2 as edges in pixels, from 0 to the sides of the image; class number.
        depth: metres float32 (H, W), 0 where nothing is known.
        joints: of one person.
    """

    mask: Tensor | None = None
    boxes: Tensor | None = None
    depth: Tensor | None = None
    joints: Joints | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """(height, width) of the mask or the depths, nothing without either."""
        found = self.depth if self.mask is None else self.mask
        return () if found is None else tuple(found.shape)

    def bytes(self) -> int:
        """Of memory."""
        tensors = sum(t.numel() * t.element_size() for t in (self.mask, self.boxes, self.depth) if t is not None)
        return tensors + (0 if self.joints is None else self.joints.bytes())

    def emptied(self) -> Target:
        """The same without the numbers of the pixels."""
        return dataclasses.replace(
            self,
            mask=None if self.mask is None else self.mask[:0, :0].clone(),
            depth=None if self.depth is None else self.depth[:0, :0].clone(),
        )

    def moved(self, matrix: Tensor, size: tuple[int, int]) -> Target:
        """As seen through `matrix` (2, 3), which takes (x, y) of the old image, edges and not centres of pixels, to the
        new one of `size` (height, width). Masks and depths take the nearest pixel, and `VOID` or 0 where the old image
        ends. Depths stay the metres that were measured, also where the image is enlarged: what is learnt then is that
        another lens took it."""
        from srattn.data.dense.warp import warp_depth, warp_mask

        return Target(
            None if self.mask is None else warp_mask(self.mask, matrix, size),
            None if self.boxes is None else moved_boxes(self.boxes, matrix, size),
            None if self.depth is None else warp_depth(self.depth, matrix, size),
            None if self.joints is None else self.joints.moved(matrix, size),
        )


def moved_boxes(boxes: Tensor, matrix: Tensor, size: tuple[int, int], drop: bool = True) -> Tensor:
    """Boxes (N, 5) around what their corners become, cut at the new image's edges; what is nearly gone is left out if
    `drop`: narrower than a pixel, or less than a quarter inside."""
    x1, y1, x2, y2, label = boxes.unbind(1)
    corners = torch.stack([torch.stack([x, y, torch.ones_like(x)]) for x in (x1, x2) for y in (y1, y2)], 1)
    corners = torch.einsum("ij,jkn->ikn", matrix.to(boxes.dtype), corners)  # (2, 4, N)
    low, high = corners.amin(1), corners.amax(1)
    limit = torch.tensor([[size[1]], [size[0]]], dtype=boxes.dtype)
    cut_low, cut_high = low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)
    moved = torch.stack([*cut_low, *cut_high, label], 1)
    if not drop:
        return moved
    sides = cut_high - cut_low
    kept = (sides >= _LEAST_SIDE).all(0) & (sides.prod(0) >= _LEAST_PART * (high - low).prod(0))
    return moved[kept]


def stacked(targets: Sequence[Target]) -> Tensor:
    """One tensor for a batch: masks int64 (B, H, W), depths float32 (B, H, W), boxes float32 (B, M, 5) filled up with
    rows of class -1, or joints float32 (B, K + 4, 3) as `Joints.rows` says."""
    masks = [target.mask for target in targets if target.mask is not None]
    if masks:
        return torch.stack(masks).long()
    depths = [target.depth for target in targets if target.depth is not None]
    if depths:
        return torch.stack(depths)
    joints = [target.joints.rows() for target in targets if target.joints is not None]
    if joints:
        return torch.stack(joints)
    boxes = [torch.zeros(0, 5) if target.boxes is None else target.boxes for target in targets]
    together = torch.full((len(boxes), max((len(b) for b in boxes), default=0), 5), NO_BOX)
    for row, found in zip(together, boxes, strict=True):
        row[: len(found)] = found
    return together


def nothing(like: Target, size: tuple[int, int]) -> Tensor:
    """As `stacked`, for a batch of no images of `size` whose targets were like this one."""
    if like.mask is not None or like.depth is not None:
        return torch.zeros(0, *size, dtype=torch.float32 if like.mask is None else torch.int64)
    if like.joints is not None:
        return torch.zeros(0, len(like.joints.place) + EXTRA_ROWS, 3)
    return torch.zeros(0, 0, 5)
