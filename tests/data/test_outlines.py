"""Masks of objects in COCO's form: polygons against a plain rule, runs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srattn import SrattnError
from srattn.data.boxes import outlines, read_coco
from srattn.data.boxes.outlines import filled, read_outline
from srattn.ops.run_lengths import decode_runs, encode_runs, write_runs

SIZE = (12, 17)


def by_rule(points: list[tuple[float, float]]) -> torch.Tensor:
    """A pixel is inside if a ray from its middle to the left crosses the polygon an odd number of times."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    for i in range(SIZE[0]):
        for j in range(SIZE[1]):
            x, y, odd = j + 0.5, i + 0.5, False
            for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]], strict=True):
                if (y1 <= y) != (y2 <= y) and x1 + (y - y1) / (y2 - y1) * (x2 - x1) <= x:
                    odd = not odd
            mask[i, j] = odd
    return mask


@pytest.mark.parametrize("seed", range(4))
def test_a_polygon_holds_what_the_rule_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "_EDGES", 3)
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(7, 2, generator=generator, dtype=torch.float64) * 22 - 2  # crosses itself and the edges
    found = filled(points, SIZE)
    assert torch.equal(found, by_rule([(float(x), float(y)) for x, y in points])) and found.any()


def test_edges_of_pixels_are_meant() -> None:
    outline = read_outline([[3, 2, 8, 2, 8, 6, 3, 6], [10.4, 1, 13, 1, 13, 3, 10.4, 3]], SIZE)
    assert outline is not None
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[2:6, 3:8] = expected[1:3, 10:13] = True
    assert torch.equal(decode_runs(outline.drawn(), SIZE), expected)
    whole = read_outline([[-3, -3, 40, -3, 40, 40, -3, 40]], SIZE)
    assert whole is not None and whole.drawn().tolist() == [0, 204]


def test_runs_in_both_forms() -> None:
    mask = torch.rand(SIZE) < 0.4
    runs = encode_runs(mask).tolist()
    for counts in (runs, write_runs(runs)):
        outline = read_outline({"size": list(SIZE), "counts": counts}, SIZE)
        assert outline is not None and outline.drawn().tolist() == runs
    assert read_outline(None, SIZE) is read_outline([], SIZE) is None


WRONG: list[tuple[Any, str]] = [
    ([[1, 2, 3, 4]], "at least three corners"),
    ([[1, 2, 3, 4, 5, 6, 7]], "at least three corners"),
    ([3, 4], "at least three corners, got 3"),
    ([[1, 2, 3, 4, 5, None]], "corner is at None"),
    ([[1, 2, 3, 4, 5, float("inf")]], "corner is at inf"),
    ([[1, 2, 3, 4, 5, 1e30]], r"corner is at 1e\+30, which is no place"),
    ([[1, 2, 3, 4, 5, 10**400]], "corner is at 1000"),
    ("polygon", "list of polygons or an object"),
    ({"size": [17, 12], "counts": [204]}, r"\[17, 12\]"),
    ({"size": [12, 17], "counts": [203]}, "add up to 203"),
    ({"size": [12, 17], "counts": [-1, 205]}, "from 0 up"),
    ({"size": [12, 17], "counts": ["a"]}, "whole number"),
    ({"size": [12, 17], "counts": [9 * 10**4299, 9 * 10**4299]}, "up to its 204 pixels"),
    ({"size": [12, 17], "counts": "\x00"}, "no text of run lengths"),
    ({"size": [12, 17], "counts": 7}, "a list or a text"),
    ({"counts": [204]}, "size None"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_wrong_masks_are_named(number: int, tmp_path: Path) -> None:
    value, words = WRONG[number]
    with pytest.raises(SrattnError, match=words):
        read_outline(value, SIZE)
    Image.new("RGB", (17, 12)).save(tmp_path / "a.png")
    box = {"id": 4, "image_id": 1, "category_id": 2, "bbox": [1, 1, 5, 6], "iscrowd": 0}
    right = [[1, 1, 6, 1, 6, 7]]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 17, "height": 12}],
        "annotations": [{**box, "segmentation": value}, {**box, "id": 5, "segmentation": right}],
        "categories": [{"id": 2, "name": "cat"}],
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    index = read_coco(file, tmp_path, masks=True)
    (problem,), (item,) = index.problems, index.parts["train"]
    assert "a.png: the mask of annotation 4 (cat, [1, 1, 5, 6]) is left out" in problem
    assert len(item.boxes) == 2 and item.outlines is not None and item.outlines[0] is None
    assert item.outlines[1] is not None
    with pytest.raises(SrattnError, match=words):
        read_coco(file, tmp_path, masks=True, on_bad_box="error")
    assert read_coco(file, tmp_path).parts["train"][0].outlines is None  # nobody asked


def test_points_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "MOST_POINTS", 4)
    with pytest.raises(SrattnError, match="more than the 4 points"):
        read_outline([[1, 2] * 3, [1, 2] * 3], SIZE)
