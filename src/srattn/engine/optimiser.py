"""AdamW with the usual exemptions from decay, or Muon for matrices beside it, and learning rates by depth."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from srattn.engine.schedule import learning_rate as learning_rate
from srattn.errors import SrattnError

Kind = Literal["adamw", "muon"]

_STATE = ("exp_avg", "exp_avg_sq")
_WITH_THE_LAYER_BEFORE = 99998  # suffixes from this on mark norms behind the blocks of a stage


class MuonWithAdamW(Optimizer):
    """Two optimisers as one: Muon's groups first, then those of AdamW. Their state is there from the start."""

    def __init__(self, muon: Optimizer, adamw: AdamW) -> None:  # the base class would make groups of its own
        self.parts = (muon, adamw)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = {**muon.state, **adamw.state}  # pyright: ignore[reportAttributeAccessIssue]

    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


def make_optimiser(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float = 1.0, kind: Kind = "adamw"
) -> Optimizer:
    """AdamW (Loshchilov and Hutter, 2019): matrices decay; vectors and what the model exempts do not.

    Each group has its `scale`, by which the learning rate of a step is multiplied: 1 for the head and `layer_decay`
    times less for every layer below (arXiv:2106.08254). Without `layer_decay` there are two groups.

    `kind` "muon": the linear maps outside the head are moved along orthogonal matrices instead (Jordan, 2024), scaled
    so that learning rate and decay mean what they mean to AdamW (arXiv:2502.16982), which moves the rest.

    Raises:
        SrattnError: the model has no linear map for Muon.
    """
    exempt: set[str] = set(getattr(model, "no_weight_decay", set)())
    depth = layer_depths(model) if layer_decay < 1 else {}
    top = max(depth.values(), default=0)
    orthogonal = _linear_maps(model) if kind == "muon" else set()
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or _plain_name(name) in exempt
            scale = layer_decay ** (top - depth[name]) if depth else 1.0
            key = (name in orthogonal, scale, 0.0 if plain else weight_decay)
            groups.setdefault(key, []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (item[0][1], -item[0][2]))
    by_kind: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for (muon, scale, decay), found in ordered:
        by_kind[muon].append({"params": found, "weight_decay": decay, "scale": scale})
    adamw = AdamW(by_kind[False], lr=lr, fused=_has_fused(next(model.parameters()).device))
    _prime(adamw)
    return MuonWithAdamW(_muon(by_kind[True], lr), adamw) if kind == "muon" else adamw


def _linear_maps(model: nn.Module) -> set[str]:
    """Names of the trained weights of linear maps; not of the head, whose rows are classes and no directions."""
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {name for name, p in model.named_parameters() if name in names and p.requires_grad}
    return {name for name in found if "head" not in name.split(".")}


def _muon(groups: list[dict[str, Any]], lr: float) -> Optimizer:
    if not groups:
        raise SrattnError("no linear map outside the head is trained, which Muon is for: take optimiser adamw")
    muon = torch.optim.Muon(groups, lr=lr, adjust_lr_fn="match_rms_adamw")
    for group in muon.param_groups:
        for parameter in group["params"]:  # from the start, as in `_prime`
            muon.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return muon


def set_learning_rate(optimiser: Optimizer, rate: float) -> None:
    """The rate of the next step, for every group by its scale."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def optimiser_state(model: nn.Module, optimiser: Optimizer) -> dict[str, Tensor]:
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
