"""The models of the tasks: built from a run's options, and again from what a model says of itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from srattn.errors import SrattnError, nearest
from srattn.heads import list_heads
from srattn.heads.glpn import GLPNHead
from srattn.heads.registry import head_class
from srattn.models import build_model
from srattn.models.option_values import check_values
from srattn.models.registry import variant
from srattn.tasks.dense import DepthModel, SegmentationModel, build_dense, glpn, segmentation_model
from srattn.tasks.detection.model import build_detection, faster_rcnn, fcos, mask_rcnn, retinanet
from srattn.tasks.detection.stages.model import TwoStageModel
from srattn.tasks.pose.model import HEADS as POSE_HEADS
from srattn.tasks.pose.model import PoseModel, build_pose, pose_model, pose_options

Targets = Literal["labels", "masks", "boxes", "depths", "joints"]

TARGETS: dict[str, Targets] = {"segmentation": "masks", "detection": "boxes", "depth": "depths", "pose": "joints"}
"""What a task learns from, where it is not one label an image."""
MASK_HEADS = ("mask_rcnn",)
"""Of detection those that learn the masks of objects, which the data must have."""
_DETECTORS = {"fcos": fcos, "retinanet": retinanet, "faster_rcnn": faster_rcnn, "mask_rcnn": mask_rcnn}


def targets_of(task: str) -> Targets:
    """What `task` learns from; a task that another package adds has labels."""
    return TARGETS.get(task, "labels")


def heads_of(task: str) -> list[str]:
    """The heads that models of a task can have, the default first; none where there is no choice."""
    if task == "segmentation":
        return list_heads()
    return {"detection": list(_DETECTORS), "depth": [GLPNHead.kind], "pose": list(POSE_HEADS)}.get(task, [])


def check_options(
    task: str,
    backbone: str,
    head: str = "",
    options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
) -> None:
    """Refuses values of `--model_options` and `--head_options` that are not of their kind (see `check_values`).

    Names are left to `build_task_model`, which builds nothing where one is unknown.
    """
    check_values("--model_options", variant(backbone).family, options or {})
    kinds = heads_of(task)
    if kinds and (not head or head in kinds):
        head, given = head or kinds[0], dict(head_options or {})
        if head in POSE_HEADS:  # whose other parameters are no options
            given = {name: value for name, value in given.items() if name in pose_options(head)}
        check_values("--head_options", _head_maker(task, head), given)


def _head_maker(task: str, head: str) -> Callable[..., Any]:
    """What takes the options of a head."""
    if task == "segmentation":
        return head_class(head)
    return {**_DETECTORS, GLPNHead.kind: GLPNHead, **POSE_HEADS}[head]


def build_task_model(
    task: str,
    backbone: str,
    classes: int,
    head: str = "",
    head_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """The untrained model of a task.

    Args:
        head: one of `heads_of(task)`; the default if empty.
        head_options: of the head by name; of a detector the pyramid's too.
        options: of the backbone.

    Raises:
        SrattnError: an unknown head or option.
    """
    kinds, given = heads_of(task), dict(head_options or {})
    if head and head not in kinds:
        kind = f"; {task} has: {', '.join(kinds)}" if kinds else f": {task} has no choice of heads"
        raise SrattnError(f"no head {head!r}{nearest(head, kinds)}{kind}")
    if task == "segmentation":
        return segmentation_model(backbone, classes, head or kinds[0], given, **options)
    if task == "detection":
        return _made(_DETECTORS[head or kinds[0]], head or kinds[0], given, backbone, classes, **options)
    if task == "depth":
        return _made(glpn, GLPNHead.kind, given, backbone, **options)
    if task == "pose":
        return pose_model(backbone, classes, head or kinds[0], given, **options)
    if given:
        raise SrattnError(f"head_options are for tasks with a choice of heads, and {task} has none")
    return build_model(backbone, num_classes=classes, **options)


def rebuild(config: Mapping[str, Any], **place: Any) -> nn.Module:
    """The model that a `config` of any of the tasks describes; `place` may hold device and dtype."""
    if "neck" in config:
        return build_detection({**config["backbone"], **place}, config["neck"], config["head"])
    if "backbone" not in config:
        return build_model(**config, **place)
    if config["head"].get("kind") in POSE_HEADS:
        return build_pose(**config, **place)
    return build_dense(**config, **place)


def task_options(model: nn.Module) -> dict[str, Any]:
    """What the task of a whole model has to know of it, as options of `srattn.tasks.make_task`.

    One that is none of ours, such as an exported file, says it by its own `task_options`.
    """
    if isinstance(model, DepthModel):
        return {"max_depth": model.max_depth}
    if isinstance(model, SegmentationModel):
        weight = float(getattr(model.head, "auxiliary_weight", 0.0))
        return {"auxiliary": weight} if weight else {}
    if isinstance(model, TwoStageModel):
        return {"stages": 2, "masks": model.has_masks}
    if isinstance(model, PoseModel):
        return {"columns": model.columns}
    return dict(getattr(model, "task_options", {}))


def backbone_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model of any task the part that names and describes its backbone."""
    return dict(config.get("backbone", config))


def backbone_name(config: Mapping[str, Any]) -> str:
    """The registered name of a model's backbone."""
    return str(backbone_config(config)["name"])


def _made(maker: Callable[..., nn.Module], kind: str, head_options: dict[str, Any], *args: Any, **options: Any) -> Any:
    """A model whose maker takes options of the head by keyword, and refuses others with the nearest."""
    known = [p.name for p in inspect.signature(maker).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in head_options:
        if name not in known:
            raise SrattnError(f"{kind} has no option {name!r}{nearest(name, known)}; it has: {', '.join(known)}")
    return maker(*args, **head_options, **options)
