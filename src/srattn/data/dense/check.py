"""Everything that can be wrong with images and their masks, boxes, depths or joints, found by reading all of them."""

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
from srattn.data.dense.depths import read_depths
from srattn.data.dense.kinds import SceneKind
from srattn.data.dense.masks import WrongNumber, WrongSize, read_masks
from srattn.data.dense.pairs import DEPTHS, index_pairs
from srattn.data.dense.people import open_people
from srattn.data.dense.read import Found, Unread, divide_scenes
from srattn.data.dense.survey import Example, SceneReport
from srattn.data.dense.target import VOID, Target
from srattn.data.depth_files import MILLIMETRES
from srattn.data.keyed import permutation
from srattn.data.likeness import digest, near, outline
from srattn.data.palette import Of255, Palette
from srattn.data.preprocess import to_tensor
from srattn.data.samples import OnBadImage
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from PIL import Image

Notify = Callable[[int, int], None]
Learnt = tuple[Palette, Of255]
MAX_DEPTH = 10.0
"""Metres, as a run takes them if it is not told otherwise."""
SHOWN = 12  # examples that are kept for the picture
_SIDE = 240  # pixels of the longer side of one
_WRONG = {
    "masks": "mask(s) with numbers that are no class",
    "boxes": "wrong box(es)",
    "depths": "file(s) without a depth that is learnt",
    "joints": "person(s) that cannot be used",
}


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
    learnt: Learnt | None = None,
    depth_scale: float = MILLIMETRES,
    max_depth: float = MAX_DEPTH,
    val: str | None = None,
    val_fraction: float = 0.2,
    on_bad_image: OnBadImage = "skip",
    workers: int = 0,
    notify: Notify | None = None,
) -> SceneReport:
    """Reads every image and what is known of it.

    Args:
        classes, void: as for `srattn.data.dense.masks.open_masks` and `srattn.data.dense.boxes.open_boxes`.
        learnt: classes of a model that the masks are for, where nothing else names them, and what 255 was when it
            learnt (see `srattn.data.dense.masks.read_masks`).
        depth_scale, max_depth: as for `srattn.data.dense.depths.open_depths`.
        val, val_fraction, on_bad_image: judge as a run with these would; for one with `on_bad_image` "error" anything
            unusable is a reason to refuse.

    Raises:
        SrattnError: there is no folder at `data`.
    """
    report = SceneReport(data, kind)
    if not Path(data).is_dir():
        raise SrattnError(f"{data} is not a folder of images with {kind}")
    try:
        if kind in ("masks", "depths"):
            found = _open_pairs(report, classes, void, learnt, (depth_scale, max_depth), workers, notify)
        else:
            found = _open_objects(report, classes)
    except SrattnError as error:
        report.refused.append(str(error))
        return report
    report.begin(found.classes, found.palette, list(found.parts), max_depth if kind == "depths" else None)
    report.of_255 = found.of_255
    if kind == "masks" and len(found.classes) > VOID:
        report.refused.append(f"masks have at most {VOID} classes beside {VOID}, which is none; there are 256")
    usable = _read(report, found, workers, notify)
    for part, amounts in report.amounts.items() if kind != "depths" else ():
        none = (name for name, amount in zip(report.classes, amounts, strict=True) if not amount)
        words = "joint {!r} is never labelled" if kind == "joints" else f"class {{!r}} has no {report.unit}"
        report.empty += [f"{part}: {words.format(name)}" for name in none]
    if on_bad_image == "error":
        _refuse_unusable(report)
    try:
        divide_scenes(usable, val, val_fraction, 0)
    except SrattnError as error:
        report.refused.append(str(error))
    if report.kind == "boxes" and not any(report.amounts.get("train", [])):
        report.refused.append("there is no box to learn from; put some into the training part")
    return report


def _open_pairs(
    report: SceneReport,
    classes: str | None,
    void: Sequence[int],
    learnt: Learnt | None,
    metres: tuple[float, float],
    workers: int,
    notify: Notify | None,
) -> Found:
    """Images with masks or depths; reads all of the latter."""
    root = Path(report.data)
    # Two passes, over the masks or depths and over the images.
    half = None if notify is None else lambda done, total: notify(done, 2 * total)
    if report.kind == "masks":
        index = index_pairs(root)
        report.alone = list(index.skipped)
        palette, of_255 = learnt or (None, None)
        palette = named_classes(classes, root) or palette
        masks = read_masks(index, palette, void, of_255=of_255, workers=workers, notify=half)
        report.unreadable = masks.problems[len(index.skipped) :]
        return masks.found()
    index = index_pairs(root, DEPTHS, "depth")
    report.alone = list(index.skipped)
    depths = read_depths(index, *metres, workers=workers, notify=half)
    report.wrong = depths.without
    nothing = set(depths.without)
    report.unreadable = [line for line in depths.problems[len(index.skipped) :] if line not in nothing]
    return depths.found()


def _open_objects(report: SceneReport, classes: str | None) -> Found:
    """Images with boxes or people."""
    if report.kind == "joints":
        found, index = open_people(report.data)
        report.bones, report.unlabelled = list(found.bones), index.unlabelled
    else:
        found, _ = open_boxes(report.data, classes, masks=None)
    for line in found.refused or found.problems:  # of boxes, their masks or people, or else of images and annotations
        ours = line.endswith(("left out", "is cut at its edge")) or " is left out: " in line
        (report.wrong if ours else report.unreadable).append(line)
    return found


def _read(report: SceneReport, found: Found, workers: int, notify: Notify | None) -> dict[str, list[Unread]]:
    """Looks at every image, and returns those that a run could use."""
    usable: dict[str, list[Unread]] = {part: [] for part in found.parts}
    every = [(part, one) for part, items in found.parts.items() for one in items]
    shown = _shown(found)
    seen: dict[bytes, tuple[str, str]] = {}
    outlines: dict[str, list[tuple[str, Tensor]]] = {}
    looks = ahead(lambda entry: _look(entry[1], id(entry[1]) in shown), every, workers)
    before = len(every) if report.kind in ("masks", "depths") else 0
    counted: set[Path] = set()  # images; several people may be in one
    for done, ((part, one), look) in enumerate(zip(every, looks, strict=True), 1):
        if notify:
            notify(before + done, before + len(every))
        if isinstance(look, BadImage):
            lines = {WrongNumber: report.wrong, WrongSize: report.mismatched}.get(type(look), report.unreadable)
            lines.append(str(look))
            continue
        usable[part].append(one)
        again = report.kind == "joints" and one.image in counted
        counted.add(one.image)
        report.count(part, one.name, look.size, look.target, again)
        if look.example is not None:
            report.examples.append(_example(one.name, look))
        if again:
            continue
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


def _refuse_unusable(report: SceneReport) -> None:
    what = {"masks": "mask", "depths": "depth"}.get(report.kind, "annotation")
    for reason, lines in (
        ("file(s) that cannot be read", report.unreadable),
        (f"image(s) or {what}(s) without a partner", report.alone),
        (f"{what}(s) of another size than their images", report.mismatched),
        (_WRONG[report.kind], report.wrong),
    ):
        if lines:
            report.refused.append(f"{len(lines)} {reason}")
