"""A model's configuration from the shapes of its tensors (our keys). The heads are in no shape: they are assumed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from srattn.errors import SrattnError

_BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")
# Published models: the heads' widths, and the heads of every size, which reduced copies usually keep.
_HEAD_WIDTHS = (64, 32)
_PUBLISHED_HEADS = (1, 2, 5, 8)


@dataclass(frozen=True)
class Inferred:
    """`config` as create_model takes it (without a name), and in words what the shapes did not tell."""

    family: str
    config: dict[str, Any]
    assumed: tuple[str, ...]


def infer_config(state: Mapping[str, torch.Tensor], family: str, num_heads: Sequence[int] | None = None) -> Inferred:
    """The configuration that gives a model these tensors.

    Args:
        state: tensors by our keys.
        family: "pvt" or "pvt_v2".
        num_heads: the heads of each stage where they are known, else they are assumed.

    Raises:
        SrattnError: the tensors are of no whole model.
    """
    depths = _depths(state)
    stages = range(len(depths))
    dims = [_shape(state, f"stages.{i}.patch_embed.proj.weight", 4)[0] for i in stages]
    assumed = []
    if num_heads is None:
        num_heads = _assume_heads(dims)
        assumed.append(f"num_heads {tuple(num_heads)} (the shapes do not tell)")
    linear = family == "pvt_v2" and all(_pooled(state, i) for i in stages)
    config: dict[str, Any] = {
        "num_classes": _shape(state, "head.weight", 2)[0] if "head.weight" in state else 0,
        "in_chans": _shape(state, "stages.0.patch_embed.proj.weight", 4)[1],
        "embed_dims": dims,
        "num_heads": list(num_heads),
        "mlp_ratios": [_ratio(_shape(state, f"stages.{i}.blocks.0.mlp.fc1.weight", 2)[0], dims[i]) for i in stages],
        "depths": depths,
        "sr_ratios": [8, 4, 2, 1] if linear else [_sr_ratio(state, i, dims[i]) for i in stages],
        "qkv_bias": "stages.0.blocks.0.attn.q.bias" in state,
    }
    if family == "pvt_v2":
        config["linear"] = linear
    else:
        config["class_token"] = "class_token" in state
        # Published patch embeddings do not overlap: kernel = stride, so the first grid gives the image size.
        height, width = _shape(state, "stages.0.position.weight", 4)[1:3]
        patch = _shape(state, "stages.0.patch_embed.proj.weight", 4)[2]
        config["img_size"] = height * patch if height == width else [height * patch, width * patch]
        config["stem_stride"] = patch
    return Inferred(family, config, tuple(assumed))


def _depths(state: Mapping[str, torch.Tensor]) -> list[int]:
    blocks: dict[int, set[int]] = {}
    for key in state:
        if found := _BLOCK.match(key):
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
    if not blocks or set(blocks) != set(range(len(blocks))):
        raise SrattnError(f"these tensors hold the stages {sorted(blocks)}, which is no whole model")
    for stage, numbers in blocks.items():
        if numbers != set(range(len(numbers))):
            raise SrattnError(f"stage {stage} holds the blocks {sorted(numbers)}, some are missing")
    return [len(blocks[i]) for i in range(len(blocks))]


def _assume_heads(dims: Sequence[int]) -> list[int]:
    for width in _HEAD_WIDTHS:
        if dims[0] == width and all(dim % width == 0 for dim in dims):
            return [dim // width for dim in dims]
    if len(dims) == len(_PUBLISHED_HEADS) and all(d % h == 0 for d, h in zip(dims, _PUBLISHED_HEADS, strict=True)):
        return list(_PUBLISHED_HEADS)
    for width in _HEAD_WIDTHS:
        if all(dim % width == 0 for dim in dims):
            return [dim // width for dim in dims]
    raise SrattnError(f"the number of heads of embed_dims {tuple(dims)} is in no shape; name the model that it is")


def _pooled(state: Mapping[str, torch.Tensor], stage: int) -> bool:
    weight = state.get(f"stages.{stage}.blocks.0.attn.reduction.proj.weight")
    return weight is not None and weight.ndim == 2 and weight.shape[0] == weight.shape[1]


def _sr_ratio(state: Mapping[str, torch.Tensor], stage: int, dim: int) -> int:
    key = f"stages.{stage}.blocks.0.attn.reduction.proj.weight"
    if key not in state:
        return 1
    area = _ratio(_shape(state, key, 2)[1], dim)
    side = math.isqrt(int(area))
    if side * side != area:
        raise SrattnError(f"{key!r} {tuple(state[key].shape)} is no square reduction; name the model that it is")
    return side


def _shape(state: Mapping[str, torch.Tensor], key: str, ndim: int) -> tuple[int, ...]:
    if key not in state:
        raise SrattnError(f"these tensors hold no {key!r}")
    if state[key].ndim != ndim or 0 in state[key].shape:
        raise SrattnError(f"{key!r} is {tuple(state[key].shape)}, expected {ndim} dimensions, none of them 0")
    return tuple(state[key].shape)


def _ratio(whole: int, part: int) -> int | float:
    return whole // part if whole % part == 0 else whole / part
