"""The layout of Hugging Face transformers: separate query, key and value; the encoder under the model's name."""

from __future__ import annotations

from srattn.convert.layouts.base import UNIFORM_EPS, Layout
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

TRANSFORMERS = Layout(
    "transformers",
    "Hugging Face transformers",
    {"pvt": PVT, "pvt_v2": PVT_V2},
    norm_eps=UNIFORM_EPS,
    # The bare model and the backbone class begin at the encoder.
    aliases={"pvt": (("encoder.", "pvt.encoder."),), "pvt_v2": (("encoder.", "pvt_v2.encoder."),)},
)
