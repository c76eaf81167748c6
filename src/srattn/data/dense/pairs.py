"""Folders of images beside folders of masks or depths."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from srattn.data.boxes.index import read_bounded
from srattn.data.folder import find_images
from srattn.data.index import PARTS
from srattn.errors import SrattnError

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "frames", "original")
MASKS = ("masks", "mask", "annotations", "annotation", "labels", "label", "segmentationclass", "ground truth", "gt")
DEPTHS = ("depths", "depth", "depth maps", "depth map", "depthmaps", "ground truth", "gt")
"""What people call the folders."""
_LARGEST_LIST = 64 << 20
_YEAR = re.compile(r"[12]\d{3}$")


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its mask, neither opened yet."""

    name: str
    image: Path
    mask: Path


@dataclasses.dataclass
class PairIndex:
    """The pairs of each part ("train", "val", "test"; "train" alone where there are no parts), and a line for every
    image without a mask and every mask without an image; `of_parts` has these lines again, by part."""

    root: Path
    parts: dict[str, list[Pair]]
    skipped: list[str] = dataclasses.field(default_factory=list)
    of_parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def skip(self, part: str, line: str) -> None:
        self.skipped.append(line)
        self.of_parts.setdefault(part, []).append(line)


def index_pairs(root: Path, beside: Sequence[str] = MASKS, word: str = "mask") -> PairIndex:
    """Finds the pairs below `root`: images/ and masks/ (or what else people call them), each with train/ and val/ or
    without parts; or train/ and val/, each with images/ and masks/. A year may follow the name of a part (train2017).

    A mask has its image's name, or differs by an ending or a beginning that all of a folder's names have
    ("frame_07_image.jpg" and "frame_07_mask.png"). Pascal VOC's lists of segmented images, ImageSets/Segmentation, make
    the parts where they are. A test/ without masks beside other parts is passed over: its masks are kept from us.

    Args:
        beside: what the folder of masks may be called.
        word: what messages call a mask.

    Raises:
        SrattnError: no such folders, or none that pair; the message says what was looked for.
    """
    if not root.is_dir():
        raise SrattnError(f"{root} is not a folder{'' if root.exists() else ': it does not exist'}")
    index, lists = PairIndex(root, {}), _lists(root)
    places = list(_places(root, beside))
    for part, images, masks in places:
        if images is None:
            index.skip(part, f"{masks} has {word}s, but there is no folder of that name for their images")
            continue
        if masks is None:
            if part != "test" or len(places) == 1:
                raise SrattnError(f"{images} has images, but there is no folder of that name for their {word}s; add it")
            continue
        pictures, others = _matched(_by_stem(images), _by_stem(masks))
        if lists and len(places) == 1:
            for name, stems in lists.items():
                _add(index, name, _only(pictures, stems), _only(others, stems), images, masks, word)
        else:
            _add(index, part, pictures, others, images, masks, word)
    if not any(index.parts.values()):
        reason = f"; {index.skipped[0]}" if index.skipped else ""
        raise SrattnError(
            f"{root} has no images with {word}s: put them in {root / 'images'} and {root / beside[0]} under the same "
            f"names{reason}"
        )
    return index


def has_pairs(root: Path, beside: Sequence[str] = MASKS) -> bool:
    """Whether `index_pairs` finds at least one pair; opens no image."""
    return find_pair(root, beside) is not None


def find_pair(root: Path, beside: Sequence[str] = MASKS) -> tuple[Path, Path] | None:
    """The first folder of images with its folder of masks in which `index_pairs` finds a pair; opens no image."""
    for _, images, masks in _places(root, beside) if root.is_dir() else ():
        if images is not None and masks is not None and _in_common(*_matched(_pictures(images), _pictures(masks))):
            return images, masks
    return None


def image_folders(root: Path) -> list[Path]:
    """The folders of images that have masks or depths beside them in folders of their own; opens no image."""
    for beside in (MASKS, DEPTHS):
        if has_pairs(root, beside):
            return [images for _, images, _ in _places(root, beside) if images is not None]
    return []


def _places(root: Path, beside: Sequence[str] = MASKS) -> Iterator[tuple[str, Path | None, Path | None]]:
    """A part, the folder of its images and that of its masks, as far as they are there."""
    folders = _folders(root)
    images, masks = _named(folders, IMAGES), _named(folders, beside)
    if images is not None and masks is not None:
        pictures, others = _parts(images), _parts(masks)
        yield from ((part, pictures.get(part), others.get(part)) for part in {**pictures, **others})
        return
    for part, folder in _parts(root).items():
        below = _folders(folder)
        images, masks = _named(below, IMAGES), _named(below, beside)
        if images is not None and (masks is not None or folder != root):
            yield part, images, masks


