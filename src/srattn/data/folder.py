"""A folder of class folders, split already (train/ and val/) or to be split."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from srattn.data.decode import SUFFIXES
from srattn.data.index import Index, Prepare, divide, read_data
from srattn.data.preprocess import Preprocess
from srattn.data.samples import ImageData, OnBadImage
from srattn.data.sources import Item
from srattn.errors import SrattnError

# The names of folders that are parts, the usual ones first: of val/ and valid/ the first is taken.
_PART_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a folder before any is opened: (path, class number), ascending."""

    root: Path
    classes: list[str]
    train: list[tuple[Path, int]]
    val: list[tuple[Path, int]]


def list_folder(root: Path, val_fraction: float = 0.2, split_seed: int = 0, val: str | None = None) -> Listing:
    """Finds classes and image files and divides them; opens nothing. See `index_folder` and `divide`.

    Raises:
        SrattnError: a class without images as well.
    """
    index = index_folder(root)
    if index.empty:
        raise SrattnError(index.empty[0])
    train, held = divide(index, val, val_fraction, split_seed)
    return Listing(root, index.classes, _pairs(train), _pairs(held))


def index_folder(root: Path) -> Index:
    """The classes and image files of a folder, by parts; opens none of them.

    `root` holds train/ and val/ (or valid/, validation/), or test/, or both, each with the same class folders; or the
    class folders themselves. A test/ without class folders beside a val/ is passed over: its labels are kept from us.
    Class folders are searched in depth; hidden files and files without an image suffix are passed over.

    Raises:
        SrattnError: no folder, fewer than two classes, or one missing in a part. Those without images are named in
            `Index.empty`.
    """
    if not root.is_dir():
        raise SrattnError(f"{root} is not a folder of class folders{'' if root.exists() else ': it does not exist'}")
    folders = {entry.name: entry for entry in _folders(root)}
    parts: dict[str, Path] = {}
    for name in sorted(folders, key=lambda name: list(_PART_NAMES).index(name) if name in _PART_NAMES else 0):
        if name in _PART_NAMES:
            parts.setdefault(_PART_NAMES[name], folders[name])
    if "train" not in parts or not set(parts) & {"val", "test"}:
        if set(folders) == {"train"}:
            raise SrattnError(f"{root} has train/ but no val/; add one, or give {root / 'train'} to have it split")
        classes = _classes(root)
        return _index(root, classes, {"train": root})
    if "test" in parts and not _folders(parts["test"]):
        if "val" not in parts:
            raise SrattnError(f"{root} has train/ but no val/, and {parts['test']} has no class folders; add val/")
        del parts["test"]
    classes = _classes(parts["train"])
    for part in [folder for part, folder in parts.items() if part != "train"]:
        there = _classes(part)
        for name in there:
            if name not in classes:
                raise SrattnError(f"class {name!r} is in {part} but not in {parts['train']}")
        for name in classes:
            if name not in there:
                raise SrattnError(f"class {name!r} is in {parts['train']} but not in {part}")
    return _index(root, classes, parts)


def read_folder(
    listing: Listing,
    preprocess: Preprocess,
    prepare_train: Prepare,
    *,
    on_bad_image: OnBadImage = "skip",
    hold_bytes: int = 1 << 30,
    workers: int = 0,
    notify: Callable[[int, int], None] | None = None,
) -> ImageData:
    """Decodes every file of a listing once; see `read_data`."""
    train, val = (
        [Item(path.relative_to(listing.root).as_posix(), label, path) for path, label in files]
        for files in (listing.train, listing.val)
    )
    return read_data(
        listing.classes,
        train,
        val,
        preprocess,
        prepare_train,
        on_bad_image=on_bad_image,
        hold_bytes=hold_bytes,
        workers=workers,
        notify=notify,
    )


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


def _index(root: Path, classes: list[str], folders: dict[str, Path]) -> Index:
    index = Index(classes, {}, class_folders=True)
    for part, folder in folders.items():
        items = index.parts[part] = []
        for label, name in enumerate(classes):
            images = find_images(folder / name)
            if not images:
                looked = ", ".join(sorted(SUFFIXES))
                index.empty.append(f"class folder {folder / name} has no images (looked for {looked})")
            items += [Item(image.relative_to(root).as_posix(), label, image) for image in images]
    return index


def _pairs(items: list[Item]) -> list[tuple[Path, int]]:
    return [(item.source, item.label) for item in items if isinstance(item.source, Path)]
