"""Masks of objects over an image, each for itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.data.palette import Colour
from srattn.ops.run_lengths import decode_runs

_STRENGTH = 0.4


def tinted(image: Tensor, masks: Sequence[Tensor], colours: Sequence[Colour]) -> Tensor:
    """The image with each mask shaded in its colour and its border drawn, the first on top.

    Args:
        image: uint8 (3, H, W) or (1, H, W).
        masks: lengths of the runs of each, see `srattn.ops.run_lengths`.
        colours: of each.

    Returns:
        uint8 (3, H, W).
    """
    height, width = image.shape[1:]
    found = image.expand(3, -1, -1).float()
    for runs, colour in reversed(list(zip(masks, colours, strict=True))):
        mask = decode_runs(runs, (height, width))
        paint = torch.tensor(colour, dtype=torch.float32).view(3, 1, 1)
        # Pixels with one outside of the mask beside them.
        border = mask & (F.max_pool2d((~mask).float().unsqueeze(0), 3, stride=1, padding=1)[0] > 0)
        found = torch.where(mask, found + _STRENGTH * (paint - found), found)
        found = torch.where(border, paint, found)
    return found.round().to(torch.uint8)
