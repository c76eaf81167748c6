"""A box that was cut or left out costs no image, and is not counted as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from srattn.data.decode import BadImage
from srattn.data.dense import parse_joint
from srattn.data.dense.boxes import open_boxes
from srattn.data.dense.read import load_scenes
from srattn.data.preprocess import Preprocess


def test_images_that_are_used_are_not_skipped(tmp_path: Path) -> None:
    images, annotations = [], []
    (tmp_path / "train").mkdir()
    for number in range(4):
        Image.new("RGB", (40, 30), (number, 9, 9)).save(tmp_path / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 40, "height": 30})
        box = [30, 20, 20, 20] if number < 2 else [1, 2, 8, 9]  # two reach beyond the edge
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": box})
    images.append({"id": 9, "file_name": "gone.png", "width": 40, "height": 30})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))

    found, index = open_boxes(str(tmp_path))
    assert len(index.problems) == 3 and len(index.lost) == 1
    (note,) = found.notes_of(["train"])
    assert note.startswith("boxes: 2 were cut or left out") and "0.png: annotation 0" in note and "data check" in note
    measured = Preprocess(size=(32, 32), fit="inside")
    data = load_scenes(found, parse_joint("none", measured), measured)
    assert len(data.train) + len(data.val) == 4
    (line,) = data.skipped
    assert "gone.png" in line and data.notes == [note]
    found.parts["train"] = found.parts["train"][:4]
    found.problems.clear()
    with pytest.raises(BadImage, match="is cut at its edge"):
        load_scenes(found, parse_joint("none", measured), measured, on_bad_image="error")
