"""Truth and prediction of one image as small pictures in a row, as data that lives inside a page."""

from __future__ import annotations

import base64
import io
import math
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from srattn.data.palette import Palette
from srattn.data.preprocess import to_image, to_tensor
from srattn.explain.box_pictures import draw_boxes
from srattn.explain.overlay import WRONG, overlay, rgb_of
from srattn.tasks.losses import VOID
from srattn.tasks.segmentation import nearest_on

MASK_SIDE, BOX_SIDE = 360, 560
_BOX_LEAST = 400  # pixels of the longer side, below which labels would cover what they name
_NOT = 255


class Panel(NamedTuple):
    """A picture and what stands below it."""

    caption: str
    source: str


def mask_panels(image: Tensor, truth: Tensor, prediction: Tensor, palette: Palette) -> list[Panel]:
    """Image, truth, prediction and mistakes.

    Apart from each other, unlike those of `overlay.side_by_side`, so that on a narrow page they stand below each other.

    Args:
        image: (C, H, W) in [0, 1], C 1 or 3.
        truth, prediction: class numbers uint8 (h, w); 255 in the truth is void.
    """
    rows, columns = _within(truth.shape[0], truth.shape[1], MASK_SIDE)
    picture = _picture(image).resize((columns, rows), Image.Resampling.BICUBIC)
    ground = to_tensor(picture)
    true, said = (nearest_on(mask.unsqueeze(0), rows, columns)[0] for mask in (truth, prediction))
    counted = truth != VOID
    share = int((counted & (truth != prediction)).sum()) / max(1, int(counted.sum()))
    grey = (to_tensor(picture.convert("L")).float() * 0.5 + 96).byte()
    wrong = torch.where((true != VOID) & (true != said), 0, _NOT).to(torch.uint8)
    mistakes = overlay(grey, wrong, Palette(("wrong",), (WRONG,)), alpha=0.85, boundaries=False, ignore=_NOT)
    return [
        Panel("image", data_url(rgb_of(ground))),
        Panel("truth", data_url(overlay(ground, true, palette))),
        Panel("prediction", data_url(overlay(ground, said, palette, ignore=None))),
        Panel(f"wrong: {100 * share:.1f} %", data_url(mistakes)),
    ]


def box_panels(image: Tensor, truth: Tensor, found: Tensor, palette: Palette) -> list[Panel]:
    """Truth and prediction.

    Args:
        image: (C, H, W) in [0, 1], C 1 or 3.
        truth: (N, 5): x1, y1, x2, y2 in pixels of the image, class; those of class -1 are padding.
        found: (D, 6): x1, y1, x2, y2, score, class; likewise.
    """
    picture = _picture(image)
    rows, columns = _within(picture.height, picture.width, BOX_SIDE)
    longer = max(rows, columns)
    if longer < _BOX_LEAST:
        factor = math.ceil(_BOX_LEAST / longer)
        rows, columns = rows * factor, columns * factor
    scale = torch.tensor([columns / picture.width, rows / picture.height] * 2, dtype=torch.float64)
    ground = to_tensor(picture.resize((columns, rows), Image.Resampling.BICUBIC))
    truth, found = truth.detach().double().cpu(), found.detach().double().cpu()
    true = torch.cat([truth[:, :4] * scale, torch.ones(len(truth), 1).double(), truth[:, 4:]], 1)
    said = torch.cat([found[:, :4] * scale, found[:, 4:]], 1)
    panels = [("truth", draw_boxes(ground, true, palette.names, palette, scores=False))]
    panels.append(("prediction", draw_boxes(ground, said, palette.names, palette)))
    return [Panel(caption, data_url(drawn)) for caption, drawn in panels]


def data_url(picture: Image.Image) -> str:
    """A picture of mode "RGB" as JPEG in a `data:` address; colours keep their full resolution."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _picture(image: Tensor) -> Image.Image:
    levels = image.detach().float().cpu().nan_to_num().clamp(0, 1)
    return to_image((levels * 255).round().byte()).convert("RGB")


def _within(height: int, width: int, side: int) -> tuple[int, int]:
    """The size, shrunk so that the longer side has at most `side` pixels."""
    factor = min(1.0, side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))
