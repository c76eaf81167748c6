"""From the name that a user gives to data that is read, checked and split."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from srattn.data.augment import Augment
from srattn.data.columns import Columns
from srattn.data.decode import BadImage
from srattn.data.digits import digits_preprocess, read_digits
from srattn.data.folder import find_images, index_folder
from srattn.data.index import Index, check_classes, divide, part_called, parts_read, read_data, without_empty_classes
from srattn.data.lists import SUFFIXES as LIST_SUFFIXES
from srattn.data.lists import index_list
from srattn.data.patterns import files_with, is_pattern, is_url
from srattn.data.preprocess import Preprocess
from srattn.data.samples import ImageData, OnBadImage
from srattn.data.sources import Item
from srattn.errors import SrattnError, nearest

BUILT_IN = ("digits",)


def is_built_in(data: str) -> bool:
    """Whether `data` names a data set that comes with a package, and not a place ("./digits" is always a path).

    Raises:
        SrattnError: neither a known name, an existing path, a pattern, a URL nor "hf:NAME".
    """
    if data in BUILT_IN:
        return True
    if data.startswith("hf:") or is_url(data) or Path(data).exists() or is_pattern(data):
        return False
    hint = nearest(data, BUILT_IN) or "; besides those there are lists, Parquet files, tar patterns, URLs and hf:NAME"
    raise SrattnError(f"data {data!r} is neither {' nor '.join(BUILT_IN)} nor an existing folder{hint}")


def absolute(data: str) -> str:
    """`data` so that it means the same from any working folder: a path or pattern made absolute, others unchanged."""
    if data in BUILT_IN or is_url(data):
        return data
    if data.startswith("hf:"):
        return "hf:" + os.path.abspath(data[3:]) if Path(data[3:]).exists() else data
    return os.path.abspath(data)


def default_preprocess(data: str, size: int, channels: int) -> Preprocess:
    """What images of `data` go through before a model, at `size` x `size` pixels.

    Raises:
        SrattnError: a built-in data set with another number of channels.
    """
    if data in BUILT_IN:
        if channels != 1:
            raise SrattnError(f"{data} are grey: leave channels at 1, got {channels}")
        return digits_preprocess(size)
    if channels == 1:
        return Preprocess(channels=1, size=(size, size), mean=(0.449,), std=(0.226,), fit="centre")
    return Preprocess(size=(size, size), fit="centre")


def load_data(
    data: str,
    augment: Augment,
    *,
    val: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    on_bad_image: OnBadImage = "skip",
    on_empty_class: OnBadImage | None = None,
    hold_bytes: int = 1 << 30,
    workers: int = 0,
    notify: Callable[[int, int], None] | None = None,
    check_parts: Callable[[Collection[str]], None] | None = None,
    columns: Columns | None = None,
) -> ImageData:
    """Reads and checks what to train on and what to measure with.

    Args:
        data: "digits"; a folder of class folders, or with train/ and val/ or test/; a .csv or .jsonl list; a .parquet
            file or a folder of them; a folder of IDX files (MNIST, Fashion-MNIST); tar shards (WebDataset): a folder, a
            glob, a brace pattern such as "train-{0000..0009}.tar", or URLs of such; "hf:NAME" or "hf:PATH".
        augment: what `prepare`s the training pictures; its preprocessing makes the validation pictures.
        val: what to measure with: "val" or "test", a part of `data`; "split", a part `val_fraction` of each training
            class; or another data set with the same classes. By default what `data` has in this order.
        on_bad_image: an image, row or shard that cannot be used: name it and leave it out, or raise.
        on_empty_class: a class without a usable image in a part: name it and go on (one that has none for training is
            left out), or raise. By default class folders raise, and everything does with `on_bad_image` "error".
        hold_bytes: prepared pictures are kept in memory until they need more than this.
        notify: called with the number of images done and the number of all.
        check_parts: called with the names of the parts that have images, before any is read; what it raises goes on.

    Raises:
        SrattnError: nothing there, or nothing to train on; `BadImage` with `on_bad_image` "error".
    """
    if is_built_in(data):
        if val not in (None, "split"):
            raise SrattnError(f"{data} have no parts: leave val away, got {val!r}")
        return read_digits(augment.preprocess.size[0], val_fraction, split_seed)
    index = open_data(data, columns=columns)
    if check_parts is not None:
        check_parts([part for part, items in index.parts.items() if items])
    choice = choose(
        data,
        index,
        val=val,
        val_fraction=val_fraction,
        split_seed=split_seed,
        on_bad_image=on_bad_image,
        on_empty_class=on_empty_class,
        columns=columns,
    )
    read = read_data(
        choice.index.classes,
        choice.train,
        choice.held,
        augment.preprocess,
        augment.prepare,
        least_train=augment.least,
        on_bad_image=on_bad_image,
        empty_classes=choice.empty_classes,
        hold_bytes=hold_bytes,
        workers=workers,
        notify=notify,
    )
    read.skipped[:0] = choice.index.skipped
    return read


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a run learns from and is measured with, before any image is decoded.

    Attributes:
        index: with the classes that are left.
        empty_classes: what becomes of a class of which no image turns out to be usable (see `check_classes`).
    """

    index: Index
    train: list[Item]
    held: list[Item]
    empty_classes: Literal["error", "name"]


