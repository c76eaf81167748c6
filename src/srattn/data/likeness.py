"""Pictures with the same pixels, and pictures that look the same."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

_SIDE = 12  # of the small grey picture that near duplicates are found by
_ALIKE = 0.998  # the least correlation of two small pictures that look the same
_MOST_PAIRS = 4_000_000_000  # comparisons that are made: minutes
_LEAST_DETAIL = 6.0  # an emptier picture than this resembles too many others


def digest(image: Image.Image) -> bytes:
    """A hash of size and pixels."""
    return hashlib.blake2b(f"{image.size} ".encode() + image.tobytes(), digest_size=16).digest()


def outline(image: Image.Image) -> Tensor | None:
    """12 x 12 grey levels less their mean, of length 1: the same for a picture that was saved again, or made lighter.

    None for an empty picture, which resembles too many others.
    """
    small = image.convert("L").resize((_SIDE, _SIDE), reducing_gap=3.0).tobytes()
    levels = torch.frombuffer(bytearray(small), dtype=torch.uint8).float()
    levels -= levels.mean()
    return levels / levels.norm() if levels.abs().mean() >= _LEAST_DETAIL else None


def near(outlines: dict[str, list[tuple[str, Tensor]]]) -> list[tuple[str, str, str, str]]:
    """For each picture of a later part the most similar one of each part before it, if they look the same.

    Args:
        outlines: for each part (name, `outline`).

    Returns:
        (part, name, part, name); nothing where that would be more than 4 billion comparisons.
    """
    found: list[tuple[str, str, str, str]] = []
    parts = [
        (part, [name for name, _ in rows], torch.stack([row for _, row in rows])) for part, rows in outlines.items()
    ]
    for place, (part, names, rows) in enumerate(parts):
        for other, other_names, others in parts[:place]:
            if len(names) * len(other_names) > _MOST_PAIRS:
                continue
            for start in range(0, len(rows), 256):
                likeness, nearest = (rows[start : start + 256] @ others.T).max(1)
                for row in torch.nonzero(likeness >= _ALIKE).flatten().tolist():
                    found.append((other, other_names[int(nearest[row])], part, names[start + row]))
    return found
