"""Which layout and family a state dict is in, under whatever wrappers it was saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from srattn.convert.layouts import LAYOUTS, Layout, get_layout
from srattn.convert.layouts.keys import apply_rules, count_known
from srattn.convert.layouts.transforms import Context
from srattn.convert.variants import likelihood
from srattn.errors import SrattnError

# Entries of a training checkpoint that hold the weights, the plain ones before their averages.
_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "network",
    "net",
    "params",
    "weights",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)
# What data parallelism, compilation, weight averaging and surrounding models put before every key.
_PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "backbone.",
    "ema_model.",
    "ema.",
    "net.",
    "network.",
    "base_model.",
    "segformer_encoder.",
)
_MAX_DEPTH = 5


@dataclass(frozen=True)
class Detected:
    """The recognised weights: keys without wrappers, the layout, the family, and the keys of what lay beside them."""

    layout: Layout
    family: str
    state: dict[str, torch.Tensor]
    prefix: str
    beside: tuple[str, ...]

    @property
    def outer(self) -> str:
        """The wrappers that the backbone shares with the rest of its model."""
        return self.prefix.removesuffix("backbone.")


def detect_layout(state: Mapping[str, Any]) -> tuple[str, str]:
    """The names of the layout and the family of `state`, for example ``("timm", "pvt_v2")``.

    Wrappers are looked through: containers such as ``{"state_dict": ...}``, and prefixes such as ``module.``.

    Raises:
        SrattnError: no layout knows these keys.
    """
    found = recognise(state)
    return found.layout.name, found.family


def recognise(state: Mapping[str, Any], *, layout: str | None = None, prefer: str | None = None) -> Detected:
    """Finds the weights in `state` and their layout.

    Args:
        state: a state dict or a training checkpoint that holds one.
        layout: the layout, where it is known; else the one that knows most of the keys.
        prefer: the family that wins where several fit alike (some families share their key names).
    """
    tensors = unwrap(state)
    layouts = [get_layout(layout)] if layout is not None else list(LAYOUTS.values())
    best: tuple[int, int, int] | None = None
    alike: list[Detected] = []  # of the best score
    for prefix in _prefixes_of(tensors):
        inner = {key.removeprefix(prefix): key for key in tensors if key.startswith(prefix)}
        for candidate in layouts:
            for family, rules in candidate.rules.items():
                named = {_aliased(short, candidate, family): key for short, key in inner.items()}
                known = count_known(named, rules)
                score = (known, -len(named), int(family == prefer))
                if known and (best is None or score >= best):
                    beside = tuple(key for key in tensors if not key.startswith(prefix))
                    values = {name: tensors[key] for name, key in named.items()}
                    found = Detected(candidate, family, values, prefix, beside)
                    alike = [*alike, found] if score == best else [found]
                    best = score
    # A handful of common names (head.weight, norm.weight) is no evidence.
    if best is None or best[0] < 8:
        keys = ", ".join(list(tensors)[:3])
        wanted = f"the {layout} layout does not know" if layout else f"none of the layouts {', '.join(LAYOUTS)} knows"
        raise SrattnError(f"{wanted} the keys of these {len(tensors)} tensors ({keys}, ...)")
    # Names alone may not tell families apart (PVT v2 and Mix Transformer): then their numbers do.
    return alike[0] if len(alike) == 1 or prefer == alike[0].family else max(alike, key=_likelihood)


def _likelihood(found: Detected) -> int:
    rules = found.layout.rules[found.family]
    try:
        ours = apply_rules(found.state, rules, to_ours=True, context=Context())
    except SrattnError:
        return 0
    return likelihood(ours.state, found.family)


def unwrap(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The mapping from names to tensors inside a training checkpoint (or `state` itself)."""
    inner: Mapping[str, Any] = state
    for _ in range(_MAX_DEPTH):
        tensors = {str(key): value for key, value in inner.items() if isinstance(value, torch.Tensor)}
        if len(tensors) > 1:  # one tensor may be a step counter beside the weights
            return tensors
        nested = [key for key in _CONTAINERS if isinstance(inner.get(key), Mapping)]
        if not nested:
            break
        inner = inner[nested[0]]
    found = ", ".join(map(str, list(state)[:6])) or "nothing"
    raise SrattnError(f"no state dict in it; it holds {found}; expected tensors by name, or one of {_CONTAINERS[:4]}")


def _prefixes_of(state: Mapping[str, Any]) -> list[str]:
    """Every wrapper prefix, also of several parts, that some keys of `state` begin with; the empty one first."""
    found = [""]
    for prefix in found:  # grows while it is read
        if prefix.count(".") >= _MAX_DEPTH:
            continue
        for part in _PREFIXES:
            longer = prefix + part
            if longer not in found and any(key.startswith(longer) for key in state):
                found.append(longer)
    return found


def _aliased(key: str, layout: Layout, family: str) -> str:
    for begin, meant in layout.aliases.get(family, ()):
        if key.startswith(begin):
            return meant + key.removeprefix(begin)
    return key
