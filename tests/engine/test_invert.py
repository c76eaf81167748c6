"""Light and dark are exchanged once, by whatever asks the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from srattn.data.preprocess import Preprocess
from srattn.engine.scene_predict import Looking, predict_depth, predict_joints, predict_mask, predict_objects
from srattn.engine.weights import LoadedRun
from srattn.tasks.models import build_task_model

BODY = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
EVERY = Looking(threshold=0)
CASES: list[tuple[str, str, dict[str, Any], Any]] = [
    ("segmentation", "segformer", {"hidden": 16}, predict_mask),
    ("depth", "glpn", {"hidden": 8}, predict_depth),
    (
        "detection",
        "fcos",
        {"width": 16, "convs": 1},
        lambda run, image, _: predict_objects(run, image, Looking(threshold=0))[0],
    ),
    ("pose", "heatmap", {"width": 16}, lambda run, image, _: predict_joints(run, image)),
]


@pytest.mark.parametrize(("task", "head", "options", "predict"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("looking", [Looking(), Looking(native=True), Looking(flip=True)], ids=repr)
def test_an_inverted_picture_is_seen_as_its_negative(
    task: str, head: str, options: dict[str, Any], predict: Any, looking: Looking
) -> None:
    model: Any = build_task_model(task, "mit_b0", 3 if task != "depth" else 1, head, options, **BODY)
    if task == "segmentation":
        torch.nn.init.normal_(model.head.classifier.weight, std=3.0)
    preprocess = Preprocess(size=(32, 32), fit="inside" if task == "detection" else "squash")
    run = LoadedRun(model.eval(), ["a", "b", "c"], preprocess, {}, Path("-"), task)
    always = dataclasses.replace(run, preprocess=dataclasses.replace(preprocess, invert="always"))
    noise = torch.randint(0, 90, (9 * 7 * 3,), dtype=torch.uint8).numpy().tobytes()
    picture = Image.frombytes("RGB", (9, 7), noise).resize((70, 50))
    found, expected = predict(always, picture, looking), predict(run, ImageChops.invert(picture), looking)
    assert torch.equal(found, expected) and not torch.equal(predict(run, picture, looking), expected)
