"""Converting state dicts alone, without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from srattn.convert.detect import Detected, recognise, unwrap
from srattn.convert.heads import FoundHead, Head, find_head, write_head
from srattn.convert.layouts import get_layout
from srattn.convert.layouts.keys import apply_rules, find_rule
from srattn.convert.layouts.transforms import PAIRS, POSITIONS, Context
from srattn.errors import SrattnError


@dataclass(frozen=True)
class Ours:
    """Tensors by our keys. names: our key -> their keys; unknown: their keys without a rule.

    head: the head of a whole model beside the backbone; beside: other keys outside of the backbone's wrappers.
    """

    detected: Detected
    state: dict[str, torch.Tensor]
    names: dict[str, tuple[str, ...]]
    unknown: tuple[str, ...]
    head: FoundHead | None = None
    beside: tuple[str, ...] = ()


def to_ours(
    state: Mapping[str, Any],
    *,
    layout: str | None = None,
    prefer: str | None = None,
    context: Context | None = None,
    kind: str | None = None,
    own_kind: str | None = None,
    auxiliary: bool = False,
) -> Ours:
    """Recognises `state` (wrappers included) and converts it to our layout.

    Args:
        layout, prefer: see `recognise`.
        kind: of the head beside the backbone, where the file says it.
        own_kind: of the model's own head, which one in our layout is taken for where nothing tells its kind.
        auxiliary: with the head that serves training alone.
    """
    detected = recognise(state, layout=layout, prefer=prefer)
    rules = detected.layout.rules[detected.family]
    applied = apply_rules(detected.state, rules, to_ours=True, context=_with_grids(detected, context or Context()))
    tensors = unwrap(state) if detected.beside else {}
    rest = {key.removeprefix(detected.outer): tensors[key] for key in detected.beside}
    rest |= {key: detected.state[key] for key in applied.unknown}
    head = find_head(detected.layout, detected.family, rest, kind, own_kind, auxiliary)
    taken = () if head is None else head.state
    unknown = tuple(key for key in applied.unknown if key not in taken)
    beside = tuple(key for key in detected.beside if key.removeprefix(detected.outer) not in taken)
    return Ours(detected, applied.state, applied.sources, unknown, head, beside)


def from_ours(
    state: Mapping[str, torch.Tensor],
    layout: str,
    family: str,
    context: Context | None = None,
    head: Head | None = None,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Converts tensors by our keys to `layout`; with a head, to the whole model's.

    Returns:
        The tensors by their keys, contiguous and sharing no memory, and our keys that the layout has no place for.

    Raises:
        SrattnError: the layout cannot hold this model at all, or has no rule for one of the keys.
    """
    target = get_layout(layout, family)
    reason = target.refuses(state)
    if reason is not None:
        raise SrattnError(f"cannot write the {layout} layout: {reason}")
    kept = {key: tensor for key, tensor in state.items() if not target.has_no_place_for(key)}
    left_out = [key for key in state if key not in kept]
    rules = target.rules[family]
    if head is not None:
        rules = target.beside_head.get((family, head.kind), rules)
    applied = apply_rules(kept, rules, to_ours=False, context=context or Context())
    if applied.unknown:
        raise SrattnError(f"the {layout} layout of {family} has no rule for {applied.unknown[0]!r}")
    converted = applied.state
    if head is not None:
        converted = {target.prefix + key: tensor for key, tensor in converted.items()}
        converted |= write_head(head, target, family)
    return {key: _alone(tensor) for key, tensor in converted.items()}, left_out


def convert_state_dict(
    state: Mapping[str, Any], target: str, source: str | None = None, *, context: Context | None = None
) -> dict[str, torch.Tensor]:
    """Converts a state dict from one layout to another, a backbone's or a whole model's; tensors move bit for bit.

    Args:
        state: a state dict in any known layout, or a checkpoint that wraps one.
        target: "srattn", "official", "timm", "transformers", "mmdet" or "mmseg".
        source: the layout of `state`; recognised by its keys where it is not given.
        context: ratios and grids that the shapes do not tell (reductions and images that are not square).

    Raises:
        SrattnError: unknown keys, or what `target` has no place for (a classifier in mmdetection's backbones).
    """
    ours = to_ours(state, layout=source, context=context)
    if ours.unknown:
        layout, family = ours.detected.layout.name, ours.detected.family
        raise SrattnError(f"the {layout} layout of {family} has no key {ours.unknown[0]!r}")
    head = None if ours.head is None else ours.head.to_ours()
    converted, left_out = from_ours(ours.state, target, ours.detected.family, context, head)
    if left_out:
        raise SrattnError(f"the {target} layout has no place for {left_out[0]!r}; remove it first")
    return converted


def _with_grids(detected: Detected, context: Context) -> Context:
    """Decides once for all stages whether position embeddings are square.

    Published ones are. Only where the first stage's tokens are no square, and fill the model's own grid, are they taken
    to be of the model's image size: by counts alone a 56 x 56 grid is also one of 28 x 112.
    """
    if context.grids or not context.model_grids:
        return context
    rules = detected.layout.rules[detected.family]
    for key, tensor in detected.state.items():
        found = find_rule(key, rules, theirs=True, keys=detected.state)
        if (
            found is None
            or rules[found[0]].transform not in (POSITIONS, PAIRS)
            or ("i", "0") not in found[2]
            or tensor.ndim != 3
        ):
            continue
        count = tensor.shape[1]
        square = math.isqrt(count) ** 2 == count
        if not square and math.prod(context.model_grids[0]) == count:
            return replace(context, grids=context.model_grids)
    return context


def merged(first: Context, second: Context) -> Context:
    """`first`, with what only `second` knows."""
    return replace(
        first,
        ratios=first.ratios or second.ratios,
        grids=first.grids or second.grids,
        model_grids=first.model_grids or second.model_grids,
    )


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory of its own: files must not hold the parts of a split tensor twice."""
    return tensor.detach().contiguous().clone(memory_format=torch.contiguous_format)
