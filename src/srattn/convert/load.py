"""load_checkpoint: any published layout into a model, all checks before the first change."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from srattn.convert import hf
from srattn.convert.fit import Fit, Fitter, Mismatch
from srattn.convert.head_numbers import check_parts, saved_backbone, saved_kind, saved_parts
from srattn.convert.heads import Head, fit_head, head_of, own_head, parts_of, set_relu
from srattn.convert.layouts.mm_heads import AUXILIARY, BESIDE
from srattn.convert.source import Source, read_source
from srattn.convert.state import Ours, merged, to_ours
from srattn.convert.variants import backbone_of, context_of, describe, family_of
from srattn.errors import SrattnError
from srattn.layers.reduction import check_edge
from srattn.models.backbone import Backbone

_KINDS = ("block", "reduction", "patch")


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        layout, family: what the checkpoint was recognised as.
        origin: the file or folder, or "state dict".
        loaded: the model's keys that have new values.
        missing: the model's keys that the checkpoint lacks; they keep their values.
        unexpected: keys of the checkpoint that were not used.
        resized: position embeddings, key -> "7x7 -> 14x14".
        adapted: keys that were changed, kept or dropped, with the reason in words.
        norm_eps, edge: the layer norm epsilons and the edge policy that the model now has.
    """

    layout: str
    origin: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    resized: dict[str, str]
    adapted: dict[str, str]
    norm_eps: dict[str, float]
    edge: str
    family: str

    def __str__(self) -> str:
        lines = [f"{self.origin}: {self.layout} layout of {self.family}, {len(self.loaded)} tensors loaded"]
        lines += [f"  {key}: resized {how}" for key, how in self.resized.items()]
        lines += [f"  {key}: {how}" for key, how in self.adapted.items()]
        lines += [f"  missing: {key}" for key in self.missing if key not in self.adapted]
        lines += [f"  not used: {key}" for key in self.unexpected if key not in self.adapted]
        eps = ", ".join(f"{kind} {value:g}" for kind, value in self.norm_eps.items())
        return "\n".join([*lines, f"  norm epsilons: {eps}; edge: {self.edge}"])


def load_checkpoint(
    model: nn.Module,
    source: Mapping[str, Any] | str | os.PathLike[str],
    *,
    strict: bool = True,
    layout: str | None = None,
    head: Literal["load", "keep"] = "load",
) -> LoadReport:
    """Loads published weights into `model`, whatever layout they are in.

    The layout is recognised by its keys, with or without wrappers (``state_dict``, ``module.``, ``backbone.``). The
    norm epsilons and the edge policy of the weights' origin are applied, so that the model gives the origin's numbers.
    The first convolution is adapted to the model's channels, position embeddings are resized to its grid.

    Args:
        model: from `srattn.create_model`, also with `features_only`; or a whole model of `srattn.tasks.dense` or
            `srattn.tasks.detection`. From the weights of a whole model, a backbone takes its own part.
        source: a state dict, a .safetensors, .pth, .pt or .bin file, or a transformers folder.
        strict: refuse missing and unexpected keys. A classifier is not expected by a model without one, nor a class
            token by one built with class_token=False; these are left out and reported.
        layout: the layout's name, where it should not be recognised.
        head: "keep" leaves the model's own classifier alone, and of a whole model all but its backbone.

    Raises:
        SrattnError: the file cannot be read or the weights do not fit; names the first key. The model is unchanged.
    """
    if head not in ("load", "keep"):
        raise SrattnError(f"head is 'load' or 'keep', got {head!r}")
    backbone, mine = backbone_of(model), own_head(model)
    read = read_source(source)
    try:
        ours = _read_ours(read, backbone, mine, layout)
        norm_eps, edge = _settings(read, ours)
        try:
            fit, beside = _fit(ours, backbone, strict, head == "keep", features_only=backbone is not model)
        except Mismatch as error:
            raise SrattnError(f"{error}{describe(ours.state, ours.detected.family)}") from error
        # After the shapes: weights of another model are better told by the model that they fit.
        _check_heads(read, ours, backbone.config)
        _check_values(fit.values, backbone.state_dict())
        head_fit = Fit(unexpected=[] if ours.head is None else list(ours.head.state))
        if mine is not None:
            head_fit = fit_head(ours.head, mine, strict=strict, keep=head == "keep")
            if head == "load":
                check_parts(saved_parts(read.metadata), parts_of(model))
            _check_values(head_fit.values, mine.state)
    except SrattnError as error:
        raise SrattnError(f"{read.origin}: {error}") from error

    targets: dict[str, torch.Tensor] = dict(backbone.state_dict())
    head_module = head_of(model)
    if mine is not None and head_module is not None:
        targets |= mine.state
        if head == "load":
            saved = saved_parts(read.metadata)
            hf.set_depth(head_module, read.config, saved.get("head", {}))
            set_relu(model, saved.get("neck", {}), foreign=ours.head is not None and ours.head.rules is not None)
    with torch.no_grad():
        for key, tensor in (fit.values | head_fit.values).items():
            targets[key].copy_(tensor)
    if norm_eps is not None:
        backbone.set_norm_eps(**norm_eps)
    if edge is not None:
        backbone.set_edge(edge)
    return LoadReport(
        layout=ours.detected.layout.name,
        origin=read.origin,
        loaded=(*fit.values, *head_fit.values),
        missing=(*fit.missing, *head_fit.missing),
        unexpected=(*fit.unexpected, *head_fit.unexpected, *beside),
        resized=fit.resized,
        adapted=fit.adapted | head_fit.adapted | _remarks(ours, beside),
        norm_eps=backbone.norm_eps,
        edge=backbone.edge,
        family=ours.detected.family,
    )


