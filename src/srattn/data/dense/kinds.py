"""What a folder holds beside its images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from srattn.data.boxes.keypoints import is_coco_people
from srattn.data.dense.boxes import is_coco, is_voc
from srattn.data.dense.pairs import DEPTHS, has_pairs
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


def _other_objects(root: Path) -> bool:
    """Whether a folder in COCO's form has files beside those of people with joints."""
    return any("keypoints_" not in file.name for file in (root / "annotations").glob("*.json"))
