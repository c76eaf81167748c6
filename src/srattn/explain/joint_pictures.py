"""Joints and bones over images."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from srattn.data.palette import standard_palette
from srattn.errors import SrattnError
from srattn.explain.overlay import rgb_of


def draw_joints(
    image: Tensor, people: Tensor, bones: Sequence[tuple[int, int]] = (), threshold: float = 0.2
) -> Image.Image:
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
