"""From what a reader has found to scenes that are decoded once, checked and divided."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.decode import BadImage
from srattn.data.dense.joint import JointAugment
from srattn.data.dense.person import kept_person, measured_person
from srattn.data.dense.scenes import SceneData, Scenes, shape_of
from srattn.data.dense.target import Target
from srattn.data.index import Budget, held_part, lines_of, parts_read
from srattn.data.keyed import permutation
from srattn.data.palette import Of255, Palette
from srattn.data.preprocess import Preprocess, to_tensor
from srattn.data.samples import OnBadImage
from srattn.data.sources import stamp_of
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from PIL import Image

One = TypeVar("One")
Notify = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Unread:
    """An image before it is decoded; `target` reads what is known of it, given its (height, width)."""

    name: str
    image: Path
    target: Callable[[tuple[int, int]], Target]


@dataclasses.dataclass
class Found:
    """What a reader finds.

    Attributes:
        parts: images of "train", "val" and "test", as far as there are any.
        problems: a line for every image that cannot be used, or person.
        refused: what `on_bad_image` "error" refuses, where that is more: boxes that were cut or left out, too.
        palette: colours of the classes, where the data says them.
        notes: what a person should know of the data.
        facts: a hash of the targets: says whether a resumed run has those that it began with.
        bones: joints by number that a line is drawn between in pictures, where the data says them.
        of_255: what 255 is in masks, where they say it.
        of_parts: the problems again, and others, by part, as far as they are of one.
    """

    classes: list[str]
    parts: dict[str, list[Unread]]
    problems: list[str]
    facts: str
    palette: Palette | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    bones: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    of_255: Of255 | None = None
    refused: list[str] = dataclasses.field(default_factory=list)
    of_parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def problems_of(self, parts: Collection[str]) -> list[str]:
        """The problems but those of other parts."""
        return lines_of(self.problems, self.of_parts, parts)

    def notes_of(self, parts: Collection[str]) -> list[str]:
        """The notes, and one on boxes of these parts that were cut or left out."""
        lost = set(self.problems)
        wrong = [line for line in lines_of(self.refused, self.of_parts, parts) if line not in lost]
        if not wrong:
            return list(self.notes)
        return [
            *self.notes,
            f"boxes: {len(wrong):,} were cut or left out, or their masks; the first: {wrong[0]}; srattn data check "
            f"names them",
        ]


def load_scenes(
    found: Found,
    augment: JointAugment,
    measured: Preprocess,
    *,
    val: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    on_bad_image: OnBadImage = "skip",
    hold_bytes: int = 1 << 30,
    workers: int = 0,
    notify: Notify | None = None,
) -> SceneData:
    """Decodes every image and its target once, so that a bad one is met now and not in epoch 40.

    Args:
        augment: of the training images; `measured` is the preprocessing of validation.

    Raises:
        SrattnError: nothing to train on or to measure with; `BadImage` with `on_bad_image` "error".
    """
    used = parts_read(found.parts, val)
    if on_bad_image == "error" and (wrong := lines_of(found.refused or found.problems, found.of_parts, used)):
        raise BadImage(wrong[0])
    train, held = divide_scenes(found.parts, val, val_fraction, split_seed)
    total, before = len(train) + len(held), 0
    budget, skipped = Budget(hold_bytes), found.problems_of(used)
    parts: list[Scenes] = []
    for unread, resize in ((train, _Kept(augment)), (held, _Measured(measured))):
        samples, bad = _check(unread, resize, measured.channels, on_bad_image, budget, workers, notify, before, total)
        before += len(unread)
        parts.append(samples)
        skipped += bad
    for part, where in zip(parts, ("training", "validation"), strict=True):
        if not len(part):
            reason = f"; the first of {len(skipped)} that cannot be used: {skipped[0]}" if skipped else ""
            raise SrattnError(f"there is no usable image for {where}{reason}")
    facts = found.facts, found.palette, found.notes_of(used), found.bones, found.of_255
    return SceneData(found.classes, parts[0], parts[1], measured, skipped, *facts)


def load_part(
    unread: Sequence[Unread],
    measured: Preprocess,
    *,
    on_bad_image: OnBadImage = "skip",
    hold_bytes: int = 0,
    workers: int = 0,
    notify: Notify | None = None,
) -> tuple[Scenes, list[str]]:
    """Images as they are measured, each decoded once; and a line for each that cannot be used."""
    budget = Budget(hold_bytes)
    return _check(unread, _Measured(measured), measured.channels, on_bad_image, budget, workers, notify, 0, len(unread))


def divide_scenes(
    parts: dict[str, list[One]], val: str | None, fraction: float, seed: int
) -> tuple[list[One], list[One]]:
    """Training and validation of scenes: as `srattn.data.index.divide`, without classes to divide by.

    What lies in one image (`Unread.image`), such as several people, stays together.
    """
    parts = {name: items for name, items in parts.items() if items}
    if (part := held_part(parts, val)) is not None:
        return parts["train"], parts[part]
    if not 0 < fraction < 1:
        raise SrattnError(f"val_fraction must be above 0 and below 1, got {fraction}")
    items = _by_image(parts["train"])
    if len(items) < 2:
        raise SrattnError("there is one image only; a split needs at least two: add some, or a part val/")
    count = min(max(1, round(fraction * len(items))), len(items) - 1)
    held = set(permutation(len(items), seed, 0)[:count].tolist())
    train = [one for n, item in enumerate(items) if n not in held for one in item]
    return train, [one for n in sorted(held) for one in items[n]]


def _by_image(items: Sequence[One]) -> list[list[One]]:
    """The items of each image, images in the order of their first item."""
    found: dict[object, list[One]] = {}
    for item in items:
        found.setdefault(getattr(item, "image", item), []).append(item)
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What is kept of a training image: no more than is ever shown of it."""

    augment: JointAugment

    def __call__(self, image: Image.Image, target: Target) -> tuple[Tensor, Target]:
        from PIL.Image import Resampling

        if target.joints is not None:
            return kept_person(self.augment, image, target)
        preprocess = self.augment.preprocess
        image = preprocess.inverted(image)
        factor = preprocess.factor(image.height, image.width) * self.augment.scale[1]
        if factor >= 0.75:  # to make a picture a little smaller would cost more than it saves
            return to_tensor(image), target
        size = max(1, round(image.height * factor)), max(1, round(image.width * factor))
        step = _scaling(size[1] / image.width, size[0] / image.height)
        small = image.resize((size[1], size[0]), Resampling.BILINEAR, reducing_gap=3.0)
        return to_tensor(small), target.moved(step, size)