def _read_ours(read: Source, backbone: Backbone, mine: Head | None, layout: str | None) -> Ours:
    context = merged(hf.context_from(read.config), context_of(backbone))
    return to_ours(
        read.state,
        layout=layout,
        prefer=family_of(backbone),
        context=context,
        kind=saved_kind(read.metadata),
        own_kind=None if mine is None else mine.kind,
        auxiliary=mine is not None and any(key.startswith(BESIDE) for key in mine.state),
    )


def _fit(
    ours: Ours, backbone: Backbone, strict: bool, keep_head: bool, features_only: bool
) -> tuple[Fit, tuple[str, ...]]:
    """The tensors for the model, and the keys that belong to no backbone."""
    detected, family = ours.detected, family_of(backbone)
    if detected.family != family:
        name = backbone.config.get("name", family)
        raise Mismatch(f"{next(iter(detected.state))!r} is of {detected.family}, the model is {name}")
    wanted = backbone.state_dict()
    fit = Fitter(wanted, detected.layout, ours.names, strict, keep_head, features_only).fit(ours.state)
    return fit, _beside(ours, strict)


def _check_heads(read: Source, ours: Ours, config: Mapping[str, Any]) -> None:
    """Refuses weights of another number of heads or size of windows, which no shape shows."""
    if ours.detected.layout.name == "transformers":
        hf.check_config(read.config, config)
    saved = saved_backbone(read.metadata)
    for option in ("num_heads", "window_sizes"):
        if saved.get(option, config.get(option)) != config.get(option):
            raise SrattnError(f"the weights have {option} {saved[option]}, the model has {config.get(option)}")


def _settings(read: Source, ours: Ours) -> tuple[dict[str, float] | None, str | None]:
    """The epsilons and the edge policy of the weights' origin; None where the model's own stay."""
    layout = ours.detected.layout
    if layout.name == "transformers":
        return hf.eps_from(read.config, ours.detected.family), layout.edge
    if layout.name != "srattn":
        return layout.eps_of(ours.detected.family), layout.edge
    eps, edge = read.metadata.get("norm_eps"), read.metadata.get("edge")
    if eps is not None and not (
        isinstance(eps, dict) and set(eps) == set(_KINDS) and all(_is_small(x) for x in eps.values())
    ):
        raise SrattnError(f"its metadata has norm_eps {eps!r}, expected a small number for each of {', '.join(_KINDS)}")
    return eps, None if edge is None else check_edge(edge)


def _is_small(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _beside(ours: Ours, strict: bool) -> tuple[str, ...]:
    """Keys that belong to no backbone: of surrounding parts (reported), or strange ones (refused if strict)."""
    detected = ours.detected
    strange = [key for key in ours.unknown if not key.startswith(detected.layout.auxiliary)]
    if strange and strict:
        layout = f"the {detected.layout.name} layout of {detected.family}"
        raise Mismatch(f"{layout} has no key {strange[0]!r} {tuple(detected.state[strange[0]].shape)}")
    return (*ours.unknown, *ours.beside)


def _remarks(ours: Ours, beside: Sequence[str]) -> dict[str, str]:
    """What is to be said of a whole model's parts that have no place here."""
    return {key: AUXILIARY for key in beside if key.removeprefix(ours.detected.outer).startswith("auxiliary_head.")}


def _check_values(values: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    for key, tensor in values.items():
        if wanted[key].is_floating_point() and not tensor.is_floating_point():
            raise SrattnError(f"{key!r} holds {tensor.dtype}, not floating-point numbers")
        if tensor.dtype != wanted[key].dtype and not wanted[key].is_floating_point():  # a batch norm's counter
            raise SrattnError(f"{key!r} holds {tensor.dtype}, the model {wanted[key].dtype}")
        if tensor.is_meta:
            raise SrattnError(f"{key!r} holds no numbers (a meta tensor)")
    if any(tensor.is_meta for tensor in wanted.values()):
        raise SrattnError(
            'the model is on the meta device and cannot hold weights; call model.to_empty(device="cpu") first'
        )
