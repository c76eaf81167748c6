"""Folders of masks: every mask is read once, and its numbers become classes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.decode import BadImage, turned_words
from srattn.data.dense.classes import MaskClasses, named_classes, settle
from srattn.data.dense.pairs import Pair, PairIndex, index_pairs
from srattn.data.dense.read import Found, Unread
from srattn.data.dense.target import Target
from srattn.data.mask_files import NoPalette, read_mask
from srattn.data.palette import MOST, Of255, Palette, check_mask_classes
from srattn.errors import SrattnError

Notify = Callable[[int, int], None]


class WrongNumber(BadImage):
    """A mask has a number that is no class."""


class WrongSize(BadImage):
    """A mask is not as large as its image."""


@dataclasses.dataclass
class MaskSet:
    """A folder of masks before any image is decoded; every mask has been read once.

    Attributes:
        pairs: by part.
        problems: a line for each pair that cannot be used.
        counts: pixels of each number of the masks.
        of_parts: the problems again, by part.
        facts: a hash of the classes and of every mask.
        notes: what a person should know.
    """

    classes: MaskClasses
    pairs: dict[str, list[Pair]]
    problems: list[str]
    counts: Counter[int]
    facts: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    of_parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def found(self) -> Found:
        """For `srattn.data.dense.read.load_scenes`."""
        parts = {part: [self._unread(pair) for pair in pairs] for part, pairs in self.pairs.items()}
        classes = self.classes
        more: dict[str, Any] = {"of_255": self.classes.of_255, "of_parts": self.of_parts}
        return Found(classes.names, parts, self.problems, self.facts, classes.palette, self.notes, **more)

    def _unread(self, pair: Pair) -> Unread:
        return Unread(pair.name, pair.image, lambda size: Target(mask=self.read(pair, size)))

    def read(self, pair: Pair, size: tuple[int, int] | None = None) -> Tensor:
        """The class numbers of a pair's mask, uint8 (H, W).

        Raises:
            BadImage: unreadable; `WrongNumber`: a number that is no class; `WrongSize`: another size than `size`, the
                image's.
        """
        mask = _levels(pair, self.classes.palette if self.classes.coloured else None, self.classes.coloured)[0]
        try:
            numbers = self.classes.numbers(mask, str(pair.mask))
        except SrattnError as error:
            raise WrongNumber(str(error)) from None
        if size is not None and tuple(numbers.shape) != size:
            raise WrongSize(
                f"{pair.mask} is {numbers.shape[1]}x{numbers.shape[0]} pixels, but its image {pair.image} is "
                f"{size[1]}x{size[0]}"
                + (turned_words(pair.image, size, (numbers.shape[0], numbers.shape[1])) or "; save both at one size")
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
    if only is not None:
        index = dataclasses.replace(index, parts={part: index.parts[part] for part in index.parts if part in only})
    return read_masks(index, named_classes(classes, root), void, workers=workers, notify=notify)


def read_masks(
    index: PairIndex,
    palette: Palette | None,
    void: Sequence[int] = (),
    *,
    of_255: Of255 | None = None,
    workers: int = 0,
    notify: Notify | None = None,
) -> MaskSet:
    """As `open_masks`, for pairs that are found already.

    Args:
        of_255: see `settle`.

    Raises:
        SrattnError: masks of colours without a palette, none that can be read, or classes that cannot be told or are
            more than 256.
    """
    check_mask_classes(0 if palette is None else len(palette))
    every = [(part, pair) for part, pairs in index.parts.items() for pair in pairs]
    looks: list[_Look | BadImage] = []
    for look in ahead(lambda entry: _look(entry[1], palette), every, workers):
        looks.append(look)
        if notify:
            notify(len(looks), len(every))
    if unknown := next((look for look in looks if isinstance(look, NoPalette)), None):
        raise SrattnError(f"{unknown}: give --classes a file with a line 'name r g b' for each class")
    coloured = any(isinstance(look, _Look) and look.coloured for look in looks)
    if coloured:  # then grey is a colour, too: that of the class that all of the mask is
        looks = [
            look if isinstance(look, BadImage) or look.coloured else _look(pair, palette, coloured)
            for (_, pair), look in zip(every, looks, strict=True)
        ]
    problems, pairs = list(index.skipped), {part: list[Pair]() for part in index.parts}
    of_parts = {part: list(lines) for part, lines in index.of_parts.items()}
    counts: Counter[int] = Counter()
    digest = hashlib.sha256()
    for (part, pair), look in zip(every, looks, strict=True):
        if isinstance(look, BadImage):
            problems.append(str(look))
            of_parts.setdefault(part, []).append(str(look))
            continue
        counts.update(look.counts)
        digest.update(f"{part} {pair.name} ".encode(errors="surrogateescape") + look.digest)
        pairs[part].append(pair)
    if problems and not any(pairs.values()):
        raise SrattnError(f"{index.root} has no mask that can be read; the first of {len(problems)}: {problems[0]}")
    found = settle(palette, void, counts, coloured, of_255)
    notes: list[str] = []
    if not found.binary and settle(palette, void, counts, coloured).binary:
        notes.append(
            f"the masks of {index.root} hold 0 and 255 alone: 255 is taken for no class, as where the model learnt; "
            f"if it is the object, save masks of 0 and 1"
        )
    digest.update(repr(found).encode(errors="surrogateescape"))
    return MaskSet(found, pairs, problems, counts, digest.hexdigest(), notes, of_parts)


@dataclasses.dataclass(frozen=True)
class _Look:
    """How often each number occurs in a mask, whether it holds colours, and a hash of it."""

    counts: Counter[int]
    coloured: bool
    digest: bytes


def _look(pair: Pair, palette: Palette | None, coloured: bool = False) -> _Look | BadImage:
    try:
        mask, as_colours = _levels(pair, palette, coloured)
    except BadImage as error:
        return error
    counts = torch.bincount(mask.flatten().int(), minlength=256)
    found = Counter({value: int(counts[value]) for value in torch.nonzero(counts).flatten().tolist()})
    digest = hashlib.blake2b(f"{tuple(mask.shape)} ".encode() + mask.numpy().tobytes(), digest_size=16).digest()
    return _Look(found, as_colours, digest)


def _levels(pair: Pair, palette: Palette | None, coloured: bool) -> tuple[Tensor, bool]:
    """What a mask file holds, and whether as colours; `coloured`: grey in three channels is a colour of the palette."""
    name, classes = str(pair.mask), MOST if palette is not None and len(palette) > 2 else None  # JPEG is for two
    try:
        return read_mask(pair.mask, palette if coloured else None, classes=classes, name=name), coloured
    except BadImage as error:
        if palette is None:
            raise
        first = error
    try:
        return read_mask(pair.mask, None if coloured else palette, classes=classes, name=name), not coloured
    except BadImage as error:
        raise (first if coloured else error) from None
