"""Whose boxes are whose: images and detections that were named from different places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srattn.data.decode import BadImage
from srattn.engine.people_boxes import People, read_people
from srattn.errors import SrattnError


def saved(path: Path, images: dict[str, list[tuple[str, Any]]], classes: list[str]) -> Path:
    rows = [{"name": n, "boxes": [{"class": c, "box": b} for c, b in boxes]} for n, boxes in images.items()]
    path.write_text(json.dumps({"task": "detection", "classes": classes, "images": rows}))
    return path


def first(people: People, name: str) -> float:
    return float(people.of(name)[0, 0])


def test_paths_may_begin_elsewhere(tmp_path: Path) -> None:
    names = ["people/val/a.jpg", "people/val/b.jpg", "people/test/b.jpg", "c.jpg", "people/none.jpg"]
    boxes = {name: [("person", [number, 0, 50, 60])] for number, name in enumerate(names)} | {names[-1]: []}
    people = read_people(saved(tmp_path / "p.json", boxes, ["person"]))
    for said in ("people/val/b.jpg", "/data/people/val/b.jpg", "val/b.jpg", "../people/val/b.jpg", "./val/b.jpg"):
        assert first(people, said) == 1
    assert first(people, "a.jpg") == 0 and first(people, "/x/y/c.jpg") == 3
    assert people.of("/data/people/none.jpg").shape == (0, 4)  # looked at, and nobody found


def test_an_image_without_an_entry_is_named_and_not_empty(tmp_path: Path) -> None:
    boxes = {name: [("person", [0, 0, 50, 60])] for name in ("val/b.jpg", "test/b.jpg")}
    people = read_people(saved(tmp_path / "p.json", boxes, ["person"]))
    with pytest.raises(BadImage, match=r"^not among the images of --people"):
        people.of("train/b.jpg")
    with pytest.raises(BadImage, match=r"val/b\.jpg or of test/b\.jpg"):
        people.of("b.jpg")


def test_a_detector_that_knows_people_and_found_none_found_none(tmp_path: Path) -> None:
    boxes = {"a.jpg": [("car", [0, 0, 50, 60])]}
    assert len(read_people(saved(tmp_path / "p.json", boxes, ["car", "person"])).of("a.jpg")) == 0
    assert len(read_people(saved(tmp_path / "q.json", boxes, ["car"])).of("a.jpg")) == 1


@pytest.mark.parametrize("box", [[1, 2, 3], [0, 0, float("nan"), 5], ["a", 0, 1, 1], 7])
def test_a_box_of_other_numbers_is_refused(box: Any, tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match=r"no predictions\.json"):
        read_people(saved(tmp_path / "p.json", {"a.jpg": [("person", box)]}, ["person"]))
