"""The parts of Faster and Mask R-CNN that have weights (arXiv:1506.01497, arXiv:1703.06870)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.heads.roi import BoxHead, MaskHead, check_stages, pyramid_align
from srattn.heads.rpn import RPNHead
from srattn.heads.towers import check_detector


class FasterRCNNHead(nn.Module):
    """A region proposal network over all maps, and a head that reads boxes from the first `read` of them.

    How they work together, in training and after it, is `srattn.tasks.detection.stages`.

    Parameters: `rpn`, `box`.

    Args:
        width: channels of every map, as an FPN gives them.
        num_classes: of the objects.
        strides: of the maps in pixels of the image, finest first; each is twice the one before.
        read: how many of the maps boxes are read from: not those that were only made for large anchors.
        hidden: width of the fully connected layers.
        size: of a box's map.
        base, ratios: of the anchors, see `srattn.heads.rpn.RPNHead`.
        proposals: boxes of an image that the second stage looks at; of each map at most as many stand for election.
        regions: boxes of an image that it learns from.
        answers: boxes of an image that are given.
    """

    kind: ClassVar[str] = "faster_rcnn"

    def __init__(
        self,
        width: int,
        num_classes: int,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        read: int = 4,
        *,
        hidden: int = 1024,
        size: int = 7,
        base: float = 8.0,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        proposals: int = 1000,
        regions: int = 512,
        answers: int = 100,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_detector(self.kind, width, num_classes, strides, 0)
        numbers = {"hidden": hidden, "size": size, "proposals": proposals, "regions": regions, "answers": answers}
        check_stages(num_classes, read=read, **numbers)
        if read > len(strides):
            raise SrattnError(f"boxes are read from at most the {len(strides)} maps that there are, got {read=}")
        factory = {"device": device, "dtype": dtype}
        self.width, self.num_classes, self.strides, self.read = width, num_classes, list(strides), read
        self.config: dict[str, Any] = {
            "kind": self.kind,
            "num_classes": num_classes,
            **numbers,
            "base": base,
            "ratios": list(ratios),
        }
        self.proposals, self.regions, self.answers = proposals, regions, answers
        self.rpn = RPNHead(width, strides, base=base, ratios=ratios, **factory)
        self.box = BoxHead(width, num_classes, size, hidden, **factory)

    def classify(self, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """All maps and boxes (B, R, 4) in pixels of the image to what `BoxHead` says of them."""
        return self.box(pyramid_align(maps[: self.read], boxes, self.strides[: self.read], self.box.size))


class MaskRCNNHead(FasterRCNNHead):
    """As `FasterRCNNHead`, and a mask of each box.

    Parameters: `rpn`, `box`, `mask`.

    Args:
        mask_size: of a box's map; its mask has twice as many logits a side.
        mask_hidden, mask_convs: channels and number of the convolutions.
        norm: after each of them, "none" as published, "group" or "batch".
    """

    kind: ClassVar[str] = "mask_rcnn"

    def __init__(
        self,
        width: int,
        num_classes: int,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        read: int = 4,
        *,
        mask_size: int = 14,
        mask_hidden: int = 256,
        mask_convs: int = 4,
        norm: str = "none",
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(width, num_classes, strides, read, device=device, dtype=dtype, **options)
        check_stages(num_classes, mask_size=mask_size, mask_hidden=mask_hidden, mask_convs=mask_convs)
        self.mask_size = mask_size
        self.config |= {"mask_size": mask_size, "mask_hidden": mask_hidden, "mask_convs": mask_convs, "norm": norm}
        self.mask = MaskHead(width, num_classes, mask_convs, mask_hidden, norm, device=device, dtype=dtype)

    def masks(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """All maps and boxes (B, R, 4) to logits (B, R, num_classes, 2 mask_size, 2 mask_size)."""
        return self.mask(pyramid_align(maps[: self.read], boxes, self.strides[: self.read], self.mask_size))
