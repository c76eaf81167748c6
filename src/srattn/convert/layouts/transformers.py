"""The layout of Hugging Face transformers: separate query, key and value; the encoder under the model's name."""

from __future__ import annotations

from srattn.convert.layouts.base import TORCH_EPS, UNIFORM_EPS, Layout
from srattn.convert.layouts.heads import TRANSFORMERS_HEADS
from srattn.convert.layouts.keys import Rule, joined, same
from srattn.convert.layouts.transforms import LAST_POSITIONS, POSITIONS, REDUCTION

_BLOCK = "stages.{i}.blocks.{j}"


def _block(
    theirs: str, attention: str, projections: dict[str, str], out: str, reduction: str, norm: str
) -> tuple[Rule, ...]:
    """The rules of one block; `projections`, `reduction` and `norm` are names under `attention`."""
    return (
        same(f"{_BLOCK}.norm1.{{p}}", f"{theirs}.layer_norm_1.{{p}}"),
        same(f"{_BLOCK}.norm2.{{p}}", f"{theirs}.layer_norm_2.{{p}}"),
        *(same(f"{_BLOCK}.attn.{mine}.{{p}}", f"{attention}.{name}.{{p}}") for mine, name in projections.items()),
        same(f"{_BLOCK}.attn.proj.{{p}}", f"{out}.{{p}}"),
        same(f"{_BLOCK}.attn.reduction.proj.weight", f"{attention}.{reduction}.weight", REDUCTION),
        same(f"{_BLOCK}.attn.reduction.proj.bias", f"{attention}.{reduction}.bias"),
        same(f"{_BLOCK}.attn.reduction.norm.{{p}}", f"{attention}.{norm}.{{p}}"),
        same(f"{_BLOCK}.mlp.fc1.{{p}}", f"{theirs}.mlp.dense1.{{p}}"),
        same(f"{_BLOCK}.mlp.fc2.{{p}}", f"{theirs}.mlp.dense2.{{p}}"),
    )


_NAMES = {"q": "query", "k": "key", "v": "value"}

_V1 = "pvt.encoder"
_V1_BLOCK = f"{_V1}.block.{{i}}.{{j}}"
_V1_PATCH = f"{_V1}.patch_embeddings"
PVT: tuple[Rule, ...] = (
    same("stages.{i}.patch_embed.proj.{p}", f"{_V1_PATCH}.{{i}}.projection.{{p}}"),
    same("stages.{i}.patch_embed.norm.{p}", f"{_V1_PATCH}.{{i}}.layer_norm.{{p}}"),
    joined(["stages.3.position.weight", "class_position?"], f"{_V1_PATCH}.3.position_embeddings", LAST_POSITIONS),
    same("stages.{i}.position.weight", f"{_V1_PATCH}.{{i}}.position_embeddings", POSITIONS),
    same("class_token", f"{_V1_PATCH}.3.cls_token"),
    *_block(
        _V1_BLOCK,
        f"{_V1_BLOCK}.attention.self",
        _NAMES,
        f"{_V1_BLOCK}.attention.output.dense",
        "sequence_reduction",
        "layer_norm",
    ),
    same("norm.{p}", f"{_V1}.layer_norm.{{p}}"),
    same("head.{p}", "classifier.{p}"),
)

_V2 = "pvt_v2.encoder.layers.{i}"
_V2_BLOCK = f"{_V2}.blocks.{{j}}"
PVT_V2: tuple[Rule, ...] = (
    same("stages.{i}.patch_embed.proj.{p}", f"{_V2}.patch_embedding.proj.{{p}}"),
    same("stages.{i}.patch_embed.norm.{p}", f"{_V2}.patch_embedding.layer_norm.{{p}}"),
    *_block(
        _V2_BLOCK,
        f"{_V2_BLOCK}.attention",
        _NAMES,
        f"{_V2_BLOCK}.attention.proj",
        "spatial_reduction",
        "layer_norm",
    ),
    same(f"{_BLOCK}.mlp.dwconv.{{p}}", f"{_V2_BLOCK}.mlp.dwconv.dwconv.{{p}}"),
    same("stages.{i}.norm.{p}", f"{_V2}.layer_norm.{{p}}"),
    same("head.{p}", "classifier.{p}"),
)

