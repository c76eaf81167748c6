"""What a folder holds beside its images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from srattn.data.boxes.keypoints import is_coco_people
from srattn.data.dense.boxes import is_coco, is_voc
from srattn.data.dense.pairs import DEPTHS, MASKS, find_pair, has_pairs
from srattn.data.reader import BUILT_IN

SceneKind: TypeAlias = Literal["masks", "boxes", "depths", "joints"]


def scene_kind(data: str) -> SceneKind | None:
    """Masks for the images, else depths, else boxes, else people with joints and nothing more; None for anything that
    has none of these, such as class folders."""
    if data in BUILT_IN:
        return None
    root = Path(data)
    if has_pairs(root):
        return "masks"
    if has_pairs(root, DEPTHS):
        return "depths"
    if is_voc(root):
        return "boxes"
    if is_coco_people(root) and not _other_objects(root):
        return "joints"
    return "boxes" if is_coco(root) else None


def scene_folders(data: str, kind: SceneKind) -> str:
    """The folders by which `data` is taken for images with `kind`, in words."""
    root = Path(data)
    if kind in ("masks", "depths"):
        images, beside = find_pair(root, MASKS if kind == "masks" else DEPTHS) or (root, root)
        return f"{images} beside {beside}"
    if is_voc(root):
        return f"{root / 'JPEGImages'} beside {root / 'Annotations'}"
    return f"{root / 'annotations'} with COCO's files"


def _other_objects(root: Path) -> bool:
    """Whether a folder in COCO's form has files beside those of people with joints."""
    return any("keypoints_" not in file.name for file in (root / "annotations").glob("*.json"))
