"""A folder of class folders, split already (train/ and val/) or to be split."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.decode import SUFFIXES, BadImage, decode
from srattn.data.preprocess import Preprocess
from srattn.data.samples import ImageData, Samples, labels_tensor
from srattn.data.split import stratified_split
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from PIL import Image

VAL_NAMES = ("val", "valid", "validation")
Prepare = Callable[["Image.Image"], Tensor]


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a folder before any is opened: (path, class number), ascending."""

    root: Path
    classes: list[str]
    train: list[tuple[Path, int]]
    val: list[tuple[Path, int]]


def list_folder(root: Path, val_fraction: float = 0.2, split_seed: int = 0) -> Listing:
    """Finds classes and image files and divides them; opens nothing.

    `root` holds train/ and val/ (or valid/, validation/), each with the same class folders, or the class folders
    themselves. Class folders are searched in depth; hidden files and files without an image suffix are passed over.

    Raises:
        SrattnError: no folder, fewer than two classes, a class without images, or one missing in train/ or val/.
    """
    if not root.is_dir():
        raise SrattnError(f"{root} is not a folder of class folders{'' if root.exists() else ': it does not exist'}")
    parts = {entry.name: entry for entry in _folders(root)}
    val_names = [name for name in VAL_NAMES if name in parts]
    if "train" in parts and val_names:
        classes = _classes(parts["train"])
        val_classes = _classes(parts[val_names[0]])
        for name in val_classes:
            if name not in classes:
                raise SrattnError(f"class {name!r} is in {parts[val_names[0]]} but not in {parts['train']}")
        for name in classes:
            if name not in val_classes:
                raise SrattnError(f"class {name!r} is in {parts['train']} but not in {parts[val_names[0]]}")
        return Listing(root, classes, _files(parts["train"], classes), _files(parts[val_names[0]], classes))
    if "train" in parts and set(parts) <= {"train", "test"}:
        raise SrattnError(f"{root} has train/ but no val/; add one, or give {root / 'train'} to have it split")
    classes = _classes(root)
    files = _files(root, classes)
    train, val = stratified_split([label for _, label in files], val_fraction, split_seed, classes)
    return Listing(root, classes, [files[i] for i in train], [files[i] for i in val])


def read_folder(
    listing: Listing,
    preprocess: Preprocess,
    prepare_train: Prepare,
    *,
    on_bad_image: Literal["skip", "error"] = "skip",
    hold_bytes: int = 1 << 30,
    workers: int = 0,
    notify: Callable[[int, int], None] | None = None,
) -> ImageData:
    """Decodes every file once, so that an unreadable one is met now and not in epoch 40.

    Args:
        prepare_train: from a decoded picture to the pixels that the augmentation wants.
        on_bad_image: leave out an unreadable image and go on, or raise its error.
        hold_bytes: prepared pictures are kept in memory until they need more than this; the rest is decoded on access.
        notify: called with the number of files done and the number of all.

    Raises:
        SrattnError: a class without a usable image in either part; `BadImage` with `on_bad_image` "error".
    """
    skipped: list[str] = []
    total = len(listing.train) + len(listing.val)
    done = held = 0
    parts: list[Samples] = []
    for files, prepare in ((listing.train, prepare_train), (listing.val, preprocess.pixels)):
        names: list[str] = []
        labels: list[int] = []
        sources: list[Tensor | Path] = []

        def open_one(file: tuple[Path, int], prepare: Prepare = prepare) -> Tensor | BadImage:
            try:
                return prepare(decode(file[0], preprocess.channels))
            except BadImage as error:
                return error

        for (path, label), pixels in zip(files, ahead(open_one, files, workers), strict=True):
            done += 1
            if notify:
                notify(done, total)
            if isinstance(pixels, BadImage):
                if on_bad_image == "error":
                    raise pixels
                skipped.append(str(pixels))
                continue
            hold = held + pixels.numel() <= hold_bytes
            held += pixels.numel() if hold else 0
            names.append(path.relative_to(listing.root).as_posix())
            labels.append(label)
            sources.append(pixels if hold else path)
        parts.append(Samples(names, labels_tensor(labels), sources, preprocess.channels, prepare))
    train, val = parts
    for part, where in ((train, "training"), (val, "validation")):
        present = set(part.labels.tolist())
        missing = [name for label, name in enumerate(listing.classes) if label not in present]
        if missing:
            reason = f"; {len(skipped)} file(s) were unreadable, the first: {skipped[0]}" if skipped else ""
            raise SrattnError(f"class {missing[0]!r} has no usable image for {where}{reason}")
    return ImageData(listing.classes, train, val, preprocess, skipped)


def find_images(folder: Path) -> list[Path]:
    """Every file with an image suffix in `folder` and below, ascending; hidden files and folders are passed over."""
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name) for name in files if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(found, key=lambda path: path.as_posix())


def _folders(root: Path) -> list[Path]:
    return sorted(
        (entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")), key=lambda p: p.name
    )


def _classes(root: Path) -> list[str]:
    classes = [entry.name for entry in _folders(root)]
    if len(classes) < 2:
        found = f"only one class folder, {classes[0]!r}" if classes else "no class folders"
        raise SrattnError(f"{root} has {found}; training needs at least two, each with the images of one class")
    return classes


def _files(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        images = find_images(root / name)
        if not images:
            raise SrattnError(f"class folder {root / name} has no images (looked for {', '.join(sorted(SUFFIXES))})")
        files += [(image, label) for image in images]
    return files
