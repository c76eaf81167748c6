"""The layout of the papers' own code: ``block{s}.{j}``, fused ``attn.kv``, the reduction a convolution ``attn.sr``."""

from __future__ import annotations

from srattn.convert.layouts.base import TORCH_EPS, Layout
from srattn.convert.layouts.heads import MM_HEADS, OFFICIAL_HEADS
from srattn.convert.layouts.keys import Rule, joined, same
from srattn.convert.layouts.segformer3d import SEGFORMER3D
from srattn.convert.layouts.transforms import (
    KEY_VALUE,
    LAST_POSITIONS,
    PAIRS,
    POINTWISE,
    POSITIONS,
    QUERY_KEY_VALUE,
    REDUCTION,
)

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

_TWINS = "blocks.{i}.{j}"
TWINS: tuple[Rule, ...] = (
    same("stages.{i}.patch_embed.proj.{p}", "patch_embeds.{i}.proj.{p}"),
    same("stages.{i}.patch_embed.norm.{p}", "patch_embeds.{i}.norm.{p}"),
    same("stages.{i}.position.dwconv.{p}", "pos_block.{i}.proj.0.{p}"),
    *(
        same(f"{_BLOCK}.{part}.{{p}}", f"{_TWINS}.{part}.{{p}}")
        for part in ("norm1", "norm2", "attn.q", "mlp.fc1", "mlp.fc2")
    ),
    joined([f"{_BLOCK}.attn.k.{{p}}", f"{_BLOCK}.attn.v.{{p}}"], f"{_TWINS}.attn.kv.{{p}}", KEY_VALUE),
    joined([f"{_BLOCK}.attn.window.{x}.{{p}}" for x in "qkv"], f"{_TWINS}.attn.qkv.{{p}}", QUERY_KEY_VALUE),
    # Attention within windows and to the whole map name their output alike; the first has qkv.
    same(f"{_BLOCK}.attn.window.proj.{{p}}", f"{_TWINS}.attn.proj.{{p}}", beside=f"{_TWINS}.attn.qkv.weight"),
    same(f"{_BLOCK}.attn.proj.{{p}}", f"{_TWINS}.attn.proj.{{p}}"),
    same(f"{_BLOCK}.attn.reduction.proj.weight", f"{_TWINS}.attn.sr.weight", REDUCTION),
    same(f"{_BLOCK}.attn.reduction.proj.bias", f"{_TWINS}.attn.sr.bias"),
    same(f"{_BLOCK}.attn.reduction.norm.{{p}}", f"{_TWINS}.attn.norm.{{p}}"),
    same("stages.{i}.norm.{p}", "norm_list.{i}.{p}"),
    same("norm.{p}", "norm.{p}"),
    same("head.{p}", "head.{p}"),
)

_ATTENTION = f"{_BLOCK}.attn"
SHUNTED: tuple[Rule, ...] = (
    same("stages.0.patch_embed.conv.{n}.{p}", "patch_embed1.conv.{n}.{p}"),
    *(rule for rule in _COMMON if not set(rule.theirs) & {f"{_THEIRS}.attn.sr.weight", f"{_THEIRS}.attn.sr.bias"}),
    same(f"{_BLOCK}.mlp.dwconv.{{p}}", f"{_THEIRS}.mlp.dwconv.dwconv.{{p}}"),
    # Two groups of heads with a ratio each; the last stage has one, and neither reduction nor norm.
    same(f"{_ATTENTION}.groups.{{n}}.reduction.proj.weight", f"{_THEIRS}.attn.sr{{n+1}}.weight", REDUCTION),
    same(f"{_ATTENTION}.groups.{{n}}.reduction.proj.bias", f"{_THEIRS}.attn.sr{{n+1}}.bias"),
    same(f"{_ATTENTION}.groups.{{n}}.reduction.norm.{{p}}", f"{_THEIRS}.attn.norm{{n+1}}.{{p}}"),
    joined(
        [f"{_ATTENTION}.groups.{{n}}.k.{{p}}", f"{_ATTENTION}.groups.{{n}}.v.{{p}}"],
        f"{_THEIRS}.attn.kv{{n+1}}.{{p}}",
        KEY_VALUE,
    ),
    same(f"{_ATTENTION}.groups.{{n}}.local.{{p}}", f"{_THEIRS}.attn.local_conv{{n+1}}.{{p}}"),
    same(f"{_ATTENTION}.local.{{p}}", f"{_THEIRS}.attn.local_conv.{{p}}"),
    same("stages.{i}.norm.{p}", "norm{i+1}.{p}"),
)

