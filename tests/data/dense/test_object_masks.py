"""Masks of objects that move with image and boxes, what is ignored, and how both are told to a task."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from truth_masks import box_of, disc

from srattn import SrattnError
from srattn.data.decode import BadImage
from srattn.data.dense.boxes import open_boxes
from srattn.data.dense.object_masks import ObjectMasks
from srattn.data.dense.target import Target, nothing, stacked
from srattn.data.dense.warp import warp_image
from srattn.data.object_overlay import tinted
from srattn.ops.run_lengths import decode_runs, encode_runs

SIZE = (40, 50)


def some() -> tuple[Target, list[torch.Tensor]]:
    masks = [disc(*SIZE, 14, 12, 8), disc(*SIZE, 36, 25, 10), disc(*SIZE, 6, 33, 4)]
    boxes = torch.tensor([[*box_of(mask), float(label)] for label, mask in enumerate(masks)])
    runs = ObjectMasks.of(SIZE, [encode_runs(mask) for mask in masks])
    return Target(boxes=boxes, ignored=torch.tensor([False, True, False]), masks=runs), masks


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_masks_move_with_the_image(angle: float) -> None:
    target, masks = some()
    cos, sin = 1.3 * math.cos(angle), 1.3 * math.sin(angle)
    matrix = torch.tensor([[-cos, sin, 60.0], [sin, cos, -4.0]], dtype=torch.float64)  # mirrored, turned, enlarged
    moved = target.moved(matrix, (48, 56))
    assert moved.masks is not None and moved.boxes is not None and moved.ignored is not None
    assert len(moved.masks) == len(moved.boxes) == len(moved.ignored) >= 2
    labels = moved.boxes[:, 4].long().tolist()
    assert moved.ignored.tolist() == [label == 1 for label in labels]
    for runs, box, label in zip(moved.masks.runs, moved.boxes, labels, strict=True):
        found = decode_runs(runs, (48, 56))
        seen = warp_image(masks[label].byte().unsqueeze(0) * 255, matrix, (48, 56), torch.zeros(1))[0]
        assert found[seen > 0.99].all() and not found[seen < 0.01].any() and found.any()
        edges = box_of(found)
        assert edges[0] >= box[0] - 0.51 and edges[1] >= box[1] - 0.51
        assert edges[2] <= box[2] + 0.51 and edges[3] <= box[3] + 0.51


def test_what_is_not_seen_any_more_is_gone() -> None:
    corner = torch.zeros(SIZE, dtype=torch.bool)
    corner[:4, :4] = corner[30:, 40:] = True  # one object in two corners
    boxes = torch.tensor([[0.0, 0, 50, 40, 0], [0, 0, 50, 40, 1]])
    masks = ObjectMasks.of(SIZE, [encode_runs(corner), torch.zeros(0)])
    middle = torch.tensor([[1.0, 0, -8], [0, 1, -8]], dtype=torch.float64)
    moved = Target(boxes=boxes, masks=masks).moved(middle, (20, 30))
    assert moved.boxes is not None and moved.masks is not None
    assert moved.boxes[:, 4].tolist() == [1] and len(moved.masks.runs[0]) == 0  # an unknown mask stays unknown
    kept = Target(boxes=boxes, masks=masks).measured(middle, (20, 30))
    assert kept.boxes is not None and len(kept.boxes) == 2 and kept.masks is not None
    assert [len(runs) for runs in kept.masks.runs] == [0, 0]


def test_what_is_left_of_a_crowd_stays_ignored() -> None:
    boxes = torch.tensor([[0.0, 0, 80, 80, 1], [0, 0, 80, 80, 1], [90, 90, 95, 95, 0]])
    target = Target(boxes=boxes, ignored=torch.tensor([False, True, True]))
    window = torch.tensor([[1.0, 0, -64], [0, 1, -64]], dtype=torch.float64)
    moved = target.moved(window, (24, 24))  # a twenty-fifth of the first two, and nothing of the third
    assert moved.boxes is not None and moved.ignored is not None
    assert moved.boxes.tolist() == [[0, 0, 16, 16, 1]] and moved.ignored.tolist() == [True]


def test_a_batch_says_which_boxes_are_ignored_and_what_their_masks_are() -> None:
    target, masks = some()
    plain = Target(boxes=torch.tensor([[1.0, 2, 3, 4, 7]]), ignored=torch.tensor([False]))
    assert stacked([plain, Target(boxes=target.boxes, ignored=target.ignored)])[..., 4].tolist() == [
        [7, -1, -1],
        [0, -3, 2],  # -2 - 1
    ]
    rows = stacked([target, Target(boxes=torch.zeros(0, 5), masks=ObjectMasks.of(SIZE, []))])
    assert rows.shape == (2, 3, 6 + max(len(encode_runs(mask)) for mask in masks)) and rows[1, :, :5].eq(-1).all()
    for row, mask in zip(rows[0], masks, strict=True):
        assert row[5] == SIZE[0] and torch.equal(decode_runs(row[6:], SIZE), mask)
    assert nothing(target, SIZE).shape == (0, 0, 6) and nothing(plain, SIZE).shape == (0, 0, 5)
    assert target.bytes() > 3 * 20
    with pytest.raises(SrattnError, match="16,777,216 pixels"):
        ObjectMasks.of((5000, 5000), []).columns(3)


def test_coco_is_read_with_masks(coco_folder: Path) -> None:
    found, index = open_boxes(str(coco_folder), masks=True)
    assert found.problems == [] and index.category_ids == [10, 20]
    one = found.parts["train"][0]
    target = one.target((40, 56))
    assert target.masks is not None and target.boxes is not None and len(target.masks) == 2
    for runs, box in zip(target.masks.runs, target.boxes, strict=True):
        assert box_of(decode_runs(runs, (40, 56))) == box[:4].tolist()
    with pytest.raises(BadImage, match="declared is 56x40"):
        one.target((56, 40))
    assert open_boxes(str(coco_folder))[0].facts != found.facts


def test_data_without_masks_names_the_way_out(box_folder: Path, coco_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match="--head faster_rcnn"):
        open_boxes(str(box_folder), masks=True)
    content = json.loads((coco_folder / "annotations" / "instances_train.json").read_text())
    for entry in content["annotations"]:
        entry["segmentation"] = []
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    (tmp_path / "train").symlink_to(coco_folder / "train")
    with pytest.raises(SrattnError, match="no masks of objects"):
        open_boxes(str(tmp_path), masks=True)


def test_a_tinted_image_shows_each_mask() -> None:
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[2:7, 2:7] = True
    image = torch.full((3, 9, 9), 100, dtype=torch.uint8)
    found = tinted(image, [encode_runs(mask), encode_runs(torch.ones(9, 9))], [(200, 0, 100), (0, 0, 0)])
    assert found[:, 0, 4].tolist() == [60, 60, 60]  # a mask that fills the image has no border
    assert found[:, 2, 4].tolist() == [200, 0, 100] and found[:, 4, 4].tolist() == [116, 36, 76]
    assert torch.equal(tinted(image, [], []), image)
