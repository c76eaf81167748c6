"""Small models and a small finished run to tell of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from srattn.explain.report import ReportInputs
from srattn.models import build_model

SMALL = {"embed_dims": (8, 16, 16, 24), "num_heads": (1, 2, 2, 4), "depths": (2, 1, 1, 1), "stem_stride": 1}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # The models here are so small that threads cost more than they bring.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model() -> Callable[..., torch.nn.Module]:
    def make(name: str = "pvt_v2_b0", **overrides: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        options = {"num_classes": 3, "in_chans": 1, "img_size": 16, **SMALL, **overrides}
        return build_model(name, **options).eval()

    return make


@pytest.fixture
def make_inputs(make_model: Callable[..., torch.nn.Module]) -> Callable[..., ReportInputs]:
    def make(classes: list[str], images: int = 30, **changes: Any) -> ReportInputs:
        generator = torch.Generator().manual_seed(1)
        count = len(classes)
        pixels = torch.rand(images, 1, 16, 16, generator=generator)
        labels = torch.arange(images) % count
        logits = torch.randn(images, count, generator=generator) + 3 * torch.nn.functional.one_hot(labels, count)
        history = [
            {"epoch": e, "step": 10.0 * e, "train_loss": 2 / e, "train_accuracy": 1 - 0.5 / e, "val_loss": 2.2 / e}
            | {"val_accuracy": 1 - 0.6 / e, "learning_rate": 1e-3, "images_per_second": 900.0, "seconds": 2.0}
            for e in range(1, 5)
        ]
        fields: dict[str, Any] = {
            "title": "A run",
            "history": history,
            "classes": classes,
            "images": pixels,
            "model_inputs": (pixels - 0.5) / 0.5,
            "labels": labels,
            "probabilities": logits.softmax(dim=1),
            "model": make_model(num_classes=count),
            "config_yaml": "model: pvt_v2_b0\n",
            "result": {"accuracy": 0.9, "machine": {"processor": "a processor", "cores": 2}},
            "skipped": [],
            "measure_scaling": False,
        }
        return ReportInputs(**(fields | changes))

    return make
