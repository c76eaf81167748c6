"""Folders of images with depths: every depth file is read once before any image is decoded."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.decode import BadImage, turned_words
from srattn.data.dense.masks import WrongSize
from srattn.data.dense.pairs import DEPTHS, Pair, PairIndex, index_pairs
from srattn.data.dense.read import Found, Unread
from srattn.data.dense.target import Target
from srattn.data.depth_files import MILLIMETRES, check_scale, read_depth
from srattn.errors import SrattnError

Notify = Callable[[int, int], None]
CLASSES = ["depth"]
"""What the one channel of the answer is."""


@dataclasses.dataclass
class DepthSet:
    """A folder of depths before any image is decoded; every depth file has been read once.

    Attributes:
        scale: metres a unit of the files.
        pairs: by part.
        problems: a line for each pair that cannot be used.
        without: those of them whose files know no depth that is learnt.
        pixels, known, beyond: of all files that can: how many there are, how many have a depth, and how many of these
            lie beyond the largest that is learnt.
        of_parts: the problems again, by part.
        facts: a hash of all numbers.
    """

    scale: float
    max_depth: float
    pairs: dict[str, list[Pair]]
    problems: list[str]
    pixels: int
    known: int
    beyond: int
    facts: str
    without: list[str] = dataclasses.field(default_factory=list)
    of_parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def found(self) -> Found:
        """For `srattn.data.dense.read.load_scenes`."""
        parts = {part: [self._unread(pair) for pair in pairs] for part, pairs in self.pairs.items()}
        notes, of_parts = self.notes(), self.of_parts
        return Found(list(CLASSES), parts, self.problems, self.facts, notes=notes, of_parts=of_parts)

    def notes(self) -> list[str]:
        """What a person should know of the numbers."""
        share = self.known / max(1, self.pixels)
        notes = [f"depths: {100 * share:.1f} % of the pixels are known, in units of {self.scale:g} metres"]
        if self.beyond:
            notes.append(
                f"depths: {self.beyond:,} of the {self.known:,} known are beyond {self.max_depth:g} metres and count "
                f"as unknown; --head_options.max_depth takes more of them in"
            )
        return notes

    def _unread(self, pair: Pair) -> Unread:
        return Unread(pair.name, pair.image, lambda size: Target(depth=self.read(pair, size)))

    def read(self, pair: Pair, size: tuple[int, int] | None = None) -> Tensor:
        """The depths of a pair in metres, float32 (H, W), 0 where there is none.

        Raises:
            BadImage: unreadable; `WrongSize`, of another size than `size`, the image's.
        """
        depth = read_depth(pair.mask, self.scale)
        if size is not None and tuple(depth.shape) != size:
            raise WrongSize(
                f"{pair.mask} is {depth.shape[1]}x{depth.shape[0]} pixels, but its image {pair.image} is "
                f"{size[1]}x{size[0]}" + turned_words(pair.image, size, (depth.shape[0], depth.shape[1]))
            )
        return depth


class NoDepth(BadImage):
    """A file that can be read, and knows no depth that is learnt."""


@dataclasses.dataclass(frozen=True)
class _Look:
    """What one file holds."""

    pixels: int
    known: int
    beyond: int
    digest: str


def open_depths(
    data: str,
    scale: float = MILLIMETRES,
    max_depth: float = 10.0,
    *,
    workers: int = 0,
    notify: Notify | None = None,
) -> DepthSet:
    """Finds the pairs of a folder, images/ beside depths/, and reads every depth file.

    Args:
        scale: metres a unit of the files.
        max_depth: metres; what is farther is not learnt, and a file with nothing nearer cannot be used.

    Raises:
        SrattnError: no pairs.
    """
    check_scale(scale)
    return read_depths(index_pairs(Path(data), DEPTHS, "depth"), scale, max_depth, workers=workers, notify=notify)


def read_depths(
    index: PairIndex, scale: float, max_depth: float, *, workers: int = 0, notify: Notify | None = None
) -> DepthSet:
    """Reads every depth file of `index`; the rest as `open_depths`.

    Raises:
        SrattnError: none of them can be used.
    """
    check_scale(scale)
    every = [(part, pair) for part, pairs in index.parts.items() for pair in pairs]
    problems, without = list(index.skipped), list[str]()
    pairs = {part: list[Pair]() for part in index.parts}
    of_parts = {part: list(lines) for part, lines in index.of_parts.items()}
    digest, totals = hashlib.sha256(repr(scale).encode()), [0, 0, 0]
    looks = ahead(lambda entry: _look(entry[1], scale, max_depth), every, workers)
    for done, ((part, pair), look) in enumerate(zip(every, looks, strict=True), 1):
        if isinstance(look, BadImage):
            problems.append(str(look))
            of_parts.setdefault(part, []).append(str(look))
            without += [str(look)] if isinstance(look, NoDepth) else []
        else:
            totals = [
                total + number for total, number in zip(totals, (look.pixels, look.known, look.beyond), strict=True)
            ]
            digest.update(look.digest.encode())
            pairs[part].append(pair)
        if notify:
            notify(done, len(every))
    if not any(pairs.values()):
        raise SrattnError(f"no depth of {index.root} can be used; the first of {len(problems)}: {problems[0]}")
    facts = digest.hexdigest()
    return DepthSet(scale, max_depth, pairs, problems, totals[0], totals[1], totals[2], facts, without, of_parts)


def _look(pair: Pair, scale: float, max_depth: float) -> _Look | BadImage:
    try:
        depth = read_depth(pair.mask, scale)
    except BadImage as error:
        return error
    known, beyond = int((depth > 0).sum()), int((depth > max_depth).sum())
    if not known:
        return NoDepth(f"{pair.mask} knows no depth: every pixel is 0 or no number")
    if known == beyond:
        nearest = float(depth[depth > 0].min())
        return NoDepth(
            f"{pair.mask} knows no depth up to {max_depth:g} metres, its nearest is {nearest:g}: is --depth_scale "
            f"{scale:g} the metres of one unit?"
        )
    return _Look(
        depth.numel(), known, beyond, hashlib.sha256(depth.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    )
