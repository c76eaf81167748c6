"""COCO: one JSON file for a part, with images, annotations and categories; and results as its servers take them.

Its boxes are (x, y, width, height) with edges as ours, the image beginning at 0. Keypoints are passed over.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from srattn.data.boxes.index import (
    BoxIndex,
    BoxItem,
    OnBadBox,
    Problems,
    RawBox,
    make_item,
    read_bounded,
    usable_size,
)
from srattn.data.boxes.outlines import Outline
from srattn.data.boxes.values import is_number, short
from srattn.data.decode import SUFFIXES
from srattn.data.index import PARTS
from srattn.data.sources import leads_out
from srattn.errors import SrattnError
from srattn.files import atomic_dir, atomic_path
from srattn.ops.boxes import convert_boxes
from srattn.ops.run_lengths import write_runs

MAX_JSON = 1 << 30
"""Bytes of a file; the instances of COCO's own training part are 470 million."""


def read_coco(
    file: str | Path,
    images: str | Path,
    classes: Sequence[str] | None = None,
    *,
    part: str = "train",
    on_bad_box: OnBadBox = "skip",
    check_images: bool = False,
    masks: bool = False,
) -> BoxIndex:
    """One part from a JSON file and the folder of its images.

    Args:
        file: with "images", "annotations" and "categories".
        images: what the `file_name`s are relative to.
        classes: the names in their order; the categories by ascending id, if not given.
        part: what the part is called.
        on_bad_box: see `read_voc`; a crowd ("iscrowd") is a difficult box.
        check_images: open each image's header to compare its size.
        masks: read those of the objects too ("segmentation").

    Raises:
        SrattnError: no such file, or one that is not in COCO's form.
    """
    file, images, problems = Path(file), Path(images), Problems(on_bad_box, part)
    content = _read(file)
    names = _categories(content, file)
    if classes is None:
        classes = list(names.values())
    ids = {name: number for number, name in names.items()}
    index = BoxIndex(list(classes), {part: []}, category_ids=[ids.get(name, -1) for name in classes])
    boxes = _boxes(content, file, names, problems, masks)
    known: set[int] = set()
    for entry in _entries(content, "images", file):
        number, name = entry.get("id"), entry.get("file_name")
        if not isinstance(number, int) or not isinstance(name, str) or number in known:
            raise SrattnError(f"{file}: an image needs an id of its own and a file_name, got {short(entry)}")
        known.add(number)
        if leads_out(name):
            raise SrattnError(f"{file}: {short(name)} leads out of the folder of images")
        size = usable_size(name, images / name, declared_size(entry), problems, check_images)
        if size is not None:
            item = make_item(name, images / name, size, boxes.get(number, []), classes, problems, number, masks)
            index.parts[part].append(item)
    for number in boxes.keys() - known:
        problems.tell(f"{file}: {len(boxes[number])} annotation(s) of image {number}, which is not there, left out")
    index.problems, index.lost, index.of_parts = problems.lines, problems.lost, problems.of_parts
    return index


def read_coco_folder(
    root: str | Path,
    classes: Sequence[str] | None = None,
    *,
    on_bad_box: OnBadBox = "skip",
    check_images: bool = False,
    masks: bool = False,
) -> BoxIndex:
    """A folder in COCO's layout: annotations/instances_NAME.json with images in NAME/ or images/NAME/.

    NAME is "train", "val" or "test", with or without a year (train2017). Categories are those of the training part.

    Raises:
        SrattnError: no such layout, more than one year of a part, or parts with other categories.
    """
    root, index = Path(root), None
    for part in PARTS:
        files = sorted((root / "annotations").glob(f"instances_{part}*.json"))
        files = [file for file in files if file.stem.removeprefix(f"instances_{part}").isdigit() or _is(file, part)]
        if not files:
            continue
        if len(files) > 1:
            raise SrattnError(f"{root / 'annotations'} has {' and '.join(file.name for file in files)}; leave one")
        name = files[0].stem.removeprefix("instances_")
        folders = [root / name, root / "images" / name, root / part, root / "images" / part]
        images = next((folder for folder in folders if folder.is_dir()), None)
        if images is None:
            raise SrattnError(f"{root} has {files[0].name}, but no folder of its images, {name}/ or images/{name}/")
        options: dict[str, Any] = {"on_bad_box": on_bad_box, "check_images": check_images, "masks": masks}
        found = read_coco(files[0], images, classes, part=part, **options)
        if index is None:
            index, classes = found, found.classes
            continue
        if found.category_ids != index.category_ids:
            raise SrattnError(f"{files[0]}: its categories have other numbers than those of the part before")
        index.parts |= found.parts
        index.problems += found.problems
        index.lost += found.lost
        index.of_parts |= found.of_parts
    if index is None:
        raise SrattnError(f"{root} is no folder in COCO's layout: no annotations/instances_train.json or the like")
    return index