# SegFormer as version 5 writes it.
_SEG = "segformer.stages.{i}"
_SEG_BLOCK = f"{_SEG}.blocks.{{j}}"
_SEG_REDUCTION = f"{_SEG_BLOCK}.attention.sequence_reduction"
_SEGFORMER: tuple[Rule, ...] = (
    same("stages.{i}.patch_embed.proj.{p}", f"{_SEG}.patch_embeddings.proj.{{p}}"),
    same("stages.{i}.patch_embed.norm.{p}", f"{_SEG}.patch_embeddings.layer_norm.{{p}}"),
    same(f"{_BLOCK}.norm1.{{p}}", f"{_SEG_BLOCK}.layernorm_before.{{p}}"),
    same(f"{_BLOCK}.norm2.{{p}}", f"{_SEG_BLOCK}.layernorm_after.{{p}}"),
    *(same(f"{_BLOCK}.attn.{x}.{{p}}", f"{_SEG_BLOCK}.attention.{x}_proj.{{p}}") for x in "qkv"),
    same(f"{_BLOCK}.attn.proj.{{p}}", f"{_SEG_BLOCK}.attention.o_proj.{{p}}"),
    same(f"{_BLOCK}.attn.reduction.proj.weight", f"{_SEG_REDUCTION}.sequence_reduction.weight", REDUCTION),
    same(f"{_BLOCK}.attn.reduction.proj.bias", f"{_SEG_REDUCTION}.sequence_reduction.bias"),
    same(f"{_BLOCK}.attn.reduction.norm.{{p}}", f"{_SEG_REDUCTION}.layer_norm.{{p}}"),
    same(f"{_BLOCK}.mlp.fc1.{{p}}", f"{_SEG_BLOCK}.mlp.fc1.{{p}}"),
    same(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_SEG_BLOCK}.mlp.fc2.{{p}}"),
    same(f"{_BLOCK}.mlp.dwconv.{{p}}", f"{_SEG_BLOCK}.mlp.dwconv.dwconv.{{p}}"),
    same("stages.{i}.norm.{p}", f"{_SEG}.layer_norm.{{p}}"),
)


def _encoder(name: str) -> tuple[Rule, ...]:
    """The encoder as SegFormer had it before version 5, and most files on the hub have it; GLPN has it still."""
    block, patch = f"{name}.encoder.block.{{i}}.{{j}}", f"{name}.encoder.patch_embeddings.{{i}}"
    return (
        same("stages.{i}.patch_embed.proj.{p}", f"{patch}.proj.{{p}}"),
        same("stages.{i}.patch_embed.norm.{p}", f"{patch}.layer_norm.{{p}}"),
        *_block(block, f"{block}.attention.self", _NAMES, f"{block}.attention.output.dense", "sr", "layer_norm"),
        same(f"{_BLOCK}.mlp.dwconv.{{p}}", f"{block}.mlp.dwconv.dwconv.{{p}}"),
        same("stages.{i}.norm.{p}", f"{name}.encoder.layer_norm.{{i}}.{{p}}"),
    )


# All are read; a table is written by the first rule that knows a key, so as version 5 has it.
MIT: tuple[Rule, ...] = (
    *_SEGFORMER,
    *_encoder("segformer"),
    *_encoder("glpn"),
    same("head.{p}", "classifier.{p}"),
)

_CVT = "cvt.encoder.stages.{i}"
_CVT_BLOCK = f"{_CVT}.layers.{{j}}"
_CVT_ATTENTION = f"{_CVT_BLOCK}.attention.attention"
_CVT_PROJECTIONS = {"query_reduction": "query", "reduction": "key", "value_reduction": "value"}
CVT: tuple[Rule, ...] = (
    same("stages.{i}.patch_embed.proj.{p}", f"{_CVT}.embedding.convolution_embeddings.projection.{{p}}"),
    same("stages.{i}.patch_embed.norm.{p}", f"{_CVT}.embedding.convolution_embeddings.normalization.{{p}}"),
    same("class_token", "cvt.encoder.stages.2.cls_token"),
    same(f"{_BLOCK}.norm1.{{p}}", f"{_CVT_BLOCK}.layernorm_before.{{p}}"),
    same(f"{_BLOCK}.norm2.{{p}}", f"{_CVT_BLOCK}.layernorm_after.{{p}}"),
    *(
        same(
            f"{_BLOCK}.attn.{mine}.{part}.{{p}}",
            f"{_CVT_ATTENTION}.convolution_projection_{name}.convolution_projection.{theirs}.{{p}}",
        )
        for mine, name in _CVT_PROJECTIONS.items()
        for part, theirs in (("proj", "convolution"), ("norm", "normalization"))
    ),
    *(same(f"{_BLOCK}.attn.{x}.{{p}}", f"{_CVT_ATTENTION}.projection_{name}.{{p}}") for x, name in _NAMES.items()),
    same(f"{_BLOCK}.attn.proj.{{p}}", f"{_CVT_BLOCK}.attention.output.dense.{{p}}"),
    same(f"{_BLOCK}.mlp.fc1.{{p}}", f"{_CVT_BLOCK}.intermediate.dense.{{p}}"),
    same(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_CVT_BLOCK}.output.dense.{{p}}"),
    same("norm.{p}", "layernorm.{p}"),
    same("head.{p}", "classifier.{p}"),
)

TRANSFORMERS = Layout(
    "transformers",
    "Hugging Face transformers",
    {"pvt": PVT, "pvt_v2": PVT_V2, "mit": MIT, "cvt": CVT},
    norm_eps=UNIFORM_EPS,
    family_eps={"mit": TORCH_EPS, "cvt": TORCH_EPS},
    # The bare model and the backbone class begin at the encoder.
    aliases={"pvt": (("encoder.", "pvt.encoder."),), "pvt_v2": (("encoder.", "pvt_v2.encoder."),)}
    | {"mit": (("encoder.", "segformer.encoder."), ("stages.", "segformer.stages."))}
    | {"cvt": (("encoder.", "cvt.encoder."),)},
    heads={"mit": TRANSFORMERS_HEADS},
    beside_head={("mit", "glpn"): _encoder("glpn")},
    prefix="",
)
