"""The tables of mmsegmentation's and mmdetection's heads: FPNHead, UPerHead and RetinaHead, and the FPN before them.

The names are those of the modules of their public code (mmseg.models.decode_heads.fpn_head, .uper_head, .psp_head,
mmdet.models.necks.fpn, .dense_heads.retina_head). What it computes otherwise than ours, and no tensor shows:

- FPNHead enlarges by 2 after each convolution and fits the last map to the finest grid; ours goes to the exact grid of
  the next finer map each time. Both are one where each grid is half the finer one.
- Its `gn` has as many groups as its configuration says; ours is made with 32, fewer where they would be narrow.
- UPerHead is ours. Its pools' sizes stand in the configuration alone: 1, 2, 3 and 6 as published.
- FPN has no ReLU between the convolutions of its extra maps (`relu_before_extra_convs` is off as published): a model
  that loads such weights has none either (`extra_relu`).
- RetinaHead is ours, its anchors in our order (ratio by ratio) and, as published, at the left upper corners of cells
  (`offset=0`). Its coder limits how far a box shrinks, too: below a 62nd of its anchor, where ours goes on.
- An auxiliary head serves training alone: a model that has one reads and writes it (UPerHead's FCNHead of one
  convolution), others leave it out.
"""

from __future__ import annotations

from srattn.convert.layouts.keys import Rule, same

AUXILIARY = "dropped: an auxiliary head serves training alone"
BESIDE = "head.auxiliary."
"""What our keys of it begin with."""
_CLASSIFIER = same("head.classifier.{p}", "decode_head.conv_seg.{p}")
_MAPS = 4  # of a backbone: the pyramid begins at one of them


def _normed(ours: str, theirs: str) -> tuple[Rule, ...]:
    """A convolution and its norm, whose name tells its kind."""
    return (
        same(f"{ours}.conv.weight", f"{theirs}.conv.weight"),
        same(f"{ours}.norm.{{p}}", f"{theirs}.bn.{{p}}", beside_ours=f"{ours}.norm.running_mean"),
        same(f"{ours}.norm.{{p}}", f"{theirs}.gn.{{p}}"),
    )


def _pyramid(ours: str) -> tuple[Rule, ...]:
    """The FPN; the convolutions of its extra maps follow those of the others in one list of theirs."""
    laterals, outputs = "neck.lateral_convs", "neck.fpn_convs"
    return (
        same(f"{ours}.laterals.{{n}}.{{p}}", f"{laterals}.{{n}}.conv.{{p}}"),
        same(f"{ours}.outputs.{{n}}.{{p}}", f"{outputs}.{{n}}.conv.{{p}}", beside=f"{laterals}.{{n}}.conv.weight"),
        *(
            same(
                f"{ours}.extras.{{n}}.{{p}}",
                f"{outputs}.{{n+{maps}}}.conv.{{p}}",
                beside=f"{laterals}.{maps - 1}.conv.weight",
                beside_ours=f"{ours}.laterals.{maps - 1}.weight",
            )
            for maps in range(_MAPS, 0, -1)
        ),
    )


def _tower(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Convolutions with a norm; without one each has a bias, and in ours a ReLU of its own number behind it."""
    weights = f"{ours}.{{n}}.conv.weight", f"{theirs}.{{n}}.conv.weight"
    return (
        same(*weights, beside=f"{theirs}.{{n}}.bn.weight"),
        same(*weights, beside=f"{theirs}.{{n}}.gn.weight"),
        *_normed(f"{ours}.{{n}}", f"{theirs}.{{n}}")[1:],
        same(f"{ours}.{{n*2}}.{{p}}", f"{theirs}.{{n}}.conv.{{p}}"),
    )


SEMANTIC_FPN: tuple[Rule, ...] = (
    *_pyramid("head.fpn"),
    # Their sequence has an enlargement after each convolution.
    *_normed("head.levels.{n}.{k}", "decode_head.scale_heads.{n}.{k*2}"),
    _CLASSIFIER,
)

UPERNET: tuple[Rule, ...] = (
    *_normed("head.context.projections.{n}", "decode_head.psp_modules.{n}.1"),
    *_normed("head.context.fuse", "decode_head.bottleneck"),
    *_normed("head.laterals.{n}", "decode_head.lateral_convs.{n}"),
    *_normed("head.outputs.{n}", "decode_head.fpn_convs.{n}"),
    *_normed("head.fuse", "decode_head.fpn_bottleneck"),
    _CLASSIFIER,
)

AUXILIARY_HEAD: tuple[Rule, ...] = (
    *_normed("head.auxiliary.conv", "auxiliary_head.convs.0"),
    same("head.auxiliary.classifier.{p}", "auxiliary_head.conv_seg.{p}"),
)

RETINANET: tuple[Rule, ...] = (
    *_pyramid("neck"),
    *_tower("head.class_tower", "bbox_head.cls_convs"),
    *_tower("head.box_tower", "bbox_head.reg_convs"),
    same("head.classifier.{p}", "bbox_head.retina_cls.{p}"),
    same("head.regressor.{p}", "bbox_head.retina_reg.{p}"),
)
