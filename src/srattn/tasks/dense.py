"""Whole models with an answer for every pixel: a backbone and a head. SegFormer and GLPN by name.

Their state is that of the backbone under `backbone.` and of the head under `head.`; `srattn.load_checkpoint` and
`srattn.save_checkpoint` take them as they take a backbone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from srattn.convert import create_model
from srattn.errors import SrattnError
from srattn.heads import GLPNHead, SegFormerHead
from srattn.heads.glpn import on_grid
from srattn.models.backbone import Backbone


class DenseModel(nn.Module):
    """A backbone without a classifier, and a head over the feature maps of all its stages."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @property
    def config(self) -> dict[str, Any]:
        """What `build_dense` builds the same architecture from; JSON-able."""
        return {"backbone": dict(self.backbone.config), "head": dict(self.head.config)}  # type: ignore[arg-type]

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to the maps that the head reads, finest first."""
        return self.backbone.forward_intermediates(images, intermediates_only=True)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)


class SegmentationModel(DenseModel):
    """Logits of classes on the grid of the finest map, as they are trained and published."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), H and W from the backbone's `min_size` up, to logits (B, classes, ceil(H / 4), ceil(W / 4))."""
        return self.head(self.features(images))


class DepthModel(DenseModel):
    """A depth for every pixel of the image."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), H and W from the backbone's `min_size` up, to depths (B, H, W)."""
        depth = self.head(self.features(images)).unsqueeze(1)
        return on_grid(depth, images.shape[2], images.shape[3]).squeeze(1)


def segformer(
    backbone: str = "mit_b0",
    num_classes: int = 150,
    *,
    hidden: int = 256,
    projection_norm: bool = False,
    head_drop_rate: float = 0.1,
    **options: Any,
) -> SegmentationModel:
    """SegFormer (arXiv:2105.15203) with fresh weights, or on the published ones of its backbone.

    Args:
        backbone: a registered name; any family will do.
        num_classes: of pixels.
        hidden, projection_norm, head_drop_rate: see `srattn.heads.SegFormerHead`.
        options: of the backbone, as `srattn.create_model` takes them; `pretrained` too.
    """
    body = _body(backbone, options)
    head = SegFormerHead(
        body.feature_info.channels(),
        num_classes,
        hidden=hidden,
        projection_norm=projection_norm,
        drop_rate=head_drop_rate,
        **_place(options),
    )
    return SegmentationModel(body, head)


def glpn(backbone: str = "mit_b4", *, hidden: int = 64, max_depth: float = 10.0, **options: Any) -> DepthModel:
    """GLPN (arXiv:2201.07436) with fresh weights, or on the published ones of its backbone.

    Args:
        backbone: a registered name; any family whose finest map has stride 4 will do.
        hidden, max_depth: see `srattn.heads.GLPNHead`.
        options: of the backbone, as `srattn.create_model` takes them; `pretrained` too.
    """
    body = _body(backbone, options)
    stride = body.feature_info.reduction()[0]
    if stride != 4:
        raise SrattnError(f"GLPN enlarges the finest map 4 times, that of {backbone} has stride {stride}: use stride 4")
    head = GLPNHead(body.feature_info.channels(), hidden=hidden, max_depth=max_depth, **_place(options))
    return DepthModel(body, head)


def build_dense(backbone: dict[str, Any], head: dict[str, Any]) -> DenseModel:
    """The model that a `config` describes: `build_dense(**model.config)`."""
    options, numbers = {key: value for key, value in backbone.items() if key != "num_classes"}, dict(head)
    name, kind = options.pop("name"), numbers.pop("kind")
    if kind == GLPNHead.kind:
        return glpn(name, **numbers, **options)
    numbers["head_drop_rate"] = numbers.pop("drop_rate", 0.1)
    return segformer(name, numbers.pop("num_classes"), **numbers, **options)


def _body(name: str, options: dict[str, Any]) -> Backbone:
    """The backbone itself, as a feature pyramid has it: without classifier and class token."""
    return create_model(name, features_only=True, **options).model


def _place(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("device", "dtype") if key in options}
