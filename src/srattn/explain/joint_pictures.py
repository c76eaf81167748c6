"""Joints and bones over images: of several people, and of one with the truth beside what was answered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from srattn.data.dense.joints import SIDES, sides_of
from srattn.data.palette import Colour, standard_palette
from srattn.errors import SrattnError
from srattn.explain.overlay import WRONG, rgb_of
from srattn.explain.scene_pictures import Panel, drawn_on, paled, picture_of

RIGHT: Colour = (13, 128, 118)
_DARK: Colour = (29, 32, 34)
_SMOOTH = 2  # lines are drawn so many times as large

Bones = Sequence[tuple[int, int]]


def draw_joints(image: Tensor, people: Tensor, bones: Bones = (), threshold: float = 0.2) -> Image.Image:
    """The image with the joints of people as dots, and lines between those that `bones` joins; a colour a person.

    Args:
        image: uint8 (3, H, W) or (1, H, W).
        people: (N, K, 3): x, y in pixels, score.
        bones: pairs of joints by number.
        threshold: joints of a lower score are left out.
    """
    if people.ndim != 3 or people.shape[2] != 3:
        raise SrattnError(f"people must be (N, K, 3): x, y, score of each joint; got {tuple(people.shape)}")
    picture = rgb_of(image)
    pen = ImageDraw.Draw(picture)
    size = max(1, round(min(picture.size) / 120))
    colours = standard_palette(max(2, len(people) + 1)).colours
    for number, person in enumerate(people.detach().cpu().tolist()):
        colour = colours[1 + number % (len(colours) - 1)]
        seen = [score >= threshold for _, _, score in person]
        for one, other in bones:
            if seen[one] and seen[other]:
                pen.line([tuple(person[one][:2]), tuple(person[other][:2])], fill=colour, width=size)
        for (x, y, _), shown in zip(person, seen, strict=True):
            if shown:
                corners = [x - 2 * size, y - 2 * size, x + 2 * size, y + 2 * size]
                pen.ellipse(corners, fill=colour, outline="white")
    return picture


def joint_panels(
    image: Tensor, true: Tensor, found: Tensor, near: Tensor, names: Sequence[str], bones: Bones = ()
) -> list[Panel]:
    """Truth, prediction, and how far they are apart; of the joints that are labelled, since others count nowhere.

    Args:
        image: (C, H, W) in [0, 1], C 1 or 3.
        true: (K, 3): x, y in pixels, and 0 not labelled, 1 hidden, 2 visible.
        found: (K, 2 or more): x, y in pixels.
        near: bool (K,): what counts as found.
        names: of the joints; their sides are coloured by them.
    """
    labelled = [index for index, value in enumerate(true[:, 2].tolist()) if value > 0]
    hidden = {index for index in labelled if true[index, 2] < 2}
    plain = picture_of(image)
    rows, columns = drawn_on(plain.height, plain.width)
    ground = plain.resize((columns, rows), Image.Resampling.BICUBIC)
    scale = torch.tensor([columns / plain.width, rows / plain.height], dtype=torch.float64)
    here, there = (place[:, :2].detach().double().cpu() * scale for place in (true, found))
    colours = [SIDES[side] for side in sides_of(names)]
    pairs = [(a, b) for a, b in bones if a in labelled and b in labelled]

    def figure(place: Tensor, hollow: set[int]) -> Image.Image:
        pen = _Pen(ground)
        for a, b in pairs:
            pen.line(place[a], place[b], colours[a] if colours[a] == colours[b] else SIDES["neither"])
        for index in labelled:
            pen.dot(place[index], colours[index], index in hollow)
        return pen.finished()

    pen, far = _Pen(paled(ground)), [index for index in labelled if not near[index]]
    for index in labelled:
        colour = WRONG if index in far else RIGHT
        pen.line(here[index], there[index], colour)
        pen.dot(here[index], colour, hollow=True)
        pen.dot(there[index], colour)
    return [
        Panel("truth", figure(here, hidden)),
        Panel("prediction", figure(there, set())),
        Panel(f"apart: {len(far)} of {len(labelled)} too far", pen.finished()),
    ]


class _Pen:
    """Lines and dots with a dark rim, which are seen on any ground."""

    def __init__(self, ground: Image.Image) -> None:
        self._size = ground.size
        self._picture = ground.resize((_SMOOTH * ground.width, _SMOOTH * ground.height), Image.Resampling.BILINEAR)
        self._brush = ImageDraw.Draw(self._picture)
        self._unit = _SMOOTH * max(1.0, max(ground.size) / 190)

    def line(self, start: Tensor, end: Tensor, colour: Colour) -> None:
        ends = [tuple((_SMOOTH * point).tolist()) for point in (start, end)]
        for fill, width in ((_DARK, 3.2), (colour, 1.8)):
            self._brush.line(ends, fill=fill, width=max(1, round(width * self._unit)))

    def dot(self, place: Tensor, colour: Colour, hollow: bool = False) -> None:
        x, y = (_SMOOTH * place).tolist()
        for radius, fill in ((3.6, _DARK), (2.9, colour), *([(1.5, _DARK)] if hollow else [])):
            size = radius * self._unit
            self._brush.ellipse([x - size, y - size, x + size, y + size], fill=fill)

    def finished(self) -> Image.Image:
        return self._picture.resize(self._size, Image.Resampling.BOX)
