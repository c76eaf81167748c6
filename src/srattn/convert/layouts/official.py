"""The layout of the papers' own code: ``block{s}.{j}``, fused ``attn.kv``, the reduction a convolution ``attn.sr``."""

from __future__ import annotations

from srattn.convert.layouts.base import Layout
from srattn.convert.layouts.keys import Rule, joined, same
from srattn.convert.layouts.transforms import KEY_VALUE, LAST_POSITIONS, POSITIONS, REDUCTION

_BLOCK = "stages.{i}.blocks.{j}"
_THEIRS = "block{i+1}.{j}"

_COMMON: tuple[Rule, ...] = (
    same("stages.{i}.patch_embed.proj.{p}", "patch_embed{i+1}.proj.{p}"),
    same("stages.{i}.patch_embed.norm.{p}", "patch_embed{i+1}.norm.{p}"),
    same(f"{_BLOCK}.norm1.{{p}}", f"{_THEIRS}.norm1.{{p}}"),
    same(f"{_BLOCK}.norm2.{{p}}", f"{_THEIRS}.norm2.{{p}}"),
    same(f"{_BLOCK}.attn.q.{{p}}", f"{_THEIRS}.attn.q.{{p}}"),
    joined([f"{_BLOCK}.attn.k.{{p}}", f"{_BLOCK}.attn.v.{{p}}"], f"{_THEIRS}.attn.kv.{{p}}", KEY_VALUE),
    same(f"{_BLOCK}.attn.proj.{{p}}", f"{_THEIRS}.attn.proj.{{p}}"),
    same(f"{_BLOCK}.attn.reduction.proj.weight", f"{_THEIRS}.attn.sr.weight", REDUCTION),
    same(f"{_BLOCK}.attn.reduction.proj.bias", f"{_THEIRS}.attn.sr.bias"),
    same(f"{_BLOCK}.attn.reduction.norm.{{p}}", f"{_THEIRS}.attn.norm.{{p}}"),
    same(f"{_BLOCK}.mlp.fc1.{{p}}", f"{_THEIRS}.mlp.fc1.{{p}}"),
    same(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_THEIRS}.mlp.fc2.{{p}}"),
    same("head.{p}", "head.{p}"),
)

PVT: tuple[Rule, ...] = (
    *_COMMON,
    joined(["stages.3.position.weight", "class_position?"], "pos_embed4", LAST_POSITIONS),
    same("stages.{i}.position.weight", "pos_embed{i+1}", POSITIONS),
    same("class_token", "cls_token"),
    same("norm.{p}", "norm.{p}"),
)

PVT_V2: tuple[Rule, ...] = (
    *_COMMON,
    same(f"{_BLOCK}.mlp.dwconv.{{p}}", f"{_THEIRS}.mlp.dwconv.dwconv.{{p}}"),
    same("stages.{i}.norm.{p}", "norm{i+1}.{p}"),
)

OFFICIAL = Layout("official", "the papers' own code", {"pvt": PVT, "pvt_v2": PVT_V2})