def _add(
    index: PairIndex,
    part: str,
    pictures: dict[str, Path],
    others: dict[str, Path],
    images: Path,
    masks: Path,
    word: str,
) -> None:
    pairs = index.parts.setdefault(part, [])
    for stem, image in pictures.items():
        if stem in others:
            pairs.append(Pair(image.relative_to(index.root).as_posix(), image, others[stem]))
        else:
            index.skip(part, f"{image} has no {word} in {masks}")
    for stem, mask in others.items():
        if stem not in pictures:
            index.skip(part, f"{mask} has no image in {images}")


def _only(files: dict[str, Path], stems: Sequence[str]) -> dict[str, Path]:
    return {stem: files[stem] for stem in stems if stem in files}


def _lists(root: Path) -> dict[str, list[str]]:
    """The parts of Pascal VOC's lists of segmented images; none where there are no lists."""
    folder = root / "ImageSets" / "Segmentation"
    there = {part: folder / f"{part}.txt" for part in PARTS if (folder / f"{part}.txt").is_file()}
    if "train" not in there and (folder / "trainval.txt").is_file():
        there = {"train": folder / "trainval.txt"} | {part: path for part, path in there.items() if part == "test"}
    texts = {part: read_bounded(path, _LARGEST_LIST).decode("utf-8", "replace") for part, path in there.items()}
    return {part: [line.split()[0] for line in text.splitlines() if line.strip()] for part, text in texts.items()}


def _by_stem(folder: Path) -> dict[str, Path]:
    """As `_pictures`, each name once."""
    found, paths = _pictures(folder), find_images(folder)
    if len(found) < len(paths):
        twice = next(path for path in paths if path not in set(found.values()))
        first = found[twice.relative_to(folder).with_suffix("").as_posix()]
        raise SrattnError(f"{first} and {twice} have one name: which of them is meant cannot be told; remove one")
    return found


def _pictures(folder: Path) -> dict[str, Path]:
    """Picture files by their path below `folder` without suffix, ascending."""
    found: dict[str, Path] = {}
    for path in find_images(folder):
        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


Files = dict[str, Path]


def _matched(pictures: Files, others: Files) -> tuple[Files, Files]:
    """Both; where no name is the same, their names cut so that as many as possible are, and no further."""
    best, most = (pictures, others), len(_in_common(pictures, others))
    if not most:
        for backwards in (True, False):
            cuts = itertools.product(_affixes(pictures, backwards), _affixes(others, backwards))
            for mine, theirs in sorted(cuts, key=sum):
                cut = _cut(pictures, mine, backwards), _cut(others, theirs, backwards)
                if len(_in_common(*cut)) > most:
                    best, most = cut, len(_in_common(*cut))
    return best


def _in_common(pictures: Files, others: Files) -> set[str]:
    return pictures.keys() & others.keys()


def _affixes(files: Files, backwards: bool) -> list[int]:
    """How many letters all names may be without at their end (`backwards`) or beginning: up to a "_" or the like; 0 is
    one of them. What is left of each name is not empty."""
    found, most = [0], min(map(len, files), default=0)
    for number, letters in enumerate(zip(*(stem[::-1] if backwards else stem for stem in files), strict=False), 1):
        if len(set(letters)) > 1:
            break
        if letters[0] in "_-. " and number < most:
            found.append(number)
    return found


def _cut(files: Files, letters: int, backwards: bool) -> Files:
    return {stem[: len(stem) - letters] if backwards else stem[letters:]: path for stem, path in files.items()}


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _named(folders: Iterable[Path], names: Sequence[str]) -> Path | None:
    """The folder whose name comes first among `names`, one with pictures before those without."""
    found = {folder.name.casefold().replace("_", " "): folder for folder in folders}
    named = [found[name] for name in names if name in found]
    full = (folder for folder in named if len(named) == 1 or find_images(folder))
    return next(full, named[0] if named else None)


def _parts(folder: Path) -> dict[str, Path]:
    """train/, val/, test/ below a folder by their usual names; the folder itself as "train" where there are none."""
    found: dict[str, Path] = {}
    for entry in _folders(folder):
        for part, names in PARTS.items():
            if _YEAR.sub("", entry.name.casefold()) in names:
                found.setdefault(part, entry)
    return found or {"train": folder}
