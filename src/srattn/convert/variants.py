"""Which registered model some weights fit, and what a model at hand tells a conversion."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from srattn.convert.infer import Inferred, infer_config
from srattn.convert.layouts.transforms import Context
from srattn.errors import SrattnError
from srattn.models.backbone import Backbone
from srattn.models.registry import list_models, model_options, variant

# What distinguishes the variants of a family; the rest (classes, channels, image size) any of them can take.
_NUMBERS = (
    *("embed_dims", "depths", "mlp_ratios", "sr_ratios", "linear", "window_sizes", "num_conv"),
    *("stem_channels", "fc_dim", "expand_attn"),
)


# Families whose keys are the same: weights of one, taken for the other, are still called by their name.
TWINS_IN_NAME = {"pvt_v2": ("mit",), "mit": ("pvt_v2",)}


def backbone_of(model: nn.Module) -> Backbone:
    """The backbone itself: the model, or what a feature pyramid (or a task's model) wraps."""
    for candidate in (model, getattr(model, "model", None), getattr(model, "backbone", None)):
        if isinstance(candidate, Backbone):
            return candidate
    raise SrattnError(f"{type(model).__name__} is no srattn backbone; build one with srattn.create_model")


def family_of(backbone: Backbone) -> str:
    """The family by which rule tables are chosen: the name of the file that defines the model."""
    return type(backbone).__module__.rpartition(".")[2]


def context_of(backbone: Backbone) -> Context:
    """The grids and reduction ratios of a model."""
    config = backbone.config
    state = backbone.state_dict()
    grids = []
    for i in range(len(config.get("depths", ()))):
        position = state.get(f"stages.{i}.position.weight", state.get(f"stages.{i}.position_bias.weight"))
        if position is not None:
            grids.append((position.shape[1], position.shape[2]))
    return Context(ratios=ratios_of(config), model_grids=tuple(grids))


def ratios_of(config: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """`sr_ratios` of a configuration as pairs (height, width), or as the triples of volumes that it gives."""
    given = (ratio if isinstance(ratio, list | tuple) else (ratio, ratio) for ratio in config.get("sr_ratios", ()))
    return tuple(tuple(int(side) for side in ratio) for ratio in given)


def infer(state: Mapping[str, torch.Tensor], family: str) -> tuple[str | None, Inferred]:
    """The registered model of these shapes (None where there is none), and the configuration that they tell.

    A registered model also tells the number of heads, which no shape does.
    """
    # Heads play no part in finding the variant: one a stage always divides.
    found = infer_config(state, family, [1] * 4)
    name = _registered(found)
    if name is None:
        return None, infer_config(state, family)
    heads = list(model_options(name)["num_heads"])
    config = {**found.config, "num_heads": heads}
    return name, Inferred(family, config, (f"num_heads {tuple(heads)} as in {name}",))


def _registered(found: Inferred) -> str | None:
    for name in list_models():
        if variant(name).family.__module__.rpartition(".")[2] != found.family:
            continue
        options = model_options(name)
        if all(_equal(options.get(key), found.config.get(key)) for key in _NUMBERS):
            return name
    return None


def likelihood(state: Mapping[str, torch.Tensor], family: str) -> int:
    """How well shapes speak for a family: 2 for a registered model, 1 for its usual feed-forward, else 0."""
    try:
        found = infer_config(state, family, [1] * 4)
    except SrattnError:
        return 0
    if _registered(found) is not None:
        return 2
    classes = {variant(name).family for name in list_models()}
    usual = [inspect.signature(c).parameters.get("mlp_ratios") for c in classes if c.__module__.endswith(f".{family}")]
    return int(any(p is not None and _equal(p.default, found.config["mlp_ratios"]) for p in usual))


def describe(state: Mapping[str, torch.Tensor], family: str) -> str:
    """What would fit these weights, as the end of an error message; empty where it cannot be told."""
    try:
        name, found = infer(state, family)
        for twin in TWINS_IN_NAME.get(family, ()) if name is None else ():
            name, found = infer(state, twin)
    except SrattnError:
        return ""
    if name is None:
        numbers = ", ".join(f"{key}={tuple(found.config[key])}" for key in ("embed_dims", "depths"))
        return f"; these weights are a {family} with {numbers}"
    extras = []
    for key, usual in (("num_classes", 1000), ("in_chans", 3), ("norm_after_stage", False)):
        if found.config.get(key, usual) not in (usual, 0):
            extras.append(f"{key}={found.config[key]}")
    return f"; these weights fit {name}" + (f" with {', '.join(extras)}" if extras else "")


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return list(left) == list(right)
    return left == right
