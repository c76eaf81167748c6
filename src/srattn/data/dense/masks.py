"""Folders of masks: every mask is read once, and its numbers become classes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.decode import BadImage
from srattn.data.dense.classes import MaskClasses, named_classes, settle
from srattn.data.dense.pairs import Pair, PairIndex, index_pairs
from srattn.data.dense.read import Found, Unread
from srattn.data.dense.target import Target
from srattn.data.mask_files import read_mask
from srattn.data.palette import Palette
from srattn.errors import SrattnError

Notify = Callable[[int, int], None]


@dataclasses.dataclass
class MaskSet:
    """A folder of masks before any image is decoded; every mask has been read once.

    Attributes:
        pairs: by part.
        problems: a line for each pair that cannot be used.
        counts: pixels of each number of the masks.
    """

    classes: MaskClasses
    pairs: dict[str, list[Pair]]
    problems: list[str]
    counts: Counter[int]

    def found(self) -> Found:
        """For `srattn.data.dense.read.load_scenes`."""
        parts = {part: [self._unread(pair) for pair in pairs] for part, pairs in self.pairs.items()}
        facts = hashlib.sha256(repr((self.classes, sorted(self.counts.items()))).encode()).hexdigest()
        return Found(self.classes.names, parts, self.problems, facts)

    def _unread(self, pair: Pair) -> Unread:
        return Unread(pair.name, pair.image, lambda size: Target(mask=self.read(pair, size)))

    def read(self, pair: Pair, size: tuple[int, int] | None = None) -> Tensor:
        """The class numbers of a pair's mask, uint8 (H, W).

        Raises:
            BadImage: unreadable, a number that is no class, or of another size than `size`, the image's.
        """
        mask = _levels(pair, self.classes.palette if self.classes.coloured else None)[0]
        try:
            numbers = self.classes.numbers(mask, str(pair.mask))
        except SrattnError as error:
            raise BadImage(str(error)) from None
        if size is not None and tuple(numbers.shape) != size:
            raise BadImage(
                f"{pair.mask} is {numbers.shape[1]}x{numbers.shape[0]} pixels, but its image {pair.image} is "
                f"{size[1]}x{size[0]}"
            )
        return numbers


def open_masks(
    data: str,
    classes: str | None = None,
    void: Sequence[int] = (),
    *,
    workers: int = 0,
    notify: Notify | None = None,
    only: Sequence[str] | None = None,
) -> MaskSet:
    """Finds the pairs of a folder and reads every mask.

    Args:
        classes, void: see `named_classes` and `settle`.
        only: the parts that are wanted; all by default.

    Raises:
        SrattnError: no pairs, or classes that cannot be told.
    """
    root = Path(data)
    index = index_pairs(root)
    palette = named_classes(classes, root)
    if only is not None:
        index = PairIndex(root, {part: pairs for part, pairs in index.parts.items() if part in only}, index.skipped)
    every = [(part, pair) for part, pairs in index.parts.items() for pair in pairs]
    counts: Counter[int] = Counter()
    problems, good, colours = list(index.skipped), [], 0
    looks = ahead(lambda entry: _look(entry[1], palette), every, workers)
    for done, ((part, pair), look) in enumerate(zip(every, looks, strict=True), 1):
        if isinstance(look, BadImage):
            problems.append(str(look))
        else:
            counts.update(look[0])
            colours += look[1]
            good.append((part, pair))
        if notify:
            notify(done, len(every))
    found = settle(palette, void, counts, coloured=colours > 0 and palette is not None)
    pairs = {part: [pair for name, pair in good if name == part] for part in index.parts}
    return MaskSet(found, pairs, problems, counts)


def _look(pair: Pair, palette: Palette | None) -> tuple[Counter[int], bool] | BadImage:
    """How often each number occurs in a mask, and whether it holds colours."""
    try:
        mask, coloured = _levels(pair, palette)
    except BadImage as error:
        return error
    counts = torch.bincount(mask.flatten().int(), minlength=256)
    return Counter({value: int(counts[value]) for value in torch.nonzero(counts).flatten().tolist()}), coloured


def _levels(pair: Pair, palette: Palette | None) -> tuple[Tensor, bool]:
    """What a mask file holds, and whether as colours."""
    try:
        return read_mask(pair.mask, None, name=str(pair.mask)), False
    except BadImage:
        if palette is None:
            raise
    return read_mask(pair.mask, palette, name=str(pair.mask)), True
