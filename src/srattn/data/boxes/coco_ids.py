"""The ids that COCO's files give to images and categories, found by where the images lie."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from srattn.data.boxes.coco import _categories, _entries, _read
from srattn.errors import SrattnError

_BOXES = re.compile(r"(?:instances|image_info)_(.+)")
_JOINTS = re.compile(r"(?:(?:.+_)?keypoints|image_info)_(.+)")


@dataclasses.dataclass(frozen=True)
class CocoIds:
    """Of each image in turn, and of the categories by name."""

    images: list[int]
    categories: dict[str, int]


def find_coco_ids(files: Sequence[Path | None], joints: Sequence[str] | None = None) -> CocoIds | None:
    """The ids of image files in the annotations that they lie beside (see `read_coco_folder`).

    Files of images alone (image_info_test2017.json), whose objects only a server knows, count too.

    Args:
        files: None is an image that is no file.
        joints: of people; the categories are then those with these joints.

    Returns:
        None where an image has no id or two have one, as those of different data sets may.
    """
    finder = _Finder(_BOXES if joints is None else _JOINTS, joints)
    found: list[tuple[int, dict[str, int]]] = []
    for file in files:
        entry = None if file is None else finder.entry(Path(os.path.abspath(file)))
        if entry is None:
            return None
        found.append(entry)
    numbers = [number for number, _ in found]
    categories = found[0][1] if found else {}
    if len(set(numbers)) < len(numbers) or any(other != categories for _, other in found):
        return None
    return CocoIds(numbers, categories)


@dataclasses.dataclass
class _Finder:
    """Looks each folder up and reads each file once."""

    names: re.Pattern[str]
    joints: Sequence[str] | None
    places: dict[Path, list[tuple[Path, Path]]] = dataclasses.field(default_factory=dict)
    contents: dict[Path, tuple[dict[str, int], dict[str, int]]] = dataclasses.field(default_factory=dict)

    def entry(self, image: Path) -> tuple[int, dict[str, int]] | None:
        """The id of an image, and the categories beside it."""
        for root in image.parents:
            if root not in self.places:
                self.places[root] = list(_annotated(root, self.names))
            for folder, file in self.places[root]:
                if not image.is_relative_to(folder):
                    continue
                if file not in self.contents:
                    self.contents[file] = _ids(file, self.joints)
                numbers, categories = self.contents[file]
                number = numbers.get(image.relative_to(folder).as_posix())
                if number is not None:
                    return number, categories
        return None


def _annotated(root: Path, names: re.Pattern[str]) -> Iterator[tuple[Path, Path]]:
    """Folders of images below `root`, each with a file that numbers them, files with objects first."""
    files = sorted((root / "annotations").glob("*.json"), key=lambda file: (file.stem.startswith("image_info"), file))
    for file in files:
        match = names.fullmatch(file.stem)
        if match is None:
            continue
        name = match[1].replace("-dev", "")  # a choice of the test part's images
        part = name.rstrip("0123456789")
        places = (name, f"images/{name}", part, f"images/{part}", *(["images"] if names is _JOINTS else []))
        folder = next((root / place for place in places if (root / place).is_dir()), None)
        if folder is not None:
            yield folder, file


def _ids(file: Path, joints: Sequence[str] | None) -> tuple[dict[str, int], dict[str, int]]:
    """Ids of the images by file_name and of the categories by name; none of a file that is not in COCO's form."""
    try:
        content = _read(file)
        images = _entries(content, "images", file)
        categories = {name: number for number, name in _categories(content, file).items()}
    except SrattnError:
        return {}, {}
    if joints is not None:
        categories = _with_joints(content["categories"], categories, joints)
    whole = [(entry.get("file_name"), entry.get("id")) for entry in images]
    return {name: n for name, n in whole if isinstance(name, str) and isinstance(n, int)}, categories


def _with_joints(entries: list[dict[str, Any]], ids: dict[str, int], joints: Sequence[str]) -> dict[str, int]:
    """The categories with these joints; that of people, where none says its joints."""
    told = [entry for entry in entries if entry.get("keypoints")]
    if not told:
        return {name: number for name, number in ids.items() if name == "person"}
    return {entry["name"]: entry["id"] for entry in told if entry["keypoints"] == list(joints)}
