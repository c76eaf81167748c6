"""The table of SegFormer3D's own code; its decoder's keys lie beside those of the encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping

from srattn.convert.layouts.keys import Rule, joined, same
from srattn.convert.layouts.transforms import KEY_VALUE, Context, Tensors, Transform
from srattn.errors import SrattnError


class _VolumeReduction:
    """A convolution over volumes against the W^S of the paper: (C, C, Rd, Rh, Rw) and (C, Rd * Rh * Rw * C)."""

    def read(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (weight,) = (tensor for tensor in tensors if tensor is not None)
        if weight.ndim != 5:
            raise SrattnError(f"its shape {tuple(weight.shape)} is not that of a 3-D convolution")
        return [weight.movedim(1, -1).flatten(1)]

    def write(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (weight,) = (tensor for tensor in tensors if tensor is not None)
        channels, columns = weight.shape
        volume, rest = divmod(columns, channels)
        ratio = (round(volume ** (1 / 3)),) * 3
        stage = int(places["i"])
        if stage < len(context.ratios) and len(context.ratios[stage]) == 3:
            ratio = context.ratios[stage]
        if rest or math.prod(ratio) != volume or volume == 0:
            raise SrattnError(f"its shape {tuple(weight.shape)} fits no cubic reduction of {channels} channels")
        return [weight.reshape(channels, *ratio, channels).movedim(-1, 1)]


_REDUCTION: Transform = _VolumeReduction()
_BLOCK = "stages.{i}.blocks.{j}"
_THEIRS = "tf_block{i+1}.{j}"

SEGFORMER3D: tuple[Rule, ...] = (
    same("stages.{i}.patch_embed.proj.{p}", "embed_{i+1}.patch_embeddings.{p}"),
    same("stages.{i}.patch_embed.norm.{p}", "embed_{i+1}.norm.{p}"),
    *(same(f"{_BLOCK}.{part}.{{p}}", f"{_THEIRS}.{part}.{{p}}") for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")),
    same(f"{_BLOCK}.attn.q.{{p}}", f"{_THEIRS}.attention.query.{{p}}"),
    joined([f"{_BLOCK}.attn.k.{{p}}", f"{_BLOCK}.attn.v.{{p}}"], f"{_THEIRS}.attention.key_value.{{p}}", KEY_VALUE),
    same(f"{_BLOCK}.attn.proj.{{p}}", f"{_THEIRS}.attention.proj.{{p}}"),
    same(f"{_BLOCK}.attn.reduction.proj.weight", f"{_THEIRS}.attention.sr.weight", _REDUCTION),
    same(f"{_BLOCK}.attn.reduction.proj.bias", f"{_THEIRS}.attention.sr.bias"),
    same(f"{_BLOCK}.attn.reduction.norm.{{p}}", f"{_THEIRS}.attention.sr_norm.{{p}}"),
    same(f"{_BLOCK}.mlp.dwconv.{{p}}", f"{_THEIRS}.mlp.dwconv.dwconv.{{p}}"),
    same(f"{_BLOCK}.mlp.norm.{{p}}", f"{_THEIRS}.mlp.dwconv.bn.{{p}}"),
    same("stages.{i}.norm.{p}", "norm{i+1}.{p}"),
    # Published without a classifier of whole volumes.
    same("head.{p}", "head.{p}"),
)
