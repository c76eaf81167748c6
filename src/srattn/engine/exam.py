"""What a model is examined on: labelled images, in its own preprocessing and with its own numbers of classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch

from srattn.data.columns import Columns
from srattn.data.index import (
    Index,
    divide,
    held_part,
    lazy_samples,
    lines_of,
    part_called,
    without_empty_classes,
)
from srattn.data.preprocess import Preprocess, to_image
from srattn.data.reader import absolute, is_built_in, open_data
from srattn.data.samples import Samples
from srattn.data.sources import Item
from srattn.engine.open_model import open_model
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError, nearest

Split = Literal["auto", "val", "test", "train", "all"]
OnBadImage = Literal["skip", "error"]


@dataclasses.dataclass(frozen=True)
class Exam:
    """Labelled images for one model.

    Attributes:
        samples: labels number `classes`, which are the model's.
        split: the part that was taken, in words.
        skipped: a line for everything that cannot be used.
    """

    samples: Samples
    classes: list[str]
    split: str
    skipped: list[str]


def open_subject(
    model: str | None, weights: str | None, device: str | torch.device = "cpu", size: int | None = None
) -> LoadedRun:
    """The model to examine: see `open_model`; `weights` is a checkpoint of the registered model `model`.

    Raises:
        SrattnError: neither a run nor a model, weights of another model, or a size below the model's least.
    """
    run = open_model(weights or model, device, size)
    if weights is not None and model is not None and run.name != model:
        raise SrattnError(f"{weights} holds weights of {run.name}, not of {model}")
    least = run.model.min_size
    if min(run.preprocess.size) < least:
        raise SrattnError(f"size {min(run.preprocess.size)} is below the {least} pixels that the model needs")
    return run


def open_exam(
    run: LoadedRun,
    data: str,
    split: Split = "auto",
    on_bad_image: OnBadImage = "skip",
    columns: Columns | None = None,
) -> Exam:
    """The labelled images of `data` for `run`; none is decoded yet.

    Args:
        data: as `srattn.data.reader.load_data` takes it.
        split: "val", "test", "train" or "all". "auto" takes what the run held out where it was trained on `data`;
            else the val part, the test part, or all images of data that has no parts. A run that was measured with
            other data held out none of its own.
        columns: of lists and tables; where `run` was trained on `data`, those that it was told, if none is given.

    Raises:
        SrattnError: no such data or part, or classes that the model does not know.
    """
    if is_built_in(data):
        return _digits(run, split, on_bad_image)
    own = run.config.get("data") is not None and str(run.config["data"]) == absolute(data)
    if own and columns in (None, Columns()):
        columns = Columns(*(run.config.get(f"{kind}_column") for kind in ("image", "label", "split")))
    index = open_data(data, columns=columns)
    if own and run.config.get("on_empty_class") == "skip":
        index = without_empty_classes(index)  # which the run did before it divided the others
    items, words, names = _asked_for(run, index, data, split, own)
    if not items:
        raise SrattnError(f"{data} has no labelled images" + (f"; {index.skipped[0]}" if index.skipped else ""))
    numbers = class_numbers(index.classes, run.classes)
    items = [dataclasses.replace(item, label=numbers[item.label]) for item in items]
    samples = lazy_samples(items, run.preprocess.channels, run.preprocess.pixels, on_bad_image)
    return Exam(samples, run.classes, words, lines_of(index.skipped, index.of_parts, names))


def _asked_for(
    run: LoadedRun, index: Index, data: str, split: Split, own: bool
) -> tuple[Sequence[Item], str, Sequence[str]]:
    """The images, words for them, and the parts that are read for it; `own` is data that the run was trained on."""
    parts = {name: items for name, items in index.parts.items() if items}
    asked = run.config.get("val") if own else None
    apart = asked not in (None, "split") and part_called(str(asked)) is None  # measured with other data
    held_out = own and not apart
    if split == "auto":
        split = "val" if held_out or "val" in parts else "test" if "test" in parts else "all"
    if split == "all":
        words = "all images" + (", which the run was trained on" if apart and set(parts) == {"train"} else "")
        return [item for part in parts.values() for item in part], words, [*index.parts, *index.of_parts]
    if split == "test":
        if "test" not in parts:
            raise SrattnError(f"{data} has no test part; its parts: {', '.join(parts) or 'none'}; give --split all")
        return parts["test"], "the test part", ["test"]
    if split == "val" and not held_out and "val" in parts:  # there need not be a training part beside it
        return parts["val"], "the val part", ["val"]
    if apart and split == "train":
        return parts.get("train", []), "the training part", ["train"]
    if apart:
        raise SrattnError(
            f"the run was measured with {asked} and held out nothing of {data}: give --data {asked}, or --split all"
        )
    fraction, seed = float(run.config.get("val_fraction", 0.2)), int(run.config.get("split_seed", 0))
    train, held = divide(index, asked, fraction, seed)
    if split == "train":
        return train, "the training part", ["train"]
    named = next((f"the {name} part" for name in ("val", "test") if held is index.parts.get(name)), None)
    return held, named or f"{100 * fraction:g} % held out of each class", [held_part(parts, asked) or "train"]


def class_numbers(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """For each class of the data its number among the model's: by name, or by place where the model has only numbers.

    Raises:
        SrattnError: a class that the model does not know.
    """
    place = {name: number for number, name in enumerate(ours)}
    missing = [name for name in theirs if name not in place]
    if not missing:
        return [place[name] for name in theirs]
    only_numbers = list(ours) == [str(number) for number in range(len(ours))]
    if only_numbers and len(theirs) == len(ours):
        return list(range(len(ours)))
    raise SrattnError(
        f"the model does not know the class {missing[0]!r} of the data{nearest(missing[0], ours)}; it has "
        f"{len(ours)} classes, {len(missing)} of the data's {len(theirs)} are not among them"
    )


def _digits(run: LoadedRun, split: Split, on_bad_image: OnBadImage) -> Exam:
    """The digits as they are, 8x8, so that the model's own preprocessing enlarges them."""
    from srattn.data.digits import read_digits

    fraction, seed = float(run.config.get("val_fraction", 0.2)), int(run.config.get("split_seed", 0))
    data = read_digits(8, fraction, seed)
    if split == "test":
        raise SrattnError("digits have no test part: take --split val, train or all")
    chosen = {"train": [data.train], "all": [data.train, data.val]}.get(split, [data.val])
    words = {"train": "the training part", "all": "all images"}.get(
        split, f"{100 * fraction:g} % held out of each class"
    )
    numbers = class_numbers(data.classes, run.classes)
    items = [
        Item(part.names[i], numbers[int(part.labels[i])], _prepared(part, i, run.preprocess))
        for part in chosen
        for i in range(len(part))
    ]
    samples = lazy_samples(items, run.preprocess.channels, run.preprocess.pixels, on_bad_image)
    return Exam(samples, run.classes, words, [])


def _prepared(part: Samples, index: int, preprocess: Preprocess) -> torch.Tensor:
    picture = to_image(part.pixels(index))
    return preprocess.pixels(picture.convert("RGB") if preprocess.channels == 3 else picture)
