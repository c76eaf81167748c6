"""Detection: who answers for what, losses, answers and measures against loops and known values."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from together import Together
from torch import Tensor, nn

from srattn import SrattnError
from srattn.heads.fcos import FCOSHead
from srattn.heads.fpn import FPN
from srattn.heads.retinanet import RetinaNetHead
from srattn.heads.rows import Rows, cells, split_rows
from srattn.ops.boxes import box_iou, ignored_class, paired_giou
from srattn.tasks import make_task
from srattn.tasks.detection import Choice, Detection
from srattn.tasks.detection.assign import (
    IGNORED,
    NONE,
    assign_anchors,
    assign_places,
    ignored_targets,
    valid_targets,
)
from srattn.tasks.detection.coding import (
    boxes_of_distances,
    boxes_of_steps,
    centreness,
    distances_of_boxes,
    steps_of_boxes,
)
from srattn.tasks.detection.decode import decode
from srattn.tasks.detection.losses import BETA, combine, focal_loss
from srattn.tasks.detection.model import DetectionModel, build_detection, fcos, retinanet
from srattn.tasks.detection.task import make_detection

SMALL: dict[str, Any] = {"embed_dims": (8, 16, 16, 16), "num_heads": (1, 1, 1, 1), "depths": (1, 1, 1, 1)}
CLASSES = ["a", "b", "c"]


def some_boxes(count: int, seed: int = 0, side: float = 64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * side * 0.7
    return torch.cat([corner, corner + 2 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40], 1)


def pyramid(dtype: torch.dtype = torch.float64) -> Tensor:
    like = torch.zeros(1)
    return torch.cat([cells(8, 9, 8, like), cells(4, 5, 16, like), cells(2, 3, 32, like)]).to(dtype)


# -- who answers for what -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radius", [1.5, 100.0])
def test_places_are_assigned_by_the_rule(seed: int, radius: float) -> None:
    places, boxes = pyramid(), some_boxes(9, seed)
    boxes[3] = boxes[2]  # equals: the first
    boxes[4] = torch.tensor([0, 0, 72, 64])
    ranges = {8: (0, 64), 16: (64, 128), 32: (128, math.inf)}
    found = assign_places(places, boxes, radius).tolist()
    for (x1, y1, x2, y2), answer in zip(places.tolist(), found, strict=True):
        x, y, stride = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1
        best, least = NONE, math.inf
        for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
            edges = [x - left, y - top, right - x, bottom - y]
            low, high = ranges[int(stride)]
            near = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) < radius * stride
            area = (right - left) * (bottom - top)
            if min(edges) > 0 and near and low < max(edges) <= high and area < least:
                best, least = number, area
        assert answer == best
    assert len(set(found)) > 4


@pytest.mark.parametrize("seed", range(4))
def test_anchors_are_assigned_by_the_rule(seed: int) -> None:
    boxes = some_boxes(6, seed)
    anchors = torch.cat([some_boxes(150, seed + 10), boxes[:2] + 1, torch.tensor([[900, 900, 950, 950]])])
    boxes[5] = torch.tensor([300, 300, 500, 500])  # overlaps nothing
    boxes[4] = torch.tensor([895, 895, 1400, 1400])  # overlaps its only anchor by little
    overlap = box_iou(anchors, boxes)
    found = assign_anchors(anchors, boxes).tolist()
    for n, answer in enumerate(found):
        best = max(range(6), key=lambda m: (float(overlap[n, m]), -m))
        value = float(overlap[n, best])
        expected = best if value >= 0.5 else IGNORED if value >= 0.4 else NONE
        owned = [m for m in range(6) if overlap[n, m] > 0 and overlap[n, m] == overlap[:, m].max()]
        if owned:
            expected = max(owned, key=lambda m: float(overlap[n, m]))
        assert answer == expected
    assert {0, 1, 2, 3, 4, NONE} <= set(found) and 5 not in found


def test_bounds_of_overlaps_belong_to_what_is_above() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 1]], dtype=torch.float64)
    anchors = torch.tensor([[0.0, 0, side, 1] for side in (5, 8, 10, 10.001)], dtype=torch.float64)
    assert box_iou(anchors, boxes).squeeze(1).tolist()[:3] == [0.8, 0.5, 0.4]
    assert assign_anchors(anchors, boxes).tolist() == [0, 0, IGNORED, NONE]


def test_without_objects_nobody_answers() -> None:
    places, none = pyramid(), torch.zeros(0, 4)
    assert assign_places(places, none).eq(NONE).all() and assign_anchors(places, none).eq(NONE).all()


def test_codings_go_round() -> None:
    places, boxes = pyramid()[:20], some_boxes(20)
    assert torch.allclose(boxes_of_distances(places, distances_of_boxes(places, boxes)), boxes)
    assert torch.allclose(boxes_of_steps(places, steps_of_boxes(places, boxes)), boxes)
    assert distances_of_boxes(torch.tensor([8.0, 8, 16, 16]), torch.tensor([0.0, 8, 20, 16])).tolist() == [
        1.5,
        0.5,
        1,
        0.5,
    ]
    assert steps_of_boxes(torch.tensor([0.0, 0, 8, 4]), torch.tensor([4.0, 0, 12, 8])).tolist() == pytest.approx(
        [0.5, 0.5, 0, math.log(2)]
    )
    # However far a step goes, an anchor grows to no more than 1000 / 16 of its size, around the middle that is told.
    far = boxes_of_steps(torch.tensor([0.0, 0, 8, 4]), torch.tensor([1.0, 0, 90, 5]))
    assert far.tolist() == pytest.approx([12 - 250, 2 - 125, 12 + 250, 2 + 125], rel=1e-5)
    near = centreness(torch.tensor([[1.0, 2, 1, 2], [1, 3, 4, 3], [1, 1, 4, 9], [0, 1, 4, 1]]))
    assert near.tolist() == pytest.approx([1, 0.5, 1 / 6, 0])
    small = centreness(torch.tensor([[0.01, 0.02, 0.02, 0.01], [0.25, 0.5, 0.5, -0.5], [-1, 1, 1, 1], [0, 0, 0, 0]]))
    assert small.tolist() == pytest.approx([0.5, 0, 0, 0])  # also of places out of their box


# -- losses ---------------------------------------------------------------------------------------------------------


def some_rows(centre: bool, batch: int = 2, seed: int = 0) -> Tensor:
    """Rows (batch, N, columns) float64 of random answers on the pyramid."""
    generator = torch.Generator().manual_seed(seed)
    places = pyramid()
    count = len(places)

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, count, *shape, generator=generator, dtype=torch.float64)

    regression = draw(4).exp() if centre else draw(4) * 0.1
    reference = places if centre else places + torch.tensor([-8, -8, 8, 8])
    size = torch.tensor([64.0, 72.0], dtype=torch.float64).expand(batch, count, 2)
    columns = [regression, reference.expand(batch, -1, -1), size, draw(3)]
    return torch.cat([*columns, draw(1)] if centre else columns, 2)


def some_targets() -> Tensor:
    boxes = some_boxes(5)
    labels = torch.tensor([0, 2, 1, 1, 0]).unsqueeze(1)
    first = torch.cat([boxes, labels], 1)
    second = first.flip(0).clone()
    second[2:, 4] = -1
    second[1, :4] = 0  # no object: it has no area
    return torch.stack([first, second])


def test_focal_loss_is_its_formula() -> None:
    logits = torch.tensor([-3.0, 0.2, 5.0, -700.0], dtype=torch.float64)
    for target in (0.0, 1.0):
        p = logits.sigmoid() if target else 1 - logits.sigmoid()
        alpha = 0.25 if target else 0.75
        log = F.logsigmoid(logits if target else -logits)
        assert torch.allclose(focal_loss(logits, torch.full_like(logits, target)), -alpha * (1 - p) ** 2 * log)


@pytest.mark.parametrize("centre", [True, False])
def test_the_loss_is_the_papers(centre: bool) -> None:
    outputs, targets = some_rows(centre), some_targets()
    total = {"class": 0.0, "box": 0.0, "centre": 0.0, "positives": 0.0, "centreness": 0.0}
    rows = split_rows(outputs, 3)
    for image, wanted in enumerate((targets[0], targets[1, :1])):
        assign = assign_places if centre else assign_anchors
        answers = assign(rows.reference[image], wanted[:, :4]).tolist()
        for n, m in enumerate(answers):
            if m == IGNORED:
                continue
            hot = torch.zeros(3, dtype=torch.float64)
            if m >= 0:
                hot[int(wanted[m, 4])] = 1
            total["class"] += float(focal_loss(rows.logits[image, n], hot).sum())
            if m < 0:
                continue
            total["positives"] += 1
            place, regression = rows.reference[image, n], rows.regression[image, n]
            if not centre:
                steps = steps_of_boxes(place, wanted[m, :4])
                total["box"] += float(F.smooth_l1_loss(regression, steps, beta=BETA, reduction="sum"))
                total["centreness"] += 1
                continue
            near = centreness(distances_of_boxes(place, wanted[m, :4]))
            giou = paired_giou(boxes_of_distances(place, regression), wanted[m, :4])
            total["box"] += float(near * (1 - giou))
            total["centreness"] += float(near)
            assert rows.centreness is not None
            logit = rows.centreness[image, n]
            total["centre"] += float(F.binary_cross_entropy_with_logits(logit, near))
    assert total["positives"] > 5
    task = Detection(CLASSES)
    sums = task.sums(outputs, targets)
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(total, rel=1e-6)
    expected = total["class"] / total["positives"] + total["box"] / total["centreness"]
    expected += total["centre"] / total["positives"]
    assert float(task.loss(outputs, targets)) == pytest.approx(expected, rel=1e-6)


def test_which_rows_are_objects() -> None:
    # Class 2, padding, and class 2 that is ignored; each with an area, as two lines, and turned over.
    shapes = [[1, 1, 5, 4], [1, 1, 5, 1], [1, 1, 1, 4], [5, 1, 1, 4], [1, 4, 5, 1]]
    rows = torch.tensor([[*shape, kind] for kind in (2.0, -1.0, -4.0) for shape in shapes])
    assert valid_targets(rows).nonzero().flatten().tolist() == [0]
    assert ignored_targets(rows).nonzero().flatten().tolist() == [10]
    assert int(ignored_class(rows[10, 4])) == 2


def test_parts_are_divided_by_what_answers() -> None:
    assert pytest.approx(0.11, abs=0.002) == BETA  # as the authors' configurations write it
    sums = {"class": 3.0, "box": 0.5, "centre": 1.0, "positives": 4.0, "centreness": 0.02}
    expected = {"loss": 0.75 + 25 + 0.25, "class": 0.75, "box": 25.0, "centre": 0.25}
    assert combine(sums) == pytest.approx(expected)
    numbers = combine({name: torch.tensor(value, dtype=torch.float64) for name, value in sums.items()})
    assert {name: float(value) for name, value in numbers.items()} == pytest.approx(expected)
    nothing = combine({**sums, "box": 0.0, "centre": 0.0, "positives": 0.0, "centreness": 0.0})
    assert nothing == {"loss": 3.0, "class": 3.0, "box": 0.0, "centre": 0.0}


@pytest.mark.parametrize("centre", [True, False])
def test_gradients(centre: bool) -> None:
    outputs, targets = some_rows(centre, batch=1)[:, ::4], some_targets()[:1]
    task = Detection(CLASSES)
    assert float(task.sums(outputs, targets)["positives"]) > 0
    before, between, after = outputs.split([4, 6, outputs.shape[2] - 10], 2)

    def loss(regression: Tensor, answers: Tensor) -> Tensor:
        return task.loss(torch.cat([regression, between, answers], 2), targets)

    assert torch.autograd.gradcheck(loss, (before.clone().requires_grad_(), after.clone().requires_grad_()))


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("count", [0, 3])
def test_images_without_objects_teach_that_nothing_is_there(centre: bool, count: int) -> None:
    outputs = some_rows(centre).requires_grad_()
    targets = torch.zeros(2, count, 5)  # as a process without images has them: class 0, no area
    loss = Detection(CLASSES).loss(outputs, targets)
    loss.backward()
    assert loss > 0 and outputs.grad is not None and torch.isfinite(outputs.grad).all()
    assert outputs.grad[..., 10:13].gt(0).all() and not outputs.grad[..., :10].any()


@pytest.mark.parametrize("centre", [True, False])
def test_sums_add_up_over_parts_and_padding_means_nothing(centre: bool) -> None:
    task, outputs, targets = Detection(CLASSES), some_rows(centre), some_targets()
    whole = task.tally(outputs, targets)
    parts = [task.tally(outputs[n : n + 1], targets[n : n + 1]) for n in range(2)]
    added = {name: float(parts[0][name] + parts[1][name]) for name in whole}
    assert added == pytest.approx({name: float(value) for name, value in whole.items()})
    assert task.summary(added)["loss"] == pytest.approx(float(task.loss(outputs, targets)))
    padded = torch.cat([torch.full((2, 3, 5), -1.0), targets], 1)
    assert float(task.loss(outputs, padded)) == pytest.approx(float(task.loss(outputs, targets)))


@pytest.mark.parametrize("centre", [True, False])
def test_what_lies_in_a_crowd_is_not_taught_to_be_background(centre: bool) -> None:
    outputs, targets = some_rows(centre).requires_grad_(), some_targets()
    crowd = torch.tensor([10.0, 5, 50, 60])
    areas = torch.tensor([*crowd, float(ignored_class(torch.tensor(2)))]).expand(2, 1, 5)
    task = Detection(CLASSES)
    without = task.sums(outputs.detach(), targets)
    sums = task.sums(outputs, torch.cat([areas.to(targets), targets], 1))
    sums["class"].backward()
    assert outputs.grad is not None
    rows, spared = split_rows(outputs.detach(), 3), 0
    for image, wanted in enumerate((targets[0], targets[1, :1])):
        answers = (assign_places if centre else assign_anchors)(rows.reference[image], wanted[:, :4]).tolist()
        for place, answer, taught in zip(rows.reference[image], answers, outputs.grad[image, :, 10:13], strict=True):
            x1, y1, x2, y2 = place.tolist()
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            shared = max(0.0, min(x2, 50) - max(x1, 10)) * max(0.0, min(y2, 60) - max(y1, 5))
            inside = 10 < x < 50 and 5 < y < 60 if centre else shared >= 0.5 * (x2 - x1) * (y2 - y1)
            spared += inside and answer == NONE
            assert bool(taught.any()) == (answer >= 0 or (answer == NONE and not inside))
    assert spared > 5
    # Objects are learnt within a crowd as they are without.
    for name in ("box", "centre", "positives", "centreness"):
        assert torch.equal(sums[name].detach(), without[name])
    alone = task.sums(outputs.detach(), torch.tensor([[[-500.0, -500, 900, 900, -2]]] * 2))
    assert not any(float(value) for value in alone.values())


def test_tallies_are_those_of_the_very_outputs() -> None:
    task, outputs, targets = Detection(CLASSES), some_rows(True), some_targets()
    expected = {name: float(value) for name, value in Detection(CLASSES).tally(outputs, targets).items()}
    task.loss(outputs, targets)
    assert {name: float(value) for name, value in task.tally(outputs.detach(), targets).items()} == expected
    task.loss(outputs, targets)
    outputs.mul_(0.5)  # the same memory, other values
    changed = Detection(CLASSES).tally(outputs, targets)
    found = task.tally(outputs.detach(), targets)
    assert all(torch.equal(found[name], changed[name]) for name in found) and float(found["class"]) != expected["class"]
    task.loss(outputs, targets)
    assert float(task.tally(outputs, targets.flip(0))["class"]) != float(found["class"])


def test_half_precision_outputs() -> None:
    outputs, targets = some_rows(True), some_targets()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Detection(CLASSES).loss(outputs.bfloat16(), targets)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(Detection(CLASSES).loss(outputs.bfloat16().float(), targets)))


def test_what_is_refused() -> None:
    task, outputs = Detection(CLASSES), some_rows(True)
    with pytest.raises(SrattnError, match=r"\(B, M, 5\), x1 y1 x2 y2 class, got \(2, 5\)"):
        task.loss(outputs, torch.zeros(2, 5))
    with pytest.raises(SrattnError, match="a detector of 5 classes"):
        Detection([*"abcde"]).loss(outputs, some_targets())
    with pytest.raises(SrattnError, match="needs a class"):
        Detection([])
    with pytest.raises(SrattnError, match=r"overlap=1\.2"):
        Choice(overlap=1.2)


# -- answers --------------------------------------------------------------------------------------------------------


def by_loops(rows: Rows, image: int, choice: Choice) -> list[list[float]]:
    found = []
    for n in range(rows.logits.shape[1]):
        for k in range(rows.logits.shape[2]):
            score = float(rows.logits[image, n, k].sigmoid())
            if rows.centreness is not None:
                score = math.sqrt(score * float(rows.centreness[image, n].sigmoid()))
            coding = boxes_of_steps if rows.centreness is None else boxes_of_distances
            box = coding(rows.reference[image, n], rows.regression[image, n]).tolist()
            box = [min(max(value, 0.0), side) for value, side in zip(box, (72, 64, 72, 64), strict=True)]
            found.append([*box, score, float(k)])
    found = sorted(found, key=lambda row: -row[4])[: choice.candidates]
    kept: list[list[float]] = []
    for row in found:
        others = [other for other in kept if other[5] == row[5]]
        overlaps = box_iou(torch.tensor([row[:4]]), torch.tensor([o[:4] for o in others]).reshape(-1, 4))
        if row[4] >= choice.score and row[0] < row[2] and row[1] < row[3] and not (overlaps > choice.overlap).any():
            kept.append(row)
    return kept[: choice.most]


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("choice", [Choice(), Choice(0.6, 0.3, 40, 12), Choice(0.9, 0.5, 5, 3)])
def test_answers_are_those_of_loops(centre: bool, choice: Choice) -> None:
    rows = split_rows(some_rows(centre).float(), 3)
    found = decode(rows, choice)
    assert found.shape == (2, choice.most, 6)
    for image in range(2):
        expected = by_loops(rows, image, choice)
        valid = found[image, :, 5] >= 0
        assert valid.tolist() == [True] * len(expected) + [False] * (choice.most - len(expected))
        assert torch.allclose(found[image, valid], torch.tensor(expected).reshape(-1, 6), atol=1e-4)
        assert not found[image, ~valid, :5].any()


def perfect(targets: Tensor, wrong: float = 0.0) -> Tensor:
    """Rows whose answers are the targets: one row each, its cell the box itself."""
    batch, count, _ = targets.shape
    labels = targets[..., 4].long()
    hot = F.one_hot(labels.clamp(min=0), 3).double() * (labels >= 0).unsqueeze(2)
    reference, size = targets[..., :4] + wrong, torch.tensor([100.0, 100.0]).expand(batch, count, 2)
    return torch.cat(
        [torch.full((batch, count, 4), 0.5), reference, size, hot * 20 - 10, torch.full_like(hot[..., :1], 9)], 2
    )


# -- measures -------------------------------------------------------------------------------------------------------


def test_perfect_answers_measure_one(capsys: pytest.CaptureFixture[str]) -> None:
    task, targets = Detection(CLASSES), some_targets()
    metrics = task.metrics()
    for n in range(2):
        metrics.update(perfect(targets[n : n + 1]), targets[n : n + 1])
    figures, details = metrics.compute(), metrics.details()
    assert (figures["map50"], figures["map"], figures["map75"]) == pytest.approx((1, 1, 1))
    assert math.isfinite(figures["loss"]) and task.headline in figures
    assert details["support"] == {"a": 3, "b": 2, "c": 1}
    assert details["per_class_map50"] == pytest.approx(dict.fromkeys(CLASSES, 1.0))
    assert len(details["curves"]["a"]) == 101
    json.dumps(details)
    assert capsys.readouterr() == ("", "")


def test_the_measured_loss_is_that_of_training() -> None:
    task, outputs, targets = Detection(CLASSES), some_rows(True), some_targets()
    metrics = task.metrics()
    for n in range(2):
        metrics.update(outputs[n : n + 1], targets[n : n + 1])
    assert metrics.compute()["loss"] == pytest.approx(float(task.loss(outputs, targets)))


def test_average_precision_of_a_known_case() -> None:
    # One class: two objects; a hit at 0.9, a miss at 0.8, a hit at 0.7. Precision up to recall 0.5 is 1, then 2/3.
    targets = torch.tensor([[[0, 0, 10, 10, 0], [20, 20, 30, 30, 0]]], dtype=torch.float64)
    answers = torch.tensor([[[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [20, 20, 30, 30, 0.7, 0]]])
    metrics = Detection(CLASSES).metrics()
    metrics._decode = lambda outputs: answers
    metrics.update(some_rows(True, batch=1), targets)
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert metrics.compute()["map50"] == metrics.compute()["map"] == pytest.approx(expected)
    assert metrics.details()["per_class_map50"] == {"a": pytest.approx(expected)}  # classes without objects: no figure


def test_boxes_that_are_off_count_at_low_overlaps_alone() -> None:
    # 10 pixels square, 2 off: an overlap of 80 / 120 is enough for 0.5, 0.55, 0.6 and 0.65 of the ten.
    targets = torch.tensor([[[20, 20, 30, 30, 1]]], dtype=torch.float64)
    metrics = Detection(CLASSES).metrics()
    metrics.update(perfect(targets + torch.tensor([2, 0, 2, 0, 0])), targets)
    figures = metrics.compute()
    assert (figures["map50"], figures["map75"], figures["map"]) == pytest.approx((1, 0, 0.4))


def test_nothing_found_and_nothing_there() -> None:
    task, targets = Detection(CLASSES), some_targets()
    metrics = task.metrics()
    assert metrics.compute() == {"loss": 0, "map50": 0, "map": 0, "map75": 0}
    nothing = perfect(torch.full_like(targets, -1.0))
    metrics.update(nothing, targets)
    assert metrics.compute()["map50"] == 0 and metrics.details()["support"] == {"a": 3, "b": 2, "c": 1}
    metrics = task.metrics()
    metrics.update(perfect(targets), torch.full_like(targets, -1.0))
    assert metrics.compute()["map50"] == 0 and metrics.details()["curves"] == {}


@pytest.mark.parametrize("owners", [[0, 1, 0, 2], [1, 1, 1, 1]])
def test_processes_have_the_figures_of_one(owners: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    task = Detection(CLASSES, Choice(score=0.0))
    outputs, targets = some_rows(True, 4), torch.cat([some_targets(), some_targets().flip(1)])
    alone, world = task.metrics(), Together(3)
    collectors = [task.metrics() for _ in range(3)]
    for n, owner in enumerate(owners):
        for metrics in (alone, collectors[owner]):
            metrics.update(outputs[n : n + 1], targets[n : n + 1])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: world.own.rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    world.run(lambda rank: collectors[rank].reduce(world.add))
    figures, details = alone.compute(), alone.details()
    assert 0 < figures["map50"] < 1
    for metrics in collectors:
        assert metrics.compute() == pytest.approx(figures)
        assert metrics.details()["support"] == details["support"]


# -- models ---------------------------------------------------------------------------------------------------------


def small(kind: str, backbone: str = "pvt_v2_b0", **options: Any) -> DetectionModel:
    make = {"fcos": fcos, "retinanet": retinanet}[kind]
    return make(backbone, 3, **{"width": 16, "convs": 1, **SMALL, **options}).eval()


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
@pytest.mark.parametrize("first", [0, 1])
def test_any_size(kind: str, first: int) -> None:
    model = small(kind, first=first, levels=5)
    for height, width in ((64, 96), (33, 50)):
        strides = [2 ** (2 + first + n) for n in range(5)]
        places = sum(-(-height // s) * -(-width // s) for s in strides)
        rows = split_rows(model(torch.randn(2, 3, height, width)), 3)
        assert rows.logits.shape[:2] == (2, places * (1 if kind == "fcos" else 9))
        assert rows.size[0, 0].tolist() == [height, width]
        assert Detection(CLASSES).postprocess(model(torch.randn(1, 3, height, width))).shape == (1, 100, 6)


@pytest.mark.parametrize("backbone", ["pvt_tiny", "mit_b0"])
def test_other_backbones(backbone: str) -> None:
    extra = {"img_size": 64} if backbone == "pvt_tiny" else {}
    out = small("fcos", backbone, **extra)(torch.randn(1, 3, 64, 64))
    assert out.shape == (1, 64 + 16 + 4 + 1 + 1, 14)


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
def test_a_config_survives_json_and_rebuilds_the_model(kind: str) -> None:
    options = {"first": 0, "levels": 6, "in_chans": 1, "norm": "batch"}
    model = small(kind, **options | ({"offset": 0.5, "scales": 2} if kind == "retinanet" else {}))
    again = build_detection(**json.loads(json.dumps(model.config)))
    assert again.config == model.config and again.head.strides == [4, 8, 16, 32, 64, 128]
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    with pytest.raises(SrattnError, match="no head of a detector 'yolo'"):
        build_detection(model.config["backbone"], model.config["neck"], {"kind": "yolo"})


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    model, images = small(kind).train(), torch.randn(2, 3, 64, 64)
    task, targets = Detection(CLASSES), some_targets().float()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        task.loss(model(images), targets).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))  # every one gets a gradient, as DDP needs it
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


class BesideBackbone(nn.Module):
    """Neck and head of a detector on averages of the image: backbones have export tests of their own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.neck = FPN([3, 3, 3], 8)
        self.head = {"fcos": FCOSHead, "retinanet": RetinaNetHead}[kind](8, 3, (8, 16, 32), convs=1)

    def forward(self, images: Tensor) -> Tensor:
        maps = [images]
        for _ in range(5):
            maps.append(F.avg_pool2d(maps[-1], 3, stride=2, padding=1))
        return self.head(self.neck(maps[3:]), images.shape[2:])


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
def test_exports_with_dynamic_sizes(kind: str) -> None:
    model = BesideBackbone(kind).eval()
    sizes = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=33), 3: torch.export.Dim("w", min=33)}
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(sizes,))
    images = torch.randn(3, 3, 50, 70)
    assert torch.allclose(exported.module()(images), model(images), atol=1e-4)


