"""What a folder holds beside its images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from srattn.data.dense.boxes import is_coco, is_voc
from srattn.data.dense.pairs import has_pairs
from srattn.data.reader import BUILT_IN

SceneKind: TypeAlias = Literal["masks", "boxes"]


def scene_kind(data: str) -> SceneKind | None:
    """Masks for the images, else boxes; None for anything that has neither, such as class folders."""
    if data in BUILT_IN:
        return None
    root = Path(data)
    if has_pairs(root):
        return "masks"
    return "boxes" if is_voc(root) or is_coco(root) else None
