"""What a model of masks or boxes is worth on labelled images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.data.decode import BadImage, decode
from srattn.data.dense import JointAugment, SceneData, SceneLoader, Target
from srattn.data.dense.boxes import open_boxes
from srattn.data.dense.classes import named_classes
from srattn.data.dense.depths import open_depths
from srattn.data.dense.masks import read_masks
from srattn.data.dense.pairs import index_pairs
from srattn.data.dense.people import open_people
from srattn.data.dense.read import Found, Unread, divide_scenes, load_part
from srattn.data.dense.target import VOID
from srattn.data.depth_files import MILLIMETRES, check_scale
from srattn.data.index import held_part
from srattn.data.palette import MOST, standard_palette
from srattn.data.reader import absolute
from srattn.data.samples import OnBadImage
from srattn.data.sources import called, file_of
from srattn.engine.evaluate import evaluate
from srattn.engine.exam import Split, class_numbers
from srattn.engine.scene_predict import Looking, predict_mask
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.tasks.models import task_options
from srattn.tasks.registry import make_task

Notify = Callable[[int, int], None]


@dataclasses.dataclass
class SceneMeasurement:
    """Figures of a pass over a part of a data set.

    Attributes:
        figures: as in a run's history: miou, dice, ... or map50, map, ...
        details: by class and by image.
        headline: the figure that counts.
        split: the part, in words.
        skipped: a line for everything that could not be used.
        images_per_second: with loading.
        data: the images, in `data.val`.
        answers: of a detector, its detections (N, D, 6), where every image could be read.
    """

    figures: dict[str, float]
    details: dict[str, Any]
    headline: str
    split: str
    skipped: list[str]
    images_per_second: float
    data: SceneData
    answers: Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "headline": self.headline,
            **self.figures,
            **self.details,
            "images": len(self.data.val),
            "images_per_second": round(self.images_per_second, 2),
            "left_out": len(self.skipped),
        }


def measure_scenes(
    run: LoadedRun,
    data: str,
    split: Split = "auto",
    *,
    classes: str | None = None,
    void: tuple[int, ...] = (),
    depth_scale: float | None = None,
    looking: Looking | None = None,
    on_bad_image: OnBadImage = "skip",
    batch_size: int = 8,
    workers: int = 0,
    hold_bytes: int = 0,
    notify: Notify | None = None,
) -> SceneMeasurement:
    """Measures `run` on a part of `data`.

    Args:
        data: a folder as `srattn train --task segment` or detect takes it.
        split: "auto" takes what the run held out where it was trained on `data`, else val, else test, else all.
        classes, void: of the data's masks or boxes, where its own files do not name them and they are not numbered as
            the model's; classes are matched by name.
        depth_scale: metres a unit of depth files; by default that of the run, else millimetres.
        looking: other than plainly at the model's size; of masks alone.

    Raises:
        SrattnError: no such data or part, or a class that the model does not know.
    """
    own = run.config.get("data") is not None and str(run.config["data"]) == absolute(data)
    if own and not void:
        void = tuple(run.config.get("void") or ())
    if own and classes is None:
        classes = run.config.get("classes")
    if depth_scale is None:
        depth_scale = float(run.config.get("depth_scale") or MILLIMETRES)
    found = _in_our_numbers(run, data, classes, void, check_scale(depth_scale), workers)
    items, words, names = _part(found, run, split, own)
    looked = run.task == "segmentation" and looking is not None and looking != Looking()
    keep = 0 if looked else hold_bytes  # of images at the model's size
    samples, bad = load_part(items, run.preprocess, on_bad_image=on_bad_image, hold_bytes=keep, workers=workers)
    if not len(samples):
        raise SrattnError(f"{data}: {words} has no image that can be used; the first: {bad[0]}")
    skipped = [*found.problems_of(names), *bad]
    facts = found.facts, run.palette, found.notes_of(names), found.bones
    loaded = SceneData(run.classes, samples, samples, run.preprocess, skipped, *facts)
    task: Any = make_task(run.task, run.classes, **task_options(run.model))
    device = next(run.model.parameters()).device
    augment: Any = JointAugment(run.preprocess)
    loader = SceneLoader(loaded, augment, 1, 0, workers, eval_batch_size=batch_size)
    answers: Tensor | None = None
    began = time.perf_counter()
    if looked and looking is not None:
        figures, details = _looked_at(run, loaded, task, looking, notify)
    else:
        done = 0

        def count() -> bool:
            nonlocal done
            done += 1
            if notify:
                notify(min(done * batch_size, len(loaded.val)), len(loaded.val))
            return False

        evaluation = evaluate(run.model, loader, task, device, count)
        assert evaluation is not None
        figures, details = evaluation.figures, evaluation.details
        if run.task == "detection" and len(evaluation.answers) == len(samples):
            answers = evaluation.answers
    speed = len(loaded.val) / max(time.perf_counter() - began, 1e-9)
    skipped = [*loaded.skipped, *loaded.val.lost.values()]
    return SceneMeasurement(figures, details, task.headline, words, skipped, speed, loaded, answers)


def _looked_at(
    run: LoadedRun, data: SceneData, task: Any, looking: Looking, notify: Notify | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Masks from windows, scales or mirror images; there is no loss of those."""
    metrics = task.metrics()
    samples: Any = data.val
    for index in range(len(samples)):
        source = samples.sources[index]
        try:
            image = decode(file_of(source), samples.channels, called(samples.names[index], source))
            target = samples.readers[index]((image.height, image.width))
        except BadImage as error:
            samples.lost[index] = str(error)
            continue
        mask = predict_mask(run, image, looking)
        sure = 50.0 * F.one_hot(mask.long(), len(run.classes)).permute(2, 0, 1).unsqueeze(0).float()
        metrics.update(sure, target.mask.long().unsqueeze(0))
        if notify:
            notify(index + 1, len(samples))
    figures = {name: value for name, value in metrics.compute().items() if name != "loss"}
    return figures, metrics.details()


