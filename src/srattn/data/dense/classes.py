"""Which classes the numbers in a set of masks are."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from srattn.data.boxes.index import read_bounded
from srattn.data.dense.target import VOID
from srattn.data.palette import Of255, Palette, read_palette, standard_palette
from srattn.errors import SrattnError

FILES = ("classes.txt", "labels.txt", "class_names.txt", "palette.txt", "palette.json", "classes.json")
"""Names of files in a data folder that name its classes."""
_LARGEST_FILE = 1 << 20


@dataclasses.dataclass(frozen=True)
class MaskClasses:
    """The classes of masks.

    Attributes:
        palette: names and colours by class number.
        void: numbers of the masks that are no class.
        binary: masks hold 0 and 255, and 255 is class 1.
        coloured: masks hold the colours of `palette`.
        of_255: what 255 is; None where it does not occur, or masks hold colours.
    """

    palette: Palette
    void: tuple[int, ...] = ()
    binary: bool = False
    coloured: bool = False
    of_255: Of255 | None = dataclasses.field(default=None, repr=False)  # it follows from the rest and the masks

    @property
    def names(self) -> list[str]:
        return list(self.palette.names)

    def numbers(self, mask: Tensor, name: str) -> Tensor:
        """The class numbers of what a file holds, `VOID` for what is no class.

        Raises:
            SrattnError: a number that is neither.
        """
        if self.binary:
            return (mask == VOID).to(torch.uint8)
        table = torch.full((256,), -1, dtype=torch.int16)
        table[: len(self.palette)] = torch.arange(len(self.palette), dtype=torch.int16)
        table[[VOID, *self.void]] = VOID
        found = table[mask.int()]
        if (found < 0).any():
            y, x = divmod(int((found < 0).flatten().byte().argmax()), mask.shape[1])
            wrong = int(mask[y, x])
            raise SrattnError(
                f"{name} has the value {wrong} at (y, x) = ({y}, {x}), but there are {len(self.palette)} classes, 0 to "
                f"{len(self.palette) - 1}: name more with --classes, or leave the value out with --void [{wrong}]"
            )
        return found.to(torch.uint8)


def named_classes(given: str | None, root: Path) -> Palette | None:
    """The classes that `given` says, names with commas between or a file of them; else those of a file of `FILES` in
    `root`; else None.

    Raises:
        SrattnError: a file that cannot be read, or names that are twice or missing.
    """
    if given is None:
        path = next((root / name for name in FILES if (root / name).is_file()), None)
        return None if path is None else palette_of(path)
    if os.path.isfile(given):  # names may be longer than those of files can be, which pathlib raises
        return palette_of(Path(given))
    names = [name.strip() for name in given.split(",")]
    if len(names) < 2 or not all(names):
        raise SrattnError(f"--classes {given!r} is neither a file nor at least two names with commas between")
    return standard_palette(names)


def settle(
    palette: Palette | None, void: Sequence[int], found: Counter[int], coloured: bool, of_255: Of255 | None = None
) -> MaskClasses:
    """The classes, from what is said of them and from how often each number occurs in the masks.

    Without names every number up to the largest that occurs is a class, called by it; two are background and object.
    Masks of 0 and 255 alone are those of one kind of object, too, unless it is known that 255 is void: these may be
    masks of images without an object.

    Args:
        of_255: where it is known, from the masks that a model learnt.

    Raises:
        SrattnError: fewer than two classes, or a void value out of range.
    """
    for value in void:
        if not 0 <= value <= 255:
            raise SrattnError(f"--void {value} is no value of a mask; give numbers from 0 to 255")
    values = set(found) - {VOID, *void}
    there = not coloured and VOID in found
    binary = there and VOID not in void and values <= {0} and (palette is None or len(palette) == 2)
    if binary and of_255 != "void":
        names = palette or standard_palette(["background", "object"])
        return MaskClasses(names, tuple(void), binary=True, of_255="object")
    if palette is None:
        count = max(values, default=0) + 1
        if count < 2:
            raise SrattnError(
                "the masks hold one class only; segmentation needs at least two, the background included: "
                "name them with --classes if the masks are right"
            )
        names = ["background", "object"] if count == 2 else [str(number) for number in range(count)]
        palette = standard_palette(names)
    if len(palette) < 2:
        raise SrattnError(
            f"segmentation needs at least two classes, got {len(palette)}: {palette.names[0]}; name the others too"
        )
    return MaskClasses(palette, tuple(void), coloured=coloured, of_255="void" if there or VOID in void else None)


def palette_of(path: Path, least: int = 2) -> Palette:
    """The classes of a file: a name a line, or what `srattn.data.palette.read_palette` takes, or a JSON list of names.

    Raises:
        SrattnError: it cannot be read, or names fewer than `least` classes, or one of them twice.
    """
    try:
        text = read_bounded(path, _LARGEST_FILE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SrattnError(f"{path} is no text file of class names ({error}); save it in UTF-8") from None
    names = _json_names(text) if path.suffix.casefold() == ".json" else _lines(text)
    if names is None:
        return read_palette(path)
    if len(names) < least:
        raise SrattnError(f"{path} names {len(names)} classes; give at least {least}, a line each")
    try:
        return standard_palette(names)
    except SrattnError as error:
        raise SrattnError(f"{path}: {error}") from None


def _lines(text: str) -> list[str] | None:
    """A name a line; None if the lines hold colours."""
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    words = [line.replace(",", " ").split() for line in names]
    coloured = all(len(row) >= 3 and all(word.isdigit() for word in row[-3:]) for row in words[1:] or words)
    return None if names and coloured else names


def _json_names(text: str) -> list[str] | None:
    """A list of names; None for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, list) and values and all(isinstance(name, str) for name in values) else None
