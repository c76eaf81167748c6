"""A folder of class folders, split already (train/ and val/) or to be split."""

from __future__ import annotations

import os
from pathlib import Path

from srattn.data.decode import SUFFIXES
from srattn.data.index import PARTS, Index
from srattn.data.sources import Item
from srattn.errors import SrattnError


def index_folder(root: Path) -> Index:
    """The classes and image files of a folder, by parts; opens none of them.

    `root` holds train/ and val/, or test/, or both, by any of their names (`PARTS`), each with class folders; or the
    class folders themselves. A test/ without class folders beside a val/ is passed over: its labels are kept
    from us. Class folders are searched in depth; hidden files and files without an image suffix are passed over.

    Raises:
        SrattnError: no folder, or fewer than two classes. Those without images, or without a folder in a part, are
            named in `Index.empty`.
    """
    if not root.is_dir():
        raise SrattnError(f"{root} is not a folder of class folders{'' if root.exists() else ': it does not exist'}")
    folders = {entry.name.casefold(): entry for entry in _folders(root)}
    called = {part: [folders[name] for name in names if name in folders] for part, names in PARTS.items()}
    parts = {part: found[0] for part, found in called.items() if found}  # of val/ and valid/ the first
    if "train" not in parts or not set(parts) & {"val", "test"}:
        if "train" in parts and len(folders) == 1:
            raise SrattnError(f"{root} has train/ but no val/; add one, or give {parts['train']} to have it split")
        classes = _classes(root)
        return _index(root, classes, {"train": root})
    if "test" in parts and not _folders(parts["test"]):
        if "val" not in parts:
            raise SrattnError(f"{root} has train/ but no val/, and {parts['test']} has no class folders; add val/")
        del parts["test"]
    classes = set(_classes(parts["train"]))
    for folder in parts.values():
        there = [entry.name for entry in _folders(folder)]
        if not there:
            raise SrattnError(f"{folder} has no class folders; it needs those of {parts['train']}")
        classes.update(there)
    return _index(root, sorted(classes), parts)


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
            if not (folder / name).is_dir():
                other = next(one for one in folders.values() if (one / name).is_dir())
                empty = f"class {name!r} is in {other} but not in {folder}"
            elif not images:
                empty = f"class folder {folder / name} has no images (looked for {', '.join(sorted(SUFFIXES))})"
            else:
                empty = None
            if empty is not None:
                index.empty.append(empty)
                index.of_parts.setdefault(part, []).append(empty)
            items += [Item(image.relative_to(root).as_posix(), label, image) for image in images]
    return index
