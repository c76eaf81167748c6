"""The operators of `srattn.export.operators` in ONNX: NonMaxSuppression, and RoiAlign on each map for its own boxes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

import srattn.export.operators  # noqa: F401 (they are registered there)

_NOT = -1.0  # the score of what takes no part; ranks are above 0
_FLOAT, _BOOL = 1, 9


def table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`."""
    own: Any = torch.ops.srattn
    return {own.unsuppressed.default: _unsuppressed, own.align_regions.default: _align_regions}


def _unsuppressed(boxes: Any, labels: Any, able: Any, overlap: float, kinds: int, most: int) -> Any:
    op: Any = importlib.import_module("onnxscript").opset18
    count = op.Shape(labels, start=1, end=2)
    # Ranks for scores, which are never equal: the first is the best.
    ranks = op.Cast(op.Range(op.Squeeze(count), _int(op, 0), _int(op, -1)), to=_FLOAT)
    own = op.Equal(op.Unsqueeze(labels, _ints(op, 1)), op.Reshape(_ints(op, *range(kinds)), _ints(op, 1, -1, 1)))
    mine = op.And(own, op.Unsqueeze(able, _ints(op, 1)))  # (B, K, C): each in the row of its label alone
    scores = op.Where(mine, ranks, op.Constant(value_float=_NOT))
    picked = op.NonMaxSuppression(
        boxes, scores, _ints(op, most), op.Constant(value_floats=[overlap]), op.Constant(value_floats=[_NOT / 2])
    )  # (S, 3): image, label, place
    where = op.Gather(picked, _ints(op, 0, 2), axis=1)
    none = op.Expand(op.Cast(_int(op, 0), to=_FLOAT), op.Shape(labels))
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(where, start=0, end=1))
    return op.Cast(op.ScatterND(none, where, ones), to=_BOOL)


def _align_regions(maps: Sequence[Any], boxes: Any, image: Any, own: Any, strides: Sequence[int], size: int) -> Any:
    op: Any = importlib.import_module("onnxscript").opset18
    channels = op.Shape(maps[0], start=1, end=2)
    shape = op.Concat(op.Shape(boxes, start=0, end=1), channels, _ints(op, size, size), axis=0)
    out = op.Expand(op.Constant(value_float=0.0), shape)
    for n, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        where = op.Transpose(op.NonZero(op.Equal(own, _int(op, n))), perm=[1, 0])  # (M, 1)
        found = op.RoiAlign(
            x,
            op.GatherND(boxes, where),
            op.GatherND(image, where),
            coordinate_transformation_mode="half_pixel",
            mode="avg",
            output_height=size,
            output_width=size,
            sampling_ratio=2,
            spatial_scale=1 / stride,
        )
        out = op.ScatterND(out, where, found)
    return out


def _int(op: Any, value: int) -> Any:
    return op.Constant(value_int=value)


def _ints(op: Any, *values: int) -> Any:
    return op.Constant(value_ints=list(values))