_CMT = "blocks_{i@}.{j}"
CMT: tuple[Rule, ...] = (
    *(
        same(f"stages.0.patch_embed.stem.{n}.{part}.{{p}}", f"stem_{part}{n + 1}.{{p}}")
        for n in range(3)
        for part in ("conv", "norm")
    ),
    same("stages.{i}.patch_embed.proj.{p}", "patch_embed_{i@}.proj.{p}"),
    same("stages.{i}.patch_embed.norm.{p}", "patch_embed_{i@}.norm.{p}"),
    same("stages.{i}.position_bias.weight", "relative_pos_{i@}", PAIRS),
    *(
        same(f"{_BLOCK}.{part}.{{p}}", f"{_CMT}.{part}.{{p}}")
        for part in ("norm1", "norm2", "attn.q", "attn.k", "attn.v", "attn.proj")
    ),
    same(f"{_BLOCK}.attn.reduction.proj.{{p}}", f"{_CMT}.attn.sr.0.{{p}}"),
    same(f"{_BLOCK}.attn.reduction.norm.{{p}}", f"{_CMT}.attn.sr.1.{{p}}"),
    same(f"{_BLOCK}.local.dwconv.{{p}}", f"{_CMT}.proj.{{p}}"),
    same(f"{_BLOCK}.mlp.fc1.{{p}}", f"{_CMT}.mlp.conv1.0.{{p}}", POINTWISE),
    same(f"{_BLOCK}.mlp.norm1.{{p}}", f"{_CMT}.mlp.conv1.2.{{p}}"),
    same(f"{_BLOCK}.mlp.local.dwconv.{{p}}", f"{_CMT}.mlp.proj.{{p}}"),
    same(f"{_BLOCK}.mlp.norm2.{{p}}", f"{_CMT}.mlp.proj_bn.{{p}}"),
    same(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_CMT}.mlp.conv2.0.{{p}}", POINTWISE),
    same(f"{_BLOCK}.mlp.norm3.{{p}}", f"{_CMT}.mlp.conv2.1.{{p}}"),
    same("fc.proj.{p}", "_fc.{p}", POINTWISE),
    same("fc.norm.{p}", "_bn.{p}"),
    same("head.{p}", "head.{p}"),
)

P2T: tuple[Rule, ...] = (
    same("stages.{i}.patch_embed.proj.{p}", "patch_embed{i+1}.proj.{p}"),
    same("stages.{i}.patch_embed.norm.{p}", "patch_embed{i+1}.norm.{p}"),
    same("stages.{i}.pyramid.{n}.dwconv.{p}", "d_convs{i+1}.{n}.{p}"),
    *(same(f"{_BLOCK}.{part}.{{p}}", f"{_THEIRS}.{part}.{{p}}") for part in ("norm1", "norm2", "attn.proj")),
    same(f"{_BLOCK}.attn.q.{{p}}", f"{_THEIRS}.attn.q.0.{{p}}"),
    joined([f"{_BLOCK}.attn.k.{{p}}", f"{_BLOCK}.attn.v.{{p}}"], f"{_THEIRS}.attn.kv.0.{{p}}", KEY_VALUE),
    same(f"{_BLOCK}.attn.reduction.norm.{{p}}", f"{_THEIRS}.attn.norm.{{p}}"),
    same(f"{_BLOCK}.mlp.fc1.{{p}}", f"{_THEIRS}.mlp.fc1.{{p}}", POINTWISE),
    same(f"{_BLOCK}.mlp.dwconv.{{p}}", f"{_THEIRS}.mlp.conv.{{p}}"),
    same(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_THEIRS}.mlp.fc2.{{p}}", POINTWISE),
    same("head.{p}", "head.{p}"),
)

_CVT = "stage{i}.blocks.{j}"
_CVT_PROJECTIONS = {"query_reduction": "q", "reduction": "k", "value_reduction": "v"}
CVT: tuple[Rule, ...] = (
    same("stages.{i}.patch_embed.proj.{p}", "stage{i}.patch_embed.proj.{p}"),
    same("stages.{i}.patch_embed.norm.{p}", "stage{i}.patch_embed.norm.{p}"),
    same("class_token", "stage2.cls_token"),
    *(
        same(f"{_BLOCK}.{part}.{{p}}", f"{_CVT}.{part}.{{p}}")
        for part in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
    ),
    *(same(f"{_BLOCK}.attn.{x}.{{p}}", f"{_CVT}.attn.proj_{x}.{{p}}") for x in "qkv"),
    *(
        same(f"{_BLOCK}.attn.{mine}.{part}.{{p}}", f"{_CVT}.attn.conv_proj_{x}.{theirs}.{{p}}")
        for mine, x in _CVT_PROJECTIONS.items()
        for part, theirs in (("proj", "conv"), ("norm", "bn"))
    ),
    same("norm.{p}", "norm.{p}"),
    same("head.{p}", "head.{p}"),
)

OFFICIAL = Layout(
    "official",
    "the papers' own code",
    {
        "pvt": PVT,
        "pvt_v2": PVT_V2,
        "mit": PVT_V2,
        "twins": TWINS,
        "shunted": SHUNTED,
        "cvt": CVT,
        "cmt": CMT,
        "p2t": P2T,
        "segformer3d": SEGFORMER3D,
    },
    heads={"mit": OFFICIAL_HEADS, **dict.fromkeys(("pvt", "pvt_v2", "twins", "shunted", "cmt", "p2t"), MM_HEADS)},
    family_eps={"cvt": TORCH_EPS, "segformer3d": TORCH_EPS},
    # What Twins inherits from its copy of PVT and never uses.
    auxiliary=("pos_embeds.", "cls_token"),
)
