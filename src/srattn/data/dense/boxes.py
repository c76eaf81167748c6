"""Folders of images with boxes, and masks of the objects: Pascal VOC and COCO."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from srattn.data.boxes import BoxIndex, BoxItem, read_coco_folder, read_voc
from srattn.data.boxes.outlines import Outline
from srattn.data.decode import turned_words
from srattn.data.dense.classes import palette_of
from srattn.data.dense.masks import WrongSize
from srattn.data.dense.object_masks import ObjectMasks
from srattn.data.dense.read import Found, Unread
from srattn.data.dense.target import Target
from srattn.errors import SrattnError


def is_voc(root: Path) -> bool:
    """Whether a folder has the form of Pascal VOC."""
    return (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir()


def is_coco(root: Path) -> bool:
    """Whether a folder has the form of COCO."""
    return any((root / "annotations").glob("*.json")) if (root / "annotations").is_dir() else False


def open_boxes(data: str, classes: str | None = None, masks: bool | None = False) -> tuple[Found, BoxIndex]:
    """Finds images and their boxes, and decodes no image.

    Args:
        classes: names with commas between or a file of them, in the order that numbers them; by default those that
            occur (VOC) or the categories in the order of their numbers (COCO).
        masks: of the objects too, which COCO's form has; None takes them where there are any.

    Raises:
        SrattnError: neither of the two forms, classes that cannot be told, or no mask where they are asked for.
    """
    root, names = Path(data), box_classes(classes)
    if is_voc(root):
        index = read_voc(root, classes=names)
    elif is_coco(root):
        index = read_coco_folder(root, classes=names, masks=masks is not False)
    else:
        raise SrattnError(
            f"{root} has no boxes in a known form: Pascal VOC (Annotations/, JPEGImages/) or COCO (annotations/*.json)"
        )
    every = [item for items in index.parts.values() for item in items]
    known = any(outline is not None for item in every for outline in item.outlines or ())
    if masks and not known:
        raise SrattnError(
            f"{root} has boxes and no masks of objects, which COCO's form has as segmentation: a model of masks cannot "
            f"do without; learn the boxes alone with --head faster_rcnn"
        )
    digest = hashlib.sha256()
    for part, items in index.parts.items():
        for item in items:
            digest.update(f"{part} {item.name} {item.boxes.tolist()} {item.labels.tolist()}".encode())
            if item.difficult.any():
                digest.update(repr(item.difficult.tolist()).encode())
            for outline in item.outlines or ():
                digest.update(b"-" if outline is None else outline.stamp())
    parts = {part: [_unread(item, known) for item in items] for part, items in index.parts.items()}
    more: dict[str, Any] = {"refused": list(index.problems), "of_parts": index.of_parts}
    return Found(index.classes, parts, list(index.lost), digest.hexdigest(), **more), index


def box_classes(given: str | None) -> list[str] | None:
    """Names with commas between, or those of a file (a line each, with or without colours); one is enough.

    Raises:
        SrattnError: a file that cannot be read, or names that are twice or missing.
    """
    if given is None:
        return None
    if os.path.isfile(given):  # names may be longer than those of files can be, which pathlib raises
        return list(palette_of(Path(given), least=1).names)
    names = [name.strip() for name in given.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise SrattnError(f"--classes {given!r} is neither a file nor different names with commas between")
    return names


def _unread(item: BoxItem, masks: bool) -> Unread:
    boxes = torch.cat([item.boxes, item.labels.unsqueeze(1).to(item.boxes.dtype)], 1)

    def target(size: tuple[int, int]) -> Target:
        if size != item.size:
            raise WrongSize(
                f"{item.name}: the image is {size[1]}x{size[0]}, declared is {item.size[1]}x{item.size[0]}: its boxes "
                f"may belong to another picture{turned_words(item.source, size, item.size)}"
            )
        if item.outlines is None or not masks:
            return Target(boxes=boxes, ignored=item.difficult)
        return Target(boxes=boxes, ignored=item.difficult, masks=ObjectMasks.of(size, _drawn(item.outlines)))

    return Unread(item.name, item.source, target)


def _drawn(outlines: Sequence[Outline | None]) -> list[torch.Tensor]:
    return [torch.zeros(0, dtype=torch.int64) if outline is None else outline.drawn() for outline in outlines]
