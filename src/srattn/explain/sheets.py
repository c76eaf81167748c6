"""The pictures of `srattn explain` as files, for the points that were asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from srattn.explain.explain_page import Explanation
from srattn.explain.grad_cam import enlarged
from srattn.explain.lettering import INK, PAPER, fitted, font_of
from srattn.explain.overlay import panels
from srattn.explain.pictures import heat_over, with_ring
from srattn.explain.receptive_field import field_share
from srattn.explain.study import Study
from srattn.explain.support import KeySupport

_SIDE = 224
_HEADS = 8
_TEXT = 13
_NOTHING = "\u2800"  # a letter without ink: an empty line has words of its own


def write_sheets(folder: Path, explanation: Explanation) -> list[Path]:
    """Writes PNG files into a folder and returns their paths; a name of its own for each image."""
    written = []
    for number, study in enumerate(explanation.studies, 1):
        stem = f"{number:02d}-{_plain(study.name)}"
        for at, maps in enumerate(study.attention):
            written.append(_save(folder / f"{stem}-attention-{at + 1}.png", attention_sheet(study, at, maps)))
        written.append(_save(folder / f"{stem}-rollout.png", rollout_sheet(study)))
        if study.cams:
            written.append(_save(folder / f"{stem}-grad-cam.png", cam_sheet(study)))
    first = explanation.studies[0]
    size = (first.pixels.shape[1], first.pixels.shape[2])
    written.append(_save(folder / "receptive-field.png", field_sheet(explanation.fields)))
    ends, last = [], -1
    for depth in explanation.depths:
        last += depth
        ends.append(explanation.supports[size][last][-1])
    written.append(_save(folder / "keys.png", keys_sheet(first, ends)))
    return written


def attention_sheet(study: Study, at: int, maps: Sequence[Tensor]) -> Image.Image:
    """A row for each stage: its last block, the mean of the heads and the first `_HEADS` of them."""
    point = study.points[at]
    where = (point.y, point.x)
    image = with_ring(study.pixels, where, _SIDE)
    blank = Image.new("RGB", image.size, PAPER)
    rows = []
    for stage, heads in enumerate(maps):
        named = [(f"stage {stage + 1}, mean of {len(heads)}", heads.mean(0))] if len(heads) > 1 else []
        several = enumerate(heads[:_HEADS], 1)
        named += [(f"head {number}" if named else f"stage {stage + 1}, one head", heat) for number, heat in several]
        drawn = [(words, heat_over(study.pixels, heat, where, _SIDE)) for words, heat in named]
        rows.append(panels([("image", image) if stage == 0 else (_NOTHING, blank), *drawn]))
    title = f"{study.name}: attention of ({point.x}, {point.y}), {point.name}; last block of each stage"
    return _titled(title, _stacked(rows))


def rollout_sheet(study: Study) -> Image.Image:
    """The image, and its attention rollout over all blocks."""
    drawn = heat_over(study.pixels, study.rollout, None, _SIDE)
    pair = panels([("image", with_ring(study.pixels, None, _SIDE)), ("attention rollout", drawn)])
    return _titled(study.name, pair)


def cam_sheet(study: Study) -> Image.Image:
    """The image, and Grad-CAM for the first class on each stage."""
    size = (study.pixels.shape[1], study.pixels.shape[2])
    drawn = [("image", with_ring(study.pixels, None, _SIDE))]
    for number, stage in enumerate(study.cams[0].stages, 1):
        words = f"stage {number}" if float(stage.max()) > 0 else f"stage {number}: nothing"
        drawn.append((words, heat_over(study.pixels, enlarged(stage, size), None, _SIDE)))
    return _titled(f"{study.name}: Grad-CAM for {study.cams[0].name}", panels(drawn))


def field_sheet(fields: Sequence[Tensor]) -> Image.Image:
    """The effective receptive field of each stage's centre unit, as the root."""
    black = torch.zeros(1, *fields[0].shape)
    drawn = [
        (f"stage {number}: {100 * field_share(field):.1f} %", heat_over(black, field.sqrt(), None, _SIDE))
        for number, field in enumerate(fields, 1)
    ]
    return _titled("receptive field of the centre, and its share of the pixels", panels(drawn))


def keys_sheet(study: Study, supports: Sequence[KeySupport]) -> Image.Image:
    """For each stage the blocks of tokens that become keys, and the pixels of the key in the middle."""
    drawn = []
    for number, support in enumerate(supports, 1):
        shown = (
            f"{support.key_grid[0]} x {support.key_grid[1]}" if support.key_grid[0] > 1 else f"{len(support.tokens)}"
        )
        drawn.append((f"stage {number}: {shown} keys", _lattice(study.pixels, support)))
    return _titled("a key's tokens (green) and their pixels (orange)", panels(drawn))


def _lattice(pixels: Tensor, support: KeySupport) -> Image.Image:
    picture = with_ring(pixels, None, _SIDE)
    scale = picture.height / support.size[0], picture.width / support.size[1]
    brush = ImageDraw.Draw(picture)

    def box(place: Sequence[int], colour: str, width: int) -> None:
        top, left, bottom, right = (value * scale[i % 2] for i, value in enumerate(place))
        brush.rectangle(
            (left, top, min(right, picture.width) - 1, min(bottom, picture.height) - 1), None, colour, width
        )

    stride = support.stride
    blocks = [[value * stride[i % 2] for i, value in enumerate(each)] for each in support.tokens.tolist()]
    for block in blocks:
        box(block, "#b9bdbf", 1)
    middle = torch.tensor([support.grid[0] / 2, support.grid[1] / 2] * 2)
    key = int((support.tokens - middle).abs().sum(1).argmin())
    box(support.pixels[key].tolist(), "#e08a1e", 2)
    box(blocks[key], "#0d9c8d", 3)
    return picture


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    width = max(picture.width for picture in pictures)
    sheet = Image.new("RGB", (width, sum(picture.height for picture in pictures)), PAPER)
    y = 0
    for picture in pictures:
        sheet.paste(picture, (0, y))
        y += picture.height
    return sheet


def _titled(title: str, picture: Image.Image) -> Image.Image:
    """The picture under a line, which is cut if it is longer than the picture."""
    font = font_of(_TEXT)
    line = Image.new("RGB", (picture.width, 2 * _TEXT), PAPER)
    room = picture.width - _TEXT
    ImageDraw.Draw(line).text((_TEXT // 2, _TEXT), fitted(title, font, room), fill=INK, font=font, anchor="lm")
    return _stacked([line, picture])


def _save(path: Path, picture: Image.Image) -> Path:
    picture.save(path)
    return path


def _plain(name: str) -> str:
    """The end of a path as a part of a file name."""
    stem = Path(name.replace("\\", "/")).stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:40] or "image"
