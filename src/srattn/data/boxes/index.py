"""What a reader of boxes finds before any image is decoded, and what it does with what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from srattn.data.boxes.outlines import Outline, read_outline
from srattn.data.boxes.values import short
from srattn.data.decode import MAX_PIXELS, BadImage, opened_image, orientation_of, turned_words
from srattn.errors import SrattnError

OnBadBox: TypeAlias = Literal["skip", "error"]
"""Go on without what is wrong and name it, or raise it."""
_EDGE = 1.0  # a box may reach this far over the image's edge unsaid: formats disagree about the first pixel


@dataclasses.dataclass(frozen=True, eq=False)
class BoxItem:
    """One image before it is decoded, with its boxes.

    Attributes:
        name: in messages.
        size: (height, width) of the picture as `srattn.data.decode` gives it, upright.
        boxes: float32 (N, 4), x1, y1, x2, y2: edges in pixels, the image from 0 to its width and height.
        labels: int64 (N,), class numbers.
        difficult: bool (N,), boxes that a measurement should not count ("difficult" of VOC, "iscrowd" of COCO).
        number: the id of the image in a COCO file.
        outlines: the mask of each object, None where it is not known; None where nobody asked for masks.
    """

    name: str
    source: Path
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    number: int | None = None
    outlines: tuple[Outline | None, ...] | None = None


@dataclasses.dataclass
class BoxIndex:
    """What a reader finds.

    Attributes:
        parts: the images of "train", "val" and "test", as far as there are any; images without boxes are among them.
        problems: a line for everything that was left out or put right.
        lost: those of them that cost an image; the others are of single boxes and masks.
        of_parts: the problems again, by part.
        category_ids: the numbers of the classes in a COCO file.
    """

    classes: list[str]
    parts: dict[str, list[BoxItem]]
    problems: list[str] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)
    category_ids: list[int] = dataclasses.field(default_factory=list)
    of_parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def counts(self, part: str) -> list[int]:
        """Boxes of each class in a part."""
        labels = [item.labels for item in self.parts.get(part, [])]
        together = torch.cat(labels) if labels else torch.zeros(0, dtype=torch.int64)
        return torch.bincount(together, minlength=len(self.classes)).tolist()


class Problems:
    """Collects what is wrong, or raises the first of it; `part` is the one that is read."""

    def __init__(self, on_bad: OnBadBox, part: str = "train") -> None:
        if on_bad not in ("skip", "error"):
            raise SrattnError(f"on_bad_box is 'skip' or 'error', got {on_bad!r}")
        self.on_bad, self.lines, self.lost = on_bad, list[str](), list[str]()
        self.part, self.of_parts = part, dict[str, list[str]]()

    def tell(self, line: str, image: bool = False) -> None:
        """Raises `SrattnError` with the line, if so asked; `image`: all of one is left out."""
        if self.on_bad == "error":
            raise SrattnError(f'{line}; put it right, or go on without it by on_bad_box="skip"')
        self.lines.append(line)
        self.of_parts.setdefault(self.part, []).append(line)
        if image:
            self.lost.append(line)


@dataclasses.dataclass(frozen=True)
class RawBox:
    """A box as a file says it, its coordinates turned into ours; `words` are what messages call it, and `mask` what
    the file has for one."""

    edges: tuple[float, float, float, float]
    label: str
    difficult: bool
    words: str
    mask: Any = None


def make_item(
    name: str,
    source: Path,
    size: tuple[int, int],
    raw: Sequence[RawBox],
    classes: Sequence[str],
    problems: Problems,
    number: int | None = None,
    masks: bool = False,
) -> BoxItem:
    """Boxes cut at the image's edges; those of another class, or without area in the image, are left out.

    With `masks` those are read too; one that cannot be used is left out, and its box stays.
    """
    height, width = size
    places = {label: place for place, label in enumerate(classes)}
    boxes, labels, difficult = [], [], []
    outlines: list[Outline | None] = []
    for box in raw:
        if box.label not in places:
            problems.tell(f"{name}: {box.words} is of no known class and is left out")
            continue
        x1, y1, x2, y2 = box.edges
        if not (x2 > x1 and y2 > y1):
            problems.tell(f"{name}: {box.words} has no area and is left out")
            continue
        cut = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if not (cut[2] > cut[0] and cut[3] > cut[1]):
            problems.tell(f"{name}: {box.words} is outside of the image of {width}x{height} and is left out")
            continue
        if max(abs(a - b) for a, b in zip(cut, box.edges, strict=True)) > _EDGE:
            problems.tell(f"{name}: {box.words} reaches out of the image of {width}x{height} and is cut at its edge")
        boxes.append(cut)
        labels.append(places[box.label])
        difficult.append(box.difficult)
        if masks:
            outlines.append(_outline(name, box, size, problems))
    return BoxItem(
        name,
        source,
        size,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(difficult, dtype=torch.bool),
        number,
        tuple(outlines) if masks else None,
    )


def _outline(name: str, box: RawBox, size: tuple[int, int], problems: Problems) -> Outline | None:
    try:
        return read_outline(box.mask, size)
    except SrattnError as error:
        problems.tell(f"{name}: the mask of {box.words} is left out: {error}")
        return None


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file by its header, upright.

    Raises:
        BadImage: no such file, no image, or one that is too large.
    """
    with opened_image(path, str(path)) as opened:
        turned = orientation_of(opened) >= 5
        return (opened.width, opened.height) if turned else (opened.height, opened.width)


def usable_size(
    name: str, path: Path, declared: tuple[int, int] | None, problems: Problems, look: bool
) -> tuple[int, int] | None:
    """The (height, width) to go by; None, and a problem told, where image and declaration disagree or there is none."""
    plausible = declared is not None and min(declared) > 0 and declared[0] * declared[1] <= MAX_PIXELS
    if not look and plausible and path.is_file():
        return declared
    try:
        size = picture_size(path)
    except BadImage as error:
        problems.tell(str(error), image=True)
        return None
    if declared is not None and declared != size:
        problems.tell(
            f"{name}: the image is {size[1]}x{size[0]}, declared is {short(declared[1])}x{short(declared[0])}: "
            f"its boxes may belong to another picture, and it is left out{turned_words(path, size, declared)}",
            image=True,
        )
        return None
    return size


def read_bounded(path: Path, most: int) -> bytes:
    """A file's bytes.

    Raises:
        SrattnError: no such file, or one of more than `most` bytes.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise SrattnError(f"{path}: {error.strerror}") from None
    if len(data) > most:
        raise SrattnError(f"{path} has more than the {most:,} bytes that are accepted")
    return data
