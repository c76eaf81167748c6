"""AdamW with the usual exemptions from decay, and learning rates by depth."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from srattn.engine.schedule import learning_rate as learning_rate

_STATE = ("exp_avg", "exp_avg_sq")
_WITH_THE_LAYER_BEFORE = 99998  # suffixes from this on mark norms behind the blocks of a stage


def make_optimiser(model: nn.Module, lr: float, weight_decay: float, layer_decay: float = 1.0) -> AdamW:
    """AdamW (Loshchilov and Hutter, 2019): matrices decay; vectors and what the model exempts do not.

    Each group has its `scale`, by which the learning rate of a step is multiplied: 1 for the head and `layer_decay`
    times less for every layer below (arXiv:2106.08254). Without `layer_decay` there are two groups.
    """
    exempt: set[str] = set(getattr(model, "no_weight_decay", set)())
    depth = layer_depths(model) if layer_decay < 1 else {}
    top = max(depth.values(), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or _plain_name(name) in exempt
            scale = layer_decay ** (top - depth[name]) if depth else 1.0
            groups.setdefault((scale, 0.0 if plain else weight_decay), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1]))
    optimiser = AdamW(
        [{"params": found, "weight_decay": decay, "scale": scale} for (scale, decay), found in ordered],
        lr=lr,
        fused=_has_fused(next(model.parameters()).device),
    )
    _prime(optimiser)
    return optimiser


def set_learning_rate(optimiser: AdamW, rate: float) -> None:
    """The rate of the next step, for every group by its scale."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def optimiser_state(model: nn.Module, optimiser: AdamW) -> dict[str, Tensor]:
    """The optimiser's own tensors by "PARAMETER.exp_avg" and so on, so that no order of parameters matters."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def layer_depths(model: nn.Module) -> dict[str, int]:
    """The layer of every parameter: 0 for the stem, then a layer a block, the head last.

    By `model.group_matcher()`. A downsampling goes with the first block of its stage, a norm behind blocks with the
    last before it, and what no pattern matches with the head.
    """
    matcher: dict[str, Any] = model.group_matcher()  # type: ignore[operator]
    patterns = [(re.compile(matcher["stem"]), 0, ())]
    blocks = matcher["blocks"]
    for pattern, suffix in blocks if isinstance(blocks, list) else [(blocks, None)]:
        patterns.append((re.compile(pattern), 1, suffix or ()))
    places = {name: _place(_plain_name(name), patterns) for name, _ in model.named_parameters()}
    layer, depth = -1, {}
    for place in sorted(set(places.values())):
        joins = bool(depth) and _WITH_THE_LAYER_BEFORE <= place[-1] < math.inf
        layer += not joins
        depth[place] = layer
    return {name: depth[place] for name, place in places.items()}


def _place(name: str, patterns: list[tuple[re.Pattern[str], int, tuple[int, ...]]]) -> tuple[float, ...]:
    for pattern, order, suffix in patterns:
        if found := pattern.match(name):
            return (order, *(float(number) for number in found.groups() if number is not None), *suffix)
    return (math.inf,)


def _plain_name(name: str) -> str:
    """The name that a parameter has without adapters (a parametrisation moves a weight)."""
    return name.replace(".parametrizations.weight.original", ".weight")


def _has_fused(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda", "mps", "xpu")


def _prime(optimiser: AdamW) -> None:
    """State from the start, so that every checkpoint has the same tensors: what AdamW would make at its first step."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            state = optimiser.state[parameter]
            place = parameter.device if group["fused"] else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=place)
            for key in _STATE:
                state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
