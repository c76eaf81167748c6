"""Colours of classes: fixed ones, ones from a file, and class numbers shown in them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from srattn.errors import SrattnError

Colour = tuple[int, int, int]
Of255 = Literal["object", "void"]
"""What 255 is in masks of numbers: class 1 beside 0, or no class."""

MOST = 256
"""Class numbers in masks have 8 bits."""
IGNORED = (224, 224, 224)
"""The colour of pixels that belong to no class."""
UNCOUNTED = (93, 100, 104)
"""The colour of objects that are neither learnt nor counted, which a dashed line is drawn around."""
_LARGEST_FILE = 1 << 20

# The first eight are those that Okabe and Ito chose for readers with any colour vision ("Color Universal Design",
# 2008). Each one after them is the colour with levels 0, 17, ... 255 and CIELAB lightness from 25 to 92 that is
# farthest, in CIELAB, from all before it.
_STANDARD = (
    "000000e69f0056b4e9009e73f0e4420072b2d55e00cc79a70000ff00ff00ff00dd552299eeddbbff006655550099ff8877112200ffff"
    "666666338800cc88ffbb7755aa44ff553366ff00220077ffbb1188ffddffaaee00aabb6600ffbb225533ff778899ccccffcc77aa0011"
    "66330000cc330022ccaaeebbaaaaff998800228888eeaaaa114499ff77dd88997799bb22aa99bbaa22bbbb33669955aa005500004455"
    "77005500bb661199ff774444ff8866bb7722ff449900ff88ff555511ddff5588446655338866ff998844ffbbffee66ffbb4444ccee77"
    "44ddbb7777dd88ff55ff33bbdd00ff1144cc77bb55bbccff994400556688886699ff99447799aaaa8888ff550000bbbb8811888811ff"
    "ffcc0066bb008833550044777700bbddeeaa0088aaddaa7777bb995577008855cccc1144ddee00ccbb4411ff55ccbbbb2255ff99ddff"
    "553388dd4422aa4488aa6677dd88ddff77aa88ff00aaee5566dd99ffaaccff8800886600cc55cc00aa33882211ff0044556633554455"
    "3333ffbbbb88aaee990088335577667788cc77bb7733443399eeddccddeecc00aa00774444dd00ee4477aa8866889922885533cc6633"
    "0066cccceeddaa88cc994444555599bbbb004488669944dd44aabbffaa88224400dd55aaccaa0044dd66dddd77bb8800cc22dd774466"
    "ffcc55773377990022ff7744cc1177cc6677223399ccaa55886677886655880044ffdddd444411777711ddbbeeccee44ff9999aabbaa"
    "006677bb66eeaa553366ff99770099eeaa44669900dd885588bbffdd77668899557711ddaa330000ffdd006655bb99ff5533cc88eeff"
    "999999dd1122773322ffccaa0055cc4499ddaa2244ffaa66ff99ddaa7799eedd9977dd5577ffcc7799ffff55dd995588bb8844335555"
    "7777550099887777ff99dd66cc99aa885511cc4433aacc99773399ff44661188ff5555bb2277cc0066ffff33ffdd889999cc00aa00ee"
    "ff009977dd77cc998833aa667744ff66998899bbdddd2200444444ddaaff669933cc55ff55778866ccbb11557755aa2288dd22337722"
    "7799ccdd881122aa005544bb"
)


@dataclasses.dataclass(frozen=True)
class Palette:
    """Names and colours (red, green, blue) of classes, by class number; those of masks are at most `MOST`."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.colours):
            raise SrattnError(
                f"a palette needs at least one name and a colour for each, got {len(self.names)} names and "
                f"{len(self.colours)} colours"
            )
        for name, colour in zip(self.names, self.colours, strict=True):
            if len(colour) != 3 or not all(type(level) is int and 0 <= level <= 255 for level in colour):
                raise SrattnError(f"the colour of class {name!r} must be three numbers from 0 to 255, got {colour!r}")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name, times in Counter(self.names).items() if times > 1)
            raise SrattnError(f"a palette must name every class once, got {twice!r} twice")

    def __len__(self) -> int:
        return len(self.names)

    def table(self) -> Tensor:
        """uint8 (256, 3): the colour of every number; those that are no class have the standard ones, 255 `IGNORED`.

        Raises:
            SrattnError: more than 256.
        """
        check_mask_classes(len(self))
        colours = [*self.colours, *_standard_colours()[len(self) :]]
        if len(self) < MOST:
            colours[-1] = IGNORED
        return torch.tensor(colours, dtype=torch.uint8)


