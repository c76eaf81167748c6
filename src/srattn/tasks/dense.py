"""Whole models with an answer for every pixel: any backbone and a head. SegFormer and GLPN by name.

Their state is that of the backbone under `backbone.` and of the head under `head.`. `srattn.save_checkpoint` and
`srattn.load_checkpoint` take them as they take a backbone: with any head in our own layout, in another's with the heads
that it has beside that family (`srattn convert --list` shows them). Weights of a whole model give their backbone's part
to a model with any head (`head="keep"`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from srattn.convert import create_model
from srattn.errors import SrattnError
from srattn.heads import GLPNHead, SegFormerHead, make_head
from srattn.heads.glpn import on_grid
from srattn.models.backbone import Backbone
from srattn.models.features import groups_below


class DenseModel(nn.Module):
    """A backbone without a classifier, and a head over the feature maps of all its stages.

    What training, conversions and weights ask of a backbone, this answers too: for its backbone, with names of
    parameters under `backbone.`.
    """

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

    # -- the backbone's own answers ---------------------------------------------------------------------------------

    @property
    def in_chans(self) -> int:
        return self.backbone.in_chans

    @property
    def img_size(self) -> int | tuple[int, int]:
        return self.backbone.img_size

    @property
    def min_size(self) -> int:
        return self.backbone.min_size

    @property
    def dimensions(self) -> int:
        return self.backbone.dimensions

    @property
    def norm_eps(self) -> dict[str, float]:
        return self.backbone.norm_eps

    @property
    def edge(self) -> str:
        return self.backbone.edge

    @property
    def memory(self) -> str:
        return self.backbone.memory

    def set_norm_eps(
        self, block: float | None = None, reduction: float | None = None, patch: float | None = None
    ) -> None:
        self.backbone.set_norm_eps(block, reduction, patch)

    def set_edge(self, edge: str) -> None:
        self.backbone.set_edge(edge)

    def set_memory(self, memory: str) -> None:
        self.backbone.set_memory(memory)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's patterns by the names that its parameters have here; none matches the head."""
        return groups_below("backbone", self.backbone.group_matcher(coarse))


class SegmentationModel(DenseModel):
    """Logits of classes on the grid of the finest map, as they are trained and published."""

    @property
    def num_classes(self) -> int:
        """Of pixels: channels of the logits."""
        return int(self.head.num_classes)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), H and W from the backbone's `min_size` up, to logits (B, classes, ceil(H / 4), ceil(W / 4)); in
        training those of an auxiliary head follow in the channels, if there is one."""
        return self.head(self.features(images))


class DepthModel(DenseModel):
    """A depth for every pixel of the image."""

    @property
    def num_classes(self) -> int:
        """Channels of the answer."""
        return 1

    @property
    def max_depth(self) -> float:
        """Metres; no answer is farther."""
        return float(self.head.max_depth)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), H and W from the backbone's `min_size` up, to depths (B, H, W)."""
        depth = self.head(self.features(images)).unsqueeze(1)
        return on_grid(depth, images.shape[2], images.shape[3]).squeeze(1)


def segmentation_model(
    backbone: str,
    num_classes: int,
    head: str = "segformer",
    head_options: dict[str, Any] | None = None,
    **backbone_options: Any,
) -> SegmentationModel:
    """A backbone and a head for semantic segmentation with fresh weights, or on the backbone's published ones.

    Args:
        backbone: a registered name; any family of images will do.
        num_classes: of pixels.
        head: "segformer", "semantic_fpn", "upernet" or "unet"; see `srattn.heads`.
        head_options: of the head's class, by name.
        backbone_options: as `srattn.create_model` takes them; `pretrained` too.

    Raises:
        SrattnError: an unknown backbone, head or option, or numbers that make no model.
    """
    body = _body(backbone, backbone_options)
    options = {**_place(backbone_options), **(head_options or {})}
    return SegmentationModel(body, make_head(head, body.feature_info.channels(), num_classes, **options))


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
    numbers = {"hidden": hidden, "projection_norm": projection_norm, "drop_rate": head_drop_rate}
    return segmentation_model(backbone, num_classes, SegFormerHead.kind, numbers, **options)


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


def build_dense(backbone: dict[str, Any], head: dict[str, Any], **place: Any) -> DenseModel:
    """The model that a `config` describes: `build_dense(**model.config)`.

    Args:
        place: `device` and `dtype`.

    Raises:
        SrattnError: a head of no known kind, or one that says too little of itself.
    """
    options, numbers = {key: value for key, value in backbone.items() if key != "num_classes"}, dict(head)
    name, kind = options.pop("name", None), numbers.pop("kind", None)
    if not isinstance(name, str) or not isinstance(kind, str):
        raise SrattnError(f"a model's config names its backbone and the kind of its head, got {name!r} and {kind!r}")
    if kind == GLPNHead.kind:
        return glpn(name, **numbers, **options, **place)
    if "num_classes" not in numbers:
        raise SrattnError(f"the config of a {kind} head states its num_classes, got {', '.join(numbers) or 'nothing'}")
    return segmentation_model(name, numbers.pop("num_classes"), kind, numbers, **options, **place)


def _body(name: str, options: dict[str, Any]) -> Backbone:
    """The backbone itself, as a feature pyramid has it: without classifier and class token."""
    return create_model(name, features_only=True, **options).model


def _place(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("device", "dtype") if key in options}