def choose(
    data: str,
    index: Index,
    *,
    val: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    on_bad_image: OnBadImage = "skip",
    on_empty_class: OnBadImage | None = None,
    columns: Columns | None = None,
) -> Choice:
    """What of `index`, which `data` was found to hold, is trained on and measured with; see `load_data`.

    Raises:
        SrattnError: the data is refused; `BadImage` with `on_bad_image` "error".
    """
    apart = val is not None and val != "split" and part_called(val) is None
    if apart and val is not None:
        index = _with_val(index, open_data(val, columns=columns), val)
    else:
        index = index.without_lines_of_others(parts_read(index.parts, val))
    if index.skipped and on_bad_image == "error":
        raise BadImage(index.skipped[0])
    strict = on_empty_class == "error" or (on_empty_class is None and (index.class_folders or on_bad_image == "error"))
    if index.empty and strict:
        raise SrattnError(f"{index.empty[0]}; fill it, remove it, or go on without it: --on_empty_class skip")
    if on_empty_class == "skip":
        index = without_empty_classes(index)
    try:
        train, held = divide(index, "val" if apart else val, val_fraction, split_seed)
    except SrattnError as error:
        reason = f"; {len(index.skipped)} were left out, the first: {index.skipped[0]}" if index.skipped else ""
        raise SrattnError(f"{data}: {error}{reason}") from None
    if len({item.label for item in train}) < 2:  # which is also found when all are read
        check_classes(index.classes, [{item.label for item in part} for part in (train, held)], "name")
    return Choice(index, train, held, "error" if strict else "name")


def open_data(data: str, *, columns: Columns | None = None, labelled: bool = True) -> Index:
    """Finds the images of any data set but the built-in ones and decodes none: see `load_data` for what `data` may be.

    With `labelled` false images need no labels (theirs are -1), and a folder is any folder with images, in depth.

    Raises:
        SrattnError: nothing of a known form is there.
    """
    columns = columns or Columns()
    path = Path(data)
    if data.startswith("hf:"):
        from srattn.data.hub import index_hub

        return index_hub(data[3:], columns, labelled)
    if is_url(data) or is_pattern(data) or path.suffix == ".tar":
        from srattn.data.shards import index_shards

        return index_shards([data], labelled)
    is_built_in(data)  # names what is neither
    if path.suffix.casefold() in LIST_SUFFIXES and path.is_file():
        return index_list(path, columns, labelled)
    if path.suffix.casefold() == ".parquet" and path.is_file():
        from srattn.data.parquet import index_parquet

        return index_parquet([path], columns, labelled)
    if path.is_dir():
        return _open_folder(path, columns, labelled)
    if path.is_file() and path.name.casefold().endswith((".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")):
        raise SrattnError(f"{path} is compressed, so single images cannot be reached in it; unpack it")
    raise SrattnError(f"{path} is no folder, list (.csv, .jsonl), .parquet or .tar file")


def _open_folder(path: Path, columns: Columns, labelled: bool) -> Index:
    if files := files_with(path, ".parquet"):
        from srattn.data.parquet import index_parquet

        return index_parquet(files, columns, labelled)
    if files := files_with(path, ".tar"):
        from srattn.data.shards import index_shards

        return index_shards([str(file) for file in files], labelled)
    if any("idx3-ubyte" in name for name in os.listdir(path)):
        from srattn.data.idx import index_idx

        return index_idx(path)
    if labelled:
        return index_folder(path)
    try:
        index = index_folder(path)
    except SrattnError:  # no class folders
        index = None
    if index is not None and not index.empty:
        return index
    images = find_images(path)
    return Index([], {"train": [Item(image.relative_to(path).as_posix(), -1, image) for image in images]})


def _with_val(index: Index, other: Index, val: str) -> Index:
    """`index` with the images of another data set to measure with, their labels by the names of the classes."""
    part = next((name for name in ("val", "test", "train") if other.parts.get(name)), None)
    if part is None:
        raise SrattnError(f"val {val!r} has no usable image")
    numbers = {name: number for number, name in enumerate(index.classes)}
    items: list[Item] = []
    index, other = index.without_lines_of_others({"train"}), other.without_lines_of_others({part})
    skipped = [*index.skipped, *other.skipped]
    for item in other.parts[part]:
        name = other.classes[item.label]
        if name in numbers:
            items.append(Item(item.name, numbers[name], item.source))
        else:
            skipped.append(f"{item.name}: its class {name!r} is none of the training classes")
    if not items:
        raise SrattnError(f"val {val!r} has none of the training classes, {', '.join(index.classes[:5])}, ...")
    return dataclasses.replace(index, parts={"train": index.parts.get("train", []), "val": items}, skipped=skipped)
