"""People with joints in COCO's form: person_keypoints_NAME.json beside the images."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srattn.data.boxes.coco import _entries, _read, declared_size
from srattn.data.boxes.index import OnBadBox, Problems, usable_size
from srattn.data.boxes.values import is_number, short
from srattn.data.index import PARTS
from srattn.data.sources import leads_out
from srattn.errors import SrattnError

_FARTHEST = 1e6  # pixels: no image has such a place


@dataclasses.dataclass(frozen=True, eq=False)
class Person:
    """One person of an image that is not decoded.

    Attributes:
        name: of the image with the number of the annotation, in messages.
        source: the image.
        size: its declared (height, width), or as its header says.
        box: float32 (4,): x1, y1, x2, y2 as edges in pixels.
        joints: float32 (K, 3): x, y, and 0 not labelled, 1 hidden, 2 visible.
        area: of the person in pixels, as the file says it; that of the box, if it does not.
        image: the number of the image among all of the index.
    """

    name: str
    source: Path
    size: tuple[int, int]
    box: Tensor
    joints: Tensor
    area: float
    image: int


@dataclasses.dataclass
class PeopleIndex:
    """What a reader finds.

    Attributes:
        names: of the joints.
        skeleton: pairs of joints with a bone between them, as the file has it; counted from 0.
        parts: people of "train", "val" and "test", as far as there are any, image by image.
        problems: a line for everything that was left out.
        of_parts: these again, by part.
        images: how many the files name.
        unlabelled: people without a labelled joint, and crowds; they are left out as COCO's measures do.
    """

    names: list[str]
    skeleton: list[tuple[int, int]]
    parts: dict[str, list[Person]]
    problems: list[str] = dataclasses.field(default_factory=list)
    of_parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    images: int = 0
    unlabelled: int = 0


def is_coco_people(root: Path) -> bool:
    """Whether a folder has a file of people for training."""
    return bool(_files(root, "train"))


def read_coco_people(
    file: str | Path,
    images: str | Path,
    *,
    part: str = "train",
    on_bad_box: OnBadBox = "skip",
) -> PeopleIndex:
    """One part from a JSON file and the folder of its images.

    COCO counts joints from the left upper pixel, which it calls 0: half a pixel is added, so that here, as everywhere
    in this package, the first pixel's centre is at 0.5.

    Args:
        file: with "images", "annotations" and "categories", one of which has "keypoints".
        images: what the `file_name`s are relative to.
        on_bad_box: what is wrong is left out and named, or refused.

    Raises:
        SrattnError: no such file, or one that is not in COCO's form.
    """
    file, images, problems = Path(file), Path(images), Problems(on_bad_box, part)
    content = _read(file)
    category, names, skeleton = _category(content, file)
    index = PeopleIndex(names, skeleton, {part: []})
    pictures = _pictures(content, file, images, problems)
    index.images = len(pictures)
    for entry in _entries(content, "annotations", file):
        number = entry.get("category_id")
        if not isinstance(number, int) or number not in category:
            continue
        person = _person(entry, pictures, names, file, problems)
        if person is not None:
            index.parts[part].append(person)
        elif entry.get("num_keypoints") == 0 or entry.get("iscrowd") in (1, True) or not any(_seen(entry)):
            index.unlabelled += 1
    index.parts[part].sort(key=lambda person: person.image)
    index.problems, index.of_parts = problems.lines, problems.of_parts
    return index


def read_coco_people_folder(root: str | Path, *, on_bad_box: OnBadBox = "skip") -> PeopleIndex:
    """A folder in COCO's layout: annotations/person_keypoints_NAME.json with images in NAME/, images/NAME/ or images/.

    NAME is "train", "val" or "test", with or without a year (train2017).

    Raises:
        SrattnError: no such layout, more than one file of a part, or parts with other joints.
    """
    root, index = Path(root), None
    for part in PARTS:
        files = _files(root, part)
        if not files:
            continue
        if len(files) > 1:
            raise SrattnError(f"{root / 'annotations'} has {' and '.join(file.name for file in files)}; leave one")
        name = files[0].stem.rpartition("_")[2]
        folders = [root / name, root / "images" / name, root / part, root / "images" / part, root / "images"]
        images = next((folder for folder in folders if folder.is_dir()), None)
        if images is None:
            raise SrattnError(f"{root} has {files[0].name}, but no folder of its images, {name}/ or images/{name}/")
        found = read_coco_people(files[0], images, part=part, on_bad_box=on_bad_box)
        if index is None:
            index = found
            continue
        if found.names != index.names:
            raise SrattnError(f"{files[0]}: its joints are others than those of the part before; one model has one set")
        for name, people in found.parts.items():
            index.parts[name] = [dataclasses.replace(one, image=one.image + index.images) for one in people]
        index.images += found.images
        index.problems += found.problems
        index.of_parts |= found.of_parts
        index.unlabelled += found.unlabelled
    if index is None:
        raise SrattnError(
            f"{root} has no people in COCO's form: put them in {root / 'annotations' / 'person_keypoints_train.json'} "
            f"and the images in {root / 'images'}"
        )
    return index


def _files(root: Path, part: str) -> list[Path]:
    wanted = re.compile(rf"(.+_)?keypoints_{part}\d*")
    return [file for file in sorted((root / "annotations").glob("*.json")) if wanted.fullmatch(file.stem)]


def _category(content: dict[str, Any], file: Path) -> tuple[set[int], list[str], list[tuple[int, int]]]:
    """The ids of the categories with joints, which must have the same; names and bones of the joints."""
    found: dict[int, list[str]] = {}
    skeleton: list[tuple[int, int]] = []
    for entry in _entries(content, "categories", file):
        names, number = entry.get("keypoints"), entry.get("id")
        if not names:
            continue
        if not isinstance(number, int) or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise SrattnError(f"{file}: a category with joints needs an id and their names, got {short(entry)}")
        if len(set(names)) < len(names):
            raise SrattnError(f"{file}: two joints of a category have one name, got {short(names)}")
        found[number] = names
        bones = entry.get("skeleton") or []
        whole = isinstance(bones, list) and all(
            isinstance(b, list) and len(b) == 2 and all(isinstance(n, int) and 1 <= n <= len(names) for n in b)
            for b in bones
        )
        skeleton = [(a - 1, b - 1) for a, b in bones] if whole else []
    if not found:
        raise SrattnError(f"{file} has no category with keypoints, the names of the joints")
    first = next(iter(found.values()))
    if any(names != first for names in found.values()):
        raise SrattnError(f"{file} has categories with different joints; give a file with one of them")
    return set(found), list(first), skeleton


def _pictures(
    content: dict[str, Any], file: Path, images: Path, problems: Problems
) -> dict[int, tuple[int, str, Path, tuple[int, int]] | None]:
    """By id: a number in order, the name, the file and its size; None for what cannot be used."""
    found: dict[int, tuple[int, str, Path, tuple[int, int]] | None] = {}
    for entry in _entries(content, "images", file):
        number, name = entry.get("id"), entry.get("file_name")
        if not isinstance(number, int) or not isinstance(name, str) or number in found:
            raise SrattnError(f"{file}: an image needs an id of its own and a file_name, got {short(entry)}")
        if leads_out(name):
            raise SrattnError(f"{file}: {short(name)} leads out of the folder of images")
        size = usable_size(name, images / name, declared_size(entry), problems, look=False)
        found[number] = None if size is None else (len(found), name, images / name, size)
    return found


def _person(
    entry: dict[str, Any],
    pictures: dict[int, tuple[int, str, Path, tuple[int, int]] | None],
    names: Sequence[str],
    file: Path,
    problems: Problems,
) -> Person | None:
    """None for a crowd, for nobody with a joint, and, with a problem told, for what cannot be used."""
    box, joints, image = entry.get("bbox"), entry.get("keypoints"), entry.get("image_id")
    words = f"{file}: annotation {short(entry.get('id'))}"
    if not isinstance(image, int) or image not in pictures:
        problems.tell(f"{words} is of image {short(image)}, which is not there, and is left out")
        return None
    if not isinstance(joints, list) or len(joints) != 3 * len(names) or not all(map(is_number, joints)):
        problems.tell(f"{words} has no {len(names)} joints of three numbers and is left out")
        return None
    if any(abs(value) > _FARTHEST for value in joints):
        problems.tell(f"{words} has a joint at {max(joints, key=abs):g}, which is no place, and is left out")
        return None
    if entry.get("iscrowd") in (1, True) or not any(_seen(entry)):
        return None
    picture = pictures[image]
    if picture is None:  # which a problem says already
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)) or min(box[2:]) <= 0:
        problems.tell(f"{words} has a box without area, {short(box)}, and is left out")
        return None
    number, name, source, size = picture
    x, y, width, height = (float(value) for value in box)
    if max(map(abs, box)) > _FARTHEST or x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        problems.tell(f"{words} has a box outside of its image of {size[1]}x{size[0]} and is left out")
        return None
    place = torch.tensor(joints, dtype=torch.float32).view(-1, 3)
    place[:, :2] += 0.5
    place[place[:, 2] <= 0] = 0
    said: Any = entry.get("area")
    area = float(said) if is_number(said) and 0 < said <= _FARTHEST**2 else width * height
    edges = torch.tensor([x, y, x + width, y + height])
    return Person(f"{name} ({entry.get('id')})", source, size, edges, place, area, number)


def _seen(entry: dict[str, Any]) -> list[bool]:
    """Of each joint whether it is labelled."""
    joints = entry.get("keypoints")
    return [value > 0 for value in joints[2::3] if is_number(value)] if isinstance(joints, list) else []
