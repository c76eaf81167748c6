"""The layout of mmsegmentation: Mix Transformer of the parts of mmdetection's PVT v2, Twins, and the heads beside them.

Its code for Twins leaves every layer norm at torch's epsilon; it masks the padding of windows if both sides have some.
"""

from __future__ import annotations

from srattn.convert.layouts.base import TORCH_EPS, UNIFORM_EPS, Layout
from srattn.convert.layouts.heads import MMSEG_HEADS
from srattn.convert.layouts.keys import Rule, joined, same
from srattn.convert.layouts.mmdet import MMDET, PVT_V2
from srattn.convert.layouts.transforms import QUERY_KEY_VALUE, REDUCTION

_BLOCK = "stages.{i}.blocks.{j}"
_TWINS = "layers.{i}.{j}"
# Unlike the others, its blocks stand apart from the patch embeddings, and its MLP is of linear layers.
TWINS: tuple[Rule, ...] = (
    same("stages.{i}.patch_embed.proj.{p}", "patch_embeds.{i}.projection.{p}"),
    same("stages.{i}.patch_embed.norm.{p}", "patch_embeds.{i}.norm.{p}"),
    same("stages.{i}.position.dwconv.{p}", "position_encodings.{i}.proj.{p}"),
    same(f"{_BLOCK}.norm1.{{p}}", f"{_TWINS}.norm1.{{p}}"),
    same(f"{_BLOCK}.norm2.{{p}}", f"{_TWINS}.norm2.{{p}}"),
    joined([f"{_BLOCK}.attn.{x}.{{p}}" for x in "qkv"], f"{_TWINS}.attn.attn.in_proj_{{p}}", QUERY_KEY_VALUE),
    same(f"{_BLOCK}.attn.proj.{{p}}", f"{_TWINS}.attn.attn.out_proj.{{p}}"),
    joined([f"{_BLOCK}.attn.window.{x}.{{p}}" for x in "qkv"], f"{_TWINS}.attn.qkv.{{p}}", QUERY_KEY_VALUE),
    same(f"{_BLOCK}.attn.window.proj.{{p}}", f"{_TWINS}.attn.proj.{{p}}"),
    same(f"{_BLOCK}.attn.reduction.proj.weight", f"{_TWINS}.attn.sr.weight", REDUCTION),
    same(f"{_BLOCK}.attn.reduction.proj.bias", f"{_TWINS}.attn.sr.bias"),
    same(f"{_BLOCK}.attn.reduction.norm.{{p}}", f"{_TWINS}.attn.norm.{{p}}"),
    same(f"{_BLOCK}.mlp.fc1.{{p}}", f"{_TWINS}.ffn.layers.0.0.{{p}}"),
    same(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_TWINS}.ffn.layers.1.{{p}}"),
    same("stages.{i}.norm.{p}", "norm_list.{i}.{p}"),
    same("norm.{p}", "norm.{p}"),  # its converter leaves the classifier's norm in the files that training starts from
)

MMSEG = Layout(
    "mmseg",
    "mmsegmentation",
    {"mit": PVT_V2, "twins": TWINS},
    norm_eps=UNIFORM_EPS,
    family_eps={"twins": TORCH_EPS},
    lacks=("head", "norm"),
    auxiliary=("neck.", "decode_head.", "auxiliary_head."),
    refuses=MMDET.refuses,
    heads={"mit": MMSEG_HEADS, "twins": {kind: MMSEG_HEADS[kind] for kind in ("semantic_fpn", "upernet")}},
)
