"""Parts of a model that are quantised or kept in float together: an attention, a feed-forward, an embedding, a head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from srattn.errors import SrattnError, nearest

ROOT = "model."
"""What the module that is exported calls the model in it."""
_PART = re.compile(r"(?:backbone\.)?stages\.\d+\.(?:blocks\.\d+\.)?\w+|\w+(?:\.[a-z_]\w*)?")


def part_of(scope: str) -> str | None:
    """The part that a module belongs to by its path in the exported graph; None of what is not the model's.

    "model.stages.0.blocks.1.attn.k" is of "stages.0.blocks.1.attn", "model.head.fuse.conv" of "head.fuse".
    """
    found = _PART.match(scope.removeprefix(ROOT)) if scope.startswith(ROOT) else None
    return found.group() if found else None


def matching(parts: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """The parts that one of the patterns names, as in a shell: "head*", "*.mlp", or all below "stages.0".

    Raises:
        SrattnError: a pattern that names none.
    """
    found: set[str] = set()
    for pattern in patterns:
        mine = {part for part in parts if fnmatchcase(part, pattern) or part.startswith(f"{pattern}.")}
        if not mine:
            raise SrattnError(
                f"--keep_float {pattern} names no part of the model{nearest(pattern, parts)}; parts are "
                f"{', '.join(parts)}"
            )
        found |= mine
    return [part for part in parts if part in found]


def worst(decibels: Mapping[str, float], wanted: float) -> list[str]:
    """The fewest parts, those with the most noise first, without which the noise of the others is small enough.

    Noises of parts are taken for independent, so that their powers add up.

    Args:
        decibels: of each part that is quantised by itself, how far its noise is below the signal.
        wanted: of all that are quantised together.
    """
    order = sorted(decibels, key=lambda part: decibels[part])
    powers = [10 ** (-decibels[part] / 10) for part in order]
    count = 0
    while sum(powers[count:]) > 10 ** (-wanted / 10):
        count += 1
    return order[:count]
