"""Whole detectors: a backbone, a feature pyramid and a head. FCOS and RetinaNet by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from srattn.convert import create_model
from srattn.errors import SrattnError
from srattn.heads.fcos import FCOSHead
from srattn.heads.fpn import FPN
from srattn.heads.retinanet import RetinaNetHead
from srattn.models.backbone import Backbone
from srattn.tasks.dense import DenseModel


class DetectionModel(DenseModel):
    """A backbone without a classifier, a pyramid over its maps from `first` on, and a head over the pyramid.

    Its state is that of each part, under `backbone.`, `neck.` and `head.`.
    """

    def __init__(self, backbone: Backbone, neck: FPN, head: nn.Module, first: int) -> None:
        super().__init__(backbone, head)
        self.neck, self.first = neck, first

    @property
    def num_classes(self) -> int:
        """Of objects."""
        return int(self.head.num_classes)  # type: ignore[arg-type]

    @property
    def config(self) -> dict[str, Any]:
        """What `build_detection` builds the same architecture from; JSON-able."""
        neck = {key: value for key, value in self.neck.config.items() if key != "kind"}
        return {
            "backbone": dict(self.backbone.config),
            "neck": {"first": self.first, **neck},
            "head": dict(self.head.config),  # type: ignore[arg-type]
        }

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to the maps (B, width, H_n, W_n) that the head reads, finest first."""
        maps = self.backbone.forward_intermediates(images, intermediates_only=True)
        return self.neck(maps[self.first :])

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), H and W from the backbone's `min_size` up, to rows (B, N, columns): see `srattn.heads.rows`.

        The same in training and in evaluation; `Detection.postprocess` makes boxes of them.
        """
        return self.head(self.features(images), images.shape[2:])


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
    body, neck, strides = _base(backbone, width, first, levels, extra_from, extra_relu, options)
    head = FCOSHead(width, num_classes, strides, convs=convs, norm=norm, **_place(options))
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
    body, neck, strides = _base(backbone, width, first, levels, extra_from, extra_relu, options)
    anchors = {"base": base, "scales": scales, "ratios": ratios, "offset": offset}
    head = RetinaNetHead(width, num_classes, strides, convs=convs, norm=norm, **anchors, **_place(options))
    return DetectionModel(body, neck, head, first)


def build_detection(backbone: dict[str, Any], neck: dict[str, Any], head: dict[str, Any]) -> DetectionModel:
    """The model that a `config` describes: `build_detection(**model.config)`."""
    options, pyramid, numbers = dict(backbone), dict(neck), dict(head)
    options.pop("num_classes", None)
    name, kind = options.pop("name"), numbers.pop("kind")
    makers = {FCOSHead.kind: fcos, RetinaNetHead.kind: retinanet}
    if kind not in makers:
        raise SrattnError(f"no head of a detector {kind!r}; there are: {', '.join(makers)}")
    levels = pyramid.pop("extra_levels") + _MAPS - pyramid["first"]
    return makers[kind](name, numbers.pop("num_classes"), levels=levels, **pyramid, **numbers, **options)


_MAPS = 4  # of every backbone for images


def _base(
    name: str, width: int, first: int, levels: int, extra_from: str, extra_relu: bool, options: dict[str, Any]
) -> tuple[Backbone, FPN, list[int]]:
    """The backbone, the pyramid and the strides of its maps."""
    body = create_model(name, features_only=True, **options).model
    channels, strides = body.feature_info.channels(), body.feature_info.reduction()
    if len(channels) != _MAPS or body.dimensions != 2:
        raise SrattnError(f"a detector reads {_MAPS} maps of images, {name} gives {len(channels)}")
    if not 0 <= first < _MAPS or levels < _MAPS - first:
        raise SrattnError(
            f"the pyramid begins at a map from 0 to {_MAPS - 1} and has at least the maps from there on, got "
            f"{first=}, {levels=}"
        )
    extra = levels - (_MAPS - first)
    neck = FPN(channels[first:], width, extra, extra_from, extra_relu, **_place(options))
    return body, neck, [*strides[first:], *(strides[-1] * 2 ** (n + 1) for n in range(extra))]


def _place(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("device", "dtype") if key in options}
