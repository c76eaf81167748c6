"""Two steps of a detector of two stages whose sizes depend on the picture, as operators that a traced program keeps.

Here they are plain, as the definition; `formats.operators_onnx` and `formats.operators_openvino` say what they are in
other runtimes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.ops.nms import nms
from srattn.ops.roi_align import roi_align


@torch.library.custom_op("srattn::unsuppressed", mutates_args=())
def unsuppressed(boxes: Tensor, labels: Tensor, able: Tensor, overlap: float, kinds: int, most: int) -> Tensor:
    """Which boxes the greedy rule leaves, bool (B, C): those that none of their label that was left overlaps by more.

    Args:
        boxes: (B, C, 4), best first.
        labels: int64 (B, C), from 0 to `kinds`.
        able: bool (B, C), which take part.
        overlap: as IoU.
        kinds: labels that there are.
        most: boxes of a label after which it may end.
    """
    kept = torch.zeros_like(able)
    order = -torch.arange(boxes.shape[1], dtype=torch.float32, device=boxes.device)
    for number, some in enumerate(able):
        places = some.nonzero().squeeze(1)
        found = nms(boxes[number, places], order[places], overlap, labels[number, places])
        kept[number, places[found]] = True
    return kept


@unsuppressed.register_fake
def _(boxes: Tensor, labels: Tensor, able: Tensor, overlap: float, kinds: int, most: int) -> Tensor:
    return torch.empty_like(able)


@torch.library.custom_op("srattn::align_regions", mutates_args=())
def align_regions(
    maps: Sequence[Tensor], boxes: Tensor, image: Tensor, own: Tensor, strides: Sequence[int], size: int
) -> Tensor:
    """`srattn.ops.roi_align` of each box on its own map, (N, C, size, size); zeros where it has none.

    Args:
        maps: [(B, C, H_n, W_n)], of those `strides`.
        boxes: (N, 4) in pixels of the image.
        image: int64 (N,), which image of the batch a box is of.
        own: int64 (N,), the number of its map, or -1.
        strides: of the maps.
        size: of a box's map.
    """
    out = maps[0].new_zeros(len(boxes), maps[0].shape[1], size, size)
    for n, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        for number in range(len(x)):
            mine = ((own == n) & (image == number)).nonzero().squeeze(1)
            found = roi_align(x[number : number + 1], boxes[mine].unsqueeze(0), size, 1 / stride)
            out[mine] = found[0]
    return out


@align_regions.register_fake
def _(maps: Sequence[Tensor], boxes: Tensor, image: Tensor, own: Tensor, strides: Sequence[int], size: int) -> Tensor:
    return maps[0].new_empty(boxes.shape[0], maps[0].shape[1], size, size)
