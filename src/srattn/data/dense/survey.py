"""What a check of images with masks, boxes, depths or joints finds, counted image by image."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from srattn.data.dense.joints import Joints
from srattn.data.dense.kinds import SceneKind
from srattn.data.dense.survey_depths import DepthCount
from srattn.data.dense.target import VOID, Target
from srattn.data.palette import Of255, Palette, standard_palette

_NOTHING = ("background", "bg", "none")
_UNITS = {"masks": "pixels", "boxes": "boxes", "depths": "pixels", "joints": "joints"}
_SMALL, _LARGE = 32.0, 96.0  # the sides of COCO's three sizes of boxes, whose areas are below, between and above


@dataclasses.dataclass(frozen=True)
class Example:
    """A small picture, uint8 (3, h, w), with its target, and what it is called."""

    name: str
    pixels: Tensor
    target: Target


@dataclasses.dataclass
class SceneReport:
    """What `srattn.data.dense.check.check_scenes` found.

    Attributes:
        images: how many can be used, for each part; with joints how many people.
        amounts: pixels or boxes of each class, or how often each joint is labelled, for each part; without the boxes
            that are ignored.
        present: images that have the class, or people of whom the joint is visible, for each part.
        void: pixels of no class, for each part.
        of_255: what 255 is in the masks, where it occurs.
        ignored: boxes that are neither learnt nor counted, for each part.
        depths: what is known of depths, for each part.
        box_sides: for each class the square roots of the areas of its boxes, in pixels of their image.
        unreadable: a line for each image, mask or annotation that cannot be read.
        alone: a line for each image without a mask or depths, and the other way round.
        mismatched: a line for each mask that is not as large as its image; likewise of depths and declared sizes.
        wrong: a line for each mask with a number that is no class, for each box that is left out or cut, for depths of
            which none is learnt, and for each person that is left out.
        outside: a line for each labelled joint outside of its image.
        unlabelled: people without a labelled joint, and crowds, which are left out.
        without: (part, name) of images without an object: no box, or no pixel of a class but the background; and of
            people without a visible joint.
        empty: a line for each class or joint that a part has nothing of.
        duplicates, near, repeated, sizes, refused: as in `srattn.data.check.Report`.
        examples: some small pictures with their targets, for the eye.
        bones: joints by number that a line is drawn between.
    """

    data: str
    kind: SceneKind
    classes: list[str] = dataclasses.field(default_factory=list)
    palette: Palette = dataclasses.field(default_factory=lambda: standard_palette(1))
    images: dict[str, int] = dataclasses.field(default_factory=dict)
    amounts: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    present: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    void: dict[str, int] = dataclasses.field(default_factory=dict)
    of_255: Of255 | None = None
    ignored: dict[str, int] = dataclasses.field(default_factory=dict)
    box_sides: list[list[float]] = dataclasses.field(default_factory=list)
    depths: dict[str, DepthCount] = dataclasses.field(default_factory=dict)
    unreadable: list[str] = dataclasses.field(default_factory=list)
    alone: list[str] = dataclasses.field(default_factory=list)
    mismatched: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    outside: list[str] = dataclasses.field(default_factory=list)
    unlabelled: int = 0
    without: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    empty: list[str] = dataclasses.field(default_factory=list)
    duplicates: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    near: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    repeated: dict[str, int] = dataclasses.field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    refused: list[str] = dataclasses.field(default_factory=list)
    examples: list[Example] = dataclasses.field(default_factory=list)
    bones: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    @property
    def unit(self) -> str:
        """What `amounts` counts."""
        return _UNITS[self.kind]

    @property
    def heading(self) -> str:
        """What the data is, in a line."""
        many, classes = sum(self.images.values()), len(self.classes)
        if self.kind == "joints":
            return f"{many:,} people with {classes} joints in {sum(self.sizes.values()):,} images"
        return f"{many:,} images with {self.kind}{'' if self.kind == 'depths' else f', {classes} classes'}"

    def begin(
        self, classes: list[str], palette: Palette | None, parts: list[str], max_depth: float | None = None
    ) -> None:
        """Nothing counted yet, of these classes and parts; `max_depth` in metres is that of depths."""
        self.classes, self.palette = classes, palette or standard_palette(classes)
        self.images = dict.fromkeys(parts, 0)
        self.amounts = {part: [0] * len(classes) for part in parts}
        self.present = {part: [0] * len(classes) for part in parts}
        self.void = dict.fromkeys(parts, 0) if self.kind == "masks" else {}
        self.ignored = dict.fromkeys(parts, 0) if self.kind == "boxes" else {}
        self.box_sides = [[] for _ in classes] if self.kind == "boxes" else []
        self.depths = {} if max_depth is None else {part: DepthCount(max_depth) for part in parts}

    def count(self, part: str, name: str, size: tuple[int, int], target: Target, again: bool = False) -> None:
        """Adds a usable image of `size` (width, height), or, if `again`, one more person of an image that was added."""
        self.images[part] += 1
        self.sizes[size] += not again
        if target.depth is not None:
            self.depths[part].add(target.depth)
            return
        if target.joints is not None:
            self._count_joints(part, name, size, target.joints)
            return
        if target.mask is not None:
            found = torch.bincount(target.mask.flatten().int(), minlength=VOID + 1).tolist()
            self.void[part] += found[VOID]
            found = found[: len(self.classes)] if len(self.classes) <= VOID else [*found[:VOID], 0]
        else:
            boxes = torch.zeros(0, 5) if target.boxes is None else target.boxes
            if target.ignored is not None:
                self.ignored[part] += int(target.ignored.sum())
                boxes = boxes[~target.ignored]
            found = torch.bincount(boxes[:, 4].long(), minlength=len(self.classes)).tolist()
            for label, side in zip(boxes[:, 4].long().tolist(), box_sides(boxes).tolist(), strict=True):
                self.box_sides[label].append(side)
        self.amounts[part] = [a + b for a, b in zip(self.amounts[part], found, strict=True)]
        self.present[part] = [a + (b > 0) for a, b in zip(self.present[part], found, strict=True)]
        first = 1 if self.kind == "masks" and self.classes[0].strip("_").casefold() in _NOTHING else 0
        if not any(found[first:]):
            self.without.append((part, name))

    def _count_joints(self, part: str, name: str, size: tuple[int, int], joints: Joints) -> None:
        values = joints.place[:, 2].tolist()
        self.amounts[part] = [a + (b > 0) for a, b in zip(self.amounts[part], values, strict=True)]
        self.present[part] = [a + (b >= 2) for a, b in zip(self.present[part], values, strict=True)]
        if not any(value >= 2 for value in values):
            self.without.append((part, name))
        width, height = size
        for joint, (x, y, seen) in zip(self.classes, joints.place.tolist(), strict=True):
            if seen > 0 and not (0 <= x <= width and 0 <= y <= height):
                self.outside.append(f"{name}: {joint} at ({x:g}, {y:g}) is outside of the image of {width}x{height}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the examples."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("examples", "palette", "amounts", "present", "box_sides", "depths", "bones"):
            del plain[name]
        if self.kind != "masks":
            del plain["of_255"]
        if self.kind != "joints":
            del plain["outside"], plain["unlabelled"]
        if self.kind != "boxes":
            del plain["ignored"]
        first, second = ("visible", "labelled") if self.kind == "joints" else ("images", self.unit)
        if self.kind == "depths":
            plain["depths"] = {part: count.to_dict() for part, count in self.depths.items()}
        else:
            plain["counts"] = {
                part: {
                    name: {first: self.present[part][number], second: self.amounts[part][number]}
                    for number, name in enumerate(self.classes)
                }
                for part in self.images
            }
        if self.kind == "boxes":
            plain["box_sizes"] = {
                name: size_words(sides) for name, sides in zip(self.classes, self.box_sides, strict=True)
            }
        plain["sizes"] = [{"width": w, "height": h, "images": n} for (w, h), n in self.sizes.most_common()]
        return plain


def box_sides(boxes: Tensor) -> Tensor:
    """Square roots of the areas of boxes (N, 5)."""
    return (boxes[:, 2:4] - boxes[:, :2]).clamp(min=0).prod(1).sqrt()


def size_words(sides: list[float]) -> dict[str, float]:
    """Of boxes by their sides: the ends, the middle, and how many have COCO's three sizes."""
    ordered = sorted(sides)
    if not ordered:
        return {"small": 0, "medium": 0, "large": 0}
    small, large = sum(side < _SMALL for side in ordered), sum(side > _LARGE for side in ordered)
    ends = {"smallest": ordered[0], "median": ordered[len(ordered) // 2], "largest": ordered[-1]}
    return {
        **{name: round(side, 2) for name, side in ends.items()},
        **{"small": small, "medium": len(ordered) - small - large, "large": large},
    }
