"""Depths in colours, the truth beside what was answered, and their scales."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from srattn.data.depth_colours import ERROR_LIMIT, colour_error, depth_table, error_table
from srattn.data.depth_colours import NOTHING as NOTHING
from srattn.data.depth_colours import colour_depth as colour_depth
from srattn.explain.lettering import INK, PAPER, font_of
from srattn.explain.scene_pictures import MASK_SIDE, Panel, picture_of, within
from srattn.tasks.depth import known

_TEXT, _BAR = 12, 10


class Scale(NamedTuple):
    """What the ends of a row of colours mean."""

    colours: np.ndarray
    low: str
    high: str

    def css(self) -> str:
        """The colours as a background of a page."""
        chosen = self.colours[np.linspace(0, len(self.colours) - 1, 9).round().astype(int)]
        return f"linear-gradient(to right, {', '.join('#{:02x}{:02x}{:02x}'.format(*each) for each in chosen)})"


ERROR_SCALE = Scale(error_table(), f"{100 * ERROR_LIMIT:.0f} % too near", f"{100 * ERROR_LIMIT:.0f} % too far")


def depth_panels(image: Tensor, truth: Tensor, said: Tensor, max_depth: float) -> tuple[list[Panel], Scale]:
    """Image, truth, prediction and error; and the scale of truth and prediction, which is that of the truth.

    Args:
        image: (C, H, W) in [0, 1], C 1 or 3.
        truth, said: metres (h, w); what the truth does not know up to `max_depth` is shown as nothing.
    """
    valid = known(truth, max_depth)
    true = torch.where(valid, truth, 0).float()
    values = true[valid]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, max_depth)
    error = float(((said - truth).abs() / truth)[valid].mean()) if len(values) else None
    rows, columns = within(truth.shape[0], truth.shape[1], MASK_SIDE)

    def small(picture: Image.Image) -> Image.Image:
        return picture.resize((columns, rows), Image.Resampling.NEAREST)

    panels = [
        Panel("image", picture_of(image).resize((columns, rows), Image.Resampling.BICUBIC)),
        Panel("truth", small(colour_depth(true, low, high))),
        Panel("prediction", small(colour_depth(said.float(), low, high))),
        Panel("error" if error is None else f"AbsRel {100 * error:.1f} %", small(colour_error(said, true))),
    ]
    return panels, Scale(depth_table(), metres(low), metres(high))


def metres(value: float) -> str:
    """`7.914` -> `7.91 m`."""
    return f"{value:.3g} m"


def draw_scale(scale: Scale, width: int) -> Image.Image:
    """A strip of `width` pixels: its colours between the words for their ends."""
    font, gap = font_of(_TEXT), 6
    strip = Image.new("RGB", (width, 2 * _BAR), PAPER)
    brush = ImageDraw.Draw(strip)
    left, right = (round(font.getlength(words)) for words in (scale.low, scale.high))
    brush.text((gap, _BAR), scale.low, fill=INK, font=font, anchor="lm")
    brush.text((width - gap, _BAR), scale.high, fill=INK, font=font, anchor="rm")
    room = width - left - right - 4 * gap
    if room > 0:
        colours = Image.fromarray(scale.colours[None]).resize((room, _BAR), Image.Resampling.BILINEAR)
        strip.paste(colours, (left + 2 * gap, _BAR // 2))
    return strip
