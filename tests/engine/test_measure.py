"""Measuring a model: against figures by hand, whatever the batch size, with mirror images and corruptions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from srattn.data.preprocess import Preprocess
from srattn.data.samples import Samples
from srattn.engine.calibration import best_temperature, reliability
from srattn.engine.measure import measure
from srattn.errors import SrattnError

CLASSES = [f"class {i}" for i in range(7)]
PREPROCESS = Preprocess(channels=1, size=(4, 4), mean=(0.25,), std=(0.5,), fit="squash")


class Linear(nn.Module):
    """Logits from the pixels; no symmetry."""

    def __init__(self, outputs: int = 7) -> None:
        super().__init__()
        self.map = nn.Linear(16, outputs)
        self.drop = nn.Dropout(0.5)
        nn.init.normal_(self.map.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.map(images.flatten(1)))


def some(count: int = 23) -> Samples:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 6, (count,), generator=generator)  # none of the last class
    return Samples([f"{i}.png" for i in range(count)], labels, list(pixels), 1)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    return Linear().train()


def logits(model: nn.Module, samples: Samples, flip: bool = False) -> Tensor:
    pixels = torch.stack([samples.pixels(i) for i in range(len(samples))]).double() / 255
    inputs = (pixels - 0.25) / 0.5
    layer = model.map  # type: ignore[attr-defined]
    return nn.functional.linear(
        (inputs.flip(-1) if flip else inputs).flatten(1), layer.weight.double(), layer.bias.double()
    ).detach()


def test_figures_by_hand(model: nn.Module) -> None:
    samples = some()
    found = measure(model, samples, PREPROCESS, CLASSES, batch_size=8)
    scores, labels = logits(model, samples).tolist(), samples.labels.tolist()
    nll, right, five = 0.0, [], []
    for row, label in zip(scores, labels, strict=True):
        nll += math.log(sum(math.exp(v) for v in row)) - row[label]
        order = sorted(range(7), key=lambda k: -row[k])
        right.append(order[0] == label)
        five.append(label in order[:5])
    assert found.images == 23
    assert found.top1 == sum(right) / 23
    assert found.top5 == sum(five) / 23
    assert found.nll == pytest.approx(nll / 23, rel=1e-5)
    for k, name in enumerate(CLASSES):
        mine = [r for r, label in zip(right, labels, strict=True) if label == k]
        assert found.support[name] == len(mine)
        assert found.per_class.get(name) == (sum(mine) / len(mine) if mine else None)
    assert "class 6" not in found.per_class
    assert found.confusion.sum() == 23 and int(found.confusion.trace()) == sum(right)
    assert found.images_per_second["model"] > 0 and found.images_per_second["with_loading"] > 0
    assert model.training  # as it was
    true, predicted, count = found.confused(1)[0]
    assert found.confusion[CLASSES.index(true), CLASSES.index(predicted)] == count


def test_ece_by_hand(model: nn.Module) -> None:
    samples = some()
    found = measure(model, samples, PREPROCESS, CLASSES)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits(model, samples).softmax(1).tolist(), samples.labels.tolist(), strict=True):
        confidence = max(row)
        bins.setdefault(math.ceil(confidence * 15) - 1, []).append((confidence, row.index(confidence) == label))
    expected = sum(abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins.values()) / 23
    assert found.ece == pytest.approx(expected, rel=1e-5)
    assert found.reliability.error == pytest.approx(expected, rel=1e-6)
    assert sum(found.reliability.counts) == 23 and len(found.reliability.counts) == 15


@pytest.mark.parametrize("workers", [0, 2])
def test_a_smaller_last_batch_counts_as_it_should(model: nn.Module, workers: int) -> None:
    samples = some()
    whole = measure(model, samples, PREPROCESS, CLASSES, batch_size=23)
    parts = measure(model, samples, PREPROCESS, CLASSES, batch_size=5, workers=workers)
    for name in ("top1", "top5", "per_class", "support"):
        assert getattr(parts, name) == getattr(whole, name)
    assert parts.nll == pytest.approx(whole.nll, rel=1e-6)
    assert torch.equal(parts.confusion, whole.confusion)


def test_flip_averages_the_probabilities(model: nn.Module) -> None:
    samples = some()
    found = measure(model, samples, PREPROCESS, CLASSES, tta="flip")
    mean = (logits(model, samples).softmax(1) + logits(model, samples, flip=True).softmax(1)) / 2
    expected = -mean.log().gather(1, samples.labels[:, None]).mean()
    assert found.nll == pytest.approx(float(expected), rel=1e-5)
    assert found.top1 == float((mean.argmax(1) == samples.labels).double().mean())
    assert found.details["tta"] == "flip"


def test_corruptions_are_measured_on_levels_before_normalisation(model: nn.Module) -> None:
    from srattn.engine.corruptions import corrupt

    samples = some()
    seen: list[tuple[str, int, int]] = []
    found = measure(
        model, samples, PREPROCESS, CLASSES, batch_size=6, corruptions=["contrast", "gaussian_noise"],
        severities=[1, 5], notify=lambda *told: seen.append(told),
    )  # fmt: skip
    pixels = torch.stack([samples.pixels(i) for i in range(23)]).float() / 255
    with torch.no_grad():
        inputs = PREPROCESS.normalise(corrupt(pixels, "contrast", 5, range(23)))
        answers = model.eval()(inputs).argmax(1)
    assert found.corruptions["contrast"][5] == float((answers == samples.labels).double().mean())
    assert {kind: sorted(row) for kind, row in found.corruptions.items()} == {
        "contrast": [1, 5],
        "gaussian_noise": [1, 5],
    }
    values = [a for row in found.corruptions.values() for a in row.values()]
    assert found.corrupted == pytest.approx(sum(values) / 4)
    assert seen[0] == ("clean", 0, 23) and ("contrast 1", 6, 23) in seen
    assert seen[-1] == ("gaussian_noise 5", 23, 23) and ("clean", 23, 23) in seen
    again = measure(
        model, samples, PREPROCESS, CLASSES, batch_size=23, corruptions=["gaussian_noise"], severities=[5], hold_bytes=0
    )
    assert again.corruptions["gaussian_noise"][5] == found.corruptions["gaussian_noise"][5]


def test_json(model: nn.Module) -> None:
    found = measure(model, some(), PREPROCESS, CLASSES, corruptions=["fog"], severities=[3])
    values = json.loads(json.dumps(found.to_dict()))
    assert values["top1"] == found.top1 and values["corruptions"]["fog"]["3"] == found.corruptions["fog"][3]
    assert values["confusion"] == found.confusion.tolist() and values["machine"]["device"] == "cpu"
    assert values["size"] == [4, 4] and len(values["reliability"]["counts"]) == 15


def test_few_classes_have_no_top5() -> None:
    samples = some()
    samples.labels.clamp_(max=4)
    assert measure(Linear(5), samples, PREPROCESS, CLASSES[:5]).top5 is None
    assert measure(Linear(6), samples, PREPROCESS, CLASSES[:6]).top5 is not None


def test_an_unreadable_image_is_left_out_or_refused(model: nn.Module, tmp_path: Path) -> None:
    samples = some(5)
    sources = [*samples.sources]
    sources[2] = tmp_path / "gone.png"
    lost = Samples(samples.names, samples.labels, sources, 1, PREPROCESS.pixels, on_bad_image="skip")
    found = measure(model, lost, PREPROCESS, CLASSES, batch_size=2, corruptions=["contrast"], severities=[1])
    assert found.images == 4
    assert list(found.details["unreadable"]) == [2]
    strict = Samples(samples.names, samples.labels, sources, 1, PREPROCESS.pixels, on_bad_image="error")
    with pytest.raises(SrattnError, match=r"gone.png"):
        measure(model, strict, PREPROCESS, CLASSES)
    none = Samples(["a"], samples.labels[:1], [tmp_path / "gone.png"], 1, PREPROCESS.pixels, on_bad_image="skip")
    with pytest.raises(SrattnError, match=r"no image can be read; the first: .*gone\.png"):
        measure(model, none, PREPROCESS, CLASSES)


def test_what_does_not_fit_is_named(model: nn.Module) -> None:
    with pytest.raises(SrattnError, match="the model has 7 outputs, the data 9 classes"):
        measure(model, some(), PREPROCESS, [*CLASSES, "x", "y"])
    with pytest.raises(SrattnError, match="labels go from 0 to 5, and there are 2 classes"):
        measure(model, some(), PREPROCESS, CLASSES[:2])
    for options, message in (
        ({"tta": "ten"}, "tta is 'none' or 'flip'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"corruptions": ["jpg"]}, "no corruption 'jpg'; did you mean 'jpeg'"),
        ({"severities": [0]}, "severity is 1 to 5, got 0"),
    ):
        with pytest.raises(SrattnError, match=message):
            measure(model, some(), PREPROCESS, CLASSES, **options)  # type: ignore[arg-type]


def test_reliability_of_a_model_that_knows() -> None:
    probabilities = torch.tensor([[0.8, 0.2]] * 10)
    labels = torch.tensor([0] * 8 + [1] * 2)
    found = reliability(probabilities, labels, 10)
    assert found.error == pytest.approx(0.0, abs=1e-7) and found.largest == pytest.approx(0.0, abs=1e-7)
    assert reliability(probabilities, 1 - labels, 10).error == pytest.approx(0.6)
    sure = reliability(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert sure.counts[-1] == 1 and sure.error == 0


def test_bins_by_loops() -> None:
    """A bin holds its upper edge, as 1/2 and 3/4 are here."""
    confidences = [0.5, 0.5, 0.51, 0.6, 0.75, 0.75, 0.76, 0.9, 1.0, 0.55]
    right = [True, False, True, True, False, True, True, False, True, False]
    probabilities = torch.tensor([[1 - c, c] for c in confidences], dtype=torch.float64)
    probabilities[:2] = torch.tensor([0.25, 0.25])  # of which the first is the answer
    probabilities = torch.cat([probabilities, torch.zeros(10, 1, dtype=torch.float64)], 1)
    probabilities[:2, 2] = 0.5
    answers = [2, 2] + [1] * 8
    labels = torch.tensor([a if r else 0 for a, r in zip(answers, right, strict=True)])
    found = reliability(probabilities, labels, 4)
    assert found.edges == (0, 0.25, 0.5, 0.75, 1) and found.counts == (0, 2, 5, 3)
    gaps = []
    for low, high, confidence, accuracy in zip(
        found.edges, found.edges[1:], found.confidence, found.accuracy, strict=False
    ):
        mine = [(c, r) for c, r in zip(confidences, right, strict=True) if low < c <= high]
        count = max(1, len(mine))
        means = sum(c for c, _ in mine) / count, sum(r for _, r in mine) / count
        assert (confidence, accuracy) == pytest.approx(means)
        gaps.append((abs(means[0] - means[1]), len(mine)))
    assert found.largest == pytest.approx(max(gap for gap, _ in gaps))
    assert found.error == pytest.approx(sum(gap * count for gap, count in gaps) / 10)


@pytest.mark.parametrize("seed", range(3))
def test_best_temperature_has_the_least_nll(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logs = (torch.randn(40, 3, generator=generator, dtype=torch.float64) * (1 + 2 * seed)).log_softmax(1)
    labels = torch.where(
        torch.rand(40, generator=generator) < 0.7, logs.argmax(1), torch.randint(3, (40,), generator=generator)
    )
    best = best_temperature(logs, labels)

    def nll(t: float) -> float:
        return float(nn.functional.cross_entropy(logs / t, labels))

    assert 0.05 < best < 20
    assert nll(best) < min(nll(best * 1.0005), nll(best / 1.0005))


def test_best_temperature_undoes_a_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20000, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(scores.softmax(1), 1, generator=generator).squeeze(1)
    for scale in (0.5, 1.0, 3.0):
        assert best_temperature((scores * scale).log_softmax(1), labels) == pytest.approx(scale, rel=0.05)
    assert best_temperature(torch.tensor([[0.0, -9.0]]), torch.tensor([0])) == 0.05
    assert best_temperature(torch.tensor([[0.0, -9.0]]), torch.tensor([1])) == 20.0
