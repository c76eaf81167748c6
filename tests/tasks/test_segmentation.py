"""Segmentation against torchmetrics, against loops over pixels and by hand."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from srattn.data.loader import Batch
from srattn.engine.evaluate import evaluate
from srattn.errors import SrattnError
from srattn.tasks import make_task
from srattn.tasks.contours import boundary_f
from srattn.tasks.dense import segmentation_model
from srattn.tasks.losses import cross_entropy, dice, lovasz
from srattn.tasks.models import rebuild, task_options
from srattn.tasks.segmentation import Segmentation, class_map, nearest_on

VOID = 255
CLASSES = ["ground", "road", "tree", "car"]


def sure(numbers: Tensor, count: int = 4) -> Tensor:
    """Logits (B, K, H, W) whose likeliest class is the given (B, H, W)."""
    return 5.0 * F.one_hot(numbers, count).permute(0, 3, 1, 2)


def drawn(
    size: tuple[int, int], batch: int = 3, classes: int = 4, seed: int = 0, among: int | None = None
) -> tuple[Tensor, Tensor]:
    """Random logits, and a target of blocks of three by three pixels, some void; of the first `among` classes."""
    draw = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, among or classes, (batch, size[0] // 3 + 1, size[1] // 3 + 1), generator=draw)
    blocks[torch.rand(blocks.shape, generator=draw) < 0.15] = VOID
    target = blocks.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, : size[0], : size[1]].contiguous()
    logits = torch.randn(batch, classes, *size, generator=draw)
    return logits + 1.5 * sure(torch.where(target == VOID, 0, target), classes) / 5, target


# -- the figures -------------------------------------------------------------------------------------------------------


def test_figures_are_torchmetrics_own() -> None:
    metrics = Segmentation(CLASSES).metrics()
    others = {
        "miou": MulticlassJaccardIndex(4, ignore_index=VOID),
        "dice": MulticlassF1Score(4, average="macro", ignore_index=VOID),
        "pixel_accuracy": MulticlassAccuracy(4, average="micro", ignore_index=VOID),
    }
    by_class = {
        "per_class_iou": MulticlassJaccardIndex(4, average=None, ignore_index=VOID),
        "per_class_dice": MulticlassF1Score(4, average=None, ignore_index=VOID),
        "per_class_accuracy": MulticlassAccuracy(4, average=None, ignore_index=VOID),
    }
    for seed, size in enumerate([(9, 12), (5, 31), (1, 1), (17, 8)]):
        logits, target = drawn(size, seed=seed)
        metrics.update(logits, target)
        for metric in (others | by_class).values():
            metric.update(logits, target)
    figures, details = metrics.compute(), metrics.details()
    assert list(figures) == ["loss", "miou", "dice", "pixel_accuracy", "boundary_f"]
    for name, metric in others.items():
        assert figures[name] == pytest.approx(float(metric.compute()), rel=1e-6), name
    for name, metric in by_class.items():
        assert list(details[name]) == CLASSES
        assert list(details[name].values()) == pytest.approx(metric.compute().tolist(), rel=1e-6), name


@pytest.mark.parametrize("classes", [2, 150])
def test_any_number_of_classes(classes: int) -> None:
    task = make_task("segmentation", [str(number) for number in range(classes)], loss="ce+dice+lovasz")
    logits, target = drawn((40, 60), classes=classes)
    assert task.loss(logits, target).isfinite()
    metrics = task.metrics()
    metrics.update(logits, target)
    theirs = MulticlassJaccardIndex(classes, ignore_index=VOID)
    theirs.update(logits, target)
    assert metrics.compute()["miou"] == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert len(metrics.details()["per_class_iou"]) == classes


def test_per_image_is_torchmetrics_mean_iou() -> None:
    logits, target = drawn((9, 12))
    target[target == VOID] = 2  # torchmetrics' metric knows no void
    metrics = Segmentation(CLASSES).metrics()
    metrics.update(logits, target)
    expected = [
        float(MeanIoU(4, input_format="index")(one.argmax(1), true))
        for one, true in zip(logits.split(1), target.split(1), strict=True)
    ]
    assert metrics.per_image == pytest.approx(expected, rel=1e-6)
    assert metrics.details()["per_image"] == metrics.per_image


def test_by_hand_and_absent_classes_are_left_out() -> None:
    target = torch.tensor([[[0, 0, 0, 1, 1, VOID]]])
    said = torch.tensor([[[0, 0, 1, 1, 2, 3]]])  # a car where nothing counts
    metrics = Segmentation(CLASSES).metrics()
    metrics.update(sure(said), target)
    figures, details = metrics.compute(), metrics.details()
    assert figures["miou"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert figures["dice"] == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)
    assert figures["pixel_accuracy"] == 3 / 5
    assert details["per_class_iou"] == {"ground": 2 / 3, "road": 1 / 3, "tree": 0.0, "car": None}
    assert details["per_class_dice"] == {"ground": 4 / 5, "road": 0.5, "tree": 0.0, "car": None}
    assert details["per_class_accuracy"] == {"ground": 2 / 3, "road": 0.5, "tree": None, "car": None}
    assert details["support"] == {"ground": 3, "road": 2, "tree": 0, "car": 0}
    assert details["confusion"] == [[2, 1, 0, 0], [0, 1, 1, 0], [0] * 4, [0] * 4]
    assert details["per_image"] == [pytest.approx(1 / 3)]


def test_logits_are_enlarged_before_the_answer() -> None:
    coarse, (_, target) = torch.randn(2, 4, 3, 4), drawn((11, 13), batch=2)
    enlarged = F.interpolate(coarse, size=(11, 13), mode="bilinear", align_corners=False)
    ours, plain = (Segmentation(CLASSES).metrics() for _ in range(2))
    ours.update(coarse, target)
    plain.update(enlarged, target)
    assert ours.details() == plain.details() and ours.compute() == plain.compute()
    assert torch.equal(class_map(coarse, (11, 13)), enlarged.argmax(1).to(torch.uint8))
    assert torch.equal(class_map(coarse, (3, 4)), coarse.argmax(1).to(torch.uint8))


@pytest.mark.parametrize("loss", ["ce", "0.5*ce+lovasz", "dice"])
def test_loss_is_the_mean_over_images(loss: str) -> None:
    logits, target = drawn((6, 7))
    target[1] = VOID  # an image without a label counts nowhere
    task = Segmentation(CLASSES, 0.2, loss)
    metrics = task.metrics()
    metrics.update(logits[:1], target[:1])
    metrics.update(logits[1:], target[1:])

    def one(i: int) -> float:
        pair = logits[i : i + 1], target[i : i + 1]
        parts = {"ce": cross_entropy, "dice": dice, "0.5*ce+lovasz": lambda *p: 0.5 * cross_entropy(*p) + lovasz(*p)}
        return float(parts[loss](*pair))

    assert metrics.compute()["loss"] == pytest.approx((one(0) + one(2)) / 2, rel=1e-6)
    assert metrics.per_image[1] is None and None not in (metrics.per_image[0], metrics.per_image[2])


def test_several_processes_have_the_figures_of_one() -> None:
    logits, target = drawn((8, 9), batch=4)
    whole, parts = Segmentation(CLASSES).metrics(), [Segmentation(CLASSES).metrics() for _ in range(2)]
    whole.update(logits, target)
    for index, part in enumerate(parts):
        part.update(logits[index::2], target[index::2])
    sums: list[list[Tensor]] = [[], []]
    for part, kept in zip(parts, sums, strict=True):
        part.reduce(lambda tensor, kept=kept: kept.append(tensor.clone()) or tensor)
    totals = iter([a + b for a, b in zip(*sums, strict=True)])
    parts[0].reduce(lambda _: next(totals))
    expected = whole.details()
    assert parts[1].details()["per_image"] == parts[1].per_image  # reduced alone
    assert expected.pop("per_image") == [x for pair in zip(*(p.per_image for p in parts), strict=True) for x in pair]
    found = parts[0].details()
    boundaries = [d.pop("per_class_boundary_f") for d in (found, expected)]
    assert found == expected and "per_image" not in found
    assert boundaries[0] == pytest.approx(boundaries[1], rel=1e-14)
    assert parts[0].compute() == pytest.approx(whole.compute(), rel=1e-14)


def test_nothing_seen() -> None:
    metrics = Segmentation(CLASSES).metrics()
    assert set(metrics.compute().values()) == {0.0}
    metrics.update(torch.zeros(0, 4, 3, 3), torch.zeros(0, 5, 5, dtype=torch.int64))
    metrics.update(torch.zeros(2, 4, 3, 3), torch.full((2, 5, 5), VOID))
    assert set(metrics.compute().values()) == {0.0} and metrics.per_image == [None, None]


@pytest.mark.parametrize("wrong", [4, -1])
def test_a_class_that_is_not_there(wrong: int) -> None:
    target = torch.zeros(1, 2, 2, dtype=torch.int64)
    target[0, 0, 0] = wrong
    with pytest.raises(SrattnError, match=f"a target holds class {wrong}, and there are 0 to 3, and 255 for void"):
        Segmentation(CLASSES).metrics().update(sure(torch.zeros_like(target)), target)


# -- contours ----------------------------------------------------------------------------------------------------------


def plain_boundary_f(said: Tensor, true: Tensor, valid: Tensor, number: int, radius: int) -> float | None:
    """Of one class in one image (H, W), pixel by pixel."""
    places = {tuple(place) for place in valid.nonzero().tolist()}

    def contour(numbers: Tensor) -> list[tuple[int, ...]]:
        around = [(-1, 0), (1, 0), (0, -1), (0, 1)]
        own = [p for p in places if int(numbers[p]) == number]
        neighbours = {p: [(p[0] + i, p[1] + j) for i, j in around] for p in own}
        return [p for p in own if any(q in places and int(numbers[q]) != number for q in neighbours[p])]

    def met(some: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> float:
        found = sum(any((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2 <= radius**2 for q in others) for p in some)
        return found / len(some) if some else 0.0

    a, b = contour(said), contour(true)
    precision, recall = met(a, b), met(b, a)
    if not a and not b:
        return None
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    tolerance=st.sampled_from([0.0, 0.0075, 0.2]),
)
def test_boundary_f_is_its_definition(seed: int, height: int, width: int, tolerance: float) -> None:
    logits, true = drawn((height, width), batch=2, classes=3, seed=seed)
    said, valid = logits.argmax(1), true != VOID
    values, there = boundary_f(said, true, valid, 3, tolerance)
    radius = math.ceil(tolerance * math.hypot(height, width))
    for image, number in itertools.product(range(2), range(3)):
        expected = plain_boundary_f(said[image], true[image], valid[image], number, radius)
        assert bool(there[image, number]) == (expected is not None)
        assert float(values[image, number]) == pytest.approx(expected or 0.0, rel=1e-14)


def test_contours_within_the_tolerance_meet() -> None:
    true = torch.zeros(1, 40, 40, dtype=torch.int64)
    true[:, :, 20:] = 1
    metrics = [Segmentation(["a", "b"]).metrics() for _ in range(4)]
    for shift, one in enumerate(metrics):  # 0.75 % of the diagonal of 56.6 is 0.42: one pixel
        one.update(sure(true.roll(shift, 2) & (torch.arange(40) >= 20), 2), true)
    assert [one.compute()["boundary_f"] for one in metrics] == [1.0, 1.0, 0.0, 0.0]


def test_boundary_f_of_a_class_is_over_the_images_that_have_it() -> None:
    a, b = torch.zeros(1, 6, 6, dtype=torch.int64), torch.zeros(1, 6, 6, dtype=torch.int64)
    a[:, :3], b[:, :, :3] = 1, 2
    metrics = Segmentation(CLASSES).metrics()
    metrics.update(sure(torch.cat([a, torch.zeros_like(b)])), torch.cat([a, b]))  # the second misses its tree
    assert metrics.details()["per_class_boundary_f"] == {"ground": 0.5, "road": 1.0, "tree": 0.0, "car": None}
    assert metrics.compute()["boundary_f"] == 0.5


# -- training ----------------------------------------------------------------------------------------------------------


def test_tallies_add_up_to_the_whole() -> None:
    logits, target = drawn((6, 9), batch=4, among=3)
    task = Segmentation(CLASSES)
    parts = [task.tally(logits[:1], target[:1]), task.tally(logits[1:], target[1:])]
    names = ["count", "loss", "pixels", *(f"{kind}{n}" for n in range(4) for kind in "iu")]
    assert [list(part) for part in parts] == [names, names]
    assert all(value.shape == () and not value.requires_grad for value in parts[0].values())
    added = {name: float(parts[0][name] + parts[1][name]) for name in names}
    metrics = task.metrics()
    metrics.update(logits, target)
    figures, summary = metrics.compute(), task.summary(added)
    assert task.headline in summary and task.headline in figures
    assert summary["miou"] == pytest.approx(figures["miou"], rel=1e-14)
    assert summary["pixel_accuracy"] == pytest.approx(figures["pixel_accuracy"], rel=1e-14)
    losses = [float(cross_entropy(logits[part], target[part])) for part in (slice(1), slice(1, 4))]
    assert added["count"] == 4 and summary["loss"] == pytest.approx((losses[0] + 3 * losses[1]) / 4, rel=1e-6)


def test_tally_counts_on_the_outputs_grid() -> None:
    coarse, (_, target) = torch.randn(2, 4, 3, 4), drawn((11, 13), batch=2)
    task = Segmentation(CLASSES)
    tally = task.tally(coarse, target)
    fine = task.tally(coarse, nearest_on(target, 3, 4))
    assert all(torch.equal(tally[name], fine[name]) for name in tally if name != "loss")
    assert float(tally["loss"]) == pytest.approx(2 * float(cross_entropy(coarse, target)), rel=1e-6)
    assert (
        sum(float(tally[f"i{n}"]) for n in range(4))
        <= float(tally["pixels"])
        == int((nearest_on(target, 3, 4) != VOID).sum())
    )


@pytest.mark.parametrize("grid", [(3, 4), (11, 13), (25, 13), (1, 1)])
def test_nearest_is_the_pixel_at_the_centre(grid: tuple[int, int]) -> None:
    target = torch.arange(2 * 11 * 13).view(2, 11, 13)
    found = nearest_on(target, *grid)
    for y, x in itertools.product(*map(range, grid)):
        centre = math.floor((y + 0.5) * 11 / grid[0]), math.floor((x + 0.5) * 13 / grid[1])
        assert torch.equal(found[:, y, x], target[:, centre[0], centre[1]])


@pytest.mark.parametrize(("smoothing", "loss", "times"), [(0.0, "ce", 1), (0.1, "ce", 2), (0.1, "dice", 1)])
def test_a_step_takes_its_loss_once_and_tallies_it_without_smoothing(smoothing: float, loss: str, times: int) -> None:
    logits, target = drawn((6, 9), batch=2)
    task, calls = Segmentation(CLASSES, smoothing, loss), []
    for name in ("objective", "measured"):
        setattr(task, name, Counted(getattr(task, name), calls))
    outputs = logits.requires_grad_()
    mean = task.loss(outputs, target)
    tally = task.tally(outputs.detach(), target)
    assert len(calls) == times
    plain_loss = {"ce": cross_entropy, "dice": dice}[loss](logits.detach(), target)
    assert float(tally["loss"]) == pytest.approx(2 * float(plain_loss), rel=1e-6)
    if smoothing and loss == "ce":
        smooth = F.cross_entropy(logits.detach(), target, ignore_index=VOID, label_smoothing=smoothing)
        assert torch.allclose(mean.detach(), smooth) and not torch.allclose(mean.detach(), plain_loss)
    other = torch.zeros_like(logits)
    assert float(task.tally(other, target)["loss"]) != float(tally["loss"])  # never that of another batch


class Counted:
    """A loss that notes each call."""

    def __init__(self, plain: Any, calls: list[int]) -> None:
        self.plain, self.calls, self.smooths = plain, calls, plain.smooths

    def __call__(self, *args: Tensor) -> Tensor:
        self.calls.append(1)
        return self.plain(*args)


def test_a_loss_is_remembered_for_its_own_outputs_only() -> None:
    logits, target = drawn((6, 9), batch=2)
    task = Segmentation(CLASSES)
    task.loss(logits, target)
    half = task.tally(logits[:1], target[:1])
    assert float(half["loss"]) == pytest.approx(float(cross_entropy(logits[:1], target[:1])), rel=1e-6)
    task.loss(logits, target)
    again = task.tally(logits.flip(1), target)
    assert float(again["loss"]) == pytest.approx(2 * float(cross_entropy(logits.flip(1), target)), rel=1e-6)
    task.loss(logits, target)
    void = torch.full_like(target, VOID)
    assert float(task.tally(logits, void)["loss"]) == 0 and task.summary(
        {k: float(v) for k, v in task.tally(logits, void).items()}
    ) == {"loss": 0.0, "miou": 0.0, "pixel_accuracy": 0.0}


def test_an_auxiliary_head_is_learnt_by_and_not_reported() -> None:
    logits, target = drawn((9, 12))
    beside = drawn((9, 12), seed=7)[0]
    task, alone = Segmentation(CLASSES, loss="ce+dice", auxiliary=0.4), Segmentation(CLASSES, loss="ce+dice")
    both = torch.cat([logits, beside], 1)
    expected = alone.loss(logits, target) + 0.4 * alone.loss(beside, target)
    torch.testing.assert_close(task.loss(both, target), expected)
    sums, others = task.tally(both, target), alone.tally(logits, target)
    assert sums.keys() == others.keys() and all(torch.allclose(sums[name], others[name]) for name in sums)
    torch.testing.assert_close(task.loss(logits, target), alone.loss(logits, target))  # as in evaluation
    model = segmentation_model("pvt_v2_b0", 4, "upernet", {"width": 8, "auxiliary": 0.4}, device="meta")
    assert task_options(model) == {"auxiliary": 0.4} and task_options(rebuild(model.config)) == {"auxiliary": 0.4}


def test_a_model_learns_through_the_task() -> None:
    task, model = Segmentation(["a", "b"], 0.1, "ce+dice"), nn.Conv2d(3, 2, 4, stride=4)
    inputs = torch.randn(4, 3, 16, 16)
    targets = (inputs[:, 0] > 0).long()
    targets = nearest_on(targets, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    optimiser, losses = torch.optim.SGD(model.parameters(), lr=1.0), []
    for _ in range(30):
        loss = task.loss(model(inputs), targets, inputs=inputs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# -- answers -----------------------------------------------------------------------------------------------------------


def test_postprocess_gives_the_share_of_each_class() -> None:
    said = torch.tensor([[[0, 0], [1, 3]], [[2, 2], [2, 2]]])
    answers = Segmentation(CLASSES).postprocess(sure(said).half())
    assert answers.tolist() == [[0.5, 0.25, 0.0, 0.25], [0.0, 0.0, 1.0, 0.0]] and answers.dtype == torch.float32


def test_one_logit_will_do_for_two_classes() -> None:
    task, (logits, target) = Segmentation(["ground", "polyp"], loss="structure"), drawn((6, 7), classes=2)
    logit = logits[:, 1:] - logits[:, :1]
    assert torch.allclose(task.loss(logit, target), task.loss(logits, target))
    assert torch.equal(task.postprocess(logit), task.postprocess(logits))
    tallies = task.tally(logit, target), task.tally(logits, target)
    assert all(float(tallies[0][name]) == pytest.approx(float(tallies[1][name]), rel=1e-6) for name in tallies[0])
    one, two = task.metrics(), task.metrics()
    one.update(logit, target)
    two.update(logits, target)
    assert one.compute() == pytest.approx(two.compute(), rel=1e-6)


def test_evaluate_puts_the_pieces_together() -> None:
    logits, target = drawn((6, 7), batch=5)
    batches = [Batch(logits[part], target[part], torch.arange(5)[part]) for part in (slice(2), slice(2, 5))]
    loader: Any = SimpleNamespace(val=lambda: iter(batches))
    task = Segmentation(CLASSES)
    found = evaluate(nn.Identity(), loader, task, torch.device("cpu"))
    assert found is not None
    metrics = task.metrics()
    metrics.update(logits, target)
    assert found.figures == metrics.compute() and found.details == metrics.details()
    assert torch.equal(found.answers, task.postprocess(logits))


def test_by_name() -> None:
    for name in ("segmentation", "segment"):
        task = make_task(name, CLASSES, 0.1)
        assert isinstance(task, Segmentation) and task.label_smoothing == 0.1 and task.objective.name == "ce"


def test_what_cannot_be_built() -> None:
    with pytest.raises(SrattnError, match="of 2 to 255 classes, the background among them, got 1: polyp"):
        Segmentation(["polyp"])
    with pytest.raises(SrattnError, match="did you mean 'lovasz'"):
        Segmentation(CLASSES, loss="lovas")
    with pytest.raises(SrattnError, match="label_smoothing"):
        Segmentation(CLASSES, 1.0)
    with pytest.raises(SrattnError, match="the model gives 3 logits a pixel for 4 classes"):
        Segmentation(CLASSES).loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))


def test_without_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.functional.classification", None)
    with pytest.raises(SrattnError, match=r"torchmetrics is not installed .*srattn\[train\]"):
        Segmentation(CLASSES).metrics()
