"""Folders of images beside folders of masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from srattn.data.folder import find_images
from srattn.data.index import PARTS
from srattn.errors import SrattnError

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "frames", "original")
MASKS = ("masks", "mask", "annotations", "annotation", "labels", "label", "segmentationclass", "ground truth", "gt")
"""What people call the two folders."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its mask, neither opened yet."""

    name: str
    image: Path
    mask: Path


@dataclasses.dataclass
class PairIndex:
    """The pairs of each part ("train", "val", "test"; "train" alone where there are no parts), and a line for every
    image without a mask and every mask without an image."""

    root: Path
    parts: dict[str, list[Pair]]
    skipped: list[str] = dataclasses.field(default_factory=list)


def index_pairs(root: Path) -> PairIndex:
    """Finds the pairs below `root`: images/ and masks/ (or what else people call them), each with train/ and val/ or
    without parts; or train/ and val/, each with images/ and masks/.

    A mask has its image's name, or differs by an ending that all of a folder's names have ("frame_07_image.jpg" and
    "frame_07_mask.png").

    Raises:
        SrattnError: no such folders, or none that pair; the message says what was looked for.
    """
    if not root.is_dir():
        raise SrattnError(f"{root} is not a folder{'' if root.exists() else ': it does not exist'}")
    folders = _folders(root)
    index = PairIndex(root, {})
    images, masks = _named(folders, IMAGES), _named(folders, MASKS)
    if images is not None and masks is not None:
        for part, folder in _parts(images).items():
            beside = _parts(masks).get(part)
            if beside is None:
                raise SrattnError(f"{folder} has images, but {masks} has no folder of that name")
            _add(index, part, folder, beside)
    else:
        for part, folder in _parts(root).items():
            below = _folders(folder)
            images, masks = _named(below, IMAGES), _named(below, MASKS)
            if images is not None and masks is not None:
                _add(index, part, images, masks)
    if not any(index.parts.values()):
        reason = f"; {index.skipped[0]}" if index.skipped else ""
        raise SrattnError(
            f"{root} has no images with masks: put them in {root / 'images'} and {root / 'masks'} under the same "
            f"names{reason}"
        )
    return index


def has_pairs(root: Path) -> bool:
    """Whether a folder looks like one of `index_pairs`; opens no image."""
    folders = _folders(root) if root.is_dir() else []
    places = [folders] if _named(folders, MASKS) else [_folders(folder) for folder in folders]
    return any(_named(place, IMAGES) and _named(place, MASKS) for place in places)


def _add(index: PairIndex, part: str, images: Path, masks: Path) -> None:
    pictures, others = _by_stem(images), _by_stem(masks)
    if not pictures.keys() & others.keys():
        pictures, others = _without_ending(pictures), _without_ending(others)
    pairs = index.parts.setdefault(part, [])
    for stem, image in pictures.items():
        if stem in others:
            pairs.append(Pair(image.relative_to(index.root).as_posix(), image, others[stem]))
        else:
            index.skipped.append(f"{image} has no mask in {masks}")
    index.skipped += [f"{mask} has no image in {images}" for stem, mask in others.items() if stem not in pictures]


def _by_stem(folder: Path) -> dict[str, Path]:
    """Picture files by their path below `folder` without suffix, ascending."""
    found: dict[str, Path] = {}
    for path in find_images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise SrattnError(f"{found[stem]} and {path} have one name: which of them is meant cannot be told")
        found[stem] = path
    return found


def _without_ending(files: dict[str, Path]) -> dict[str, Path]:
    """Without what all names end in, digits excepted: they number the files."""
    ending = ""
    for letters in zip(*(reversed(stem) for stem in files), strict=False):
        if len(set(letters)) > 1:
            break
        ending = letters[0] + ending
    ending = ending.lstrip("0123456789")
    return {stem[: len(stem) - len(ending)]: path for stem, path in files.items()} if ending else files


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _named(folders: Iterable[Path], names: Sequence[str]) -> Path | None:
    """The folder whose name comes first among `names`."""
    found = {folder.name.casefold().replace("_", " "): folder for folder in folders}
    return next((found[name] for name in names if name in found), None)


def _parts(folder: Path) -> dict[str, Path]:
    """train/, val/, test/ below a folder by their usual names; the folder itself as "train" where there are none."""
    found: dict[str, Path] = {}
    for entry in _folders(folder):
        for part, names in PARTS.items():
            if entry.name.casefold() in names:
                found.setdefault(part, entry)
    return found or {"train": folder}
