"""A few images with what is known of them, without reading the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from srattn.data.dense.boxes import open_boxes
from srattn.data.dense.check import MAX_DEPTH
from srattn.data.dense.classes import named_classes
from srattn.data.dense.depths import read_depths
from srattn.data.dense.joint import JointAugment
from srattn.data.dense.kinds import SceneKind
from srattn.data.dense.masks import read_masks
from srattn.data.dense.pairs import DEPTHS, index_pairs
from srattn.data.dense.people import open_people
from srattn.data.dense.read import load_scenes
from srattn.data.dense.scenes import SceneData
from srattn.data.depth_files import MILLIMETRES
from srattn.data.keyed import permutation

One = TypeVar("One")


def read_some_scenes(
    data: str,
    kind: SceneKind,
    augment: JointAugment,
    images: int,
    seed: int = 0,
    classes: str | None = None,
    void: Sequence[int] = (),
    depth_scale: float = MILLIMETRES,
    max_depth: float = MAX_DEPTH,
) -> SceneData:
    """About `images` training images, chosen by `seed`; unreadable ones are left out.

    Args:
        augment: of joints a `srattn.data.dense.person.PersonAugment`.
        classes, void, depth_scale, max_depth: as for `srattn.data.dense.check.check_scenes`.

    Returns:
        Data whose two parts are the same images: as `augment` wants them, and as they are measured. Without names,
        classes of masks are those that these few have.

    Raises:
        SrattnError: nothing there that can be read.
    """
    if kind in ("masks", "depths"):
        root = Path(data)
        index = index_pairs(root) if kind == "masks" else index_pairs(root, DEPTHS, "depth")
        pairs = _some(index.parts, images, seed)
        index = dataclasses.replace(index, parts={"train": pairs}, skipped=[])
        if kind == "masks":
            found = read_masks(index, named_classes(classes, root), void).found()
        else:
            found = read_depths(index, depth_scale, max_depth).found()
    else:
        mirrored = bool(augment.flip or augment.flipv)
        found, _ = open_people(data, mirrored) if kind == "joints" else open_boxes(data, classes, masks=None)
        found = dataclasses.replace(found, parts={"train": _some(found.parts, images, seed)}, problems=[])
    found = dataclasses.replace(found, parts={**found.parts, "val": found.parts["train"]})
    return load_scenes(found, augment, augment.preprocess, hold_bytes=0)


def _some(parts: dict[str, list[One]], images: int, seed: int) -> list[One]:
    """Twice as many as are wanted, since some may be unreadable."""
    items = parts.get("train") or next(items for items in parts.values() if items)
    return [items[number] for number in permutation(len(items), seed)[: 2 * images].tolist()]