def write_coco(root: str | Path, index: BoxIndex, overwrite: bool = False) -> Path:
    """Writes images (as they are), boxes and masks in COCO's layout; the folder is complete or absent.

    What is read from it is what was written. Images and categories keep their numbers where they have some.

    Raises:
        SrattnError: `root` exists, or two images of a part have one name.
    """
    ids = index.category_ids or list(range(1, len(index.classes) + 1))
    categories = [{"id": number, "name": name} for number, name in zip(ids, index.classes, strict=True)]
    with atomic_dir(root, overwrite) as aside:
        (aside / "annotations").mkdir()
        for part, items in index.parts.items():
            numbered = all(item.number is not None for item in items)
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for place, item in enumerate(items, 1):
                inner = PurePosixPath(item.name)
                name = item.name if inner.suffix.lower() in SUFFIXES else f"{item.name}{item.source.suffix}"
                target = aside / part / name
                if target.exists():
                    raise SrattnError(f"two images of the part {part} are called {name!r}: rename one")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(item.source, target)
                number = item.number if numbered else place
                images.append({"id": number, "file_name": name, "height": item.size[0], "width": item.size[1]})
                for entry in _annotations(item, ids):
                    annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
            content = {"images": images, "annotations": annotations, "categories": categories}
            file = aside / "annotations" / f"instances_{part}.json"
            file.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    return Path(root)


def _annotations(item: BoxItem, ids: Sequence[int]) -> list[dict[str, Any]]:
    """The objects of an image, without their own numbers."""
    boxes = convert_boxes(item.boxes.double(), "xyxy", "xywh").tolist()
    outlines = item.outlines or [None] * len(boxes)
    found = []
    for box, label, difficult, outline in zip(
        boxes, item.labels.tolist(), item.difficult.tolist(), outlines, strict=True
    ):
        mask = {} if outline is None else {"segmentation": _segmentation(outline)}
        facts = {"category_id": ids[label], "bbox": box, "area": box[2] * box[3], "iscrowd": int(difficult)}
        found.append({**facts, **mask})
    return found


def _segmentation(outline: Outline) -> Any:
    if outline.runs is None:
        return [polygon.tolist() for polygon in outline.polygons]
    return {"size": list(outline.size), "counts": write_runs(outline.runs.tolist())}


def write_coco_results(
    path: str | Path,
    items: Sequence[BoxItem],
    detections: Iterable[Tensor],
    category_ids: Sequence[int],
    overwrite: bool = False,
) -> Path:
    """Detections as COCO's servers and tools take them: a JSON list, one entry a box.

    Args:
        items: the images, each with its `number`.
        detections: for each image (N, 6): x1, y1, x2, y2 in pixels of that image, score, class; class -1 is padding.
        category_ids: `BoxIndex.category_ids`.
    """
    rows = []
    for item, found in zip(items, detections, strict=True):
        if item.number is None:
            raise SrattnError(f"{item.name} has no number of a COCO file, which results are named by")
        found = found.detach().double().cpu()
        found = found[found[:, 5] >= 0]
        boxes = convert_boxes(found[:, :4], "xyxy", "xywh").tolist()
        for box, (score, label) in zip(boxes, found[:, 4:].tolist(), strict=True):
            category = category_ids[int(label)]
            box = [round(value, 3) for value in box]
            rows.append({"image_id": item.number, "category_id": category, "bbox": box, "score": round(score, 6)})
    with atomic_path(path, overwrite) as aside:
        aside.write_text(json.dumps(rows, separators=(",", ":")) + "\n", encoding="utf-8")
    return Path(path)


def _is(file: Path, part: str) -> bool:
    return file.stem == f"instances_{part}"


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bounded(file, MAX_JSON))
    except (ValueError, RecursionError) as error:
        if isinstance(error, SrattnError):
            raise
        raise SrattnError(f"{file}: no JSON: {str(error) or type(error).__name__}") from None
    if not isinstance(content, dict):
        raise SrattnError(f"{file} is not in COCO's form: an object with images, annotations and categories")
    return content


def _entries(content: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SrattnError(f"{file} is not in COCO's form: it has no list of {key}")
    return entries


def _categories(content: dict[str, Any], file: Path) -> dict[int, str]:
    """Names by ascending id."""
    found: dict[int, str] = {}
    for entry in _entries(content, "categories", file):
        number, name = entry.get("id"), entry.get("name")
        if not isinstance(number, int) or not isinstance(name, str) or number in found or name in found.values():
            raise SrattnError(f"{file}: a category needs an id and a name of its own, got {short(entry)}")
        found[number] = name
    if not found:
        raise SrattnError(f"{file} has no category")
    return dict(sorted(found.items()))


def declared_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """The (height, width) of an image as the file says them, None where it does not."""
    height, width = entry.get("height"), entry.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _boxes(
    content: dict[str, Any], file: Path, names: dict[int, str], problems: Problems, masks: bool
) -> dict[int, list[RawBox]]:
    """By the id of the image."""
    found: dict[int, list[RawBox]] = {}
    for entry in _entries(content, "annotations", file):
        box, image, category = entry.get("bbox"), entry.get("image_id"), entry.get("category_id")
        name = names.get(category) if isinstance(category, int) else None
        words = f"annotation {short(entry.get('id'))} ({name or f'category {short(category)}'}, {short(box)})"
        if not isinstance(image, int) or not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            problems.tell(f"{file}: {words} has no image or no box of four numbers and is left out")
            continue
        x, y, width, height = (float(value) for value in box)
        crowd, mask = entry.get("iscrowd") in (1, True), entry.get("segmentation") if masks else None
        raw = RawBox((x, y, x + width, y + height), name or "", crowd, words, mask)
        found.setdefault(image, []).append(raw)
    return found
