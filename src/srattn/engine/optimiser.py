"""AdamW with the usual exemptions from decay, or Muon for matrices beside it, and learning rates by depth."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from srattn.engine.muon import MOMENTUM, muon_step
from srattn.engine.schedule import learning_rate as learning_rate
from srattn.errors import SrattnError

Kind = Literal["adamw", "muon", "muon_conv"]

_STATE = ("exp_avg", "exp_avg_sq")
_WITH_THE_LAYER_BEFORE = 99998  # suffixes from this on mark norms behind the blocks of a stage


class MuonWithAdamW(Optimizer):
    """Two optimisers as one: Muon's groups first, then those of AdamW. Their state is there from the start."""

    def __init__(self, groups: list[dict[str, Any]], adamw: AdamW) -> None:  # the base would make groups of its own
        self.muon_groups: list[dict[str, Any]] = [{**group, "momentum": MOMENTUM} for group in groups]
        self.adamw, self.param_groups = adamw, self.muon_groups + adamw.param_groups
        self.state = {**adamw.state}  # pyright: ignore[reportAttributeAccessIssue]
        for group in self.muon_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"momentum_buffer": torch.zeros_like(_as_matrix(parameter, parameter))}

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.muon_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            matrices = [_as_matrix(parameter, parameter) for parameter in moved]
            grads = [_as_matrix(parameter.grad, parameter) for parameter in moved]
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in moved]
            muon_step(matrices, grads, buffers, group["lr"], group["weight_decay"])
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if set_to_none:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.detach_().zero_()


def _as_matrix(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The parameter, or its gradient, as a matrix: a kernel as one of output channels by all else.

    Columns lie in the order in which the parameter's lie in memory, so that its own matrix is a view of it; Muon does
    the same in any order.
    """
    tensor = tensor.detach()
    if tensor.ndim == 2:
        return tensor
    order = sorted(range(1, parameter.ndim), key=lambda dim: -parameter.stride(dim))
    return tensor.permute(0, *order).flatten(1)


def make_optimiser(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float = 1.0, kind: Kind = "adamw"
) -> Optimizer:
    """AdamW (Loshchilov and Hutter, 2019): matrices decay; vectors and what the model exempts do not.

    Each group has its `scale`, by which the learning rate of a step is multiplied: 1 for the head and `layer_decay`
    times less for every layer below (arXiv:2106.08254). Without `layer_decay` there are two groups.

    `kind` "muon": the linear maps outside the head are moved along orthogonal matrices instead (Jordan, 2024), scaled
    so that learning rate and decay mean what they mean to AdamW (arXiv:2502.16982), which moves the rest. "muon_conv":
    the kernels of convolutions that mix channels too.

    Raises:
        SrattnError: the model has nothing for Muon.
    """
    exempt: set[str] = set(getattr(model, "no_weight_decay", set)())
    depth = layer_depths(model) if layer_decay < 1 else {}
    top = max(depth.values(), default=0)
    orthogonal = _for_muon(model, kind)
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
    if kind == "adamw":
        return adamw
    return MuonWithAdamW([group | {"lr": lr} for group in by_kind[True]], adamw)


def _for_muon(model: nn.Module, kind: Kind) -> set[str]:
    """Names of the trained weights that Muon moves; not of the head, whose rows are classes and no directions."""
    if kind == "adamw":
        return set()
    mixing = (name for name, module in model.named_modules() if _mixes_channels(module, kind))
    names = {f"{name}.weight".removeprefix(".") for name in mixing}
    trained = {name for name, p in model.named_parameters() if name in names and p.requires_grad}
    found = {name for name in trained if "head" not in name.split(".")}
    if not found:
        what, other = ("linear map", "muon_conv or ") if kind == "muon" else ("matrix", "")
        raise SrattnError(f"no {what} outside the head is trained, which {kind} is for: take optimiser {other}adamw")
    return found


def _mixes_channels(module: nn.Module, kind: Kind) -> bool:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return kind == "muon_conv" and module.groups == 1
    return isinstance(module, nn.Linear)


def set_learning_rate(optimiser: Optimizer, rate: float) -> None:
    """The rate of the next step, for every group by its scale."""
    for group in optimiser.param_groups:
        value = rate * group["scale"]
        if isinstance(group["lr"], Tensor):  # read by a recorded step
            group["lr"].fill_(value)
        else:
            group["lr"] = value


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
