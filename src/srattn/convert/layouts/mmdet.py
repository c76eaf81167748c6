"""The layout of mmdetection (and mmsegmentation): nn.MultiheadAttention, 1x1 convolutions in the MLP, their heads.

It has no classifier, and PVT v1 neither class token nor final norm. There is no linear (pooled) variant.
"""

from __future__ import annotations

from srattn.convert.layouts.base import UNIFORM_EPS, Layout
from srattn.convert.layouts.heads import MM_HEADS
from srattn.convert.layouts.keys import Rule, State, joined, same
from srattn.convert.layouts.transforms import POINTWISE, POSITIONS, QUERY_KEY_VALUE, REDUCTION

_BLOCK = "stages.{i}.blocks.{j}"
_PATCH: tuple[Rule, ...] = (
    same("stages.{i}.patch_embed.proj.{p}", "layers.{i}.0.projection.{p}"),
    same("stages.{i}.patch_embed.norm.{p}", "layers.{i}.0.norm.{p}"),
)


def _block(theirs: str, second: int) -> tuple[Rule, ...]:
    """The rules of a block; `second` is the place of the MLP's second layer in their sequence."""
    return (
        same(f"{_BLOCK}.norm1.{{p}}", f"{theirs}.norm1.{{p}}"),
        same(f"{_BLOCK}.norm2.{{p}}", f"{theirs}.norm2.{{p}}"),
        joined([f"{_BLOCK}.attn.{x}.{{p}}" for x in "qkv"], f"{theirs}.attn.attn.in_proj_{{p}}", QUERY_KEY_VALUE),
        same(f"{_BLOCK}.attn.proj.{{p}}", f"{theirs}.attn.attn.out_proj.{{p}}"),
        same(f"{_BLOCK}.attn.reduction.proj.weight", f"{theirs}.attn.sr.weight", REDUCTION),
        same(f"{_BLOCK}.attn.reduction.proj.bias", f"{theirs}.attn.sr.bias"),
        same(f"{_BLOCK}.attn.reduction.norm.{{p}}", f"{theirs}.attn.norm.{{p}}"),
        same(f"{_BLOCK}.mlp.fc1.{{p}}", f"{theirs}.ffn.layers.0.{{p}}", POINTWISE),
        same(f"{_BLOCK}.mlp.fc2.{{p}}", f"{theirs}.ffn.layers.{second}.{{p}}", POINTWISE),
    )


PVT: tuple[Rule, ...] = (
    *_PATCH,
    # The position embedding is the first of the stage's sequence, so their blocks count from one.
    same("stages.{i}.position.weight", "layers.{i}.1.0.pos_embed", POSITIONS),
    *_block("layers.{i}.1.{j+1}", second=3),
)

_V2_BLOCK = "layers.{i}.1.{j}"
PVT_V2: tuple[Rule, ...] = (
    *_PATCH,
    *_block(_V2_BLOCK, second=4),
    same(f"{_BLOCK}.mlp.dwconv.{{p}}", f"{_V2_BLOCK}.ffn.layers.1.{{p}}"),
    same("stages.{i}.norm.{p}", "layers.{i}.2.{p}"),
)


def _refuses(state: State) -> str | None:
    last = "stages.3.blocks.0.attn"
    if (
        f"{last}.reduction.proj.weight" in state
        and state[f"{last}.reduction.proj.weight"].shape[0] == (state[f"{last}.reduction.proj.weight"].shape[1])
    ):
        return "mmdetection has no linear (pooled) variant of this attention"
    if f"{last}.q.weight" in state and f"{last}.q.bias" not in state:
        return "mmdetection has no projection with a bias beside query, key and value without one (qkv_bias=False)"
    return None


MMDET = Layout(
    "mmdet",
    "mmdetection, mmsegmentation",
    {"pvt": PVT, "pvt_v2": PVT_V2},
    norm_eps=UNIFORM_EPS,
    lacks=("head", "norm", "class_token", "class_position"),
    auxiliary=("neck.", "bbox_head.", "rpn_head.", "roi_head.", "mask_head.", "decode_head.", "auxiliary_head."),
    refuses=_refuses,
    heads={"pvt": MM_HEADS, "pvt_v2": MM_HEADS},
)
