"""Boxes of people that a detector has found, by the image that they are in."""

from __future__ import annotations

import functools
import json
from pathlib import Path, PurePath

import torch
from torch import Tensor

from srattn.data.decode import BadImage
from srattn.errors import SrattnError


class People(dict[str, Tensor]):
    """Boxes of people (N, 4 or more) by the name of their image."""

    @functools.cached_property
    def _ends(self) -> dict[str, list[tuple[tuple[str, ...], str]]]:
        """By the name of the file alone: the parts of each path from its end, and the name of the image."""
        found: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for name in self:
            parts = _from_the_end(name)
            found.setdefault(parts[0] if parts else "", []).append((parts, name))
        return found

    def of(self, name: str) -> Tensor:
        """The boxes in an image, whose path may begin elsewhere than when they were found: of its own and the entry's
        one must be the end of the other.

        Raises:
            BadImage: there is no such entry, or more than one; the caller says of which image.
        """
        if name in self:
            return self[name]
        mine = _from_the_end(name)
        fits = [
            (min(len(mine), len(parts)), entry)
            for parts, entry in self._ends.get(mine[0] if mine else "", [])
            if parts[: len(mine)] == mine[: len(parts)]
        ]
        most = max((length for length, _ in fits), default=0)
        best = [entry for length, entry in fits if length == most]
        if len(best) == 1:
            return self[best[0]]
        if best:
            raise BadImage(f"its boxes of people may be those of {best[0]} or of {best[1]}; give more of its path")
        raise BadImage("not among the images of --people; find the boxes in it first")


def read_people(path: Path, classes: tuple[str, ...] = ("person",)) -> People:
    """Boxes of people by image, from the predictions.json of a run that finds objects.

    Args:
        classes: those that are people; all, where the run knows none of them.

    Raises:
        SrattnError: no such file.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        all_boxes = {image["name"]: image["boxes"] for image in content["images"]}
        there = {box["class"] for boxes in all_boxes.values() for box in boxes}
        wanted = set(classes) if (there | set(content.get("classes", ()))) & set(classes) else there
        found = People()
        for name, boxes in all_boxes.items():
            rows = [box["box"] for box in boxes if box["class"] in wanted]
            found[name] = torch.tensor(rows, dtype=torch.float32) if rows else torch.zeros(0, 4)
            if found[name].ndim != 2 or found[name].shape[1] != 4 or not found[name].isfinite().all():
                raise ValueError(f"a box of {name} is not four numbers")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SrattnError(f"{path} is no predictions.json of srattn predict with boxes ({error})") from None


def _from_the_end(name: str) -> tuple[str, ...]:
    path = PurePath(name)
    return tuple(part for part in reversed(path.parts) if part not in (path.anchor, "..", "."))
