"""Everything that can be wrong with images and their masks or boxes, found by reading all of them once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srattn.data.ahead import ahead
from srattn.data.decode import BadImage, decode
from srattn.data.dense.boxes import open_boxes
from srattn.data.dense.classes import named_classes
from srattn.data.dense.kinds import SceneKind
from srattn.data.dense.masks import WrongNumber, WrongSize, read_masks
from srattn.data.dense.pairs import index_pairs
from srattn.data.dense.read import Found, Unread, divide_scenes
from srattn.data.dense.survey import Example, SceneReport
from srattn.data.dense.target import Target
from srattn.data.keyed import permutation
from srattn.data.likeness import digest, near, outline
from srattn.data.preprocess import to_tensor
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from PIL import Image

Notify = Callable[[int, int], None]
SHOWN = 12  # examples that are kept for the picture
_SIDE = 240  # pixels of the longer side of one


@dataclasses.dataclass(frozen=True)
class _Look:
    size: tuple[int, int]  # width, height
    target: Target
    pixels: bytes  # a hash of them
    outline: Tensor | None
    example: Tensor | None


def check_scenes(
    data: str,
    kind: SceneKind,
    *,
    classes: str | None = None,
    void: Sequence[int] = (),
    strict: bool = True,
    workers: int = 0,
    notify: Notify | None = None,
) -> SceneReport:
    """Reads every image and its mask or boxes.

    Args:
        classes, void: as for `srattn.data.dense.masks.open_masks` and `srattn.data.dense.boxes.open_boxes`.
        strict: judge as a run with `on_bad_image` "error" would, for which anything unusable is a reason to refuse.

    Raises:
        SrattnError: there is no folder at `data`.
    """
    report = SceneReport(data, kind)
    if not Path(data).is_dir():
        raise SrattnError(f"{data} is not a folder of images with {kind}")
    try:
        found = _open(report, classes, void, workers, notify)
    except SrattnError as error:
        report.refused.append(str(error))
        return report
    report.begin(found.classes, found.palette, list(found.parts))
    usable = _read(report, found, workers, notify)
    for part, amounts in report.amounts.items():
        none = (name for name, amount in zip(report.classes, amounts, strict=True) if not amount)
        report.empty += [f"{part}: class {name!r} has no {report.unit}" for name in none]
    _judge(report, usable, strict)
    return report


def _open(report: SceneReport, classes: str | None, void: Sequence[int], workers: int, notify: Notify | None) -> Found:
    if report.kind == "masks":
        root = Path(report.data)
        index = index_pairs(root)
        report.alone = list(index.skipped)
        # Two passes, over the masks and over the images.
        half = None if notify is None else lambda done, total: notify(done, 2 * total)
        masks = read_masks(index, named_classes(classes, root), void, workers=workers, notify=half)
        report.unreadable = masks.problems[len(index.skipped) :]
        return masks.found()
    found, _ = open_boxes(report.data, classes)
    for line in found.problems:  # of boxes, or else of images and annotations
        (report.wrong if line.endswith(("left out", "is cut at its edge")) else report.unreadable).append(line)
    return found


def _read(report: SceneReport, found: Found, workers: int, notify: Notify | None) -> dict[str, list[Unread]]:
    """Looks at every image, and returns those that a run could use."""
    usable: dict[str, list[Unread]] = {part: [] for part in found.parts}
    every = [(part, one) for part, items in found.parts.items() for one in items]
    shown = _shown(found)
    seen: dict[bytes, tuple[str, str]] = {}
    outlines: dict[str, list[tuple[str, Tensor]]] = {}
    looks = ahead(lambda entry: _look(entry[1], id(entry[1]) in shown), every, workers)
    before = len(every) if report.kind == "masks" else 0
    for done, ((part, one), look) in enumerate(zip(every, looks, strict=True), 1):
        if notify:
            notify(before + done, before + len(every))
        if isinstance(look, BadImage):
            lines = {WrongNumber: report.wrong, WrongSize: report.mismatched}.get(type(look), report.unreadable)
            lines.append(str(look))
            continue
        usable[part].append(one)
        report.count(part, one.name, look.size, look.target)
        if look.example is not None:
            report.examples.append(_example(one.name, look))
        if look.pixels in seen:
            first_part, first = seen[look.pixels]
            if first_part == part:
                report.repeated[part] = report.repeated.get(part, 0) + 1
            else:
                report.duplicates.append((first_part, first, part, one.name))
            continue
        seen[look.pixels] = part, one.name
        if look.outline is not None:
            outlines.setdefault(part, []).append((one.name, look.outline))
    report.near = near(outlines)
    return usable


def _look(one: Unread, keep: bool) -> _Look | BadImage:
    try:
        image = decode(one.image, 3)
        target = one.target((image.height, image.width))
    except BadImage as error:
        return error
    return _Look(image.size, target, digest(image), outline(image), _small(image) if keep else None)


def _small(image: Image.Image) -> Tensor:
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE))
    return to_tensor(small)


def _example(name: str, look: _Look) -> Example:
    assert look.example is not None
    height, width = look.example.shape[1:]
    scaling = torch.tensor([[width / look.size[0], 0, 0], [0, height / look.size[1], 0]], dtype=torch.float64)
    return Example(name, look.example, look.target.moved(scaling, (height, width)))


def _shown(found: Found) -> set[int]:
    """Identities of some images of the first part that has any, the same at each call."""
    items = found.parts.get("train") or next((items for items in found.parts.values() if items), [])
    return {id(items[number]) for number in permutation(len(items), 0)[:SHOWN].tolist()}


def _judge(report: SceneReport, usable: dict[str, list[Unread]], strict: bool) -> None:
    for what, lines in (
        ("file(s) that cannot be read", report.unreadable),
        ("image(s) or mask(s) without a partner", report.alone),
        ("mask(s) of another size than their images", report.mismatched),
        ("mask(s) with numbers that are no class" if report.kind == "masks" else "wrong box(es)", report.wrong),
    ):
        if lines and strict:
            report.refused.append(f"{len(lines)} {what}")
    try:
        divide_scenes(usable, None, 0.2, 0)
    except SrattnError as error:
        report.refused.append(str(error))
    if report.kind == "boxes" and not any(report.amounts.get("train", [])):
        report.refused.append("there is no box to learn from; put some into the training part")
