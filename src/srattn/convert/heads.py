"""What stands beside the backbone of a whole model: its head, of a detector the neck too. Found, fitted, written.

A head is known by its kind, which its module names (`kind`); a file of ours says it, and elsewhere the keys tell it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from srattn.convert.fit import Fit
from srattn.convert.head_numbers import describe
from srattn.convert.layouts.base import Layout
from srattn.convert.layouts.heads import TELLING
from srattn.convert.layouts.keys import Rule, apply_rules, fill, find_rule
from srattn.convert.layouts.mm_heads import AUXILIARY, AUXILIARY_HEAD, BESIDE
from srattn.convert.layouts.transforms import Context
from srattn.errors import SrattnError
from srattn.models.backbone import Backbone

_KEEP = 'keep the model\'s own with head="keep"'


@dataclass(frozen=True)
class Head:
    """The tensors beside a backbone by our keys (`head.`..., `neck.`...), and our key -> their keys."""

    kind: str
    state: Mapping[str, torch.Tensor]
    names: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class FoundHead:
    """A head as a checkpoint holds it; nothing is converted before it is asked for. Without rules its keys are ours."""

    kind: str
    rules: tuple[Rule, ...] | None
    state: Mapping[str, torch.Tensor]

    def to_ours(self) -> Head:
        if self.rules is None:
            return Head(self.kind, self.state, {key: (key,) for key in self.state})
        applied = apply_rules(self.state, self.rules, to_ours=True, context=Context())
        return Head(self.kind, applied.state, applied.sources)


def find_head(
    layout: Layout,
    family: str,
    rest: Mapping[str, torch.Tensor],
    told: str | None = None,
    otherwise: str | None = None,
    auxiliary: bool = False,
) -> FoundHead | None:
    """The head among `rest`, the tensors that belong to no backbone.

    Args:
        told: its kind as the file says it; keys of our own layout need not tell it then.
        otherwise: the kind that keys of our own layout are taken for where nothing tells it.
        auxiliary: with the head beside it that serves training alone.
    """
    if layout.parts:
        known = {key: tensor for key, tensor in rest.items() if key.startswith(layout.parts)}
        kind = told or next((kind for kind, key in TELLING.items() if key in known), otherwise)
        return FoundHead(kind, None, known) if kind and known else None
    for kind, rules in layout.heads.get(family, {}).items():
        rules = rules + AUXILIARY_HEAD if auxiliary else rules
        found = {key: find_rule(key, rules, theirs=True, keys=rest) for key in rest}
        named = {key: fill(rules[rule[0]].ours[0], rule[2]) for key, rule in found.items() if rule is not None}
        if TELLING[kind] in named.values():
            return FoundHead(kind, rules, {key: rest[key] for key in named})
    return None


def write_head(head: Head, layout: Layout, family: str) -> dict[str, torch.Tensor]:
    """The head's tensors by the keys of a layout.

    Raises:
        SrattnError: the layout has no such head beside this family, or no place for one of its tensors.
    """
    check_head(head.kind, layout, family)
    if layout.parts:
        return dict(head.state)
    rules = layout.heads[family][head.kind] + AUXILIARY_HEAD
    applied = apply_rules(head.state, rules, to_ours=False, context=Context())
    if applied.unknown:
        raise SrattnError(f"the {layout.name} layout of a {head.kind} head has no rule for {applied.unknown[0]!r}")
    return applied.state


def check_head(kind: str, layout: Layout, family: str) -> None:
    """Refuses a head that the layout has no names for."""
    kinds = layout.heads.get(family, {})
    if not layout.parts and kind not in kinds:
        has = f"; it has: {', '.join(kinds)}" if kinds else ""
        raise SrattnError(f"the {layout.name} layout has no {kind} head beside {family}{has}")


def head_of(model: nn.Module) -> nn.Module | None:
    """The head beside a backbone, in a task's model; None where the model is a backbone."""
    head = getattr(model, "head", None)
    beside = isinstance(getattr(model, "backbone", None), Backbone)
    return head if beside and isinstance(head, nn.Module) and hasattr(head, "kind") else None


def own_head(model: nn.Module) -> Head | None:
    """All that a task's model has beside its backbone; None where the model is a backbone."""
    module = head_of(model)
    if module is None:
        return None
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}
    return Head(str(module.kind), state, {})


def parts_of(model: nn.Module) -> dict[str, Any]:
    """The configuration of each part beside the backbone of a task's model, "head" and of a detector "neck"."""
    config: Mapping[str, Any] = getattr(model, "config", {})
    return {} if head_of(model) is None else {part: dict(config[part]) for part in config if part != "backbone"}


def set_relu(model: nn.Module, saved: Mapping[str, Any], *, foreign: bool) -> None:
    """Gives a detector's pyramid the ReLU between extra maps, or none, as its weights learnt; mmdetection has none."""
    neck, relu = getattr(model, "neck", None), False if foreign else saved.get("extra_relu")
    if hasattr(neck, "extra_relu") and isinstance(relu, bool):
        neck.extra_relu = relu  # type: ignore[union-attr]


def fit_head(found: FoundHead | None, mine: Head, *, strict: bool, keep: bool) -> Fit:
    """Which tensors go into a model's head, and a detector's neck, by our keys.

    Without `strict` a classifier of another size stays the model's own, and so does whatever is missing.

    Raises:
        SrattnError: there is no head, one of another kind, or one of other numbers.
    """
    fit = Fit()
    if keep:
        fit.unexpected += [] if found is None else list(found.state)
        fit.adapted["head"] = "the model's own head is kept"
        return fit
    if found is None:
        raise SrattnError(f"these weights have no {mine.kind} head; {_KEEP}")
    if found.kind != mine.kind:
        raise SrattnError(f"these weights have a {found.kind} head, the model has a {mine.kind} head; {_KEEP}")
    theirs = found.to_ours()
    told = describe(theirs.kind, theirs.state)
    for key, target in mine.state.items():
        tensor = theirs.state.get(key)
        if tensor is not None and tensor.shape == target.shape:
            fit.values[key] = tensor
        elif tensor is not None and key.startswith("head.classifier.") and not strict:
            fit.unexpected.append(key)
            fit.adapted[key] = f"classifier of another size {tuple(tensor.shape)}; the model's own is kept"
        elif tensor is not None:
            named = ", ".join(repr(name) for name in theirs.names[key])
            shapes = f"{key!r} (their {named}) is {tuple(tensor.shape)}, the model's is {tuple(target.shape)}"
            raise SrattnError(f"{shapes}{told}; {_KEEP}")
        elif strict and not key.endswith("num_batches_tracked") and not key.startswith(BESIDE):
            # Files of long ago have no such counter, and most have no head that serves training alone.
            raise SrattnError(f"these weights have no {key!r} {tuple(target.shape)}{told}; {_KEEP}")
        else:
            fit.missing.append(key)
    for key in theirs.state:
        if key not in mine.state:
            if key.startswith(BESIDE):
                fit.adapted[key] = AUXILIARY
            elif strict:
                raise SrattnError(f"the model has no place for {key!r}{told}; {_KEEP}")
            fit.unexpected.append(key)
    return fit
