"""Classification against its definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from srattn.errors import SrattnError
from srattn.tasks import Classification
from srattn.tasks.classification import weights_of

CLASSES = ["a", "b", "c"]
LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.5]])
TARGETS = torch.tensor([0, 1, 2, 2])


def test_smoothing_spreads_a_part_of_the_target() -> None:
    logs = LOGITS.log_softmax(1)
    plain = -logs[torch.arange(4), TARGETS].mean()
    expected = 0.7 * plain - 0.3 * logs.mean()
    assert torch.allclose(Classification(CLASSES, 0.3).loss(LOGITS, TARGETS), expected)
    assert torch.allclose(Classification(CLASSES).loss(LOGITS, TARGETS), plain)


def test_weights_count_images_by_their_class() -> None:
    weights, logs = torch.tensor([1.0, 4.0, 0.5]), LOGITS.log_softmax(1)
    task = Classification(CLASSES, weights=weights)
    each = -logs[torch.arange(4), TARGETS]
    expected = (weights[TARGETS] * each).sum() / weights[TARGETS].sum()
    assert torch.allclose(task.loss(LOGITS, TARGETS), expected)
    assert torch.allclose(task.loss(LOGITS, TARGETS), F.cross_entropy(LOGITS, TARGETS, weights))
    shares = F.one_hot(TARGETS, 3).float()
    assert torch.allclose(task.loss(LOGITS, shares), expected)
    mixed = torch.tensor([[0.25, 0.75, 0.0]])
    loss = -(mixed * weights * LOGITS[:1].log_softmax(1)).sum() / (mixed * weights).sum()
    assert torch.allclose(task.loss(LOGITS[:1], mixed), loss)
    assert torch.allclose(task.loss(LOGITS.bfloat16(), TARGETS), task.loss(LOGITS.bfloat16().float(), TARGETS))
    assert task.loss(LOGITS.double(), TARGETS).dtype == torch.float64
    assert float(Classification(CLASSES, weights=torch.tensor([1.0, 0, 0])).loss(LOGITS[1:], TARGETS[1:])) == 0.0
    spread = 0.7 * each - 0.3 * logs.mean(1)  # of an image, which counts by its class
    smooth = Classification(CLASSES, 0.3, weights=weights)
    expected = (weights[TARGETS] * spread).sum() / weights[TARGETS].sum()
    assert torch.allclose(smooth.loss(LOGITS, TARGETS), expected)
    assert torch.allclose(smooth.loss(LOGITS, shares), expected)
    assert Classification(CLASSES).weigh is None
    alone = Classification(CLASSES, weights=torch.ones(3)).loss(LOGITS, TARGETS)
    assert torch.allclose(alone, Classification(CLASSES).loss(LOGITS, TARGETS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_are_added_in_float32(dtype: torch.dtype) -> None:
    logits, targets = torch.zeros(40_000, 3, dtype=dtype), torch.zeros(40_000, dtype=torch.int64)
    logits[:, 1] = 2
    for given in (targets, F.one_hot(targets, 3).float()):
        task = Classification(CLASSES)
        sums = {name: float(value) for name, value in task.tally(logits, given).items()}
        assert task.summary(sums)["loss"] == pytest.approx(math.log(2 + math.exp(2)), rel=1e-5)


def test_balanced_classes_weigh_the_same() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = weights_of("balanced", labels, CLASSES)
    assert torch.allclose(weights * torch.bincount(labels), torch.full((3,), 10 / 3))
    assert float(weights[labels].mean()) == pytest.approx(1)
    for scale in (1.0, 1e-3):
        found = weights_of([scale, 2.5 * scale, 0], labels, CLASSES)
        assert torch.allclose(found, torch.tensor([1, 2.5, 0]) / 1.35)
    with pytest.raises(SrattnError, match="leave no image to learn from"):
        weights_of([0, 0, 1], labels[:8], CLASSES)
    with pytest.raises(SrattnError, match="2 numbers for 3 classes, which are, in order: a, b, c"):
        weights_of([1, 2], labels, CLASSES)


def test_tallies_add_up_to_the_whole() -> None:
    task = Classification(CLASSES, 0.3)
    parts = [task.tally(LOGITS[:3], TARGETS[:3]), task.tally(LOGITS[3:], TARGETS[3:])]
    added = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert task.summary(added)["accuracy"] == 0.5
    assert task.summary(added)["loss"] == pytest.approx(float(Classification(CLASSES).loss(LOGITS, TARGETS)), rel=1e-6)


def test_metrics_over_batches() -> None:
    metrics = Classification(CLASSES).metrics()
    metrics.update(LOGITS[:1], TARGETS[:1])
    metrics.update(LOGITS[1:], TARGETS[1:])
    figures, details = metrics.compute(), metrics.details()
    assert figures["accuracy"] == 0.5
    assert math.isclose(figures["loss"], float(Classification(CLASSES).loss(LOGITS, TARGETS)), rel_tol=1e-6)
    assert details["confusion"] == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert details["per_class_accuracy"] == {"a": 1.0, "b": 1.0, "c": 0.0}
    assert details["support"] == {"a": 1, "b": 1, "c": 2}


def test_postprocess_gives_probabilities() -> None:
    answers = Classification(CLASSES).postprocess(LOGITS.half())
    assert answers.dtype == torch.float32
    assert torch.allclose(answers.sum(1), torch.ones(4))


def test_label_smoothing_out_of_range() -> None:
    with pytest.raises(SrattnError, match="label_smoothing"):
        Classification(CLASSES, 1.0)


def test_mixed_targets() -> None:
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.0, 0.4, 0.6], [0.0, 0.0, 1.0]])
    task = Classification(CLASSES)
    tally = task.tally(LOGITS, shares)
    assert float(tally["count"]) == 4 and float(tally["correct"]) == 2
    assert float(tally["loss"]) == pytest.approx(float(-(shares * LOGITS.log_softmax(1)).sum()))
    assert torch.allclose(task.loss(LOGITS, shares) * 4, tally["loss"])


def test_metrics_of_several_processes_are_those_of_one() -> None:
    whole, parts = Classification(CLASSES).metrics(), [Classification(CLASSES).metrics() for _ in range(2)]
    whole.update(LOGITS, TARGETS)
    for index, part in enumerate(parts):
        part.update(LOGITS[index::2], TARGETS[index::2])
    sums = [[], []]
    for part, kept in zip(parts, sums, strict=True):
        part.reduce(lambda tensor, kept=kept: kept.append(tensor) or tensor)
    totals = iter([a + b for a, b in zip(*sums, strict=True)])
    parts[0].reduce(lambda _: next(totals))
    assert parts[0].details() == whole.details()
    assert parts[0].compute()["accuracy"] == whole.compute()["accuracy"]
    assert parts[0].compute()["loss"] == pytest.approx(whole.compute()["loss"], rel=1e-15)


def test_a_class_without_images_has_no_accuracy() -> None:
    metrics = Classification(CLASSES).metrics()
    metrics.update(LOGITS[:2], TARGETS[:2])
    assert metrics.details()["per_class_accuracy"]["c"] == 0.0
