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
_QUERY_BIAS = re.compile(r"stages\.0\.blocks\.0\.attn\.(window\.)?q\.bias")
_PUBLISHED_WINDOW = 7
_PUBLISHED_LEVELS = 4
_STEM = "stages.0.patch_embed.conv."
# Published models: the heads' widths, and the heads of every size, which reduced copies usually keep.
_HEAD_WIDTHS = (64, 32)
_PUBLISHED_HEADS = (1, 2, 5, 8)
_SHUNTED_HEADS = (2, 4, 8, 16)


# The convolution that sees the image, by the families' patch embeddings.
FIRST_CONVOLUTIONS = (
    "stages.0.patch_embed.stem.0.conv.weight",  # a stem before the patches
    "stages.0.patch_embed.proj.weight",
    "stages.0.patch_embed.conv.0.weight",
)


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
        family: "pvt", "pvt_v2" or "twins".
        num_heads: the heads of each stage where they are known, else they are assumed.

    Raises:
        SrattnError: the tensors are of no whole model.
    """
    depths = _depths(state)
    if family == "mvitv2":
        return _mvitv2(state, depths)
    stages = range(len(depths))
    # A family's stem may come before the first patch embedding, or take its place.
    first = first_convolution(state)
    widths = "stages.0.patch_embed.proj.weight" if "stages.0.patch_embed.proj.weight" in state else first
    dims = [_shape(state, f"stages.{i}.patch_embed.proj.weight" if i else widths, 4)[0] for i in stages]
    assumed = []
    if num_heads is None:
        num_heads = _told_heads(state, len(depths))
    if num_heads is None:
        num_heads = _assume_heads(dims, _SHUNTED_HEADS if family == "shunted" else _PUBLISHED_HEADS)
        assumed.append(f"num_heads {tuple(num_heads)} (the shapes do not tell)")
    linear = family == "pvt_v2" and all(_pooled(state, i) for i in stages)
    config: dict[str, Any] = {
        "num_classes": _shape(state, "head.weight", 2)[0] if "head.weight" in state else 0,
        "in_chans": _shape(state, first, 4)[1],
        "embed_dims": dims,
        "num_heads": list(num_heads),
        "mlp_ratios": [_mlp_ratio(_shape(state, f"stages.{i}.blocks.0.mlp.fc1.weight", 2)[0], dims[i]) for i in stages],
        "depths": depths,
        "sr_ratios": [8, 4, 2, 1] if linear else [_sr_ratio(state, i, dims[i]) for i in stages],
        "qkv_bias": any(_QUERY_BIAS.fullmatch(key) for key in state),
    }
    if family == "pvt_v2":
        config["linear"] = linear
    elif family == "cmt":
        _cmt(state, config)
    elif family == "p2t":
        _p2t(state, config)
        assumed.append("pool_ratios as published (the shapes do not tell)")
    elif family == "shunted":
        # The strided convolution, num_conv of 3x3, and the patches; the rest of the stem are norms.
        config["num_conv"] = sum(key.startswith(_STEM) and tensor.ndim == 4 for key, tensor in state.items()) - 2
    elif family == "cvt":
        # Their kernels are 2 S - 1, and 3 at stride 1 too: strides of 1 are not told from those of 2.
        config["sr_ratios"] = [2 if kernel == 3 else (kernel + 1) // 2 for kernel in config["sr_ratios"]]
        config["stem_stride"] = (_shape(state, first_convolution(state), 4)[2] + 1) // 2
        config["class_token"] = "class_token" in state
        assumed.append(f"sr_ratios {tuple(config['sr_ratios'])} (the shapes do not tell)")
    elif family == "mit":
        pass  # nothing but the numbers above
    elif family == "twins":
        config["stem_stride"] = _shape(state, "stages.0.patch_embed.proj.weight", 4)[2]
        config["norm_after_stage"] = "stages.0.norm.weight" in state
        config["window_sizes"] = None
        if any(".attn.window." in key for key in state):
            config["window_sizes"] = [_PUBLISHED_WINDOW for _ in stages]
            assumed.append(f"window_sizes {tuple(config['window_sizes'])} (the shapes do not tell)")
    else:
        config["class_token"] = "class_token" in state
        # Published patch embeddings do not overlap: kernel = stride, so the first grid gives the image size.
        height, width = _shape(state, "stages.0.position.weight", 4)[1:3]
        patch = _shape(state, "stages.0.patch_embed.proj.weight", 4)[2]
        config["img_size"] = height * patch if height == width else [height * patch, width * patch]
        config["stem_stride"] = patch
    return Inferred(family, config, tuple(assumed))


def first_convolution(state: Mapping[str, torch.Tensor]) -> str:
    """The key of the convolution that the images enter, in our layout."""
    return next((key for key in FIRST_CONVOLUTIONS if key in state), "stages.0.patch_embed.proj.weight")


def _cmt(state: Mapping[str, torch.Tensor], config: dict[str, Any]) -> None:
    """The rest of CMT's numbers. Its first position bias tells the image size, at the published stride."""
    config["stem_channels"] = _shape(state, FIRST_CONVOLUTIONS[0], 4)[0]
    for name, place in (("stem_depth", "stem"), ("conv_depth", "convs")):
        pair = re.compile(rf"stages\.0\.patch_embed\.{place}\.\d+\.first\.conv\.weight")
        if depth := sum(pair.fullmatch(key) is not None for key in state):
            config[name] = depth
    config["fc_dim"] = _shape(state, "fc.proj.weight", 2)[0]
    config["qk_ratio"] = config["embed_dims"][0] // _shape(state, "stages.0.blocks.0.attn.q.weight", 2)[0]
    height, width = _shape(state, "stages.0.position_bias.weight", 5)[1:3]
    patch = _shape(state, "stages.0.patch_embed.proj.weight", 4)[2]
    stride = config["stem_stride"] = patch * 2 if patch > 1 else 1
    config["img_size"] = height * stride if height == width else [height * stride, width * stride]


