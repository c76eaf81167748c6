"""Predictions of masks, boxes, depths and joints as a folder, each file of it whole or not there."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from torch import Tensor

from srattn.data.boxes.coco_ids import CocoIds, find_coco_ids
from srattn.data.decode import BadImage, decode
from srattn.data.depth_files import unit_for, write_depth
from srattn.data.mask_files import write_mask
from srattn.data.object_overlay import tinted
from srattn.data.palette import standard_palette
from srattn.data.preprocess import to_image, to_tensor
from srattn.data.sources import file_of
from srattn.engine.open_model import model_facts
from srattn.engine.people_boxes import People
from srattn.engine.rows import Rows
from srattn.engine.rows.answer import shown
from srattn.engine.rows.base import Source
from srattn.engine.scene_predict import Looking, predict_depth, predict_joints, predict_mask, predict_objects, shares
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.files import atomic_path
from srattn.ops.run_lengths import write_runs
from srattn.tasks.models import task_options

if TYPE_CHECKING:
    from PIL import Image

JOB, RECORDS, MASKS, DEPTHS, OVERLAYS = "job.json", "records", "masks", "depths", "overlays"
Draw = Callable[[Tensor, Tensor, LoadedRun, Path], None]
"""Draws an image uint8 (C, H, W) with its mask (H, W), boxes (N, 6), depths (H, W) or joints (N, K, 3) into a file."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """The answer for one image, see `Draw`, and what a list says of it; of boxes with masks these too, as
    `predict_objects` gives them."""

    name: str
    pixels: Tensor
    answer: Tensor
    record: dict[str, Any]
    masks: list[Tensor] | None = None


def answers(
    run: LoadedRun,
    sources: Iterator[Source],
    looking: Looking,
    on_bad_image: Callable[[BadImage], None],
    progress: Callable[[int, int], None] | None = None,
    people: People | None = None,
) -> Iterator[Scene]:
    """The answer of each image as it becomes known; `progress` is told of the windows of each."""
    looking.check(run.task)
    for source in sources:
        try:
            scene = _scene(run, source, looking, progress, people)
        except BadImage as error:
            on_bad_image(error)
        else:
            yield scene


def _scene(
    run: LoadedRun,
    source: Source,
    looking: Looking,
    progress: Callable[[int, int], None] | None,
    people: People | None,
) -> Scene:
    image, name = _picture(source, run.preprocess.channels), shown(source.name)
    try:
        return _answer(run, image, name, looking, progress, people)
    except BadImage as error:  # of a shape that the model cannot be shown
        raise BadImage(f"{name}: {error}") from None


def _answer(
    run: LoadedRun,
    image: Image.Image,
    name: str,
    looking: Looking,
    progress: Callable[[int, int], None] | None,
    people: People | None,
) -> Scene:
    record: dict[str, Any] = {"name": name, "width": image.width, "height": image.height}
    masks: list[Tensor] | None = None
    if run.task == "pose":
        boxes = None if people is None else people.of(name)
        answer = predict_joints(run, image, boxes)
        record["people"] = _people(answer, run.classes)
    elif run.task == "depth":
        answer = predict_depth(run, image, looking, progress)
        metres = {"least": answer.min(), "median": answer.median(), "most": answer.max()}
        record["metres"] = {key: round(float(value), 4) for key, value in metres.items()}
    elif run.task == "detection":
        answer, masks = predict_objects(run, image, looking)
        record["boxes"] = [_box(row, run.classes) for row in answer.tolist()]
        for box, mask in zip(record["boxes"], masks or (), strict=masks is not None):
            # As COCO's tools have it.
            box["segmentation"] = {"size": [image.height, image.width], "counts": write_runs(mask.tolist())}
    else:
        answer = predict_mask(run, image, looking, progress)
        record["shares"] = {key: round(value, 6) for key, value in shares(answer, run.classes).items()}
    return Scene(name, to_tensor(image), answer, record, masks)


def write_folder(
    out: Path,
    run: LoadedRun,
    rows: Rows,
    looking: Looking,
    draw: Draw | None,
    on_bad_image: Callable[[BadImage], None],
    progress: Callable[[int, int], None] | None = None,
    people: People | None = None,
) -> int:
    """Answers all `rows` into a folder, or goes on with one that the same job was stopped in.

    masks/NAME.png holds class numbers, depths/NAME.png 16 bits in the units of `depth_unit`, overlays/NAME.png what
    `draw` makes, predictions.json all records and that unit (of boxes, with their masks if the model has them, and of
    joints in the form of COCO's results as well: coco.json, with the ids of images that lie beside annotations in
    COCO's form). An image whose record is there is not answered again.

    Returns:
        How many images were answered, before and now.

    Raises:
        SrattnError: the folder is of another job, or an image is named twice.
    """
    places = _places(rows)
    names = [place.name for place in places]
    told = None if people is None else {name: boxes.tolist() for name, boxes in people.items()}
    facts = {"rows": list(rows.stamp()), "people": told, "looking": dataclasses.asdict(looking), **model_facts(run)}
    _begin(out, json.loads(json.dumps(facts)))
    for number, name in enumerate(names):
        if progress:
            progress(number, len(names))
        if (out / RECORDS / f"{name}.json").is_file():
            continue
        for scene in answers(run, rows.read(number, number + 1), looking, on_bad_image, people=people):
            _write(out, name, scene, run, draw)
    if progress:
        progress(len(names), len(names))
    return _finish(out, names, [place.file for place in places], run)


def _write(out: Path, name: str, scene: Scene, run: LoadedRun, draw: Draw | None) -> None:
    record = dict(scene.record)
    if run.task == "depth":
        file = out / DEPTHS / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_depth(file, scene.answer, depth_unit(run), overwrite=True)
        record["depth"] = file.relative_to(out).as_posix()
    elif run.task == "segmentation":
        mask = out / MASKS / f"{name}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        write_mask(mask, scene.answer, run.palette or standard_palette(run.classes), overwrite=True)
        record["mask"] = mask.relative_to(out).as_posix()
    if draw is not None:
        picture = out / OVERLAYS / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        pixels = scene.pixels
        if scene.masks is not None:
            labels, palette = scene.answer[:, 5].int().tolist(), run.palette or standard_palette(run.classes)
            pixels = tinted(pixels, scene.masks, [palette.colours[label] for label in labels])
        draw(pixels, scene.answer, run, picture)
        record["overlay"] = picture.relative_to(out).as_posix()
    # Last: an image with a record is done.
    _write_json(out / RECORDS / f"{name}.json", record)


def _finish(out: Path, names: list[str], files: list[Path | None], run: LoadedRun) -> int:
    records: list[dict[str, Any]] = []
    numbers: list[int] = []  # of the records' images
    for number, name in enumerate(names):
        file = out / RECORDS / f"{name}.json"
        if file.is_file():
            records.append(json.loads(file.read_text("utf-8")))
            numbers.append(number)
    unit = {"depth_scale": depth_unit(run)} if run.task == "depth" else {}
    _write_json(out / "predictions.json", {"task": run.task, "classes": run.classes, **unit, "images": records})
    if run.task in ("detection", "pose"):
        ids = find_coco_ids([files[number] for number in numbers], run.classes if run.task == "pose" else None)
        if run.task == "detection":
            entries = _coco(records, ids if ids and ids.categories.keys() & set(run.classes) else None)
        else:
            entries = _coco_people(records, ids if ids and ids.categories else None)
        _write_json(out / "coco.json", entries)
    return len(records)


def depth_unit(run: LoadedRun) -> float:
    """Metres a unit of the files that a model of depths writes, in which all that it can see has a place in 16 bits."""
    return unit_for(float(task_options(run.model)["max_depth"]))


def _coco(records: list[dict[str, Any]], ids: CocoIds | None) -> list[dict[str, Any]]:
    """Detections in the form of COCO's results: boxes as x, y, width, height, masks as runs.

    With `ids` images and categories have those, and boxes of other categories are left out, for which there is no id;
    else images have their names and categories the model's numbers.
    """
    return [
        {
            "image_id": image,
            "category_id": box["number"] if ids is None else ids.categories[box["class"]],
            "bbox": [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
            "score": box["score"],
            **({"segmentation": box["segmentation"]} if "segmentation" in box else {}),
        }
        for image, record in zip(_image_ids(records, ids), records, strict=True)
        for box in record["boxes"]
        if ids is None or box["class"] in ids.categories
        for x1, y1, x2, y2 in [box["box"]]
    ]


def _coco_people(records: list[dict[str, Any]], ids: CocoIds | None) -> list[dict[str, Any]]:
    """Joints in the form of COCO's results: x, y, 1 for each; the score is the mean of the joints'.

    COCO counts from the centre of the first pixel, this package from its edge.
    """
    return [
        {
            "image_id": image,
            "category_id": 1 if ids is None else next(iter(ids.categories.values())),
            "keypoints": [value for x, y, _ in person.values() for value in (round(x - 0.5, 4), round(y - 0.5, 4), 1)],
            "score": round(sum(score for _, _, score in person.values()) / max(1, len(person)), 6),
        }
        for image, record in zip(_image_ids(records, ids), records, strict=True)
        for person in record["people"]
    ]


def _image_ids(records: list[dict[str, Any]], ids: CocoIds | None) -> list[Any]:
    """The ids of the images, or their names."""
    return [record["name"] for record in records] if ids is None else list(ids.images)


def _people(joints: Tensor, names: list[str]) -> list[dict[str, list[float]]]:
    """Each person's joints by name: x, y, score."""
    rows = [[[round(value, 4) for value in joint] for joint in person] for person in joints.tolist()]
    return [dict(zip(names, person, strict=True)) for person in rows]


def _begin(out: Path, facts: dict[str, Any]) -> None:
    job = out / JOB
    if not out.exists():
        _write_json(job, facts)
        return
    if not job.is_file():
        raise SrattnError(f"{out} exists and holds no predictions of ours; choose another --out")
    if json.loads(job.read_text("utf-8")) != facts:
        raise SrattnError(
            f"{out} holds predictions of another job (other images, options or weights); choose another --out"
        )


@dataclasses.dataclass
class _Place:
    """Where an image lies, and how much of that its files are called by."""

    said: str
    file: Path | None
    parts: tuple[str, ...]
    used: int
    suffixed: bool = False

    @property
    def name(self) -> str:
        parts = self.parts[-self.used :]
        return "/".join(parts if self.suffixed else (*parts[:-1], PurePath(parts[-1]).stem))


def _places(rows: Rows) -> list[_Place]:
    """Where each image lies. Its files are called by its name without suffix, below its folders, of a whole path the
    last.

    Where names meet, they go as far up as tells them apart, and keep the suffix where it alone does.

    Raises:
        SrattnError: an image that is named twice.
    """
    places = [_place(source) for source in rows.read(0, len(rows))]
    while meeting := _meeting(places):
        if not any([_part(group) for group in meeting]):
            one, other = meeting[0][:2]
            raise SrattnError(f"{one.said} and {other.said} would both be written as {one.name}; predict them apart")
    return places


def _place(source: Source) -> _Place:
    said = shown(source.name)
    path = PurePath(said)
    own = tuple(part for part in path.parts if part not in (path.anchor, "..", ".")) or ("image",)
    used = 2 if path.is_absolute() else len(own)
    above: tuple[str, ...] = ()
    if isinstance(source.data, Path):
        whole = PurePath(os.path.abspath(shown(str(source.data)))).parts[1:]
        # Of a list the name may be a shorter one than the file's; of a path with ".." it is other folders.
        above = whole[: -len(own)] if whole[-len(own) :] == own else whole[:-1] if whole[-1:] == own[-1:] else ()
    return _Place(said, source.data if isinstance(source.data, Path) else None, (*above, *own), used)


def _meeting(places: list[_Place]) -> list[list[_Place]]:
    """Those of one name, the groups of two and more."""
    groups: dict[str, list[_Place]] = {}
    for place in places:
        groups.setdefault(place.name, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def _part(group: list[_Place]) -> bool:
    """Calls the places of a group by more of what they are; whether that was possible for any."""
    folders = Counter(place.parts[:-1] for place in group)
    changed = False
    for place in group:
        if folders[place.parts[:-1]] > 1 and not place.suffixed:
            place.suffixed = changed = True
        elif folders[place.parts[:-1]] < len(group) and place.used < len(place.parts):
            place.used += 1
            changed = True
    return changed


def _picture(source: Source, channels: int) -> Any:
    if isinstance(source.data, BadImage):
        raise source.data
    if isinstance(source.data, Tensor):
        return to_image(source.data).convert("L" if channels == 1 else "RGB")
    return decode(file_of(source.data), channels, shown(source.name))


def _box(row: list[float], classes: list[str]) -> dict[str, Any]:
    number = int(row[5])
    box = [round(value, 3) for value in row[:4]]
    return {"class": classes[number], "number": number, "score": round(row[4], 6), "box": box}


def _write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, overwrite=True) as aside:
        aside.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
