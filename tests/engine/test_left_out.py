"""What a run and `srattn eval` count as left out is of the parts that they read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from measured import NAMES, plain_people, write_depths, write_people
from scenes import CLASSES

from srattn.data.decode import BadImage
from srattn.data.dense.boxes import open_boxes
from srattn.data.dense.depths import open_depths
from srattn.data.dense.joint import JointAugment
from srattn.data.dense.masks import open_masks
from srattn.data.dense.people import open_people
from srattn.data.dense.person import PersonAugment
from srattn.data.dense.read import Found, load_scenes
from srattn.data.preprocess import Preprocess
from srattn.engine.exam import Split
from srattn.engine.scene_exam import measure_scenes
from srattn.engine.weights import LoadedRun
from srattn.tasks.models import build_task_model

BODY = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "segmentation": ("segformer", {"hidden": 16}),
    "detection": ("fcos", {"width": 16, "convs": 1}),
    "depth": ("glpn", {"hidden": 8}),
    "pose": ("heatmap", {"width": 16}),
}


def broken(path: Path) -> Path:
    path.write_bytes(b"no picture")
    return path


@pytest.fixture(params=list(HEADS))
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[str], Path]:
    """A task, its classes and data of which two images of the training part and one of another cannot be used."""
    task, root = str(request.param), tmp_path / "data"
    if task == "segmentation":
        shutil.copytree(request.getfixturevalue("mask_folder"), root)
        broken(root / "masks" / "train" / "00.png")
        (root / "masks" / "train" / "01.png").unlink()
        broken(root / "masks" / "val" / "00.png")
        return task, list(CLASSES), root
    if task == "detection":
        shutil.copytree(request.getfixturevalue("box_folder"), root)
        for part, count in (("train", 2), ("val", 1)):
            stems = (root / "ImageSets" / "Main" / f"{part}.txt").read_text().split()
            for stem in stems[:count]:
                broken(root / "Annotations" / f"{stem}.xml")
        return task, ["disc", "square"], root
    if task == "depth":
        write_depths(root, {"train": 4, "val": 3})
        broken(root / "depths" / "train" / "0.png")
        (root / "images" / "train" / "1.png").unlink()
        broken(root / "depths" / "val" / "0.png")
        return task, ["depth"], root
    write_people(root, {"train": plain_people(), "val": plain_people()})
    for part, images in (("train", (1, 2)), ("val", (1,))):
        for number in images:
            (root / "images" / part / f"{number}.png").unlink()
    return task, list(NAMES), root


@pytest.mark.parametrize(("split", "count"), [("val", 1), ("train", 2), ("all", 3)])
def test_what_is_left_out_is_of_the_measured_part(
    damaged: tuple[str, list[str], Path], split: Split, count: int
) -> None:
    task, classes, data = damaged
    assert split in get_args(Split)
    head, options = HEADS[task]
    number = len(classes)
    model: Any = build_task_model(task, "mit_b0", number, head, options, **BODY)
    fit = "inside" if task == "detection" else "squash"
    run = LoadedRun(model.eval(), classes, Preprocess(size=(32, 32), fit=fit), {}, Path("-"), task)
    found = measure_scenes(run, str(data), split)
    assert len(found.skipped) == found.to_dict()["left_out"] == count, found.skipped


def found_in(task: str, data: Path) -> Found:
    if task == "segmentation":
        return open_masks(str(data)).found()
    if task == "depth":
        return open_depths(str(data)).found()
    return (open_people if task == "pose" else open_boxes)(str(data))[0]


@pytest.mark.parametrize(("val", "count"), [(None, 3), ("val", 3), ("split", 2)])
def test_a_run_counts_what_is_left_out_of_the_parts_that_it_reads(
    damaged: tuple[str, list[str], Path], val: str | None, count: int
) -> None:
    task, _, data = damaged
    measured = Preprocess(size=(32, 32), fit="inside" if task in ("detection", "pose") else "shorter")
    augment = (PersonAugment if task == "pose" else JointAugment)(measured)
    assert len(load_scenes(found_in(task, data), augment, measured, val=val).skipped) == count


def test_boxes_of_a_part_that_is_not_read_are_no_note_and_no_reason_to_refuse(box_folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(box_folder, tmp_path / "data"))
    stem = (root / "ImageSets" / "Main" / "val.txt").read_text().split()[0]
    file = root / "Annotations" / f"{stem}.xml"
    file.write_text(file.read_text().replace("<name>", "<name>un", 1))
    measured = Preprocess(size=(32, 32), fit="inside")
    found = open_boxes(str(root), "disc,square")[0]
    assert not load_scenes(found, JointAugment(measured), measured, val="split", on_bad_image="error").notes
    assert "1 were cut or left out" in load_scenes(found, JointAugment(measured), measured).notes[0]
    with pytest.raises(BadImage, match="of no known class"):
        load_scenes(found, JointAugment(measured), measured, on_bad_image="error")
