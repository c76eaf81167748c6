"""save_checkpoint: a model into a file of any layout, whole or not at all."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srattn.convert import hf
from srattn.convert.heads import check_head, own_head, parts_of
from srattn.convert.layouts import Layout, get_layout
from srattn.convert.state import from_ours
from srattn.convert.tensor_file import write_tensors
from srattn.convert.variants import backbone_of, context_of, family_of
from srattn.errors import SrattnError
from srattn.files import atomic_dir, atomic_path
from srattn.version import __version__

_TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_SUFFIXES = (".safetensors", *_TORCH_SUFFIXES)


def save_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    layout: str = "srattn",
    overwrite: bool = False,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the weights of `model` in `layout`; the file is complete or absent.

    Warns (UserWarning) of what the layout's own code would compute differently: other norm epsilons, another edge
    policy, parts that the layout has no place for.

    Args:
        model: from `srattn.create_model`, or a whole model of `srattn.tasks.dense` or `srattn.tasks.detection`.
        path: a .safetensors, .pth, .pt or .bin file; with layout "transformers" a path without such a suffix is a
            folder with config.json and model.safetensors, as its `from_pretrained` takes it.
        layout: "srattn", "official", "timm", "transformers", "mmdet" or "mmseg".
        overwrite: replace what is there.
        metadata: JSON-able entries beside the model's configuration; layout "srattn" alone.

    Returns:
        The path written.

    Raises:
        SrattnError: the path exists or has another suffix, or the layout cannot hold this model.
    """
    path = Path(path)
    backbone = backbone_of(model)
    family = family_of(backbone)
    target = get_layout(layout, family)
    if metadata and layout != "srattn":
        raise SrattnError(f"metadata can stand in the srattn layout alone, not in {layout}")
    folder = layout == "transformers" and path.suffix not in _SUFFIXES
    config: dict[str, Any] = dict(backbone.config)
    norm_eps, edge = backbone.norm_eps, backbone.edge
    head, parts = own_head(model), parts_of(model)
    if head is not None:
        check_head(head.kind, target, family)
    hub_config = hf.config_for(family, config, norm_eps, parts.get("head")) if layout == "transformers" else None
    if not folder:
        check_suffix(path)
    state, left_out = from_ours(backbone.state_dict(), layout, family, context_of(backbone), head)

    described = {
        "model": getattr(model, "config", config) if head is None else config,
        **parts,
        "norm_eps": norm_eps,
        "edge": edge,
        "version": __version__,
        **(metadata or {}),
    }
    if folder:
        assert hub_config is not None
        write_folder(path, state, hub_config, overwrite)
    else:
        write_file(path, state, overwrite, described if layout == "srattn" else None)
    notes = differences(target, norm_eps, edge, config, left_out, family)
    notes += extra_relu_lost(target, family, parts)
    if notes:
        warnings.warn(f"{path} in the {layout} layout: {'; '.join(notes)}", UserWarning, stacklevel=2)
    return path


def differences(
    target: Layout,
    norm_eps: Mapping[str, float],
    edge: str,
    config: Mapping[str, Any],
    left_out: Sequence[str],
    family: str = "",
) -> list[str]:
    """What the code of a layout would do otherwise than the model that was written in it, in words."""
    if target.name == "srattn":
        return []
    notes = []
    theirs = target.eps_of(family)
    if target.name == "transformers":
        theirs = hf.written_eps(family, norm_eps)
    changed = [f"{kind} {norm_eps[kind]:g} -> {theirs[kind]:g}" for kind in norm_eps if norm_eps[kind] != theirs[kind]]
    if changed:
        notes.append(f"its code uses other norm epsilons ({', '.join(changed)}), so its numbers differ slightly")
    no_edge = config.get("linear", False) or "pool_ratios" in config or family == "mvitv2"
    if edge != target.edge and not no_edge:
        policies = f"its code has the edge policy {target.edge!r}, the model {edge!r}"
        notes.append(f"{policies}: they differ where a ratio does not divide the grid")
    if left_out:
        notes.append(f"it has no place for {', '.join(left_out)}, which are not written")
    if target.name != "transformers":
        for key, usual in (("stem_stride", 4), ("pool_size", 7)):
            if config.get(key, usual) != usual:
                notes.append(f"its code has {key} {usual}, the model {config[key]}")
    if config.get("window_sizes") and config.get("mask_padding", False) != (target.name == "mmseg"):
        habit = "masks" if target.name == "mmseg" else "attends to"
        notes.append(f"its code {habit} the padding of windows: they differ where windows do not divide the map")
    if target.name == "official" and config.get("class_token") is False:
        notes.append("its classifier needs a class token, which this model has not")
    return notes


def extra_relu_lost(target: Layout, family: str, parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is to be said of a detector whose pyramid has a ReLU that mmdetection's has not."""
    neck = parts.get("neck", {})
    learnt = neck.get("extra_levels", 0) > 1 and neck.get("extra_from") != "pool"
    if learnt and neck.get("extra_relu", True) and target.heads.get(family):
        return ["its code has no ReLU between the extra maps, as this model has: their answers differ"]
    return []


def check_suffix(path: Path) -> None:
    """Refuses a path whose suffix says nothing of how to write it."""
    if path.suffix not in _SUFFIXES:
        raise SrattnError(f"{path}: unknown suffix {path.suffix!r}; choose one of {', '.join(_SUFFIXES)}")


def write_file(
    path: Path, state: Mapping[str, torch.Tensor], overwrite: bool, described: Mapping[str, Any] | None = None
) -> None:
    """Writes tensors by the suffix of `path`; `described` is what our own files say of their model."""
    with atomic_path(path, overwrite) as aside:
        if path.suffix in _TORCH_SUFFIXES:
            wrapped = {"state_dict": dict(state), "srattn": json.dumps(described)} if described else dict(state)
            torch.save(wrapped, aside)
        else:
            _write_safetensors(aside, state, {"srattn": json.dumps(described)} if described else {})


def write_folder(path: Path, state: Mapping[str, torch.Tensor], config: Mapping[str, Any], overwrite: bool) -> None:
    """Writes config.json and model.safetensors, as transformers loads them."""
    with atomic_dir(path, overwrite) as aside:
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _write_safetensors(aside / "model.safetensors", state, {})


def _write_safetensors(path: Path, state: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    # transformers refuses a file that does not say which framework wrote it.
    write_tensors(path, state, {"format": "pt", **metadata})
