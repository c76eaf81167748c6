"""Boxes: conversions, clipping, overlap.

A box is (x1, y1, x2, y2): its edges in pixels, as real numbers. The image reaches from 0 to its width and height, so a
box around the first pixel alone is (0, 0, 1, 1). A box without width or height has the area 0 and overlaps nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srattn.errors import SrattnError, nearest

FORMS = ("xyxy", "xywh", "cxcywh")
"""Edges; upper left corner and size; centre and size."""


def convert_boxes(boxes: Tensor, source: str, target: str) -> Tensor:
    """Boxes (..., 4) from one of `FORMS` to another."""
    for form in (source, target):
        if form not in FORMS:
            raise SrattnError(f"no form of boxes {form!r}{nearest(form, FORMS)}; there are: {', '.join(FORMS)}")
    a, b, c, d = check_boxes(boxes).unbind(-1)
    if source == "xywh":
        a, b, c, d = a, b, a + c, b + d
    elif source == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if target == "xywh":
        a, b, c, d = a, b, c - a, d - b
    elif target == "cxcywh":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    return torch.stack([a, b, c, d], -1)


def clip_boxes(boxes: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Boxes (..., 4) cut at the edges of an image; what lies outside becomes a box without area at its edge.

    Height and width may be tensors that broadcast with (...,).
    """
    check_boxes(boxes)
    high = torch.stack(
        [torch.as_tensor(side, dtype=boxes.dtype, device=boxes.device) for side in (width, height)] * 2, -1
    )
    return torch.minimum(boxes.clamp(min=0), high)


def box_area(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) to areas (...)."""
    size = (check_boxes(boxes)[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of a (..., N, 4) with every one of b (..., M, 4): (..., N, M)."""
    return paired_iou(a.unsqueeze(-2), b.unsqueeze(-3))


def box_ioa(a: Tensor, b: Tensor) -> Tensor:
    """What part of every box of a (..., N, 4) lies in every one of b (..., M, 4): (..., N, M), from 0 to 1."""
    a, b = _wide(a).unsqueeze(-2), _wide(b).unsqueeze(-3)
    return _overlap(a, b)[0] / _positive(box_area(a))


def box_giou(a: Tensor, b: Tensor) -> Tensor:
    """`paired_giou` of every box of a (..., N, 4) with every one of b (..., M, 4): (..., N, M)."""
    return paired_giou(a.unsqueeze(-2), b.unsqueeze(-3))


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes of the same place: (..., 4) and (..., 4) to (...), from 0 to 1."""
    a, b = _wide(a), _wide(b)
    shared, union = _overlap(a, b)
    return shared / _positive(union)


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (arXiv:1902.09630, algorithm 1), from -1 to 1; differentiable where boxes do not overlap too.

    (..., 4) and (..., 4) to (...). The IoU less the part of the smallest enclosing box that neither of them fills.
    """
    a, b = _wide(a), _wide(b)
    shared, union = _overlap(a, b)
    size = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    hull = size[..., 0] * size[..., 1]
    return shared / _positive(union) - (hull - union) / _positive(hull)


def ignored_class(label: Tensor) -> Tensor:
    """The class number, below -1, of a box that is neither learnt nor counted, such as a crowd; and back from it."""
    return -2 - label


def check_boxes(boxes: Tensor) -> Tensor:
    """Refuses what has not four numbers a box."""
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise SrattnError(f"boxes are (..., 4), got {tuple(boxes.shape)}")
    return boxes


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of the intersection and of the union."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    shared = size[..., 0] * size[..., 1]
    return shared, box_area(a) + box_area(b) - shared


def _wide(boxes: Tensor) -> Tensor:
    # The area of a box of 300 pixels square overflows float16, and bfloat16 cannot tell it from its neighbours.
    boxes = check_boxes(boxes)
    return boxes.float() if boxes.dtype in (torch.float16, torch.bfloat16) or not boxes.is_floating_point() else boxes


def _positive(area: Tensor) -> Tensor:
    """An area to divide by: where it is 0, so is what is divided."""
    return area.clamp(min=torch.finfo(area.dtype).tiny)
