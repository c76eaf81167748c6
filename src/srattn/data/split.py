"""Dividing one set of labelled images into training and validation, the same way every time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from srattn.data.keyed import permutation
from srattn.errors import SrattnError


def stratified_split(
    labels: Sequence[int], fraction: float, seed: int, classes: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Indices for training and for validation, both ascending.

    Of every class `fraction` (rounded, at least one and never all) goes to validation, chosen by `seed` alone.

    Raises:
        SrattnError: `fraction` is not between 0 and 1, or a class has fewer than two images.
    """
    if not 0 < fraction < 1:
        raise SrattnError(f"val_fraction must be above 0 and below 1, got {fraction}")
    every = torch.tensor(labels, dtype=torch.int64)
    held_out: list[int] = []
    for label, name in enumerate(classes):
        members = torch.nonzero(every == label).flatten()
        if len(members) < 2:
            way = "add some, or a part to measure with" if len(members) else "--on_empty_class skip goes on without it"
            raise SrattnError(
                f"class {name!r} has {len(members)} usable image(s); a split needs at least 2 in each class: {way}"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out += members[permutation(len(members), seed, label)[:count]].tolist()
    chosen = set(held_out)
    return [index for index in range(len(labels)) if index not in chosen], sorted(held_out)
