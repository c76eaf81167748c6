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
from srattn.data.index import PARTS, Index, check_classes
from srattn.data.likeness import digest, near, outline
from srattn.data.preprocess import to_image
from srattn.data.reader import BUILT_IN, Choice, choose, open_data
from srattn.data.samples import OnBadImage
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
    val: str | None = None,
    val_fraction: float = 0.2,
    on_bad_image: OnBadImage = "skip",
    on_empty_class: OnBadImage | None = None,
    workers: int = 0,
    notify: Callable[[int, int], None] | None = None,
) -> Report:
    """Reads every image of every part.

    Args:
        val, val_fraction, on_bad_image, on_empty_class: judge as a run with these would (see
            `srattn.data.reader.load_data`). The images of a `val` that is another data set are not read.

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
    bad: dict[int, str] = {}  # why an image cannot be used, by the identity of its source
    total, done = sum(map(len, index.parts.values())), 0
    for part in report.counts:
        items = index.parts[part]
        chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
        looks = ahead(lambda chunk: [_look(item, id(item) in wanted) for item in chunk], chunks, workers)
        for chunk, found in zip(chunks, looks, strict=True):
            for item, look in zip(chunk, found, strict=True):
                if isinstance(look, BadImage):
                    bad[id(item.source)] = str(look)
                else:
                    _count(report, part, item, look, seen, outlines)
            done += len(chunk)
            if notify:
                notify(done, total)
    report.unreadable, report.near = list(bad.values()), near(outlines)
    for part, counts in report.counts.items():
        report.empty += [f"{part}: class {report.classes[n]!r} has no image" for n, c in enumerate(counts) if not c]
    if data not in BUILT_IN:
        try:
            choice = choose(
                data,
                index,
                val=val,
                val_fraction=val_fraction,
                on_bad_image=on_bad_image,
                on_empty_class=on_empty_class,
                columns=columns,
            )
        except SrattnError as error:
            report.refused.append(str(error))
            choice = None
        _judge(report, choice, bad, on_bad_image)
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


def _judge(report: Report, choice: Choice | None, bad: dict[int, str], on_bad_image: OnBadImage) -> None:
    """Refuses what a run would refuse once it has read its images; of an unknown choice, all."""
    if choice is None:
        if bad and on_bad_image == "error":
            report.refused.append(f"{len(bad)} unreadable image(s)")
        return
    chosen = choice.train, choice.held
    lines = [bad[id(item.source)] for part in chosen for item in part if id(item.source) in bad]
    if lines and on_bad_image == "error":
        report.refused.append(f"{len(lines)} unreadable image(s), the first: {lines[0]}")
        return
    present = [{item.label for item in part if id(item.source) not in bad} for part in chosen]
    try:
        check_classes(choice.index.classes, present, choice.empty_classes, lines)
    except SrattnError as error:
        report.refused.append(str(error))


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