@dataclasses.dataclass(frozen=True)
class _Measured:
    """An image as it is measured. Boxes are moved with it; masks and depths stay at its own size, so that its pixels
    count. Of people each has its own window."""

    preprocess: Preprocess

    def __call__(self, image: Image.Image, target: Target) -> tuple[Tensor, Target]:
        if target.joints is not None:
            return measured_person(self.preprocess, image, target)
        pixels = self.preprocess.pixels(image)
        if target.boxes is None:
            return pixels, target
        rows, columns = self.preprocess.sides(image.height, image.width)
        top, left = self.preprocess.corner(image.height, image.width)
        step = _scaling(columns / image.width, rows / image.height, left, top)
        return pixels, target.measured(step, (pixels.shape[1], pixels.shape[2]))


def _scaling(across: float, down: float, left: float = 0.0, top: float = 0.0) -> Tensor:
    return torch.tensor([[across, 0.0, left], [0.0, down, top]], dtype=torch.float64)


def _check(
    unread: Sequence[Unread],
    resize: Callable[[Image.Image, Target], tuple[Tensor, Target]],
    channels: int,
    on_bad_image: OnBadImage,
    budget: Budget,
    workers: int,
    notify: Notify | None,
    before: int,
    total: int,
) -> tuple[Scenes, list[str]]:
    """Reads every image and target once, and keeps what fits the budget."""
    every = Scenes.of(unread, channels, resize, on_bad_image)

    def attempt(number: int) -> tuple[tuple[Tensor, Target], int] | BadImage:
        try:
            return every.read(number), stamp_of(unread[number].image)
        except BadImage as error:
            return error
        except OSError as error:
            return BadImage(f"{unread[number].image}: {error.strerror}")

    good: list[Unread] = []
    bad: list[str] = []
    held: list[tuple[Tensor, Target] | None] = []
    example = Target()
    shapes: list[tuple[int, ...]] = []
    stamps: list[int] = []
    for done, (one, read) in enumerate(zip(unread, ahead(attempt, range(len(unread)), workers), strict=True), 1):
        if notify:
            notify(before + done, total)
        if isinstance(read, BadImage):
            if on_bad_image == "error":
                raise read
            bad.append(str(read))
            continue
        found, stamp = read
        stamps.append(stamp)
        example = found[1].emptied() if not good else example
        good.append(one)
        shapes.append(shape_of(*found))
        held.append(found if budget.take(found[0].numel() + found[1].bytes()) else None)
    samples = Scenes.of(good, channels, resize, on_bad_image)
    samples.example, samples.stamps = example, torch.tensor(stamps, dtype=torch.int64)
    for index, (shape, scene) in enumerate(zip(shapes, held, strict=True)):
        samples.shapes[index] = shape
        if scene is not None:
            samples.hold(index, *scene)
    return samples, bad
