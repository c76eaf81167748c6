"""What whole detectors have in common: a backbone, a feature pyramid and a head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from srattn.convert import create_model
from srattn.errors import SrattnError
from srattn.heads.fpn import FPN
from srattn.models.backbone import Backbone
from srattn.tasks.dense import DenseModel

MAPS = 4
"""Of every backbone for images."""


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


def body_and_neck(
    name: str, width: int, first: int, levels: int, extra_from: str, extra_relu: bool, options: dict[str, Any]
) -> tuple[Backbone, FPN, list[int]]:
    """The backbone, the pyramid and the strides of its maps."""
    body = create_model(name, features_only=True, **options).model
    channels, strides = body.feature_info.channels(), body.feature_info.reduction()
    if len(channels) != MAPS or body.dimensions != 2:
        raise SrattnError(f"a detector reads {MAPS} maps of images, {name} gives {len(channels)}")
    if not 0 <= first < MAPS or levels < MAPS - first:
        raise SrattnError(
            f"the pyramid begins at a map from 0 to {MAPS - 1} and has at least the maps from there on, got "
            f"{first=}, {levels=}"
        )
    extra = levels - (MAPS - first)
    neck = FPN(channels[first:], width, extra, extra_from, extra_relu, **place_of(options))
    return body, neck, [*strides[first:], *(strides[-1] * 2 ** (n + 1) for n in range(extra))]


def place_of(options: dict[str, Any]) -> dict[str, Any]:
    """Where a model is made, of the options of its backbone."""
    return {key: options[key] for key in ("device", "dtype") if key in options}
