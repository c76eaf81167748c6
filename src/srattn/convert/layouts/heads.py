"""The tables of heads that published checkpoints hold beside a backbone, for the layouts that have them.

Our keys begin with `head.`, those of a detector's pyramid with `neck.`. In a whole model, the backbone's keys stand
under `backbone.`, in transformers under its own name.
"""

from __future__ import annotations

from srattn.convert.layouts.keys import Rule, same
from srattn.convert.layouts.mm_heads import RETINANET, SEMANTIC_FPN, UPERNET
from srattn.convert.layouts.transforms import POINTWISE, POINTWISE_REVERSED

Heads = dict[str, tuple[Rule, ...]]

TELLING: dict[str, str] = {
    "segformer": "head.fuse.weight",
    "glpn": "head.depth.weight",
    "semantic_fpn": "head.levels.0.0.conv.weight",
    "upernet": "head.fuse.conv.weight",
    "unet": "head.stages.0.gate.skip.weight",
    "fcos": "head.scales",
    "retinanet": "head.regressor.weight",  # FCOS has it too, and comes first
}
"""Of each kind of head the key of ours that tells it."""

_SEGFORMER_OFFICIAL: tuple[Rule, ...] = (
    same("head.projections.{n}.{p}", "decode_head.linear_c{n+1}.proj.{p}"),
    # They concatenate the coarsest map first.
    same("head.fuse.weight", "decode_head.linear_fuse.conv.weight", POINTWISE_REVERSED),
    same("head.norm.{p}", "decode_head.linear_fuse.bn.{p}"),
    same("head.classifier.{p}", "decode_head.linear_pred.{p}", POINTWISE),
)

_SEGFORMER_TRANSFORMERS: tuple[Rule, ...] = (
    same("head.projections.{n}.{p}", "decode_head.linear_projections.{n}.proj.{p}"),
    same("head.projections.{n}.{p}", "decode_head.linear_c.{n}.proj.{p}"),  # before version 5: read alone
    same("head.fuse.weight", "decode_head.linear_fuse.weight", POINTWISE_REVERSED),
    same("head.norm.{p}", "decode_head.batch_norm.{p}"),
    same("head.classifier.{p}", "decode_head.classifier.{p}", POINTWISE),
)

# Its projections have a batch norm and no bias: another architecture, `projection_norm=True`.
_SEGFORMER_MMSEG: tuple[Rule, ...] = (
    same("head.projections.{n}.weight", "decode_head.convs.{n}.conv.weight", POINTWISE),
    same("head.projection_norms.{n}.{p}", "decode_head.convs.{n}.bn.{p}"),
    same("head.fuse.weight", "decode_head.fusion_conv.conv.weight", POINTWISE),
    same("head.norm.{p}", "decode_head.fusion_conv.bn.{p}"),
    same("head.classifier.{p}", "decode_head.conv_seg.{p}", POINTWISE),
)

_FUSION, _THEIR_FUSION = "head.stages.{n}.fusion", "decoder.stages.{n}.fusion"
_GLPN_TRANSFORMERS: tuple[Rule, ...] = (
    same("head.stages.{n}.project.{p}", "decoder.stages.{n}.convolution.{p}"),
    same(f"{_FUSION}.conv1.{{p}}", f"{_THEIR_FUSION}.convolutional_layer1.0.{{p}}"),
    same(f"{_FUSION}.norm1.{{p}}", f"{_THEIR_FUSION}.convolutional_layer1.1.{{p}}"),
    same(f"{_FUSION}.conv2.{{p}}", f"{_THEIR_FUSION}.convolutional_layer2.0.{{p}}"),
    same(f"{_FUSION}.norm2.{{p}}", f"{_THEIR_FUSION}.convolutional_layer2.1.{{p}}"),
    same(f"{_FUSION}.conv3.{{p}}", f"{_THEIR_FUSION}.convolutional_layer3.{{p}}"),
    same("head.conv.{p}", "head.head.0.{p}"),
    same("head.depth.{p}", "head.head.2.{p}"),
)

# The papers' code for segmentation and detection is made of mmsegmentation's and mmdetection's heads.
MM_HEADS: Heads = {"semantic_fpn": SEMANTIC_FPN, "upernet": UPERNET, "retinanet": RETINANET}
OFFICIAL_HEADS: Heads = {"segformer": _SEGFORMER_OFFICIAL, **MM_HEADS}
TRANSFORMERS_HEADS: Heads = {"segformer": _SEGFORMER_TRANSFORMERS, "glpn": _GLPN_TRANSFORMERS}
MMSEG_HEADS: Heads = {"segformer": _SEGFORMER_MMSEG, "semantic_fpn": SEMANTIC_FPN, "upernet": UPERNET}
