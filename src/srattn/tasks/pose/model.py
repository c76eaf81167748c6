"""Whole models for poses: any backbone and a head for heatmaps or SimCC."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from srattn.convert import create_model
from srattn.errors import SrattnError, nearest
from srattn.heads.pose import HeatmapHead, SimCCHead
from srattn.models.backbone import Backbone
from srattn.tasks.dense import DenseModel

HEADS: dict[str, type[nn.Module]] = {HeatmapHead.kind: HeatmapHead, SimCCHead.kind: SimCCHead}
_PLACE = ("device", "dtype")
_OF_THE_MODEL = ("size", "grid")  # of SimCC, which follow from the backbone and its images


class PoseModel(DenseModel):
    """A backbone without a classifier, and a head for the joints of the one person that an image shows."""

    @property
    def num_classes(self) -> int:
        """Joints."""
        return int(self.head.num_joints)  # type: ignore[arg-type]

    @property
    def columns(self) -> int | None:
        """Of SimCC's classes those of the columns; None for heatmaps."""
        return self.head.columns.out_features if isinstance(self.head, SimCCHead) else None

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to heatmaps (B, joints, ceil(H / 4), ceil(W / 4)), or to SimCC's logits (B, joints, columns +
        rows), of the columns first; those are of images of one size."""
        found = self.head(self.features(images))
        return torch.cat(found, -1) if isinstance(found, tuple) else found


def pose_model(
    backbone: str,
    num_joints: int = 17,
    head: str = "heatmap",
    head_options: dict[str, Any] | None = None,
    **options: Any,
) -> PoseModel:
    """A backbone and a head for poses with fresh weights, or on the backbone's published ones.

    Args:
        backbone: a registered name; any family of images will do.
        num_joints: of a person.
        head: "heatmap" or "simcc"; see `srattn.heads.pose`. SimCC is for images of the backbone's `img_size`.
        head_options: of the head's class, by name.
        options: of the backbone, as `srattn.create_model` takes them; `pretrained` too.

    Raises:
        SrattnError: an unknown backbone, head or option, or numbers that make no model.
    """
    given = dict(head_options or {})
    known = pose_options(head)
    for name in given:
        if name not in known:
            raise SrattnError(f"a {head} head has no option {name!r}{nearest(name, known)}; it has: {', '.join(known)}")
    body = create_model(backbone, features_only=True, **options).model
    if head == SimCCHead.kind:
        size = body.img_size if isinstance(body.img_size, tuple | list) else (body.img_size, body.img_size)
        given |= {"size": tuple(size), "grid": coarsest(body, (size[0], size[1]))}
    place = {key: options[key] for key in _PLACE if key in options}
    return PoseModel(body, HEADS[head](body.feature_info.channels(), num_joints, **given, **place))


def pose_options(head: str) -> list[str]:
    """The options of a head.

    Raises:
        SrattnError: an unknown head.
    """
    if head not in HEADS:
        raise SrattnError(f"no head of poses {head!r}{nearest(head, HEADS)}; there are: {', '.join(HEADS)}")
    parameters = inspect.signature(HEADS[head]).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in (*_PLACE, *_OF_THE_MODEL)]


def coarsest(body: Backbone, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the last map of images of `size`."""
    for stage in body.iter_stages():
        size = stage.size(*size)
    return size


def build_pose(backbone: dict[str, Any], head: dict[str, Any], **place: Any) -> PoseModel:
    """The model that a `config` describes: `build_pose(**model.config)`; `place` may hold device and dtype."""
    options = {key: value for key, value in backbone.items() if key != "num_classes"}
    numbers = {key: value for key, value in head.items() if key not in _OF_THE_MODEL}
    name, kind, joints = options.pop("name"), numbers.pop("kind"), numbers.pop("num_joints")
    model = pose_model(name, joints, kind, numbers, **options, **place)
    if model.config["head"] != {**head, **{key: list(head[key]) for key in _OF_THE_MODEL if key in head}}:
        raise SrattnError(f"a {kind} head for other images than the backbone's: {head} and {model.config['head']}")
    return model
