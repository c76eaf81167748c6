"""Detectors of more classes than 8 bits tell apart: trained, opened, predicted with and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from scenes import SMALL, shapes

from srattn.cli.predict_scenes import draw_scene
from srattn.engine import TrainConfig, train
from srattn.engine.rows import open_rows
from srattn.engine.scene_exam import measure_scenes
from srattn.engine.scene_folder import write_folder
from srattn.engine.scene_predict import Looking, likeliest
from srattn.engine.weights import load_run
from srattn.errors import SrattnError

NAMES = [f"kind {number}" for number in range(300)]
KINDS = {1: 3, 2: 290}  # of the square and of the disc


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many")
    (root / "annotations").mkdir()
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    for seed, (part, count) in enumerate((("train", 4), ("val", 2))):
        (root / part).mkdir()
        images, objects = [], []
        for number, (image, _, boxes) in enumerate(shapes(count, seed)):
            Image.fromarray(image).save(root / part / f"{number}.png")
            height, width = image.shape[:2]
            images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
            for x1, y1, x2, y2, label in boxes:
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                objects.append({"id": len(objects), "image_id": number, "category_id": KINDS[label], **box})
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def test_a_detector_of_300_classes(data: Path, tmp_path: Path) -> None:
    options = SMALL | {"task": "detect", "data": str(data), "head_options": {"width": 16, "convs": 1}, "epochs": 1}
    result = train(TrainConfig(**options, augment="none", out=str(tmp_path / "run"))).result
    loaded = load_run(tmp_path / "run")
    assert loaded.classes == NAMES and loaded.palette is not None and len(loaded.palette) == 300
    rows = open_rows([str(data / "val")])
    assert write_folder(tmp_path / "out", loaded, rows, Looking(threshold=0.0), draw_scene, pytest.fail) == 2
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert {box["class"] for record in records for box in record["boxes"]} <= set(NAMES)
    assert len(list((tmp_path / "out" / "overlays").rglob("*.png"))) == 2
    # In the data's order and in another, whose numbers have to become the model's.
    plain, other = (measure_scenes(loaded, str(data), classes=given) for given in (None, ",".join(NAMES[::-1])))
    assert plain.figures["map50"] == other.figures["map50"] == result["map50"]
    for found in (plain, other):
        boxes = found.data.val.scene(0)[1].boxes
        assert boxes is not None and boxes[:, 4].tolist() == list(KINDS.values())


def test_masks_have_no_more_than_8_bits() -> None:
    with pytest.raises(SrattnError, match="300 classes are too many for masks"):
        likeliest(torch.zeros(300, 2, 2), 4, 4)
