"""Faster and Mask R-CNN: proposals, samples, losses, answers and measures against loops and known values."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from together import Together
from torch import Tensor
from truth_masks import disc, rows_of, scenes

from srattn import SrattnError
from srattn.heads.roi import BoxHead
from srattn.heads.rpn import Regions
from srattn.ops.boxes import box_iou, ignored_class
from srattn.tasks import make_task
from srattn.tasks.detection.assign import IGNORED, NONE
from srattn.tasks.detection.coding import boxes_of_steps, steps_of_boxes
from srattn.tasks.detection.losses import BETA
from srattn.tasks.detection.model import build_detection, faster_rcnn, mask_rcnn
from srattn.tasks.detection.stages.answers import paste
from srattn.tasks.detection.stages.losses import SUMS, box_sums, combine, mask_sums, mask_targets, region_sums
from srattn.tasks.detection.stages.propose import OVERLAP, propose
from srattn.tasks.detection.stages.sample import Sample, pick, sample_anchors, sample_regions
from srattn.tasks.detection.stages.task import TwoStage
from srattn.tasks.models import task_options

SMALL: dict[str, Any] = {"embed_dims": (8, 16, 16, 16), "num_heads": (1, 1, 1, 1), "depths": (1, 1, 1, 1)}
CLASSES = ["a", "b", "c"]


def small(kind: str = "mask_rcnn", backbone: str = "pvt_v2_b0", **options: Any) -> Any:
    given = {"width": 16, "hidden": 32, "proposals": 60, "regions": 32, "answers": 10, **SMALL, **options}
    if kind == "mask_rcnn":
        return mask_rcnn(backbone, 3, **{"mask_hidden": 16, "mask_convs": 1, **given})
    return faster_rcnn(backbone, 3, **given)


def some_boxes(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([low, low + 4 + torch.rand(count, 2, generator=generator) * 30], 1)


def some_regions(batch: int = 2) -> Regions:
    counts = [40, 25, 3]
    anchors = torch.cat([some_boxes(count, n) for n, count in enumerate(counts)])
    return Regions(torch.randn(batch, 68), torch.randn(batch, 68, 4) * 0.2, anchors, counts)


# -- proposals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [6, 30, 500])
def test_proposals_are_those_of_loops(count: int) -> None:
    regions = some_regions()
    boxes, there = propose(regions, (50, 60), count)
    assert boxes.shape[1] == there.shape[1] <= count
    for image in range(2):
        standing, start = [], 0
        for level, length in enumerate(regions.counts):
            order = sorted(range(start, start + length), key=lambda n: -float(regions.logits[image, n]))
            standing += [(n, level) for n in order[:count]]
            start += length
        kept: list[tuple[Tensor, int]] = []
        for n, level in sorted(standing, key=lambda pair: -float(regions.logits[image, pair[0]])):
            box = boxes_of_steps(regions.anchors[n], regions.steps[image, n])
            box = torch.minimum(box.clamp(min=0), torch.tensor([60.0, 50, 60, 50]))
            rivals = [other for other, its in kept if its == level]
            if not (box[2:] > box[:2]).all():
                continue
            if all(float(box_iou(box[None], other[None])) <= OVERLAP for other in rivals):
                kept.append((box, level))
        kept = kept[:count]
        assert there[image].tolist() == [n < len(kept) for n in range(there.shape[1])]
        assert torch.allclose(boxes[image, : len(kept)], torch.stack([box for box, _ in kept]), atol=1e-5)
        assert not boxes[image, len(kept) :].any()


# -- samples --------------------------------------------------------------------------------------------------------


def test_picked_places_are_different_and_depend_on_the_seed() -> None:
    chosen = torch.arange(100) % 3 == 0
    torch.manual_seed(3)
    first = pick(chosen, 10)
    torch.manual_seed(3)
    assert torch.equal(first, pick(chosen, 10)) and not torch.equal(first, pick(chosen, 10))
    assert len(first.unique()) == 10 and chosen[first].all() and len(pick(chosen, 99)) == 34


def part_within(box: Tensor, area: Tensor) -> float:
    """Of the box (4,), what lies in the area (4,)."""
    x1, y1, x2, y2 = box.tolist()
    left, top, right, bottom = area.tolist()
    shared = max(0.0, min(x2, right) - max(x1, left)) * max(0.0, min(y2, bottom) - max(y1, top))
    return shared / ((x2 - x1) * (y2 - y1))


def test_anchors_that_are_learnt_from() -> None:
    boxes = some_boxes(4, 9)
    anchors = torch.cat([some_boxes(300, 1), boxes.repeat(20, 1) + 0.1])
    places, own = sample_anchors(anchors, boxes, boxes[:0], 64)
    assert len(places) == 64 == len(places.unique()) and int((own >= 0).sum()) == 32
    overlap = box_iou(anchors, boxes)
    for place, number in zip(places.tolist(), own.tolist(), strict=True):
        best = float(overlap[place].max())
        if number == NONE:
            assert best < 0.3
        else:
            assert best >= 0.7 or float(overlap[place, number]) == float(overlap[:, number].max())
    places, own = sample_anchors(anchors, boxes[:0], boxes[:0], 64)
    assert len(places) == 64 and own.eq(NONE).all()
    crowd = torch.tensor([[10.0, 10, 60, 60]])
    places, own = sample_anchors(anchors, boxes, crowd, 1000)
    assert torch.equal(own.unique(), torch.tensor([NONE, 0, 1, 2, 3]))  # objects are learnt within a crowd too
    outside = [
        part_within(anchors[place], crowd[0]) < 0.5 for place, number in zip(places, own, strict=True) if number < 0
    ]
    expected = [overlap[n].max() < 0.3 and part_within(anchors[n], crowd[0]) < 0.5 for n in range(len(anchors))]
    best = (overlap == overlap.amax(0)).any(1)
    assert all(outside) and len(outside) == int((torch.tensor(expected) & ~best).sum()) > 20
    places, own = sample_anchors(anchors, boxes[:0], torch.tensor([[-9.0, -9, 99, 99]]), 64)
    assert not len(places) and not len(own)
    assert len(sample_anchors(anchors, boxes[:0], boxes[:0])[0]) == 256  # arXiv:1506.01497, section 3.1.3


def some_targets(masks: bool = True) -> Tensor:
    """Two images of 60x50: three objects; one, a crowd and padding."""
    found = [(disc(50, 60, 15, 14, 9), 1), (disc(50, 60, 40, 20, 13), 0), (disc(50, 60, 20, 38, 6), 2)]
    rows = [rows_of(*one, masks=masks) for one in found]
    length = max(len(row) for row in rows)
    rows = [F.pad(row, (0, length - len(row))) for row in rows]
    crowd, padding = rows[1].clone(), torch.zeros(length)
    crowd[4], padding[4] = ignored_class(crowd[4]), -1
    return torch.stack([torch.stack(rows), torch.stack([crowd, padding, rows[0]])])


def test_regions_that_are_learnt_from() -> None:
    targets = some_targets()
    near = targets[:, :, :4].repeat(1, 8, 1) + torch.randn(2, 24, 4)
    proposals = torch.cat([some_boxes(30).expand(2, -1, -1), near, torch.zeros(2, 5, 4)], 1)
    there = (proposals[..., 2:] > proposals[..., :2]).all(2)
    found = sample_regions(proposals, there, targets, 32)
    assert found.boxes.shape == (2, 32, 4)
    crowd = targets[1, 0, :4]
    assert any(part_within(box, crowd) >= 0.5 for box in proposals[1, there[1]])
    for image in range(2):
        rows = found.rows[image].tolist()
        assert sum(row >= 0 for row in rows) <= 8 and all(row >= 0 for row in rows[: sum(row >= 0 for row in rows)])
        valid = [m for m in range(3) if targets[image, m, 4] >= 0]
        for box, row in zip(found.boxes[image], rows, strict=True):
            if row == IGNORED:
                assert not box.any()
                continue
            overlap = {m: float(box_iou(box[None], targets[image, m : m + 1, :4])) for m in valid}
            best = max(overlap, key=lambda m: overlap[m])
            assert row == (best if overlap[best] >= 0.5 else NONE)
            assert image == 0 or row >= 0 or part_within(box, crowd) < 0.5  # what lies in a crowd is no background
    alone = sample_regions(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), targets, 32)
    assert sorted(alone.rows[0].tolist()) == [0, 1, 2] and alone.positives == 3  # the true boxes themselves
    assert sorted(alone.rows[1].tolist()) == [IGNORED, IGNORED, 2]  # neither the crowd nor padding


def test_half_an_overlap_makes_a_proposal_an_objects() -> None:
    targets = torch.tensor([[[0.0, 0, 10, 20, 1]]])
    proposals = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9.75]]])  # arXiv:1703.06870, section 3.1: from 0.5 on
    found = sample_regions(proposals, torch.ones(1, 2, dtype=torch.bool), targets, 32)
    rows = {tuple(box): row for box, row in zip(found.boxes[0].tolist(), found.rows[0].tolist(), strict=True)}
    assert rows == {(0, 0, 10, 10): 0, (0, 0, 10, 9.75): NONE, (0, 0, 10, 20): 0}


# -- losses ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_the_first_stage() -> None:
    regions, targets = some_regions(), some_targets()
    torch.manual_seed(5)
    found = region_sums(regions, targets)
    torch.manual_seed(5)
    for image, valid in enumerate(([0, 1, 2], [2])):
        boxes, crowds = targets[image, valid, :4], targets[image, [] if image == 0 else [0], :4]
        places, own = sample_anchors(regions.anchors, boxes, crowds)
        assert len(places) < len(regions.anchors) or image == 0
        entropy = off = 0.0
        for place, number in zip(places.tolist(), own.tolist(), strict=True):
            logit = regions.logits[image, place]
            entropy -= float(F.logsigmoid(logit if number >= 0 else -logit))
            if number >= 0:
                steps = steps_of_boxes(regions.anchors[place], boxes[number])
                off += float(F.smooth_l1_loss(regions.steps[image, place], steps, beta=BETA, reduction="sum"))
        assert found[image].tolist() == pytest.approx([entropy, off, len(places)], rel=1e-4)
    assert found[:, 1].gt(0).all()


def test_an_image_that_is_all_crowd_teaches_nothing() -> None:
    model, targets = small("faster_rcnn"), torch.zeros(1, 1, 5)
    targets[0, 0] = torch.tensor([0.0, 0, 64, 64, ignored_class(torch.tensor(1))])
    model(torch.rand(1, 3, 64, 64), targets).sum().backward()
    regions = Regions(torch.randn(1, 9), torch.randn(1, 9, 4), some_boxes(9).clamp(max=64), [9])
    assert not region_sums(regions, targets).any()
    sample = sample_regions(some_boxes(9).clamp(max=64)[None], torch.ones(1, 9, dtype=torch.bool), targets, 32)
    assert sample.rows.eq(IGNORED).all()


def test_the_loss_of_the_second_stage() -> None:
    targets = some_targets()
    rows = torch.tensor([[2, 0, NONE, NONE], [2, NONE, IGNORED, IGNORED]])
    boxes = some_boxes(8).view(2, 4, 4)
    logits, steps = torch.randn(2, 4, 4), torch.randn(2, 4, 3, 4)
    found = box_sums(logits, steps, Sample(boxes, rows), targets)
    for image in range(2):
        entropy = off = count = 0.0
        for r, row in enumerate(rows[image].tolist()):
            if row == IGNORED:
                continue
            label = int(targets[image, row, 4]) if row >= 0 else 3
            entropy -= float(logits[image, r].log_softmax(0)[label])
            count += 1
            if row >= 0:
                wanted = steps_of_boxes(boxes[image, r], targets[image, row, :4]).tolist()
                for a, b, scale in zip(steps[image, r, label].tolist(), wanted, BoxHead.scales, strict=True):
                    away = abs(a - b) / scale
                    off += away - 0.5 if away > 1 else away**2 / 2
        assert found[image].tolist() == pytest.approx([entropy, off, count], rel=1e-4)


def test_a_mask_within_a_box_is_its_pixels() -> None:
    mask = disc(50, 60, 30, 25, 11)
    row = rows_of(mask, 1)
    box = torch.tensor([[14.0, 9, 42, 37]])  # 28 pixels square: a cell is a pixel
    assert torch.equal(mask_targets(box, row[None], 28)[0], mask[9:37, 14:42])
    half = mask_targets(box, row[None], 14)[0]  # a cell is four pixels, of which two make it
    assert torch.equal(half, F.avg_pool2d(mask[None, None, 9:37, 14:42].float(), 2)[0, 0] >= 0.5)
    beyond = mask_targets(torch.tensor([[-20.0, -20, 90, 90]]), row[None], 28)[0]
    assert 0 < float(beyond.float().mean()) < 0.2 and not beyond[0].any()


def test_the_loss_of_masks() -> None:
    targets = some_targets()
    rows = torch.tensor([[2, 0, NONE, NONE], [2, NONE, IGNORED, IGNORED]])
    sample = Sample(some_boxes(8).view(2, 4, 4), rows)
    logits = torch.randn(2, 2, 3, 6, 6)
    found = mask_sums(logits, sample, targets)
    for image, own in enumerate(([2, 0], [2])):
        total = 0.0
        for r, row in enumerate(own):
            wanted = mask_targets(sample.boxes[image, r : r + 1], targets[image, row : row + 1], 6)[0].float()
            mine = logits[image, r, int(targets[image, row, 4])]
            total += float(-(wanted * F.logsigmoid(mine) + (1 - wanted) * F.logsigmoid(-mine)).mean())
        assert found[image].tolist() == pytest.approx([total, len(own)], rel=1e-4)
    targets[0, 0, 6:] = 0  # a mask that is not known teaches nothing
    assert mask_sums(logits, sample, targets)[:, 1].tolist() == [1, 1]
    assert mask_sums(logits, sample, targets[..., :5]).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("number", [float, torch.tensor])
def test_parts_of_the_loss_are_means_over_what_there_is(number: Any) -> None:
    given = [6.0, 4.0, 2.0, 9.0, 3.0, 3.0, 5.0, 1.0]
    sums = {name: number(value) for name, value in zip(SUMS, given, strict=True)}
    expected = {"loss": 14.0, "objectness": 3.0, "proposal": 2.0, "class": 3.0, "box": 1.0, "mask": 5.0}
    assert {name: float(value) for name, value in combine(sums).items()} == expected
    nothing = {name: float(value) for name, value in combine({name: number(0.0) for name in SUMS}).items()}
    assert set(nothing.values()) == {0.0}


@pytest.mark.parametrize("kind", ["mask_rcnn", "faster_rcnn"])
@pytest.mark.parametrize("objects", [True, False])
def test_every_parameter_learns_and_sums_add_up(kind: str, objects: bool) -> None:
    model, images = small(kind).train(), torch.randn(2, 3, 50, 60)
    targets = some_targets() if objects else torch.zeros(2, 0, 5)
    outputs = model(images, targets)
    assert outputs.shape == (2, len(SUMS)) and outputs.isfinite().all()
    task = make_task("detection", CLASSES, **task_options(model))
    loss = task.loss(outputs, targets)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())  # as DDP needs it
    parts = [task.tally(outputs[n : n + 1].detach(), targets[n : n + 1]) for n in range(2)]
    added = {name: float(parts[0][name] + parts[1][name]) for name in parts[0]}
    assert task.summary(added)["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert (added["masks"] > 0) == (objects and kind == "mask_rcnn")
    assert math.isfinite(combine(dict.fromkeys(SUMS, 0.0))["loss"])


def test_the_same_seed_gives_the_same_loss_also_in_half_precision() -> None:
    model, images, targets = small().train(), torch.randn(2, 3, 64, 64), some_targets()
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(model(images, targets))
    assert torch.equal(*found)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        half = model(images, targets)
    assert half.dtype == torch.float32 and torch.allclose(half, found[0], rtol=0.2, atol=2)


# -- answers --------------------------------------------------------------------------------------------------------


def test_a_pasted_mask_is_that_of_loops() -> None:
    mask, box, size = torch.rand(7, 7), (5.3, -4.0, 31.0, 22.6), (20, 40)
    found = paste(mask, box, size)
    for y in range(size[0]):
        for x in range(size[1]):
            at = (y + 0.5 - box[1]) / (box[3] - box[1]) * 7 - 0.5, (x + 0.5 - box[0]) / (box[2] - box[0]) * 7 - 0.5
            inside = box[0] <= x + 0.5 < box[2] and box[1] <= y + 0.5 < box[3]
            i, j = (min(max(value, 0.0), 6.0) for value in at)
            i0, j0 = int(i), int(j)
            i1, j1 = min(i0 + 1, 6), min(j0 + 1, 6)
            upper = mask[i0, j0] * (1 - (j - j0)) + mask[i0, j1] * (j - j0)
            lower = mask[i1, j0] * (1 - (j - j0)) + mask[i1, j1] * (j - j0)
            value = float(upper * (1 - (i - i0)) + lower * (i - i0))
            if abs(value - 0.5) > 1e-4:
                assert bool(found[y, x]) == (inside and value > 0.5), (y, x)
    assert not paste(torch.ones(3, 3), (50.0, 2, 60, 9), size).any()
    assert int(paste(torch.ones(3, 3), (0.0, 0, 40, 20), size).sum()) == 800


@pytest.mark.parametrize("kind", ["mask_rcnn", "faster_rcnn"])
@pytest.mark.parametrize("backbone", ["pvt_v2_b0", "mit_b0"])
def test_answers_of_images_of_any_size(kind: str, backbone: str) -> None:
    model = small(kind, backbone).eval()
    task = make_task("detect", CLASSES, **task_options(model))
    for height, width in ((64, 64), (33, 70)):
        with torch.no_grad():
            outputs = model(torch.randn(2, 3, height, width))
        assert outputs.shape == (2, 10, 8 + (784 if kind == "mask_rcnn" else 0)) and outputs.isfinite().all()
        assert outputs[0, 3, 6:8].tolist() == [height, width]
        found = task.postprocess(outputs)
        valid = found[..., 5] >= 0
        assert (found[valid][:, 2:4] <= torch.tensor([width, height])).all()
        if kind == "mask_rcnn":
            assert ((outputs[..., 8:] >= 0) & (outputs[..., 8:] <= 1)).all() and not outputs[~valid][:, 8:].any()


@pytest.mark.parametrize("kind", ["mask_rcnn", "faster_rcnn"])
def test_a_config_survives_json_and_rebuilds_the_model(kind: str) -> None:
    model = small(kind, first=1, levels=4, in_chans=1, ratios=(1.0, 3.0), base=6.0)
    again = build_detection(**json.loads(json.dumps(model.config)))
    assert again.config == model.config and again.head.strides == [8, 16, 32, 64] and again.head.read == 3
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert {name.split(".")[0] for name in model.state_dict()} == {"backbone", "neck", "head"}


def test_what_is_refused() -> None:
    task = TwoStage(CLASSES)
    with pytest.raises(SrattnError, match=r"model\(images, targets\)"):
        task.loss(torch.zeros(2, 10, 792), some_targets())
    with pytest.raises(SrattnError, match=r"\(B, D, 8 or more\)"):
        task.postprocess(torch.zeros(2, 8))
    with pytest.raises(SrattnError, match="choose their answers themselves"):
        make_task("detection", CLASSES, stages=2, most=7)
    with pytest.raises(SrattnError, match="needs a class"):
        TwoStage([])


# -- measures -------------------------------------------------------------------------------------------------------


def answers_of(targets: Tensor, size: tuple[int, int] = (50, 60)) -> Tensor:
    """Answers that are the objects: each its box, and its mask on 28 cells a side."""
    out = torch.zeros(*targets.shape[:2], 8 + 784)
    out[..., :4], out[..., 4], out[..., 5] = targets[..., :4], 0.9, targets[..., 4].clamp(min=-1)
    out[..., 6], out[..., 7] = size[0], size[1]
    for image, row in (targets[..., 4] >= 0).nonzero().tolist():
        mask = mask_targets(targets[image, row : row + 1, :4], targets[image, row : row + 1], 28)
        out[image, row, 8:] = mask.flatten().float()
    return out


def test_true_masks_measure_one_and_false_ones_do_not() -> None:
    task, targets = TwoStage(CLASSES), some_targets()
    metrics = task.metrics()
    metrics.update(answers_of(targets), targets)
    figures, details = metrics.compute(), metrics.details()
    assert figures["map"] == 1 and figures["segm_map50"] == 1 and figures["segm_map"] > 0.8 and "loss" not in figures
    assert details["support"] == {"a": 1, "b": 2, "c": 1} and set(details["per_class_segm_map"]) == set(CLASSES)
    json.dumps(details)
    wrong = answers_of(targets)
    wrong[..., 8:] = 0
    wrong[..., 8:232] = 1  # the upper part of each box
    metrics = task.metrics()
    metrics.update(wrong, targets)
    assert metrics.compute()["map"] == 1 and metrics.compute()["segm_map50"] == 0


def test_an_object_without_a_mask_is_measured_by_its_box_alone() -> None:
    task, targets = TwoStage(CLASSES), some_targets()
    answers = answers_of(targets)
    targets[0, 0, 6:] = 0
    answers[0, 0, 400:] = 0
    metrics = task.metrics()
    metrics.update(answers, targets)
    assert metrics.compute()["map50"] == metrics.compute()["segm_map50"] == 1


def test_crowds_are_neither_missed_nor_mistakes() -> None:
    targets = some_targets()
    found = answers_of(targets)
    crowd = targets[1, 0].clone()
    found[1, 1] = found[0, 1]  # within the crowd of image 1, of its class
    found[1, 1, 4] = 0.99
    for kind in (TwoStage(CLASSES), TwoStage(CLASSES, masks=False)):
        metrics = kind.metrics()
        metrics.update(found, targets)
        assert metrics.compute()["map"] == 1
        targets[1, 0] = -1  # without the crowd it is a mistake, and surer than what is right
        metrics = kind.metrics()
        metrics.update(found, targets)
        assert metrics.compute()["map"] < 1
        targets[1, 0] = crowd


def test_processes_have_the_figures_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    task, targets = TwoStage(CLASSES), some_targets()
    answers = answers_of(targets)
    answers[0, 1, 8:400] = 0  # so that not all is right
    alone, world = task.metrics(), Together(3)
    collectors = [task.metrics() for _ in range(3)]
    for n, owner in enumerate((2, 0)):
        for metrics in (alone, collectors[owner]):
            metrics.update(answers[n : n + 1], targets[n : n + 1])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: world.own.rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    world.run(lambda rank: collectors[rank].reduce(world.add))
    assert 0 < alone.compute()["segm_map"] < 1
    for metrics in collectors:
        assert metrics.compute() == pytest.approx(alone.compute())


# -- learning -------------------------------------------------------------------------------------------------------


def test_learns_a_few_images() -> None:
    images, targets = scenes(4)
    model = small(width=32, regions=48, norm="group").train()
    task = make_task("detection", CLASSES, **task_options(model))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[float] = []
    for step in range(90):
        torch.manual_seed(step)
        loss = task.loss(model(images, targets), targets)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    metrics = task.metrics()
    with torch.no_grad():
        metrics.update(model.eval()(images), targets)
    figures = metrics.compute()
    assert figures["map50"] > 0.9 and figures["segm_map50"] > 0.9
