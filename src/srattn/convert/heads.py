"""The head of a whole model: found beside the weights of its backbone, fitted to a model's own, described.

A head is known by its kind, which its module names (`kind`), and by its table in `srattn.convert.layouts.heads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from srattn.convert.fit import Fit
from srattn.convert.layouts.base import Layout
from srattn.convert.layouts.keys import Rule, apply_rules, count_known, find_rule
from srattn.convert.layouts.transforms import Context
from srattn.errors import SrattnError
from srattn.models.backbone import Backbone

_KEEP = 'keep the model\'s own with head="keep"'


@dataclass(frozen=True)
class Head:
    """A head's tensors by our keys (`head.`...), and our key -> their keys."""

    kind: str
    state: Mapping[str, torch.Tensor]
    names: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class FoundHead:
    """A head as a checkpoint holds it; nothing is converted before it is asked for."""

    kind: str
    rules: tuple[Rule, ...]
    state: Mapping[str, torch.Tensor]

    def to_ours(self) -> Head:
        applied = apply_rules(self.state, self.rules, to_ours=True, context=Context())
        return Head(self.kind, applied.state, applied.sources)


def find_head(layout: Layout, family: str, rest: Mapping[str, torch.Tensor]) -> FoundHead | None:
    """The head that the layout knows most keys of among `rest`, the tensors that belong to no backbone."""
    tables = layout.heads.get(family, {})
    kind = max(tables, key=lambda kind: count_known(rest, tables[kind]), default=None)
    if kind is None or not count_known(rest, tables[kind]):
        return None
    rules = tables[kind]
    known = {key: t for key, t in rest.items() if find_rule(key, rules, theirs=True, keys=rest) is not None}
    return FoundHead(kind, rules, known)


def write_head(head: Head, layout: Layout, family: str) -> dict[str, torch.Tensor]:
    """The head's tensors by the keys of a layout.

    Raises:
        SrattnError: the layout has no such head beside this family, or no place for one of its tensors.
    """
    rules = layout.heads.get(family, {}).get(head.kind)
    if rules is None:
        raise SrattnError(f"the {layout.name} layout has no {head.kind} head beside {family}")
    applied = apply_rules(head.state, rules, to_ours=False, context=Context())
    if applied.unknown:
        raise SrattnError(f"the {layout.name} layout of a {head.kind} head has no rule for {applied.unknown[0]!r}")
    return applied.state


def head_of(model: nn.Module) -> nn.Module | None:
    """The head beside a backbone, in a task's model; None where the model is a backbone."""
    head = getattr(model, "head", None)
    beside = isinstance(getattr(model, "backbone", None), Backbone)
    return head if beside and isinstance(head, nn.Module) and hasattr(head, "kind") else None


def own_state(module: nn.Module) -> Head:
    """A head's module as a `Head`."""
    return Head(str(module.kind), {f"head.{key}": value for key, value in module.state_dict().items()}, {})


def fit_head(found: FoundHead | None, module: nn.Module, *, strict: bool, keep: bool) -> Fit:
    """Which tensors go into a model's head, by `head.` and its own keys.

    Without `strict` a classifier of another size stays the model's own, and so does whatever is missing.

    Raises:
        SrattnError: there is no head, one of another kind, or one of other numbers.
    """
    mine, fit = own_state(module), Fit()
    if keep:
        fit.unexpected += [] if found is None else list(found.state)
        fit.adapted["head"] = "the model's own head is kept"
        return fit
    if found is None:
        raise SrattnError(f"these weights have no {mine.kind} head; {_KEEP}")
    if found.kind != mine.kind:
        raise SrattnError(f"these weights have a {found.kind} head, the model has a {mine.kind} head; {_KEEP}")
    theirs = found.to_ours()
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
            raise SrattnError(f"{shapes}{_describe(theirs)}")
        elif strict and not key.endswith("num_batches_tracked"):  # files of long ago have no such counter
            raise SrattnError(f"these weights have no {key!r} {tuple(target.shape)}{_describe(theirs)}")
        else:
            fit.missing.append(key)
    for key in theirs.state:
        if key not in mine.state:
            if strict:
                raise SrattnError(f"the model has no place for {key!r}{_describe(theirs)}")
            fit.unexpected.append(key)
    return fit


def head_config(head: Head) -> dict[str, Any]:
    """The numbers of a head as its shapes tell them, named as the head's own options are."""
    fuse, conv = head.state.get("head.fuse.weight"), head.state.get("head.conv.weight")
    classifier = head.state.get("head.classifier.weight")
    config: dict[str, Any] = {"kind": head.kind}
    if fuse is not None and classifier is not None:
        normed = any(key.startswith("head.projection_norms.") for key in head.state)
        config |= {"num_classes": classifier.shape[0], "hidden": fuse.shape[0], "projection_norm": normed}
    elif conv is not None:
        config["hidden"] = conv.shape[0]
    else:
        raise SrattnError(f"the tensors of this {head.kind} head are not whole")
    return config


def _describe(head: Head) -> str:
    try:
        numbers = head_config(head)
    except SrattnError:
        return ""
    told = ", ".join(f"{key}={value}" for key, value in numbers.items() if key != "kind")
    return f"; these weights fit a {head.kind} head with {told}"
