"""Distillation against hand-written formulas, with teachers of other preprocessing and other orders of classes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from srattn.data.preprocess import Preprocess
from srattn.engine.distill import Distillation, between
from srattn.engine.weights import LoadedRun, load_run
from srattn.errors import SrattnError
from srattn.tasks import Classification

CLASSES = ["a", "b", "c"]
STUDENT = Preprocess(channels=1, size=(8, 8), mean=(0.3,), std=(0.5,), fit="squash")


class Fixed(nn.Module):
    """Answers what it was made with, and remembers what it was asked."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(answers)
        self.drop = nn.Dropout(0.9)

    def forward(self, images: Tensor) -> Tensor:
        self.asked = images
        return self.drop(self.weight)


def numbers() -> tuple[Tensor, Tensor, Tensor]:
    student = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.1, 2.0]], requires_grad=True)
    return student, torch.tensor([0, 1]), torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.7, 0.4]])


def test_soft_is_the_scaled_divergence() -> None:
    student, labels, teacher = numbers()
    task = Distillation(Classification(CLASSES), Fixed(teacher), "soft", temperature=2.5, weight=0.3)
    loss = task.loss(student, labels, inputs=torch.zeros(2, 1, 8, 8))
    expected = 0.0
    for row, answer, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        cross = math.log(sum(math.exp(v) for v in row)) - row[label]
        p = [math.exp(v / 2.5) for v in answer]
        q = [math.exp(v / 2.5) for v in row]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        divergence = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        expected += (0.7 * cross + 0.3 * 2.5**2 * divergence) / 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_hard_is_cross_entropy_on_the_teachers_class() -> None:
    student, labels, teacher = numbers()
    task = Distillation(Classification(CLASSES), Fixed(teacher), "hard", weight=0.5)
    loss = task.loss(student, labels, inputs=torch.zeros(2, 1, 8, 8))
    expected = 0.0
    for row, own, theirs in zip(student.tolist(), labels.tolist(), (0, 1), strict=True):
        total = math.log(sum(math.exp(v) for v in row))
        expected += 0.5 * (total - row[own]) / 2 + 0.5 * (total - row[theirs]) / 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_teacher_has_no_gradient_and_no_dropout() -> None:
    student, labels, answers = numbers()
    teacher = Fixed(answers).train()
    task = Distillation(Classification(CLASSES), teacher)
    first = task.loss(student, labels, inputs=torch.zeros(2, 1, 8, 8))
    second = task.loss(student, labels, inputs=torch.zeros(2, 1, 8, 8))
    assert torch.equal(first, second)
    first.backward()
    assert student.grad is not None and teacher.weight.grad is None and not teacher.weight.requires_grad
    # Away from a student that agrees with its teacher there is nothing to learn from it.
    agreed = answers.clone().requires_grad_(True)
    Distillation(Classification(CLASSES), teacher, weight=1.0).loss(
        agreed, labels, inputs=torch.zeros(2, 1, 8, 8)
    ).backward()
    assert agreed.grad is not None and float(agreed.grad.abs().max()) < 1e-6


def test_teachers_preprocessing_is_respected() -> None:
    levels = torch.rand(2, 1, 8, 8)
    teacher = Preprocess(channels=3, size=(16, 16), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    seen = between(STUDENT, teacher)(STUDENT.normalise(levels))
    wide = torch.nn.functional.interpolate(levels.expand(-1, 3, -1, -1), (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen, teacher.normalise(wide), rtol=1e-5, atol=1e-5)
    assert between(STUDENT, teacher)(torch.zeros(1, 1, 12, 4)).shape == (1, 3, 24, 8)  # another training size
    grey = Preprocess(channels=1, size=(8, 8), mean=(0.0,), std=(1.0,))
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1.0
    colour = Preprocess(size=(8, 8))
    torch.testing.assert_close(between(colour, grey)(colour.normalise(red)), torch.full((1, 1, 8, 8), 0.299))


def test_a_smaller_teacher_sees_the_image_as_pillow_shrinks_it() -> None:
    levels = torch.rand(1, 1, 32, 24)
    student = dataclasses.replace(STUDENT, size=(32, 24))
    teacher = Preprocess(channels=1, size=(8, 4), mean=(0.0,), std=(1.0,))
    seen = between(student, teacher)(student.normalise(levels))
    shrunk = Image.fromarray(levels[0, 0].numpy()).resize((4, 8), Image.Resampling.BILINEAR)
    torch.testing.assert_close(seen[0, 0], torch.from_numpy(np.array(shrunk)), rtol=1e-5, atol=1e-5)


def test_run_as_teacher(finished: Path) -> None:
    run = load_run(finished)
    # The same model trained at other levels: asked with the student's inputs it must answer as on its own.
    student = dataclasses.replace(run.preprocess, mean=(0.0,), std=(1.0,))
    levels = torch.rand(3, 1, 8, 8)
    order = list(reversed(run.classes))
    task = Distillation(Classification(order), finished, preprocess=student)
    with torch.no_grad():
        own = run.model(run.preprocess.normalise(levels))
    torch.testing.assert_close(task.ask(student.normalise(levels)), own.flip(1), rtol=1e-5, atol=1e-5)
    assert (task.name, task.headline) == ("classification", "accuracy")
    sums = {name: float(value) for name, value in task.tally(own, own.argmax(1)).items()}
    assert task.summary(sums)["accuracy"] == 1.0
    with pytest.raises(SrattnError, match="preprocess="):
        Distillation(Classification(order), finished)
    with pytest.raises(SrattnError, match="the teacher has no class 'x'"):
        Distillation(Classification([*order, "x"]), finished, preprocess=student)
    other = LoadedRun(Fixed(own), run.classes, run.preprocess, {}, finished)  # type: ignore[arg-type]
    with pytest.raises(SrattnError, match=r"the teacher answers \(3, 10\), the student \(2, 10\)"):
        Distillation(Classification(run.classes), other, preprocess=student).loss(
            torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64), inputs=levels[:2]
        )


def test_exported_program_as_teacher(finished: Path) -> None:
    run, images = load_run(finished), torch.randn(2, 1, 8, 8)
    program = torch.export.export(run.model, (images,)).module()
    task = Distillation(Classification(run.classes), program)
    with torch.no_grad():
        torch.testing.assert_close(task.ask(images), run.model(images), rtol=1e-5, atol=1e-5)


def test_what_is_wrong_is_named() -> None:
    student, labels, teacher = numbers()
    for options, message in (
        ({"kind": "warm"}, "'soft' or 'hard', got 'warm'"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"weight": 1.5}, "weight must be from 0 to 1"),
    ):
        with pytest.raises(SrattnError, match=message):
            Distillation(Classification(CLASSES), Fixed(teacher), **options)  # type: ignore[arg-type]
    with pytest.raises(SrattnError, match="needs the images"):
        Distillation(Classification(CLASSES), Fixed(teacher)).loss(student, labels)
    plain = Distillation(Classification(CLASSES), Fixed(teacher), weight=0.0)
    assert torch.equal(plain.loss(student, labels), Classification(CLASSES).loss(student, labels))