def _p2t(state: Mapping[str, torch.Tensor], config: dict[str, Any]) -> None:
    """P2T has a pyramid in place of a ratio; its weights tell the levels, not their ratios."""
    del config["sr_ratios"]
    for i in range(len(config["depths"])):
        levels = sum(re.fullmatch(rf"stages\.{i}\.pyramid\.\d+\.dwconv\.weight", key) is not None for key in state)
        if levels != _PUBLISHED_LEVELS:
            raise SrattnError(
                f"stage {i} pools to {levels} levels, published models to {_PUBLISHED_LEVELS}; shapes tell no ratios"
            )


def _told_heads(state: Mapping[str, torch.Tensor], stages: int) -> list[int] | None:
    """The heads of each stage where biases of position hold one map a head."""
    biases = [state.get(f"stages.{i}.position_bias.weight") for i in range(stages)]
    return [bias.shape[0] for bias in biases if bias is not None] if all(b is not None for b in biases) else None


def _mvitv2(state: Mapping[str, torch.Tensor], depths: list[int]) -> Inferred:
    """MViTv2 has one patch embedding; its stages' widths stand in their attention, their heads in its norms."""
    stages = [f"stages.{i}.blocks.0" for i in range(len(depths))]
    dims = [_shape(state, f"{stage}.attn.proj.weight", 2)[0] for stage in stages]
    stem = _shape(state, "stages.0.patch_embed.proj.weight", 4)
    tables = [_shape(state, f"stages.0.blocks.0.attn.position.{axis}", 2)[0] for axis in ("rows", "columns")]
    config: dict[str, Any] = {
        "num_classes": _shape(state, "head.weight", 2)[0] if "head.weight" in state else 0,
        "in_chans": stem[1],
        "embed_dims": dims,
        "num_heads": [
            dim // _shape(state, f"{stage}.attn.reduction.norm.weight", 1)[0]
            for stage, dim in zip(stages, dims, strict=True)
        ],
        "mlp_ratios": [
            _mlp_ratio(_shape(state, f"{stage}.mlp.fc1.weight", 2)[0], dim)
            for stage, dim in zip(stages, dims, strict=True)
        ],
        "depths": depths,
        "sr_ratios": [4, 2, 1, 1],
        "expand_attn": any(".attn_shortcut." in key for key in state),
        "qkv_bias": any(_QUERY_BIAS.fullmatch(key) for key in state),
        "stem_stride": (stem[2] + 1) // 2,
    }
    height, width = ((length + 1) // 2 * config["stem_stride"] for length in tables)
    config["img_size"] = height if height == width else [height, width]
    return Inferred("mvitv2", config, ("sr_ratios (4, 2, 1, 1) (the shapes do not tell)",))


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


def _assume_heads(dims: Sequence[int], published: Sequence[int]) -> list[int]:
    for width in _HEAD_WIDTHS:
        if dims[0] == width * published[0] and list(dims) == sorted(dims) and all(dim % width == 0 for dim in dims):
            return [dim // width for dim in dims]
    if len(dims) == len(published) and all(d % h == 0 for d, h in zip(dims, published, strict=True)):
        return list(published)
    for width in _HEAD_WIDTHS:
        if all(dim % width == 0 for dim in dims):
            return [dim // width for dim in dims]
    raise SrattnError(f"the number of heads of embed_dims {tuple(dims)} is in no shape; name the model that it is")


def _pooled(state: Mapping[str, torch.Tensor], stage: int) -> bool:
    weight = state.get(f"stages.{stage}.blocks.0.attn.reduction.proj.weight")
    return weight is not None and weight.ndim == 2 and weight.shape[0] == weight.shape[1]


def _sr_ratio(state: Mapping[str, torch.Tensor], stage: int, dim: int) -> int | tuple[int, int]:
    # Not every block of a stage reduces: Twins-SVT begins with attention within windows.
    pattern = re.compile(rf"stages\.{stage}\.blocks\.\d+\.attn\.(groups\.0\.)?reduction\.proj\.weight")
    key = next((key for key in state if pattern.fullmatch(key)), None)
    if key is None:
        return 1
    if state[key].ndim == 4:  # depthwise: a convolution as it is
        height, width = _shape(state, key, 4)[2:]
        return height if height == width else (height, width)
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


def _mlp_ratio(hidden: int, dim: int) -> int | float:
    """The shortest decimal of which `dim` times it, rounded down, is the hidden width (3.6 of 165 and 46)."""
    if hidden % dim == 0:
        return hidden // dim
    for scale in (10, 100, 1000):
        least = math.ceil(hidden * scale / dim)
        for ratio in (least / scale, (least + 1) / scale):  # 25 * 1.16 is 28.999..., 25 * 1.17 is 29.25
            if int(dim * ratio) == hidden:
                return ratio
    return math.nextafter(hidden / dim, math.inf)


def _ratio(whole: int, part: int) -> int | float:
    return whole // part if whole % part == 0 else whole / part
