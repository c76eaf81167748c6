"""Photos that their EXIF tag turns, labelled by a tool that does not look at it: the reason is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srattn.data.boxes import read_coco, read_voc
from srattn.data.decode import BadImage
from srattn.data.dense.boxes import open_boxes
from srattn.data.dense.depths import open_depths
from srattn.data.dense.masks import open_masks
from srattn.data.dense.people import open_people

SIZE = (30, 40)
"""(height, width) as stored; upright it is the other way round."""


def photo(path: Path, orientation: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (SIZE[1], SIZE[0]), (90, 80, 70)).save(path, exif=exif)
    return path


def test_masks_and_depths(tmp_path: Path) -> None:
    image = photo(tmp_path / "images" / "a.jpg")
    numbers = np.zeros(SIZE, np.uint8)
    numbers[:9] = 1
    for folder, pixels in (("masks", numbers), ("depths", 1000 * (numbers.astype(np.uint16) + 1))):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    for found in (open_masks(str(tmp_path)).found(), open_depths(str(tmp_path)).found()):
        (unread,) = found.parts["train"]
        with pytest.raises(BadImage, match=r"40x30 pixels, but its image .* is 30x40; its EXIF tag .*exiftool") as told:
            unread.target((40, 30))
        assert "one size" not in str(told.value)
    photo(image, orientation=3)  # upside down: as large as before
    with pytest.raises(BadImage) as told:
        open_masks(str(tmp_path)).found().parts["train"][0].target((40, 30))
    assert "EXIF" not in str(told.value) and "one size" in str(told.value)


def test_boxes_and_people(tmp_path: Path) -> None:
    photo(tmp_path / "train" / "a.jpg")
    joints = {"keypoints": [5, 6, 2], "num_keypoints": 1}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": SIZE[1], "height": SIZE[0]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 20, 10], "area": 200, **joints}],
        "categories": [{"id": 1, "name": "person", "keypoints": ["nose"]}],
    }
    file = tmp_path / "annotations" / "instances_train.json"
    file.parent.mkdir()
    for name in (file, file.with_name("person_keypoints_train.json")):
        name.write_text(json.dumps(content))
    for found in (open_boxes(str(tmp_path))[0], open_people(str(tmp_path))[0]):
        with pytest.raises(BadImage, match=r"30x40, declared is 40x30: .* its EXIF tag"):
            found.parts["train"][0].target((40, 30))
    (line,) = read_coco(file, tmp_path / "train", check_images=True).problems
    assert "left out; its EXIF tag" in line


def test_pascal(tmp_path: Path) -> None:
    photo(tmp_path / "JPEGImages" / "a.jpg")
    for folder, name, text in (
        ("ImageSets/Main", "train.txt", "a\n"),
        (
            "Annotations",
            "a.xml",
            f"<annotation><size><width>{SIZE[1]}</width><height>{SIZE[0]}</height></size><object><name>x</name>"
            "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>",
        ),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_text(text)
    (line,) = read_voc(tmp_path).problems
    assert "its EXIF tag" in line
