"""Folders of images with people, whose joints are known: COCO's form."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srattn.data.boxes.keypoints import PeopleIndex, Person, read_coco_people_folder
from srattn.data.decode import turned_words
from srattn.data.dense.joints import Joints, flip_order
from srattn.data.dense.masks import WrongSize
from srattn.data.dense.read import Found, Unread
from srattn.data.dense.target import Target


def open_people(data: str, mirrored: bool = False) -> tuple[Found, PeopleIndex]:
    """Finds the people of a folder in COCO's form, and decodes no image.

    Args:
        mirrored: whether pictures will be, for which joints need a partner.

    Raises:
        SrattnError: no such folder, or a joint without its partner.
    """
    index = read_coco_people_folder(Path(data))
    order = flip_order(index.names) if mirrored else None
    digest = hashlib.sha256(repr(index.names).encode())
    for part, people in index.parts.items():
        for person in people:
            digest.update(f"{part} {person.name} {person.box.tolist()} {person.joints.tolist()}".encode())
    parts = {part: [_unread(person, order) for person in people] for part, people in index.parts.items()}
    notes = []
    if index.unlabelled:
        notes.append(f"people: {index.unlabelled:,} without a labelled joint, or crowds, are left out")
    more: dict[str, Any] = {"notes": notes, "bones": index.skeleton, "of_parts": index.of_parts}
    return Found(list(index.names), parts, list(index.problems), digest.hexdigest(), **more), index


def _unread(person: Person, order: Tensor | None) -> Unread:
    def target(size: tuple[int, int]) -> Target:
        if size != person.size:
            raise WrongSize(
                f"{person.name}: the image is {size[1]}x{size[0]}, declared is {person.size[1]}x{person.size[0]}: its "
                f"joints may belong to another picture{turned_words(person.source, size, person.size)}"
            )
        box = person.box
        facts = float(person.image), person.area, float(torch.maximum(box[2] - box[0], box[3] - box[1]))
        boxes = torch.cat([box, torch.zeros(1)]).unsqueeze(0)
        return Target(boxes=boxes, joints=Joints.of(person.joints, size, facts, order))

    return Unread(person.name, person.source, target)
