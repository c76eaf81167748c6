"""The layout of timm, which has PVT v2 and MViTv2 (stages of blocks, the first patch embedding outside) and Twins."""

from __future__ import annotations

from srattn.convert.layouts.base import UNIFORM_EPS, Layout
from srattn.convert.layouts.keys import Rule, joined, same
from srattn.convert.layouts.official import OFFICIAL
from srattn.convert.layouts.transforms import KEY_VALUE, QUERY_KEY_VALUE, REDUCTION

_BLOCK = "stages.{i}.blocks.{j}"


def _kept(*parts: str) -> tuple[Rule, ...]:
    """Parts of a block that timm names as we do."""
    return tuple(same(f"{_BLOCK}.{part}.{{p}}", f"{_BLOCK}.{part}.{{p}}") for part in parts)


PVT_V2: tuple[Rule, ...] = (
    # The first stage's patch embedding comes first in the table: stage 0 has no `downsample`.
    same("stages.0.patch_embed.proj.{p}", "patch_embed.proj.{p}"),
    same("stages.0.patch_embed.norm.{p}", "patch_embed.norm.{p}"),
    same("stages.{i}.patch_embed.proj.{p}", "stages.{i}.downsample.proj.{p}"),
    same("stages.{i}.patch_embed.norm.{p}", "stages.{i}.downsample.norm.{p}"),
    *_kept("norm1", "norm2", "attn.q", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp.dwconv"),
    joined([f"{_BLOCK}.attn.k.{{p}}", f"{_BLOCK}.attn.v.{{p}}"], f"{_BLOCK}.attn.kv.{{p}}", KEY_VALUE),
    same(f"{_BLOCK}.attn.reduction.proj.weight", f"{_BLOCK}.attn.sr.weight", REDUCTION),
    same(f"{_BLOCK}.attn.reduction.proj.bias", f"{_BLOCK}.attn.sr.bias"),
    same(f"{_BLOCK}.attn.reduction.norm.{{p}}", f"{_BLOCK}.attn.norm.{{p}}"),
    same("stages.{i}.norm.{p}", "stages.{i}.norm.{p}"),
    same("head.{p}", "head.{p}"),
)

# timm keeps the authors' names, and has no norm after a stage.
TWINS: tuple[Rule, ...] = tuple(rule for rule in OFFICIAL.rules["twins"] if rule.theirs != ("norm_list.{i}.{p}",))

_POOLED = {"query_reduction": "q", "reduction": "k", "value_reduction": "v"}
MVITV2: tuple[Rule, ...] = (
    same("stages.0.patch_embed.proj.{p}", "patch_embed.proj.{p}"),
    *_kept("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"),
    joined([f"{_BLOCK}.attn.{x}.{{p}}" for x in "qkv"], f"{_BLOCK}.attn.qkv.{{p}}", QUERY_KEY_VALUE),
    *(
        same(f"{_BLOCK}.attn.{ours}.{part}.{{p}}", f"{_BLOCK}.attn.{theirs}_{x}.{{p}}")
        for ours, x in _POOLED.items()
        for part, theirs in (("proj", "pool"), ("norm", "norm"))
    ),
    same(f"{_BLOCK}.attn.position.rows", f"{_BLOCK}.attn.rel_pos_h"),
    same(f"{_BLOCK}.attn.position.columns", f"{_BLOCK}.attn.rel_pos_w"),
    same(f"{_BLOCK}.attn_shortcut.{{p}}", f"{_BLOCK}.shortcut_proj_attn.{{p}}"),
    same(f"{_BLOCK}.mlp_shortcut.{{p}}", f"{_BLOCK}.shortcut_proj_mlp.{{p}}"),
    same("norm.{p}", "norm.{p}"),
    same("head.{p}", "head.fc.{p}"),
)

TIMM = Layout(
    "timm",
    "timm (pytorch-image-models)",
    {"pvt_v2": PVT_V2, "twins": TWINS, "mvitv2": MVITV2},
    family_eps={"mvitv2": UNIFORM_EPS},
)
