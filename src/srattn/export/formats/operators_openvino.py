"""The operators of `srattn.export.operators` in OpenVINO: NonMaxSuppression, and ROIAlign on each map for its boxes."""

from __future__ import annotations

from typing import Any

import srattn.export.operators  # noqa: F401 (they are registered there)

_NOT = -1.0  # the score of what takes no part; ranks are above 0


def extensions() -> list[Any]:
    """For `openvino.convert_model`."""
    from openvino.frontend.pytorch import ConversionExtension

    return [
        ConversionExtension("srattn.unsuppressed.default", _unsuppressed),
        ConversionExtension("srattn.align_regions.default", _align_regions),
    ]


def _unsuppressed(context: Any) -> Any:
    import numpy as np
    from openvino import opset13 as op

    boxes, labels, able = (context.get_input(n) for n in range(3))
    overlap, kinds, most = (context.get_values_from_const_input(n) for n in range(3, 6))
    zero, one = _int(0), _int(1)
    boxes = op.reshape(boxes, _ints(0, -1, 4), special_zero=True)  # the runtime asks for the 4 in writing
    count = op.gather(op.shape_of(labels), one, zero)
    # Ranks for scores, which are never equal: the first is the best.
    ranks = op.range(count, zero, _int(-1), output_type="f32")
    own = op.equal(op.unsqueeze(labels, one), op.constant(np.arange(kinds, dtype=np.int64).reshape(1, -1, 1)))
    mine = op.logical_and(own, op.unsqueeze(able, one))  # (B, K, C): each in the row of its label alone
    scores = op.select(mine, ranks, op.constant(np.float32(_NOT)))
    picked = op.non_max_suppression(
        boxes, scores, _int(most), op.constant(np.float32(overlap)), op.constant(np.float32(_NOT / 2)),
        box_encoding="corner", sort_result_descending=False, output_type="i64",
    ).output(0)  # fmt: skip
    where = op.gather(picked, _ints(0, 2), one)
    none = op.broadcast(op.constant(np.float32(0.0)), op.shape_of(labels))
    ones = op.broadcast(op.constant(np.float32(1.0)), op.gather(op.shape_of(where), _ints(0), zero))
    return [op.greater(op.scatter_nd_update(none, where, ones), op.constant(np.float32(0.0))).output(0)]


def _align_regions(context: Any) -> Any:
    import numpy as np
    from openvino import opset13 as op

    maps = context.get_input(0).get_node().input_values()  # of the list
    boxes, image, own = (context.get_input(n) for n in range(1, 4))
    strides, size = (context.get_values_from_const_input(n) for n in (4, 5))
    zero = _int(0)
    boxes, image = op.reshape(boxes, _ints(-1, 4), False), op.reshape(image, _ints(-1), False)  # as above
    shapes = [op.gather(op.shape_of(boxes), _ints(0), zero), op.gather(op.shape_of(maps[0]), _ints(1), zero)]
    out = op.broadcast(op.constant(np.float32(0.0)), op.concat([*shapes, _ints(size, size)], 0))
    for n, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        where = op.transpose(op.non_zero(op.equal(own, _int(n)), output_type="i64"), _ints(1, 0))  # (M, 1)
        found = op.roi_align(
            x, op.gather_nd(boxes, where), op.gather_nd(image, where),
            pooled_h=size, pooled_w=size, sampling_ratio=2, spatial_scale=1 / stride, mode="avg",
            aligned_mode="half_pixel_for_nn",
        )  # fmt: skip
        out = op.scatter_nd_update(out, where, found)
    return [out.output(0)]


def _int(value: int) -> Any:
    import numpy as np
    from openvino import opset13 as op

    return op.constant(np.int64(value))


def _ints(*values: int) -> Any:
    import numpy as np
    from openvino import opset13 as op

    return op.constant(np.array(values, np.int64))
