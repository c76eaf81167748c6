"""Low-rank adapters on the projections of attention (LoRA, arXiv:2106.09685).

An adapted weight is W + (alpha / r) B A, with A (r, in) and B (out, r). It is a parametrisation of the weight and not a
layer around it: attention here reads its weights (`srattn.ops.attend.Projections`) on every path, the absorbed one too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from srattn.errors import SrattnError, nearest

TARGETS = ("q", "k", "v", "kv", "qkv", "proj")
_SHORT_FOR = {"kv": {"kv", "k", "v"}, "qkv": {"qkv", "q", "kv", "k", "v"}}
_QUERY_OR_KEY = TARGETS[:-1]  # a module that has one of these as a linear map is an attention
_ASIDE = "_lora_aside"


class LowRank(nn.Module):
    """The term (alpha / r) B A of one weight; zero at first, since B is.

    Args:
        weight: (out, in), the one to adapt; gives shape, dtype and device.
        rank: r, at most the smaller side of the weight.
        alpha: the scale of the term is alpha / r, so that a rate serves several ranks.
        dropout: the probability with which an input feature is left out of the term, for a whole batch at once,
            while training.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.a = nn.Parameter(torch.empty(rank, in_features, dtype=weight.dtype, device=weight.device))
        self.b = nn.Parameter(torch.zeros(out_features, rank, dtype=weight.dtype, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in) without the term to (out, in) with it."""
        a = self.a
        if self.training and self.dropout:
            a = a * F.dropout(a.new_ones(a.shape[1]), self.dropout)
        return weight + (self.b @ a) * (self.alpha / self.rank)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}, dropout={self.dropout:g}"


def add_lora(
    model: nn.Module, rank: int, alpha: float, targets: Sequence[str] = ("q", "v"), dropout: float = 0.0
) -> list[nn.Parameter]:
    """Gives every attention of `model` adapters; nothing is frozen by that (see `srattn.engine.freeze`).

    The model's outputs stay what they were until the adapters are trained.

    Args:
        rank: r; cut to the smaller side of a weight that is narrower.
        alpha: the scale of the adapters is alpha / rank.
        targets: which projections, of `TARGETS`; "kv" and "qkv" stand for the separate ones as well.
        dropout: see `LowRank`.

    Returns:
        The new parameters.

    Raises:
        SrattnError: a number out of range, a target that the model's attentions lack, or adapters already there.
    """
    _check(rank, alpha, dropout)
    if any(True for _ in _adapted(model)) or any(True for _ in _merged(model)):
        raise SrattnError("the model has adapters already: load into them with load_lora, or build the model afresh")
    found = dict(_projections(model))
    present = sorted({name.rpartition(".")[2] for name in found})
    if not present:
        raise SrattnError(f"{type(model).__name__} has no attention with projections to adapt")
    if not targets:
        raise SrattnError(f"no projection is named to adapt; name one or more of {', '.join(present)}")
    chosen: set[str] = set()
    for target in targets:
        names = _SHORT_FOR.get(target, {target}) & set(present)
        chosen |= names
        if not names:
            raise SrattnError(
                f"no attention of this model has a projection {target!r}{nearest(target, present)}; "
                f"they have {', '.join(present)}"
            )
    parameters: list[nn.Parameter] = []
    for name, linear in found.items():
        if name.rpartition(".")[2] in chosen:
            parameters += _attach(linear, rank, alpha, dropout)
    return parameters


def merge_lora(model: nn.Module) -> int:
    """Puts every adapter into its weight: a plain model of the same outputs, with the architecture's own state dict.

    What the weights were is kept aside in the model, not in its state dict, so that `unmerge_lora` is exact.

    Returns:
        How many weights were merged.
    """
    count = 0
    for _, linear in list(_adapted(model)):
        term = _term(linear)
        training = term.training
        term.eval()  # no dropout in what is kept
        merged = linear.weight.detach()
        term.train(training)
        weight: Any = linear.parametrizations.weight.original  # type: ignore[union-attr]
        aside = (weight.detach().clone(), term)
        _detach(linear, weight)
        with torch.no_grad():
            weight.copy_(merged)
        linear.__dict__[_ASIDE] = aside  # in a tuple, where nn.Module registers nothing
        count += 1
    return count


def unmerge_lora(model: nn.Module) -> int:
    """Takes the adapters out again: every weight has the bits that it had before `merge_lora`.

    Returns:
        How many weights were restored.
    """
    count = 0
    for _, linear in list(_merged(model)):
        original, term = linear.__dict__.pop(_ASIDE)
        weight = linear.weight
        with torch.no_grad():
            weight.copy_(original)
        parametrize.register_parametrization(linear, "weight", term.to(weight.device, weight.dtype))
        term.train(linear.training)
        count += 1
    return count


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone: for each weight its `.a` (r, in), `.b` (out, r) and `.alpha` (a scalar).

    Raises:
        SrattnError: the model has none, or they are merged.
    """
    state: dict[str, Tensor] = {}
    for name, linear in _adapted(model):
        term = _term(linear)
        state |= {f"{name}.a": term.a.detach(), f"{name}.b": term.b.detach()}
        state[f"{name}.alpha"] = torch.tensor(float(term.alpha))
    if not state:
        merged = any(True for _ in _merged(model))
        raise SrattnError(
            "the adapters are merged: unmerge_lora first" if merged else "the model has no adapters: add_lora first"
        )
    return state


def load_lora(model: nn.Module, state: Mapping[str, Tensor]) -> list[nn.Parameter]:
    """Adapters from `lora_state`, into a model that has the same ones, or none yet.

    Returns:
        The adapters' parameters.

    Raises:
        SrattnError: the state is of other weights, shapes or ranks than the model's; the model is unchanged.
    """
    if any(True for _ in _merged(model)):
        raise SrattnError("the model's adapters are merged: unmerge_lora first")
    linears, present = dict(_projections(model)), dict(_adapted(model))
    names = sorted({key.rpartition(".")[0] for key in state})
    if not names:
        raise SrattnError("the state holds no adapters")
    for name in names:
        _check_part(name, linears, state)
    if present and sorted(present) != names:
        odd = sorted(set(present) ^ set(names))[0]
        where = "model" if odd in present else "state"
        raise SrattnError(f"the {where} alone has an adapter on {odd}: load into a model without adapters")
    for name, linear in present.items():
        if _term(linear).a.shape != state[f"{name}.a"].shape:
            raise SrattnError(f"{name} has rank {_term(linear).rank}, the state {len(state[f'{name}.a'])}")
    parameters = []
    for name in names:
        a, b, alpha = (state[f"{name}.{part}"] for part in ("a", "b", "alpha"))
        linear = linears[name]
        if name not in present:
            _attach(linear, len(a), float(alpha), 0.0)
        term = _term(linear)
        term.alpha = float(alpha)
        with torch.no_grad():
            term.a.copy_(a)
            term.b.copy_(b)
        parameters += [term.a, term.b]
    return parameters


def _check(rank: int, alpha: float, dropout: float) -> None:
    if rank < 1:
        raise SrattnError(f"rank must be at least 1, got {rank}")
    if not 0 < alpha < math.inf:
        raise SrattnError(f"alpha must be above 0, got {alpha}")
    if not 0 <= dropout < 1:
        raise SrattnError(f"dropout must be at least 0 and below 1, got {dropout}")


def _check_part(name: str, linears: Mapping[str, nn.Linear], state: Mapping[str, Tensor]) -> None:
    if name not in linears:
        raise SrattnError(f"the model has no projection {name!r}{nearest(name, linears)}")
    missing = [part for part in ("a", "b", "alpha") if f"{name}.{part}" not in state]
    if missing:
        raise SrattnError(f"the adapter of {name} lacks its {missing[0]}")
    a, b, alpha = (state[f"{name}.{part}"] for part in ("a", "b", "alpha"))
    out_features, in_features = linears[name].out_features, linears[name].in_features
    if (
        a.ndim != 2
        or b.shape != (out_features, len(a))
        or a.shape[1] != in_features
        or not len(a)
        or alpha.numel() != 1
    ):
        raise SrattnError(
            f"the adapter of {name} is {tuple(b.shape)} x {tuple(a.shape)}, the weight {out_features} x {in_features}"
        )
    if not all(bool(torch.isfinite(part).all()) for part in (a, b, alpha)) or not float(alpha) > 0:
        raise SrattnError(f"the adapter of {name} holds numbers that are not finite, or an alpha of {float(alpha):g}")


def _attach(linear: nn.Linear, rank: int, alpha: float, dropout: float) -> list[nn.Parameter]:
    rank = min(rank, *linear.weight.shape)
    term = LowRank(linear.weight, rank, alpha, dropout).train(linear.training)
    parametrize.register_parametrization(linear, "weight", term)
    return [term.a, term.b]


def _detach(linear: nn.Linear, weight: nn.Parameter) -> None:
    """A plain nn.Linear again, with `weight`, its parameters in their usual order.

    torch's remove_parametrizations takes the weight from every copy of the module too: copies share their class.
    """
    linear.__class__ = type(linear).__bases__[0]  # type: ignore[assignment]
    del linear.parametrizations
    bias = linear.bias
    del linear.bias
    linear.register_parameter("weight", weight)
    linear.register_parameter("bias", bias)


def _term(linear: nn.Linear) -> LowRank:
    term = linear.parametrizations.weight[0]  # type: ignore[index]
    assert isinstance(term, LowRank)
    return term


def _projections(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear maps of attentions that may be adapted, by name."""
    for owner_name, owner in model.named_modules():
        children = {name: child for name, child in owner.named_children() if isinstance(child, nn.Linear)}
        # A reduction and a patch embedding have a `proj` too, and are no attention.
        if children.keys() & set(_QUERY_OR_KEY):
            prefix = f"{owner_name}." if owner_name else ""
            yield from ((prefix + name, child) for name, child in children.items() if name in TARGETS)


def _adapted(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, linear in _projections(model):
        if parametrize.is_parametrized(linear, "weight"):
            terms = list(linear.parametrizations.weight)  # type: ignore[arg-type]
            if len(terms) != 1 or not isinstance(terms[0], LowRank) or parametrize.is_parametrized(linear, "bias"):
                raise SrattnError(f"{name} has another parametrisation: remove it first")
            yield name, linear


def _merged(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    yield from ((name, linear) for name, linear in _projections(model) if _ASIDE in linear.__dict__)
