"""What is known of an image, place by place, and what becomes of it when the image is moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from srattn.data.dense.joints import EXTRA_ROWS, Joints
from srattn.data.dense.object_masks import ObjectMasks
from srattn.ops.boxes import ignored_class

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
        ignored: bool (N,), which of the boxes are neither learnt nor counted: crowds, and what is called difficult.
        masks: of the boxes.
        depth: metres float32 (H, W), 0 where nothing is known.
        joints: of one person.
    """

    mask: Tensor | None = None
    boxes: Tensor | None = None
    depth: Tensor | None = None
    joints: Joints | None = None
    ignored: Tensor | None = None
    masks: ObjectMasks | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """(height, width) of the mask or the depths, nothing without either."""
        found = self.depth if self.mask is None else self.mask
        return () if found is None else tuple(found.shape)

    def bytes(self) -> int:
        """Of memory."""
        tensors = sum(t.numel() * t.element_size() for t in (self.mask, self.boxes, self.depth) if t is not None)
        return tensors + sum(part.bytes() for part in (self.joints, self.masks) if part is not None)

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

        found = Target(
            None if self.mask is None else warp_mask(self.mask, matrix, size),
            None,
            None if self.depth is None else warp_depth(self.depth, matrix, size),
            None if self.joints is None else self.joints.moved(matrix, size),
        )
        return found if self.boxes is None else dataclasses.replace(found, **self._objects(matrix, size))

    def measured(self, matrix: Tensor, size: tuple[int, int]) -> Target:
        """As `moved`, of boxes with what belongs to them, and all of them: each counts. A mask that has no pixel left
        is no longer known."""
        assert self.boxes is not None
        masks = None if self.masks is None else self.masks.moved(matrix, size).without_gone()
        return dataclasses.replace(self, boxes=moved_boxes(self.boxes, matrix, size, drop=False), masks=masks)

    def _objects(self, matrix: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Boxes, and what belongs to each of them; without objects of which nearly nothing is left to be seen."""
        assert self.boxes is not None
        boxes, kept = _moved(self.boxes, matrix, size)
        if self.ignored is not None:  # however little of a crowd is left, that is no background
            kept = kept | (self.ignored & (boxes[:, 2:4] - boxes[:, :2] >= _LEAST_SIDE).all(1))
        masks = None if self.masks is None else self.masks.only(kept).moved(matrix, size)
        seen = torch.ones(int(kept.sum()), dtype=torch.bool) if masks is None else ~masks.gone()
        return {
            "boxes": boxes[kept][seen],
            "ignored": None if self.ignored is None else self.ignored[kept][seen],
            "masks": None if masks is None else masks.only(seen),
        }


def moved_boxes(boxes: Tensor, matrix: Tensor, size: tuple[int, int], drop: bool = True) -> Tensor:
    """Boxes (N, 5) around what their corners become, cut at the new image's edges; what is nearly gone is left out if
    `drop`: narrower than a pixel, or less than a quarter inside."""
    moved, kept = _moved(boxes, matrix, size)
    return moved[kept] if drop else moved


def _moved(boxes: Tensor, matrix: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """All of them, and bool (N,), which are not nearly gone."""
    x1, y1, x2, y2, label = boxes.unbind(1)
    corners = torch.stack([torch.stack([x, y, torch.ones_like(x)]) for x in (x1, x2) for y in (y1, y2)], 1)
    corners = torch.einsum("ij,jkn->ikn", matrix.to(boxes.dtype), corners)  # (2, 4, N)
    low, high = corners.amin(1), corners.amax(1)
    limit = torch.tensor([[size[1]], [size[0]]], dtype=boxes.dtype)
    cut_low, cut_high = low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)
    sides = cut_high - cut_low
    kept = (sides >= _LEAST_SIDE).all(0) & (sides.prod(0) >= _LEAST_PART * (high - low).prod(0))
    return torch.stack([*cut_low, *cut_high, label], 1), kept


def stacked(targets: Sequence[Target]) -> Tensor:
    """One tensor for a batch: masks int64 (B, H, W), depths float32 (B, H, W), joints float32 (B, K + 4, 3) as
    `Joints.rows` says, or boxes float32 (B, M, 5) filled up with rows of class -1.

    Boxes that are ignored have the class that `ignored_class` makes of theirs; those with masks have the
    `ObjectMasks.columns` behind them.
    """
    masks = [target.mask for target in targets if target.mask is not None]
    if masks:
        return torch.stack(masks).long()
    depths = [target.depth for target in targets if target.depth is not None]
    if depths:
        return torch.stack(depths)
    joints = [target.joints.rows() for target in targets if target.joints is not None]
    if joints:
        return torch.stack(joints)
    longest = max((target.masks.longest for target in targets if target.masks is not None), default=0)
    boxes = [_rows(target, longest) for target in targets]
    most, columns = max((len(b) for b in boxes), default=0), max((b.shape[1] for b in boxes), default=5)
    together = torch.zeros(len(boxes), most, columns)
    together[..., :5] = NO_BOX
    for row, found in zip(together, boxes, strict=True):
        row[: len(found)] = found
    return together


def _rows(target: Target, longest: int) -> Tensor:
    """Boxes of one image as a task takes them, (N, 5) or (N, 6 + longest)."""
    boxes = torch.zeros(0, 5) if target.boxes is None else target.boxes
    if target.ignored is not None and bool(target.ignored.any()):
        label = torch.where(target.ignored, ignored_class(boxes[:, 4]), boxes[:, 4])
        boxes = torch.cat([boxes[:, :4], label.unsqueeze(1)], 1)
    return boxes if target.masks is None else torch.cat([boxes, target.masks.columns(longest)], 1)


def nothing(like: Target, size: tuple[int, int]) -> Tensor:
    """As `stacked`, for a batch of no images of `size` whose targets were like this one."""
    if like.mask is not None or like.depth is not None:
        return torch.zeros(0, *size, dtype=torch.float32 if like.mask is None else torch.int64)
    if like.joints is not None:
        return torch.zeros(0, len(like.joints.place) + EXTRA_ROWS, 3)
    return torch.zeros(0, 0, 5 if like.masks is None else 6)
