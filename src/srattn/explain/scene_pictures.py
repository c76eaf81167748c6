"""Truth and prediction of one image as small pictures in a row, as data that lives inside a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from srattn.data.object_overlay import tinted
from srattn.data.palette import UNCOUNTED, Palette
from srattn.data.preprocess import to_image, to_tensor
from srattn.explain.box_pictures import draw_boxes
from srattn.explain.overlay import WRONG, overlay, rgb_of
from srattn.tasks.losses import VOID
from srattn.tasks.segmentation import nearest_on

MASK_SIDE, BOX_SIDE = 360, 560
_BOX_LEAST = 400  # pixels of the longer side, below which labels would cover what they name
_NOT = 255


class Panel(NamedTuple):
    """A picture of mode "RGB" and what stands below it."""

    caption: str
    picture: Image.Image

    @property
    def source(self) -> str:
        """The picture inside a page."""
        return data_url(self.picture)


def mask_panels(image: Tensor, truth: Tensor, prediction: Tensor, palette: Palette) -> list[Panel]:
    """Image, truth, prediction and mistakes.

    Apart from each other, unlike those of `overlay.side_by_side`, so that on a narrow page they stand below each other.

    Args:
        image: (C, H, W) in [0, 1], C 1 or 3.
        truth, prediction: class numbers uint8 (h, w); 255 in the truth is void.
    """
    rows, columns = within(truth.shape[0], truth.shape[1], MASK_SIDE)
    picture = picture_of(image).resize((columns, rows), Image.Resampling.BICUBIC)
    ground = to_tensor(picture)
    true, said = (nearest_on(mask.unsqueeze(0), rows, columns)[0] for mask in (truth, prediction))
    counted = truth != VOID
    share = int((counted & (truth != prediction)).sum()) / max(1, int(counted.sum()))
    grey = to_tensor(paled(picture))
    wrong = torch.where((true != VOID) & (true != said), 0, _NOT).to(torch.uint8)
    mistakes = overlay(grey, wrong, Palette(("wrong",), (WRONG,)), alpha=0.85, boundaries=False, ignore=_NOT)
    return [
        Panel("image", picture),
        Panel("truth", overlay(ground, true, palette)),
        Panel("prediction", overlay(ground, said, palette, ignore=None)),
        Panel(f"wrong: {100 * share:.1f} %", mistakes),
    ]


class Objects(NamedTuple):
    """What is drawn of the objects in an image.

    Attributes:
        boxes: of the truth (N, 5): x1, y1, x2, y2 in pixels of the image, class; of answers (N, 6): x1, y1, x2, y2,
            score, class. Those of class -1 are padding.
        masks: lengths of the runs of each, see `srattn.ops.run_lengths`; empty where it is not known.
        ignored: bool (N,), which of them count nowhere.
    """

    boxes: Tensor
    masks: Sequence[Tensor] | None = None
    ignored: Tensor | None = None


def box_panels(image: Tensor, truth: Objects, found: Objects, palette: Palette) -> list[Panel]:
    """Truth and prediction; `image` is (C, H, W) in [0, 1], C 1 or 3."""
    picture = picture_of(image)
    rows, columns = drawn_on(picture.height, picture.width)
    scale = torch.tensor([columns / picture.width, rows / picture.height] * 2, dtype=torch.float64)
    panels = []
    for caption, objects in (("truth", truth), ("prediction", found)):
        ground = _shaded(picture, objects, palette).resize((columns, rows), Image.Resampling.BICUBIC)
        boxes = objects.boxes.detach().double().cpu()
        score = torch.ones(len(boxes), 1, dtype=torch.float64) if boxes.shape[1] == 5 else boxes[:, 4:5]
        moved = torch.cat([boxes[:, :4] * scale, score, boxes[:, -1:]], 1)
        scored = boxes.shape[1] == 6
        drawn = draw_boxes(to_tensor(ground), moved, palette.names, palette, scored, objects.ignored)
        panels.append(Panel(caption, drawn))
    return panels


def _shaded(picture: Image.Image, objects: Objects, palette: Palette) -> Image.Image:
    """The picture under the masks of the objects."""
    if objects.masks is None:
        return picture
    labels = objects.boxes[:, -1].int().tolist()
    out = [False] * len(labels) if objects.ignored is None else objects.ignored.tolist()
    known = [
        (mask, UNCOUNTED if uncounted else palette.colours[label])
        for mask, label, uncounted in zip(objects.masks, labels, out, strict=True)
        if len(mask) and label >= 0
    ]
    return rgb_of(tinted(to_tensor(picture), [mask for mask, _ in known], [colour for _, colour in known]))


def data_url(picture: Image.Image) -> str:
    """A picture of mode "RGB" as JPEG in a `data:` address; colours keep their full resolution."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def picture_of(image: Tensor) -> Image.Image:
    """(C, H, W) in [0, 1], C 1 or 3, as a picture of mode "RGB"."""
    levels = image.detach().float().cpu().nan_to_num().clamp(0, 1)
    return to_image((levels * 255).round().byte()).convert("RGB")


def paled(picture: Image.Image) -> Image.Image:
    """In pale grey, as a ground for what is drawn over it."""
    grey = (to_tensor(picture.convert("L")).float() * 0.5 + 96).byte()
    return rgb_of(grey)


def drawn_on(height: int, width: int) -> tuple[int, int]:
    """The size at which marks are drawn over an image: neither larger than a page nor so small that they cover it."""
    rows, columns = within(height, width, BOX_SIDE)
    factor = max(1, math.ceil(_BOX_LEAST / max(rows, columns)))
    return rows * factor, columns * factor


def within(height: int, width: int, side: int) -> tuple[int, int]:
    """The size, shrunk so that the longer side has at most `side` pixels."""
    factor = min(1.0, side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))
