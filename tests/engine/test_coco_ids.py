"""Results of COCO data carry the data's own ids, as COCO's tools ask for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from measured import NAMES, plain_people, write_people
from scenes import CLASSES, VAL

from srattn.data.boxes.coco_ids import find_coco_ids
from srattn.data.decode import BadImage
from srattn.data.preprocess import Preprocess
from srattn.engine.rows import open_rows
from srattn.engine.scene_folder import write_folder
from srattn.engine.scene_predict import Looking
from srattn.engine.weights import LoadedRun, load_run, save_weights
from srattn.tasks.models import build_task_model

BODY = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}


def untrained(folder: Path, task: str, classes: list[str], head: str, **options: Any) -> LoadedRun:
    model = build_task_model(task, "pvt_v2_b0", len(classes), head, options, img_size=48, **BODY)
    file = folder / "model.safetensors"
    save_weights(file, model.eval(), classes, Preprocess(size=(48, 48), fit="inside"), task=task)  # type: ignore[arg-type]
    return load_run(file)


@pytest.fixture
def detector(tmp_path: Path) -> LoadedRun:
    return untrained(
        tmp_path, "detection", list(CLASSES[:0:-1]), "fcos", width=16, convs=1
    )  # the data's order is another


@pytest.fixture
def data(coco_folder: Path, tmp_path: Path) -> Path:
    return renumbered(Path(shutil.copytree(coco_folder, tmp_path / "coco")))


def renumbered(root: Path) -> Path:
    """Ids that no counting gives."""
    for place, file in enumerate(sorted((root / "annotations").glob("*.json"))):
        content = json.loads(file.read_text())
        new = {image["id"]: 1000 * (place + 1) + 7 * image["id"] for image in content["images"]}
        for entry in content["images"]:
            entry["id"] = new[entry["id"]]
        for entry in content["annotations"]:
            entry["image_id"] = new[entry["image_id"]]
        file.write_text(json.dumps(content))
    return root


def refuse(error: BadImage) -> None:
    raise error


def results(run: LoadedRun, out: Path, *arguments: Path) -> tuple[list[Any], dict[str, Any]]:
    looking = Looking(threshold=0.0) if run.task == "detection" else Looking()
    write_folder(out, run, open_rows(map(str, arguments)), looking, None, refuse)
    return json.loads((out / "coco.json").read_text()), json.loads((out / "predictions.json").read_text())


def ids_by_name(file: Path) -> dict[str, int]:
    return {entry["file_name"]: entry["id"] for entry in json.loads(file.read_text())["images"]}


def test_boxes_have_the_ids_of_the_data(detector: LoadedRun, data: Path, tmp_path: Path) -> None:
    entries, told = results(detector, tmp_path / "out", data / "val")
    annotations = data / "annotations" / "instances_val.json"
    ids, numbers = ids_by_name(annotations), {CLASSES[1]: 10, CLASSES[2]: 20}  # see scenes.write_coco
    wanted = [
        (ids[Path(image["name"]).name], numbers[box["class"]], box["score"])
        for image in told["images"]
        for box in image["boxes"]
    ]
    assert wanted == [(entry["image_id"], entry["category_id"], entry["score"]) for entry in entries]
    assert {entry["image_id"] for entry in entries} == set(ids.values()) and len(ids) == VAL
    coco = pytest.importorskip("faster_coco_eval").COCO(str(annotations))
    coco.loadRes(str(tmp_path / "out" / "coco.json"))  # refuses ids of images that it does not know
    every, _ = results(detector, tmp_path / "both", data)
    assert {entry["image_id"] for entry in every} > set(ids.values())  # those of train/ too


def test_without_ids_that_tell_images_apart_their_names_stay(
    detector: LoadedRun, data: Path, coco_folder: Path, tmp_path: Path
) -> None:
    stray = Path(shutil.copy(data / "val" / "01.png", tmp_path / "stray.png"))
    places = {"a stray": [data / "val", stray], "ids of two sets": [coco_folder / "train", coco_folder / "val"]}
    for number, arguments in enumerate(places.values()):
        entries, told = results(detector, tmp_path / str(number), *arguments)
        assert {entry["image_id"] for entry in entries} == {image["name"] for image in told["images"]}
        assert {entry["category_id"] for entry in entries} <= {0, 1}
    (data / "annotations" / "instances_val.json").write_text("no JSON")
    entries, _ = results(detector, tmp_path / "broken", data / "val")
    assert all(isinstance(entry["image_id"], str) for entry in entries)


def test_boxes_of_categories_that_the_data_has_not(data: Path, tmp_path: Path) -> None:
    run = untrained(tmp_path, "detection", ["elephant", CLASSES[1]], "fcos", width=16, convs=1)
    entries, told = results(run, tmp_path / "out", data / "val")
    boxes = [box["class"] for image in told["images"] for box in image["boxes"]]
    assert {entry["category_id"] for entry in entries} == {10}
    assert len(entries) == boxes.count(CLASSES[1]) < len(boxes)


def test_joints_have_the_ids_of_the_data(tmp_path: Path) -> None:
    root = renumbered(write_people(tmp_path / "data", {"train": plain_people(), "val": plain_people()}))
    file = root / "annotations" / "person_keypoints_val.json"
    content = json.loads(file.read_text())
    content["categories"][0]["id"] = 5
    file.write_text(json.dumps(content))
    run = untrained(tmp_path, "pose", list(NAMES), "heatmap", width=16)
    entries, _ = results(run, tmp_path / "out", root / "images" / "val")
    assert [entry["image_id"] for entry in entries] == list(ids_by_name(file).values())
    assert {entry["category_id"] for entry in entries} == {5}
    images = sorted((root / "images" / "val").iterdir())
    found = find_coco_ids(images, NAMES[::-1])  # other joints: no results of this data
    assert found is not None and not found.categories


def test_images_whose_objects_only_a_server_knows(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "test2017").mkdir()
    image = tmp_path / "test2017" / "000000000081.jpg"
    categories = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    content = {"images": [{"id": 81, "file_name": image.name}], "categories": categories}
    (tmp_path / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(content))
    found = find_coco_ids([image])
    assert found is not None and found.images == [81] and found.categories == {"person": 1, "toothbrush": 90}
    found = find_coco_ids([image], ["nose"])
    assert found is not None and found.categories == {"person": 1}
