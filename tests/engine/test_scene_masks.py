"""A mask that is predicted, or drawn, is the mask that was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srattn.data.dense import Scenes, Target
from srattn.data.preprocess import Preprocess
from srattn.engine.scene_predict import Looking, predict_mask
from srattn.engine.weights import LoadedRun
from srattn.explain import scene_sheet
from srattn.tasks.models import build_task_model
from srattn.tasks.segmentation import class_map

BODY = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
NAMES = ["sky", "road", "tree"]


def made(outputs: int) -> LoadedRun:
    """A model of random weights, sure of what it says: there the way of enlarging decides at every edge."""
    torch.manual_seed(0)
    model: Any = build_task_model("segmentation", "mit_b0", outputs, "segformer", {"hidden": 16}, **BODY)
    torch.nn.init.normal_(model.head.classifier.weight, std=3.0)
    names = NAMES[: max(2, outputs)]
    return LoadedRun(model.eval(), names, Preprocess(size=(32, 32), fit="shorter"), {}, Path("-"), "segmentation")


@pytest.fixture
def picture() -> Image.Image:
    noise = torch.randint(0, 256, (9 * 7 * 3,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.frombytes("RGB", (9, 7), noise.numpy().tobytes()).resize((111, 73))


@pytest.mark.parametrize("outputs", [1, 3])
def test_predicted_and_drawn_as_measured(picture: Image.Image, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run, size = made(outputs), (picture.height, picture.width)
    pixels = run.preprocess.pixels(picture)
    with torch.inference_mode():
        measured = class_map(run.model(run.preprocess.normalise(pixels.unsqueeze(0).float() / 255)), size)[0]
    assert len(measured.unique()) == max(2, outputs)
    # Rounding may decide where two classes are equally likely, which is nowhere in many thousand pixels.
    assert float((predict_mask(run, picture) != measured).float().mean()) < 1e-3

    drawn: list[torch.Tensor] = []

    def kept(image: torch.Tensor, truth: torch.Tensor, found: torch.Tensor, *_: Any, **__: Any) -> Image.Image:
        drawn.append(found)
        return picture

    monkeypatch.setattr(scene_sheet, "side_by_side", kept)
    target = Target(mask=torch.zeros(size, dtype=torch.uint8))
    samples = Scenes(["one"], torch.zeros(1, dtype=torch.int64), [pixels], 3, kept={0: target})
    assert scene_sheet.case(run, samples, 0) is picture
    assert float((drawn[0] != measured).float().mean()) < 1e-3


def test_sizes_are_averaged_on_the_finest_grid_in_any_order(picture: Image.Image) -> None:
    run = made(3)
    one, other = (predict_mask(run, picture, Looking(scales=scales)) for scales in ((0.5, 2.0), (2.0, 0.5)))
    assert torch.equal(one, other)


class Both(torch.nn.Module):
    """The logits of a foreground, and zeros for all else."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.model(images)
        return torch.cat([logits * 0, logits], 1)


@pytest.mark.parametrize("looking", [Looking(native=True), Looking(native=True, flip=True, scales=(0.5, 1.0))])
def test_windows_take_a_model_of_one_logit(picture: Image.Image, looking: Looking) -> None:
    run = made(1)
    found = predict_mask(run, picture, looking)
    both: Any = Both(run.model)
    assert torch.equal(found, predict_mask(dataclasses.replace(run, model=both), picture, looking))
    assert found.shape == (73, 111) and found.unique().tolist() == [0, 1]
