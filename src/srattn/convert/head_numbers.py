"""The numbers of a whole model's head, and of a detector's pyramid: as shapes tell them, and as files say them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from srattn.errors import SrattnError

State = Mapping[str, torch.Tensor]
Parts = dict[str, dict[str, Any]]

ASSUMED = {
    "upernet": "scales 1, 2, 3, 6 of a upernet head (the shapes tell only that there are four)",
    "retinanet": "anchors and extra maps of a retinanet as they are published (the shapes do not tell them)",
}
"""What of a head's numbers is taken from its publication, by kind, where no file says it."""

_MAPS = 4  # of a backbone that detectors are built on
# What decides over answers and shows in no shape.
_SHAPELESS = ("scales", "base", "ratios", "offset", "first", "extra_levels", "extra_from")
_TOWER = re.compile(r"head\.class_tower\.\d+\.(conv\.)?weight")


def part_configs(kind: str, state: State) -> Parts:
    """The configuration of each part beside a backbone, as the options of its class are named.

    Args:
        kind: of the head.
        state: its tensors by our keys, `head.`... and `neck.`...

    Raises:
        SrattnError: a tensor that is needed to tell them is absent, or has no such shape.
    """
    read = _READERS.get(kind)
    try:
        parts = {} if read is None else read(state)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise SrattnError(f"the tensors of this {kind} head are not whole") from error
    return {**parts, "head": {"kind": kind, **parts.get("head", {})}}


def told_parts(kind: str, state: State, metadata: Mapping[str, Any], config: Mapping[str, Any]) -> Parts:
    """As `part_configs`, with what the file says of itself and what the config of transformers beside it does."""
    saved = saved_parts(metadata)
    parts = {part: {**told, **saved.get(part, {})} for part, told in part_configs(kind, state).items()}
    if kind == "glpn":
        parts["head"].setdefault("max_depth", config.get("max_depth", 10))
    return parts


def describe(kind: str, state: State) -> str:
    """What would fit these weights, as the end of an error message; empty where it cannot be told."""
    try:
        parts = part_configs(kind, state)
    except SrattnError:
        return ""
    numbers = {**parts["head"], **{key: parts["neck"][key] for key in ("width", "first") if "neck" in parts}}
    told = ", ".join(f"{key}={value}" for key, value in numbers.items() if key != "kind")
    return f"; these weights fit a {kind} head with {told}" if told else ""


def saved_backbone(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of ours says of its backbone: {"model": it}, or in a run {"model": {"backbone": it, ...}}."""
    model = _mapping(metadata.get("model"))
    return _mapping(model["backbone"]) if "backbone" in model else model


def saved_parts(metadata: Mapping[str, Any]) -> Parts:
    """What a file of ours says of the parts beside its backbone, in either form."""
    model = _mapping(metadata.get("model"))
    stated = model if "backbone" in model else metadata
    return {part: dict(stated[part]) for part in ("neck", "head") if isinstance(stated.get(part), dict)}


def saved_kind(metadata: Mapping[str, Any]) -> str | None:
    """The kind of head that a file of ours names."""
    kind = saved_parts(metadata).get("head", {}).get("kind")
    return kind if isinstance(kind, str) else None


def check_parts(saved: Parts, mine: Mapping[str, Any]) -> None:
    """Refuses weights of a head whose file says other numbers than the model has, where no shape shows it."""
    for part, numbers in saved.items():
        own = _mapping(mine.get(part))
        for key in _SHAPELESS:
            if key in numbers and key in own and numbers[key] != own[key]:
                raise SrattnError(
                    f"the weights are of a {part} with {key} {numbers[key]}, the model's has {own[key]}; build it with "
                    'these, or keep the model\'s own with head="keep"'
                )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _norm(state: State, key: str) -> str:
    return "batch" if f"{key}.running_mean" in state else "group"


def _segformer(state: State) -> Parts:
    normed = any(key.startswith("head.projection_norms.") for key in state)
    hidden = state["head.fuse.weight"].shape[0]
    return {"head": {"num_classes": _classes(state), "hidden": hidden, "projection_norm": normed}}


def _glpn(state: State) -> Parts:
    return {"head": {"hidden": state["head.conv.weight"].shape[0]}}


def _semantic_fpn(state: State) -> Parts:
    numbers = {
        "num_classes": _classes(state),
        "width": state["head.fpn.laterals.0.weight"].shape[0],
        "hidden": state["head.levels.0.0.conv.weight"].shape[0],
        "norm": _norm(state, "head.levels.0.0.norm"),
    }
    return {"head": numbers}


def _upernet(state: State) -> Parts:
    numbers = {
        "num_classes": _classes(state),
        "width": state["head.fuse.conv.weight"].shape[0],
        "norm": _norm(state, "head.fuse.norm"),
    }
    return {"head": numbers}


def _unet(state: State) -> Parts:
    count = _count(state, "head.stages.{}.conv2.conv.weight")
    widths = [state[f"head.stages.{n}.conv2.conv.weight"].shape[0] for n in range(count)]
    norm = {"norm": _norm(state, "head.stages.0.conv2.norm")} if widths else {}
    return {"head": {"num_classes": _classes(state), "widths": widths, **norm}}


def _retinanet(state: State) -> Parts:
    anchors = state["head.regressor.weight"].shape[0] // 4
    return {
        "head": {"num_classes": _classes(state) // anchors, **_towers(state)},
        "neck": _neck(state, _count(state, "neck.extras.{}.weight"), "input"),
    }


def _fcos(state: State) -> Parts:
    levels = state["head.scales"].shape[0] - _count(state, "neck.laterals.{}.weight")
    return {
        "head": {"num_classes": _classes(state), **_towers(state)},
        "neck": _neck(state, levels, "output"),
    }


def _towers(state: State) -> dict[str, Any]:
    convs = sum(_TOWER.fullmatch(key) is not None and tensor.ndim == 4 for key, tensor in state.items())
    if not convs:
        return {"convs": 0}
    normed = "head.class_tower.0.norm.weight" in state
    return {"convs": convs, "norm": _norm(state, "head.class_tower.0.norm") if normed else "none"}


def _neck(state: State, extra_levels: int, usual: str) -> dict[str, Any]:
    """The pyramid; where its extra maps may come from either end of it, they do as is usual for the detector."""
    count = _count(state, "neck.laterals.{}.weight")
    lateral = state[f"neck.laterals.{count - 1}.weight"]
    width, channels, source = lateral.shape[0], lateral.shape[1], usual
    if "neck.extras.0.weight" not in state:
        source = "pool" if extra_levels else usual
    elif width != channels:
        source = "input" if state["neck.extras.0.weight"].shape[1] == channels else "output"
    # `extra_relu` shows in no shape: who reads another's layout knows it.
    return {"first": _MAPS - count, "width": width, "extra_levels": extra_levels, "extra_from": source}


def _classes(state: State) -> int:
    return state["head.classifier.weight"].shape[0]


def _count(state: State, pattern: str) -> int:
    count = 0
    while pattern.format(count) in state:
        count += 1
    return count


_READERS: dict[str, Callable[[State], Parts]] = {
    "segformer": _segformer,
    "glpn": _glpn,
    "semantic_fpn": _semantic_fpn,
    "upernet": _upernet,
    "unet": _unet,
    "retinanet": _retinanet,
    "fcos": _fcos,
}
