"""What a reader finds before any image is decoded, and the one pass that decodes everything once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.decode import BadImage, decode
from srattn.data.preprocess import Preprocess
from srattn.data.samples import ImageData, OnBadImage, Samples, labels_tensor
from srattn.data.sources import Item, Source, called, file_of, stamp_of
from srattn.data.split import stratified_split
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from PIL import Image

Prepare = Callable[["Image.Image"], Tensor]
Notify = Callable[[int, int], None]
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "t10k"),
}
"""The parts of a data set, and what people call them."""
_CHUNK = 32  # images a piece of work: a thread's hand-over costs as much as decoding one small image


@dataclasses.dataclass
class Index:
    """What a reader finds.

    Attributes:
        parts: the images of "train", "val" and "test", as far as there are any.
        skipped: a line for everything that could not be used.
        class_folders: whether classes are folders, of which none is empty except by mistake.
        empty: a line for every such folder.
        of_parts: the lines of both again, by part, as far as they are of one.
    """

    classes: list[str]
    parts: dict[str, list[Item]]
    skipped: list[str] = dataclasses.field(default_factory=list)
    class_folders: bool = False
    empty: list[str] = dataclasses.field(default_factory=list)
    of_parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def without_lines_of_others(self, parts: Collection[str]) -> Index:
        """The same without what is said of other parts than these."""
        skipped, empty = (lines_of(lines, self.of_parts, parts) for lines in (self.skipped, self.empty))
        return dataclasses.replace(self, skipped=skipped, empty=empty)


@dataclasses.dataclass
class Skipped:
    """Collects lines for what cannot be used, by part where that is known; see `Index`."""

    lines: list[str] = dataclasses.field(default_factory=list)
    of_parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, line: str, part: str | None = None) -> None:
        self.lines.append(line)
        if part is not None:
            self.of_parts.setdefault(part, []).append(line)


def lines_of(lines: Sequence[str], of_parts: dict[str, list[str]], parts: Collection[str]) -> list[str]:
    """The lines but those of other parts than `parts`."""
    mine, others = set[str](), set[str]()
    for part, told in of_parts.items():
        (mine if part in parts else others).update(told)
    return [line for line in lines if line in mine or line not in others]


def without_empty_classes(index: Index) -> Index:
    """The classes that have a training image, numbered anew; what is left out is named in `skipped`."""
    present = {item.label for item in index.parts.get("train", [])}
    kept = [number for number in range(len(index.classes)) if number in present]
    place = {number: new for new, number in enumerate(kept)}
    skipped = Skipped([*index.skipped, *index.empty], {part: list(told) for part, told in index.of_parts.items()})
    parts: dict[str, list[Item]] = {}
    for part, items in index.parts.items():
        parts[part] = [dataclasses.replace(item, label=place[item.label]) for item in items if item.label in place]
        lost = len(items) - len(parts[part])
        if lost:
            skipped.add(f"{lost} image(s) of {part}: their classes have no training image", part)
    classes = [index.classes[number] for number in kept]
    return Index(classes, parts, skipped.lines, index.class_folders, of_parts=skipped.of_parts)


def part_called(name: str) -> str | None:
    """ "train", "val" or "test" for a name that means it; None for any other."""
    return next((part for part, names in PARTS.items() if name.casefold() in names), None)


def parts_read(parts: Mapping[str, Collection[object]], val: str | None) -> set[str]:
    """The parts that a run means to read; see `held_part`. One that has only what cannot be used is among them."""
    if val is not None:
        return {"train", "train" if val == "split" else part_called(val) or val}
    return {"train", "val"} if parts.get("val") else {"train", "val", "test"}


def held_part(parts: Collection[str], val: str | None) -> str | None:
    """Which of the parts that have images is measured with; None where it is to be split off the training part.

    `val` is "split" or a name of a part; None takes "val", else "test", else splits.

    Raises:
        SrattnError: no training part, or no other part of that name.
    """
    if "train" not in parts:
        have = f"only {', '.join(parts)}" if parts else "no image that can be used"
        raise SrattnError(f"there is no training part, {have}; call the part to learn from train")
    others = [part for part in parts if part != "train"]
    if val is None:
        return next((part for part in ("val", "test") if part in others), None)
    if val == "split":
        return None
    if (part := part_called(val)) not in others:
        raise SrattnError(f"val is {val!r}, but can be {' or '.join([*others, 'split'])}")
    return part


def divide(index: Index, val: str | None, fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """The images for training and for validation.

    See `held_part` for `val`; a split holds out `fraction` of each class of the training part.

    Raises:
        SrattnError: as `held_part`, or classes that are too small to split.
    """
    parts = {name: items for name, items in index.parts.items() if items}
    if (part := held_part(parts, val)) is not None:
        return parts["train"], parts[part]
    labels = [item.label for item in parts["train"]]
    train, held = stratified_split(labels, fraction, seed, index.classes)
    return [parts["train"][i] for i in train], [parts["train"][i] for i in held]


def read_data(
    classes: list[str],
    train: Sequence[Item],
    val: Sequence[Item],
    preprocess: Preprocess,
    prepare_train: Prepare,
    *,
    least_train: int | None = None,
    on_bad_image: OnBadImage = "skip",
    empty_classes: Literal["error", "name"] = "error",
    hold_bytes: int = 1 << 30,
    workers: int = 0,
    notify: Notify | None = None,
) -> ImageData:
    """Decodes both parts once (see `read_samples`).

    Args:
        prepare_train, least_train: from a decoded picture to the pixels that the augmentation wants, and the shorter
            side that it needs of a picture (see `decode`).
        on_bad_image: leave out an unreadable image and go on, or raise its error.
        empty_classes: refuse a class without a usable image in a part, or name it in `skipped`.
        hold_bytes: prepared pictures are kept in memory until they need more than this; the rest is decoded on access.
        workers: threads that decode.
        notify: called with the number of images done and the number of all.

    Raises:
        SrattnError: a part without a usable image, an empty class; `BadImage` with `on_bad_image` "error".
    """
    total, count, budget = len(train) + len(val), 0, Budget(hold_bytes)

    def done() -> None:
        nonlocal count
        count += 1
        if notify:
            notify(count, total)

    parts: list[Samples] = []
    skipped: list[str] = []
    for items, prepare, least in ((train, prepare_train, least_train), (val, preprocess.pixels, None)):
        samples, bad = read_samples(
            items,
            preprocess.channels,
            prepare,
            least=least,
            on_bad_image=on_bad_image,
            budget=budget,
            workers=workers,
            done=done,
        )
        parts.append(samples)
        skipped += bad
    skipped += check_classes(classes, [set(part.labels.tolist()) for part in parts], empty_classes, skipped)
    return ImageData(classes, parts[0], parts[1], preprocess, skipped)


def check_classes(
    classes: Sequence[str],
    present: Sequence[Collection[int]],
    empty_classes: Literal["error", "name"] = "error",
    unreadable: Sequence[str] = (),
) -> list[str]:
    """A line for each class without a usable image.

    Args:
        present: classes of the usable images for training, and of those for validation.
        empty_classes: refuse such a class instead.
        unreadable: a line for each file that could not be read, for messages.

    Raises:
        SrattnError: a part without a usable image, fewer than two classes to learn, or an empty class.
    """
    reason = f"; {len(unreadable)} file(s) were unreadable, the first: {unreadable[0]}" if unreadable else ""
    lines: list[str] = []
    for there, where in zip(present, ("training", "validation"), strict=True):
        if not there:
            raise SrattnError(f"there is no usable image for {where}{reason}")
        for label, name in enumerate(classes):
            if label not in there:
                if empty_classes == "error":
                    raise SrattnError(f"class {name!r} has no usable image for {where}{reason}")
                lines.append(f"class {name!r} has no usable image for {where}")
    learnt = [name for label, name in enumerate(classes) if label in present[0]]
    if len(learnt) < 2:
        raise SrattnError(f"{learnt[0]!r} is the only class with images for training, which needs at least two{reason}")
    return lines


class Budget:
    """Bytes of memory that are left for decoded pictures."""

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> bool:
        """Whether `size` bytes were left; then they are taken."""
        if size > self.left:
            return False
        self.left -= size
        return True


def read_samples(
    items: Sequence[Item],
    channels: int,
    prepare: Prepare,
    *,
    least: int | None = None,
    on_bad_image: OnBadImage = "skip",
    budget: Budget | None = None,
    workers: int = 0,
    done: Callable[[], None] | None = None,
) -> tuple[Samples, list[str]]:
    """Decodes every image once, so that an unreadable one is met now and not in epoch 40.

    Args:
        prepare: from a decoded picture to pixels, uint8 (C, H, W).
        budget: prepared pictures are kept in memory while there is any; the others are decoded again on access.
        done: called after each image.

    Returns:
        The samples, and a line for each image that was left out.

    Raises:
        BadImage: an unreadable image, if `on_bad_image` is "error".
    """
    budget = budget or Budget(0)
    good: list[Item] = []
    sources: list[Source] = []
    skipped: list[str] = []
    stamps: list[int] = []
    shapes: set[tuple[int, ...]] = set()

    def open_some(chunk: Sequence[Item]) -> list[tuple[Tensor, int] | BadImage]:
        return [_open(item, channels, prepare, least) for item in chunk]

    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    for chunk, results in zip(chunks, ahead(open_some, chunks, workers), strict=True):
        for item, opened in zip(chunk, results, strict=True):
            if done:
                done()
            if isinstance(opened, BadImage):
                if on_bad_image == "error":
                    raise opened
                skipped.append(str(opened))
                continue
            pixels, stamp = opened
            stamps.append(stamp)
            shapes.add(tuple(pixels.shape))
            good.append(item)
            sources.append(pixels if budget.take(pixels.numel()) else item.source)
    shape = next(iter(shapes)) if len(shapes) == 1 else None
    labels = labels_tensor([item.label for item in good])
    names = [item.name for item in good]
    samples = Samples(names, labels, _together(sources, shape), channels, prepare, None, on_bad_image, {}, least)
    samples.stamps = torch.tensor(stamps, dtype=torch.int64)
    if shape is not None:
        samples.shape = (shape[0], shape[1], shape[2])
    return samples, skipped


def lazy_samples(items: Sequence[Item], channels: int, prepare: Prepare, on_bad_image: OnBadImage = "error") -> Samples:
    """The images, none of them read yet: for one pass over a data set, as a prediction makes."""
    labels = labels_tensor([item.label for item in items])
    return Samples([i.name for i in items], labels, [i.source for i in items], channels, prepare, None, on_bad_image)


def _open(item: Item, channels: int, prepare: Prepare, least: int | None) -> tuple[Tensor, int] | BadImage:
    """The prepared pixels and the stamp of the file."""
    if isinstance(item.source, Tensor):
        return item.source, stamp_of(item.source.numpy().tobytes())
    name = called(item.name, item.source)
    try:
        file = file_of(item.source)
        return prepare(decode(file, channels, name, least)), stamp_of(file)
    except BadImage as error:
        return error
    except OSError as error:  # of the stamp: decoding names its own
        return BadImage(f"{name}: {error.strerror}")


def _together(sources: list[Source], shape: tuple[int, ...] | None) -> list[Source] | Tensor:
    """One tensor (N, C, H, W) if all are pixels of one shape; the list is emptied on the way, not copied."""
    if shape is None or not all(isinstance(source, Tensor) for source in sources):
        return sources
    whole = torch.empty((len(sources), *shape), dtype=torch.uint8)
    for number, source in enumerate(sources):
        whole[number] = source  # type: ignore[assignment]
        sources[number] = b""
    return whole
