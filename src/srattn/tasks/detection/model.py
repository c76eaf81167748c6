"""Whole detectors by name: FCOS, RetinaNet, Faster R-CNN and Mask R-CNN, each on any backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from srattn.errors import SrattnError
from srattn.heads.fcos import FCOSHead
from srattn.heads.mask_rcnn import FasterRCNNHead, MaskRCNNHead
from srattn.heads.retinanet import RetinaNetHead
from srattn.tasks.detection.pyramid_model import MAPS, body_and_neck, place_of
from srattn.tasks.detection.pyramid_model import DetectionModel as DetectionModel
from srattn.tasks.detection.stages.model import faster_rcnn as faster_rcnn
from srattn.tasks.detection.stages.model import mask_rcnn as mask_rcnn


def fcos(
    backbone: str = "pvt_v2_b0",
    num_classes: int = 80,
    *,
    width: int = 256,
    first: int = 1,
    levels: int = 5,
    extra_from: str = "output",
    extra_relu: bool = True,
    convs: int = 4,
    norm: str = "group",
    **options: Any,
) -> DetectionModel:
    """FCOS (arXiv:1904.01355) with fresh weights, or on the published ones of its backbone.

    Args:
        backbone: a registered name; any family will do.
        num_classes: of the objects.
        width: channels of the pyramid.
        first: the backbone's map that the pyramid begins with: 1, of stride 8, is usual; 0, of stride 4, finds smaller
            objects and costs about four times as much beside the backbone.
        levels: maps of the pyramid.
        extra_from, extra_relu: see `srattn.heads.fpn.FPN`.
        convs, norm: see `srattn.heads.fcos.FCOSHead`.
        options: of the backbone, as `srattn.create_model` takes them; `pretrained` too.
    """
    body, neck, strides = body_and_neck(backbone, width, first, levels, extra_from, extra_relu, options)
    head = FCOSHead(width, num_classes, strides, convs=convs, norm=norm, **place_of(options))
    return DetectionModel(body, neck, head, first)


def retinanet(
    backbone: str = "pvt_v2_b0",
    num_classes: int = 80,
    *,
    width: int = 256,
    first: int = 1,
    levels: int = 5,
    extra_from: str = "input",
    extra_relu: bool = True,
    convs: int = 4,
    norm: str = "none",
    base: float = 4.0,
    scales: int = 3,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    offset: float = 0.0,
    **options: Any,
) -> DetectionModel:
    """RetinaNet (arXiv:1708.02002), set up as PVT's authors do (arXiv:2102.12122, section 5.2).

    Args:
        backbone, num_classes, width, first, levels, extra_from, extra_relu, options: as of `fcos`.
        convs, norm, base, scales, ratios, offset: see `srattn.heads.retinanet.RetinaNetHead`.
    """
    body, neck, strides = body_and_neck(backbone, width, first, levels, extra_from, extra_relu, options)
    anchors = {"base": base, "scales": scales, "ratios": ratios, "offset": offset}
    head = RetinaNetHead(width, num_classes, strides, convs=convs, norm=norm, **anchors, **place_of(options))
    return DetectionModel(body, neck, head, first)


def build_detection(backbone: dict[str, Any], neck: dict[str, Any], head: dict[str, Any]) -> DetectionModel:
    """The model that a `config` describes: `build_detection(**model.config)`."""
    options, pyramid, numbers = dict(backbone), dict(neck), dict(head)
    options.pop("num_classes", None)
    name, kind = options.pop("name"), numbers.pop("kind")
    makers: dict[str, Callable[..., DetectionModel]] = {
        FCOSHead.kind: fcos,
        RetinaNetHead.kind: retinanet,
        FasterRCNNHead.kind: faster_rcnn,
        MaskRCNNHead.kind: mask_rcnn,
    }
    if kind not in makers:
        raise SrattnError(f"no head of a detector {kind!r}; there are: {', '.join(makers)}")
    levels = pyramid.pop("extra_levels") + MAPS - pyramid["first"]
    return makers[kind](name, numbers.pop("num_classes"), levels=levels, **pyramid, **numbers, **options)