def test_by_name() -> None:
    for name in ("detection", "detect"):
        assert make_task(name, CLASSES, 0.1) == Detection(CLASSES)
    assert make_detection(CLASSES, score=0.3, most=7) == Detection(CLASSES, Choice(score=0.3, most=7))


def test_what_cannot_be_built() -> None:
    with pytest.raises(SrattnError, match="levels=2"):
        small("fcos", levels=2)
    with pytest.raises(SrattnError, match="first=4"):
        small("fcos", first=4)


def rectangles(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Grey images (count, 3, 64, 64), each with two filled rectangles, red or blue, and their targets."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = torch.zeros(count, 3, 64, 64), torch.full((count, 3, 5), -1.0)
    for n in range(count):
        for m in range(2):
            x, y = (int(v) for v in torch.randint(0, 8, (2,), generator=generator))
            width, height = (int(v) for v in torch.randint(12, 24, (2,), generator=generator))
            x, label = x + 32 * m, (n + m) % 2
            images[n, :, y : y + height, x : x + width] = torch.tensor([-1.0, -1, -1])[:, None, None]
            images[n, 2 * label, y : y + height, x : x + width] = 2
            targets[n, m] = torch.tensor([x, y, min(x + width, 64), y + height, label])
    return images, targets


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
def test_learns_a_few_images(kind: str) -> None:
    images, targets = rectangles(4)
    model, task = small(kind, norm="group", width=32).train(), Detection(["red", "green", "blue"])
    targets[..., 4] = torch.where(targets[..., 4] == 1, 2, targets[..., 4])
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(60):
        loss = task.loss(model(images), targets)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    metrics = task.metrics()
    with torch.no_grad():
        metrics.update(model.eval()(images), targets)
    assert metrics.compute()["map50"] > 0.9