def _in_our_numbers(
    run: LoadedRun, data: str, classes: str | None, void: tuple[int, ...], depth_scale: float, workers: int
) -> Found:
    """What is in the data, its classes numbered as the model's."""
    if run.task == "depth":
        most = float(task_options(run.model)["max_depth"])
        return open_depths(data, depth_scale, most, workers=workers).found()
    if run.task == "pose":
        found, _ = open_people(data)
        theirs = found.classes
        if theirs != run.classes:
            raise SrattnError(f"{data} has other joints ({theirs[0]}, ...) than the model ({run.classes[0]}, ...)")
        return found
    if run.task == "detection":
        found, _ = open_boxes(data, classes, masks=bool(getattr(run.model, "has_masks", False)))
        theirs = found.classes
    elif run.task == "segmentation":
        palette = named_classes(classes, Path(data)) or run.palette or standard_palette(run.classes)
        found = read_masks(index_pairs(Path(data)), palette, void, of_255=run.of_255, workers=workers).found()
        theirs = found.classes
    else:
        raise SrattnError(f"{run.path} is a model for {run.task}; measuring it is not known here")
    numbers = class_numbers(theirs, run.classes)
    if numbers == list(range(len(theirs))):
        return found
    table = torch.full((max(MOST, len(numbers)),), VOID)  # of boxes there may be more classes than 8 bits tell apart
    table[: len(numbers)] = torch.tensor(numbers)
    parts = {name: [_renumbered(one, table) for one in items] for name, items in found.parts.items()}
    return dataclasses.replace(found, classes=run.classes, parts=parts)


def _renumbered(one: Unread, table: Tensor) -> Unread:
    def read(size: tuple[int, int]) -> Target:
        target = one.target(size)
        boxes = target.boxes
        if boxes is not None:
            boxes = torch.cat([boxes[:, :4], table[boxes[:, 4].long()].to(boxes.dtype).unsqueeze(1)], 1)
        mask = None if target.mask is None else table[target.mask.int()].to(torch.uint8)
        return dataclasses.replace(target, mask=mask, boxes=boxes)

    return dataclasses.replace(one, target=read)


def _part(found: Found, run: LoadedRun, split: Split, own: bool) -> tuple[list[Unread], str, list[str]]:
    """The images, what they are called, and the parts of the data that they are of."""
    parts = {name: items for name, items in found.parts.items() if items}
    if split == "auto":
        split = "val" if own or "val" in parts else "test" if "test" in parts else "all"
    names = ["train"]
    if split == "all":
        names = [*found.of_parts]
        items, words = [one for items in parts.values() for one in items], "all images"
    elif split == "test":
        items, words, names = parts.get("test", []), "the test part", ["test"]
    elif split == "val" and not own and "val" in parts:  # there need not be a training part beside it
        items, words, names = parts["val"], "the validation part", ["val"]
    else:
        asked = run.config.get("val") if own else None
        fraction, seed = float(run.config.get("val_fraction", 0.2)), int(run.config.get("split_seed", 0))
        train, held = divide_scenes(parts, asked, fraction, seed)
        items, words = (train, "the training part") if split == "train" else (held, "the validation part")
        if split != "train":
            names = [held_part(parts, asked) or "train"]
    if not items:
        have = ", ".join(parts) or "none"
        raise SrattnError(f"{words} has no image that can be used; the parts are: {have}; give --split all")
    return items, words, names