def standard_palette(classes: int | Sequence[str]) -> Palette:
    """Fixed colours for classes by number: neighbours differ, and the first eight do so for colour-blind eyes too.

    Of more than 256 classes, as there are of boxes, the colours begin again.

    Args:
        classes: their names, or how many there are.

    Raises:
        SrattnError: none, or one twice.
    """
    names = tuple(f"class {n}" for n in range(classes)) if isinstance(classes, int) else tuple(classes)
    return Palette(names, tuple(itertools.islice(itertools.cycle(_standard_colours()), len(names))))


def check_mask_classes(count: int) -> None:
    """Refuses more classes than masks can tell apart.

    Raises:
        SrattnError: see above.
    """
    if count > MOST:
        raise SrattnError(f"{count} classes are too many for masks, which have 8 bits: at most {MOST}")


def read_palette(path: Path) -> Palette:
    """A palette from a text or JSON file, classes in the order of their numbers.

    A text file has a line `name r g b` for each class, with commas or spaces between; the name may contain spaces, or
    be missing. Empty lines, lines that start with "#" and a first line `name,r,g,b` are skipped. A file `*.json` holds
    a list of `[name, r, g, b]` or of `{"name": ..., "color": [r, g, b]}`, or one object `{name: [r, g, b]}`.

    Raises:
        SrattnError: the file cannot be read, or something in it is no colour; the message names file and place.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise SrattnError(f"{path}: {error.strerror}; give a text or JSON file of colours") from None
    if len(data) > _LARGEST_FILE:
        raise SrattnError(f"{path}: more than {_LARGEST_FILE:,} bytes are no palette")
    try:
        text = data.decode("utf-8-sig")
        entries = list(_from_json(json.loads(text)) if path.suffix.lower() == ".json" else _from_lines(text))
        return Palette(tuple(name for name, _ in entries), tuple(colour for _, colour in entries))
    except UnicodeDecodeError:
        raise SrattnError(f"{path}: not a text in UTF-8") from None
    except SrattnError as error:
        raise SrattnError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise SrattnError(f"{path}: not JSON ({error})") from None


def class_numbers(mask: Tensor, classes: int, ignore: int | None = 255, name: str = "the mask") -> Tensor:
    """A mask (H, W) of whole numbers as uint8.

    Raises:
        SrattnError: it has another shape or type, or a number that is neither a class nor `ignore`.
    """
    if mask.ndim != 2 or mask.is_floating_point() or mask.is_complex():
        raise SrattnError(f"{name} must be whole numbers (H, W), got {mask.dtype} {tuple(mask.shape)}")
    if mask.dtype in (torch.bool, torch.int8):
        mask = mask.short()  # torch compares in the type of the tensor, in which 255 must be 255
    wrong = (mask < 0) | (mask > min(classes, MOST) - 1)
    if ignore is not None:
        wrong &= mask != ignore
    if wrong.any():
        y, x = divmod(int(wrong.flatten().byte().argmax()), mask.shape[1])
        also = "" if ignore is None else f" or {ignore}, which is no class"
        raise SrattnError(
            f"{name} has the value {int(mask[y, x])} at (y, x) = ({y}, {x}): must be below the {classes} classes{also}"
        )
    return mask.to(torch.uint8)


def _standard_colours() -> tuple[Colour, ...]:
    levels = bytes.fromhex(_STANDARD)
    return tuple((levels[n], levels[n + 1], levels[n + 2]) for n in range(0, len(levels), 3))


def _from_lines(text: str) -> Iterator[tuple[str, Colour]]:
    count = 0
    for number, line in enumerate(text.splitlines(), start=1):
        words = [word.strip() for word in (line.split(",") if "," in line else line.split())]
        if not any(words) or words[0].startswith("#"):
            continue
        if count == 0 and [word.lower() for word in words] == ["name", "r", "g", "b"]:
            continue
        levels = words[-3:]
        if len(levels) < 3 or not all(
            word.isascii() and word.isdigit() and len(word) <= 3 and int(word) <= 255 for word in levels
        ):
            raise SrattnError(f"line {number} must be a name and three numbers from 0 to 255, got {line[:80]!r}")
        yield " ".join(words[:-3]) or f"class {count}", (int(levels[0]), int(levels[1]), int(levels[2]))
        count += 1


def _from_json(values: Any) -> Iterator[tuple[str, Colour]]:
    entries = [[name, *_list(colour)] for name, colour in values.items()] if isinstance(values, dict) else values
    for number, entry in enumerate(_list(entries)):
        if isinstance(entry, dict):
            entry = [entry.get("name"), *_list(entry.get("color", entry.get("colour")))]
        if not isinstance(entry, list) or len(entry) != 4 or not isinstance(entry[0], str):
            raise SrattnError(f"class {number} must be a name and a colour [r, g, b], got {str(entry)[:80]}")
        yield entry[0], (entry[1], entry[2], entry[3])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
