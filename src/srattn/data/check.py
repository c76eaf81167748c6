"""Everything that can be wrong with a data set, found by reading all of it once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.columns import Columns
from srattn.data.decode import BadImage, decode
from srattn.data.digits import read_digits
from srattn.data.index import PARTS, Index
from srattn.data.likeness import digest, near, outline
from srattn.data.preprocess import to_image
from srattn.data.reader import BUILT_IN, open_data
from srattn.data.sources import Item, called, file_of
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from PIL import Image

_CHUNK = 16
SHOWN = 24  # examples that are kept for the picture


@dataclasses.dataclass
class Report:
    """What `check` found.

    Attributes:
        counts: images of each class, for each part.
        unreadable: a line for each image that cannot be decoded.
        left_out: a line for each row, label or shard that cannot be used.
        empty: a line for each class without an image in a part.
        duplicates: (part, name, part, name) of pictures with the same pixels in two parts.
        near: the same for pictures that look the same (correlation of 12 x 12 grey levels) and differ in their pixels;
            not looked for where that would be more than 4 billion comparisons.
        repeated: how many images of a part have the pixels of an earlier image of it.
        conflicts: (name, class, name, class) of the same pixels with different labels.
        sizes: how many images there are of each (width, height).
        refused: why a run would refuse the data; empty if it would not.
        examples: some small pictures of each class, for the eye: (class number, picture).
    """

    data: str
    classes: list[str]
    counts: dict[str, list[int]]
    unreadable: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)
    empty: list[str] = dataclasses.field(default_factory=list)
    duplicates: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    near: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    repeated: dict[str, int] = dataclasses.field(default_factory=dict)
    conflicts: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    refused: list[str] = dataclasses.field(default_factory=list)
    examples: list[tuple[int, Image.Image]] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the examples."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del plain["examples"]
        counts = {part: dict(zip(self.classes, numbers, strict=True)) for part, numbers in self.counts.items()}
        sizes = [{"width": w, "height": h, "images": n} for (w, h), n in self.sizes.most_common()]
        return plain | {"counts": counts, "sizes": sizes}


@dataclasses.dataclass(frozen=True)
class _Look:
    size: tuple[int, int]
    pixels: bytes  # a hash of them
    outline: Tensor | None
    example: Image.Image | None


def check(
    data: str,
    *,
    columns: Columns | None = None,
    strict: bool = True,
    skip_empty: bool = False,
    workers: int = 0,
    notify: Callable[[int, int], None] | None = None,
) -> Report:
    """Reads every image of every part.

    Args:
        strict: judge as a run with `on_bad_image` "error" would, for which any unusable image is a reason to refuse.
        skip_empty: judge as one with `on_empty_class` "skip" would.

    Raises:
        SrattnError: there is nothing at `data`.
    """
    try:
        index = _digits() if data in BUILT_IN else open_data(data, columns=columns)
    except SrattnError as error:
        if not Path(data).exists():
            raise
        return Report(data, [], {}, refused=[str(error)])
    report = Report(data, index.classes, {part: [0] * len(index.classes) for part in PARTS if part in index.parts})
    report.left_out = list(index.skipped)
    wanted = {id(item) for item in _examples(index)}
    seen: dict[bytes, tuple[str, Item]] = {}
    outlines: dict[str, list[tuple[str, Tensor]]] = {}
    total, done = sum(map(len, index.parts.values())), 0
    for part in report.counts:
        items = index.parts[part]
        chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
        looks = ahead(lambda chunk: [_look(item, id(item) in wanted) for item in chunk], chunks, workers)
        for chunk, found in zip(chunks, looks, strict=True):
            for item, look in zip(chunk, found, strict=True):
                if isinstance(look, BadImage):
                    report.unreadable.append(str(look))
                else:
                    _count(report, part, item, look, seen, outlines)
            done += len(chunk)
            if notify:
                notify(done, total)
    report.near = near(outlines)
    _judge(report, strict, (strict or index.class_folders) and not skip_empty)
    return report


def _count(
    report: Report,
    part: str,
    item: Item,
    look: _Look,
    seen: dict[bytes, tuple[str, Item]],
    outlines: dict[str, list[tuple[str, Tensor]]],
) -> None:
    report.counts[part][item.label] += 1
    report.sizes[look.size] += 1
    if look.example is not None:
        report.examples.append((item.label, look.example))
    if look.pixels in seen:
        first_part, first = seen[look.pixels]
        if first_part != part:
            report.duplicates.append((first_part, first.name, part, item.name))
        else:
            report.repeated[part] = report.repeated.get(part, 0) + 1
        if first.label != item.label:
            names = report.classes
            report.conflicts.append((first.name, names[first.label], item.name, names[item.label]))
        return
    seen[look.pixels] = part, item
    if look.outline is not None:
        outlines.setdefault(part, []).append((item.name, look.outline))


def _judge(report: Report, strict: bool, strict_classes: bool) -> None:
    for part, counts in report.counts.items():
        report.empty += [f"{part}: class {report.classes[n]!r} has no image" for n, c in enumerate(counts) if not c]
    if not any(report.counts.get("train", [])):
        report.refused.append("there is no usable image for training")
    usable = len(report.classes) - sum(1 for count in report.counts.get("train", []) if not count)
    if usable < 2:
        report.refused.append(f"there are {usable} classes with images; training needs at least two")
    for what, lines, matters in (
        ("unreadable image(s)", report.unreadable, strict),
        ("row(s), label(s) or shard(s) that cannot be used", report.left_out, strict),
        ("class(es) without an image in a part", report.empty, strict_classes),
    ):
        if lines and matters:
            report.refused.append(f"{len(lines)} {what}")


def _look(item: Item, keep: bool) -> _Look | BadImage:
    try:
        if isinstance(item.source, Tensor):
            image = to_image(item.source).convert("RGB")
        else:
            image = decode(file_of(item.source), 3, called(item.name, item.source))
    except BadImage as error:
        return error
    example = None
    if keep:
        example = image.copy()
        example.thumbnail((96, 96))
    return _Look(image.size, digest(image), outline(image), example)


def _examples(index: Index) -> Sequence[Item]:
    """A few images of each of the first classes, the same at each call."""
    items = index.parts.get("train") or next(iter(index.parts.values()), [])
    labels = range(min(len(index.classes), SHOWN))
    each = max(1, min(6, SHOWN * 2 // max(1, len(labels))))
    taken: Counter[int] = Counter()
    found = []
    for item in items:
        if item.label in labels and taken[item.label] < each:
            taken[item.label] += 1
            found.append(item)
    return found


def _digits() -> Index:
    data = read_digits(8)
    parts = {
        part: [
            Item(name, label, samples.pixels(number))
            for number, (name, label) in enumerate(zip(samples.names, samples.labels.tolist(), strict=True))
        ]
        for part, samples in (("train", data.train), ("val", data.val))
    }
    return Index(data.classes, parts)
