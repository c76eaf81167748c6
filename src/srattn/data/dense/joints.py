"""The joints of one person, and what becomes of them when the picture is moved."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.errors import SrattnError

EXTRA_ROWS = 4
"""Rows after the joints in `Joints.rows`."""
_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])")
SIDES = {"left": (86, 180, 233), "right": (230, 159, 0), "neither": (245, 245, 245)}
"""Colours of a person's sides in pictures: who takes left for right is seen at once."""


@dataclasses.dataclass(frozen=True)
class Joints:
    """The joints of a person in a picture that shows it alone.

    Attributes:
        place: float32 (K, 3): x, y in pixels of the picture, edges and not centres of pixels, and visibility, 0 where
            a joint is not labelled.
        size: (height, width) of the picture.
        matrix: float64 (2, 3), from (x, y) of the image that the person is in to the picture.
        person: float64 (3,): the number of that image, and there the person's area and the longer side of its box.
        order: int64 (K,), for each joint the one that it becomes in a mirror; None if the picture is never mirrored.
    """

    place: Tensor
    size: tuple[int, int]
    matrix: Tensor
    person: Tensor
    order: Tensor | None = None

    @classmethod
    def of(cls, place: Tensor, size: tuple[int, int], person: Sequence[float], order: Tensor | None = None) -> Joints:
        """In an image of `size` that is not moved yet."""
        return cls(place, size, torch.eye(2, 3, dtype=torch.float64), torch.tensor(person, dtype=torch.float64), order)

    def bytes(self) -> int:
        """Of memory."""
        return sum(t.numel() * t.element_size() for t in (self.place, self.matrix, self.person))

    def moved(self, matrix: Tensor, size: tuple[int, int]) -> Joints:
        """As `Target.moved`: in a mirror the left joints are the right ones. Those outside keep their place there."""
        matrix = matrix.to(torch.float64)
        xy = self.place[:, :2].double() @ matrix[:, :2].T + matrix[:, 2]
        place = torch.cat([xy.float(), self.place[:, 2:]], 1)
        if torch.linalg.det(matrix[:, :2]) < 0 and self.order is not None:
            place = place[self.order]
        whole = torch.cat([matrix[:, :2] @ self.matrix[:, :2], matrix[:, :2] @ self.matrix[:, 2:] + matrix[:, 2:]], 1)
        return dataclasses.replace(self, place=place, size=size, matrix=whole)

    def rows(self) -> Tensor:
        """float32 (K + 4, 3), as tasks take them: the joints; two rows of `matrix`; `person`; width, height, 0."""
        size = torch.tensor([[self.size[1], self.size[0], 0]], dtype=torch.float64)
        return torch.cat([self.place, torch.cat([self.matrix, self.person.unsqueeze(0), size]).float()])


def sides_of(names: Sequence[str]) -> list[str]:
    """Of each joint by its name "left", "right" or "neither"."""
    found = [_SIDE.search(name.casefold()) for name in names]
    return ["neither" if side is None else side[0] for side in found]


def flip_order(names: Sequence[str]) -> Tensor:
    """For each joint the number of that which it is in a mirror: "left_knee" and "right_knee" by their names.

    Raises:
        SrattnError: a left joint without a right one, or the other way round.
    """
    numbers = {name.casefold(): number for number, name in enumerate(names)}
    order = []
    for name in names:
        other = _SIDE.sub(lambda found: "right" if found[0] == "left" else "left", name.casefold())
        if other not in numbers:
            raise SrattnError(
                f"in a mirror {name!r} is {other!r}, and there is no such joint; leave flip and flipv out of --augment"
            )
        order.append(numbers[other])
    return torch.tensor(order)
