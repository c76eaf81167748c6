"""What a classifier is worth on labelled images: accuracy, calibration, robustness, speed."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from srattn.data.ahead import ahead
from srattn.data.preprocess import Preprocess
from srattn.data.samples import Samples
from srattn.engine.calibration import Reliability, best_temperature, reliability
from srattn.engine.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from srattn.errors import SrattnError, missing_extra, nearest

BINS = 15
_CONFUSION_UP_TO = 200  # classes, in to_dict
_ALONE_SECONDS = 2.0

Notify = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The result of `measure`; accuracies are fractions.

    Attributes:
        top1, top5: of all images; top5 is None for five classes or fewer.
        nll: negative log likelihood, nats an image.
        ece: expected calibration error over 15 bins of confidence.
        temperature: what the logits would have to be divided by for the least nll; above 1 is overconfident. Fitted
            to these very images: a diagnosis, no figure of merit.
        per_class: accuracy by class, of those that have images.
        support: images by class.
        confusion: (K, K), a row for each true class and a column for each predicted one.
        corruptions: accuracy by kind and severity; empty where not asked for.
        images_per_second: "model", batches that lie ready on the device; "with_loading", from files to answers.
        details: facts of the measurement: data, size, batch, machine, versions.
    """

    classes: list[str]
    images: int
    top1: float
    top5: float | None
    nll: float
    ece: float
    temperature: float
    per_class: dict[str, float]
    support: dict[str, int]
    confusion: Tensor
    reliability: Reliability
    corruptions: dict[str, dict[int, float]]
    images_per_second: dict[str, float]
    details: dict[str, Any]

    @property
    def corrupted(self) -> float | None:
        """The mean accuracy over all corruptions and severities."""
        values = [value for row in self.corruptions.values() for value in row.values()]
        return statistics.fmean(values) if values else None

    def confused(self, count: int = 5) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: true class, predicted class, images."""
        wrong = self.confusion.clone().fill_diagonal_(0).flatten()
        values, places = wrong.sort(descending=True, stable=True)
        size = len(self.classes)
        pairs = zip(values[:count].tolist(), places[:count].tolist(), strict=True)
        return [(self.classes[p // size], self.classes[p % size], n) for n, p in pairs if n]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of more than 200 classes the confusion matrix stays out."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        details, values["reliability"] = values.pop("details"), self.reliability.to_dict()
        values["confusion"] = self.confusion.tolist() if len(self.classes) <= _CONFUSION_UP_TO else None
        values["corruptions"] = {k: {str(s): a for s, a in row.items()} for k, row in self.corruptions.items()}
        return {**values, "corrupted": self.corrupted, "confused": self.confused(20), **details}


def measure(
    model: nn.Module,
    samples: Samples,
    preprocess: Preprocess,
    classes: Sequence[str],
    *,
    batch_size: int = 64,
    workers: int = 0,
    tta: Literal["none", "flip"] = "none",
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = SEVERITIES,
    hold_bytes: int = 1 << 30,
    notify: Notify | None = None,
) -> Measurement:
    """Measures `model` in eval mode on its own device; each image counts once, whatever the batch size.

    Args:
        model: from what `preprocess` makes (B, C, H, W) to logits (B, K).
        samples: images as `preprocess.pixels` makes them, with labels that number `classes`.
        tta: "flip" averages the probabilities of an image and its mirror image.
        corruptions: of `srattn.engine.corruptions.CORRUPTIONS`, applied at the model's size and before normalisation.
        hold_bytes: the decoded images are kept for the passes over corruptions if they need no more than this.
        workers: threads that decode and corrupt ahead of the model.
        notify: told the name of a pass, the images done in it and all of them.

    Raises:
        SrattnError: no usable image, labels beyond the classes, an unknown corruption, or a model of other outputs.
        BadImage: an unreadable image, if `samples.on_bad_image` is "error".
    """
    _check(samples, classes, batch_size, tta, corruptions, severities)
    exam = _Exam(model, samples, preprocess, batch_size, workers, tta == "flip", notify or (lambda *_: None))
    training = model.training
    model.eval()
    try:
        probabilities, labels, seconds = exam.clean(hold_bytes if corruptions else 0)
        if probabilities.shape[1] != len(classes):
            raise SrattnError(f"the model has {probabilities.shape[1]} outputs, the data {len(classes)} classes")
        alone = exam.alone()
        robust = {kind: {s: exam.corrupted(kind, s) for s in severities} for kind in corruptions}
    finally:
        model.train(training)
    from srattn.engine.results import machine, versions  # with the whole engine behind it

    figures = _figures(probabilities, labels, list(classes))
    speed = {"model": round(alone, 2), "with_loading": round(len(labels) / max(seconds, 1e-9), 2)}
    details = {
        "size": list(preprocess.size),
        "tta": tta,
        "batch_size": batch_size,
        "workers": workers,
        "parameters": sum(p.numel() for p in model.parameters()),
        "unreadable": dict(sorted(samples.lost.items())),
        "versions": versions(),
        "machine": machine(exam.device),
    }
    return Measurement(**figures, corruptions=robust, images_per_second=speed, details=details)


class _Exam:
    """Passes of one model over one set of images."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        preprocess: Preprocess,
        batch_size: int,
        workers: int,
        flip: bool,
        notify: Notify,
    ) -> None:
        self.model, self.samples, self.preprocess = model, samples, preprocess
        self.batch_size, self.workers, self.flip, self.notify = batch_size, workers, flip, notify
        self.device = next(model.parameters()).device
        self._held: dict[int, Tensor] = {}
        self._batch: Tensor | None = None

    @torch.inference_mode()
    def answer(self, levels: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] on the device to log probabilities (B, K), float64 on the CPU."""
        inputs = self.preprocess.normalise(levels)
        logs = self.model(inputs).double().log_softmax(1)
        if self.flip:
            mirrored = self.model(inputs.flip(-1)).double().log_softmax(1)
            logs = torch.logaddexp(logs, mirrored) - torch.log(torch.tensor(2.0, dtype=torch.float64))
        return logs.cpu()

    def clean(self, hold_bytes: int) -> tuple[Tensor, Tensor, float]:
        """Log probabilities (N, K), labels (N,) and the seconds that it took from files to answers."""
        logs, labels = [], []
        height, width = self.preprocess.size
        hold = len(self.samples) * self.preprocess.channels * height * width <= hold_bytes
        began = time.perf_counter()
        for indices, pixels in self._batches(lambda indices: self._read(indices, hold), "clean"):
            if len(indices):
                levels = _levels(pixels, self.device)
                logs.append(self.answer(levels))
                labels.append(self.samples.labels[indices])
                self._batch = levels if self._batch is None else self._batch
        if not logs:
            first = next(iter(self.samples.lost.values()), "there is none")
            raise SrattnError(f"no image can be read; the first: {first}")
        return torch.cat(logs), torch.cat(labels), time.perf_counter() - began

    def corrupted(self, kind: str, severity: int) -> float:
        """The accuracy on corrupted images."""

        def make(indices: Tensor) -> tuple[Tensor, Tensor]:
            indices, pixels = self._read(indices, False)
            images = corrupt(pixels.float() / 255, kind, severity, indices.tolist()) if len(indices) else pixels
            return indices, images

        right = count = 0
        for indices, images in self._batches(make, f"{kind} {severity}"):
            if len(indices):
                answers = self.answer(images.to(self.device)).argmax(1)
                right += int((answers == self.samples.labels[indices]).sum())
                count += len(indices)
        return right / max(count, 1)

    def alone(self) -> float:
        """Images a second of the model alone, test-time augmentation included: the median of its steps."""
        assert self._batch is not None
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 3 or (time.perf_counter() - began < _ALONE_SECONDS and len(times) < 50):
            self._wait()
            start = time.perf_counter()
            self.answer(self._batch)
            self._wait()
            times.append(time.perf_counter() - start)
        return len(self._batch) / statistics.median(times[1:])  # the first one warms up

    def _batches(self, make: Callable[[Tensor], tuple[Tensor, Tensor]], what: str) -> Iterator[tuple[Tensor, Tensor]]:
        """`make(indices)` for all images, made ahead of the model."""
        total, done = len(self.samples), 0
        self.notify(what, 0, total)
        chosen = torch.arange(total).split(self.batch_size)
        for wanted, (indices, images) in zip(chosen, ahead(make, chosen, self.workers), strict=True):
            yield indices, images
            done += len(wanted)
            self.notify(what, done, total)

    def _read(self, indices: Tensor, hold: bool) -> tuple[Tensor, Tensor]:
        """Those of `indices` that can be read, and their pixels, uint8 (B, C, H, W)."""
        found, pixels = [], []
        for index in indices.tolist():
            picture = self._held.get(index)
            if picture is None:
                picture = None if index in self.samples.lost else self.samples.try_pixels(index)
                if picture is None:
                    continue
                if hold:
                    self._held[index] = picture
            found.append(index)
            pixels.append(picture)
        stacked = torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8)
        return torch.tensor(found, dtype=torch.int64), stacked

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _levels(pixels: Tensor, device: torch.device) -> Tensor:
    return pixels.to(device).float() / 255


def _figures(logs: Tensor, labels: Tensor, classes: list[str]) -> dict[str, Any]:
    """Everything that follows from the log probabilities (N, K) of the clean images and their labels (N,)."""
    try:
        from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix
    except ImportError:
        raise missing_extra("torchmetrics", "train") from None
    count, size = logs.shape
    probabilities, answers = logs.exp(), logs.argmax(1)
    confusion = multiclass_confusion_matrix(answers, labels, num_classes=size)
    support = confusion.sum(1)
    ece = multiclass_calibration_error(probabilities, labels, num_classes=size, n_bins=BINS)
    five = None
    if size > 5:
        five = float((logs.topk(5, 1).indices == labels.unsqueeze(1)).any(1).double().mean())
    rows = zip(classes, confusion.diagonal().tolist(), support.tolist(), strict=True)
    return {
        "classes": classes,
        "images": count,
        "top1": float((answers == labels).double().mean()),
        "top5": five,
        "nll": float(-logs.gather(1, labels.unsqueeze(1)).mean()),
        "ece": float(ece),
        "temperature": round(best_temperature(logs, labels), 4),
        "per_class": {name: right / have for name, right, have in rows if have},
        "support": dict(zip(classes, support.tolist(), strict=True)),
        "confusion": confusion,
        "reliability": reliability(probabilities, labels, BINS),
    }


def _check(
    samples: Samples,
    classes: Sequence[str],
    batch_size: int,
    tta: str,
    corruptions: Sequence[str],
    severities: Sequence[int],
) -> None:
    if batch_size < 1:
        raise SrattnError(f"batch_size must be at least 1, got {batch_size}")
    if tta not in ("none", "flip"):
        raise SrattnError(f"tta is 'none' or 'flip', got {tta!r}")
    for kind in corruptions:
        if kind not in CORRUPTIONS:
            hint = nearest(kind, CORRUPTIONS)
            raise SrattnError(f"no corruption {kind!r}{hint}; there are {', '.join(CORRUPTIONS)}")
    for severity in severities:
        if severity not in range(1, 6):
            raise SrattnError(f"severity is 1 to 5, got {severity}")
    if not len(samples):
        raise SrattnError("there are no images to measure")
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if low < 0 or high >= len(classes):
        raise SrattnError(f"labels go from {low} to {high}, and there are {len(classes)} classes")
