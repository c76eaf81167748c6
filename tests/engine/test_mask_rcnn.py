"""Detectors of two stages through the engine: trained, resumed, divided, measured and predicted with masks."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scenes import HEIGHT, SMALL, VAL, WIDTH, shapes

from srattn.cli.main import main
from srattn.engine import Interrupted, TrainConfig, train
from srattn.engine.rows import open_rows
from srattn.engine.scene_exam import measure_scenes
from srattn.engine.scene_folder import write_folder
from srattn.engine.scene_predict import Looking, predict_boxes, predict_objects
from srattn.engine.weights import load_run
from srattn.errors import SrattnError
from srattn.explain import scene_pictures
from srattn.ops.run_lengths import decode_runs, read_runs
from srattn.tasks.detection.stages.model import TwoStageModel

Launch = Callable[..., list[Any]]  # see conftest

TINY = SMALL | {"task": "detect", "size": 48, "epochs": 1}
HEAD: dict[str, Any] = {"width": 16, "hidden": 16, "proposals": 30, "regions": 16, "answers": 10}
MASKS = HEAD | {"mask_hidden": 8, "mask_convs": 1}


@pytest.fixture(scope="module")
def given(coco_folder: Path) -> dict[str, Any]:
    return TINY | {"head": "mask_rcnn", "head_options": MASKS, "data": str(coco_folder)}


@pytest.fixture(scope="module")
def run(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks") / "run"
    train(TrainConfig(**given, out=str(folder)))
    return folder


def test_a_run_says_what_it_is_and_is_worth_the_same_again(run: Path, given: dict[str, Any]) -> None:
    loaded, result = load_run(run), json.loads((run / "result.json").read_text())
    assert isinstance(loaded.model, TwoStageModel) and loaded.model.has_masks
    assert {"map50", "map", "map75", "segm_map50", "segm_map", "segm_map75"} <= set(result) and "loss" not in result
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train_loss", "train_mask_loss", "train_objectness_loss", "val_segm_map"} <= set(history[-1])
    found = measure_scenes(loaded, str(given["data"]), batch_size=3)
    assert len(found.data.val) == VAL and found.figures == {name: result[name] for name in found.figures}


def test_interrupted_and_resumed_it_ends_in_the_same_bits(given: dict[str, Any], run: Path, tmp_path: Path) -> None:
    def on_step(step: int) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(TrainConfig(**given, out=str(tmp_path / "run")), on_step=on_step)
    train(TrainConfig(resume=str(tmp_path / "run")))
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_two_processes(given: dict[str, Any], launch: Launch, tmp_path: Path) -> None:
    two = launch(2, options=given | {"out": str(tmp_path / "two"), "distributed": "ddp"})
    assert [process.code for process in two] == [0, 0], [process.text for process in two]
    assert two[0].report["history"] == two[1].report["history"] and two[0].report["answers"] == VAL
    assert "val_segm_map" in two[0].report["history"][-1]


def test_a_folder_of_predictions(run: Path, given: dict[str, Any], tmp_path: Path) -> None:
    loaded, rows = load_run(run), open_rows([str(Path(given["data"]) / "val")])
    pictures: list[torch.Tensor] = []

    def draw(pixels: torch.Tensor, answer: torch.Tensor, of: Any, path: Path) -> None:
        pictures.append(pixels)
        path.write_bytes(b"")

    assert write_folder(tmp_path / "out", loaded, rows, Looking(threshold=0.0), draw, pytest.fail) == VAL
    assert len(pictures) == VAL and pictures[0].shape == (3, HEIGHT, WIDTH)
    entries = json.loads((tmp_path / "out" / "coco.json").read_text())
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert entries and len(entries) == sum(len(record["boxes"]) for record in records)
    for entry in entries:
        mask = entry["segmentation"]
        assert mask["size"] == [HEIGHT, WIDTH]
        inside = decode_runs(torch.tensor(read_runs(mask["counts"], HEIGHT * WIDTH)), (HEIGHT, WIDTH))
        x, y, width, height = entry["bbox"]
        places = inside.nonzero()
        if len(places):
            assert places[:, 1].min() + 0.51 >= x and places[:, 1].max() + 0.49 <= x + width
            assert places[:, 0].min() + 0.51 >= y and places[:, 0].max() + 0.49 <= y + height
    image = Image.fromarray(next(shapes(1, 5))[0])
    boxes, masks = predict_objects(loaded, image, Looking(threshold=0.0))
    assert masks is not None and len(masks) == len(boxes)
    assert torch.equal(boxes, predict_boxes(loaded, image, Looking(threshold=0.0)))


def test_on_the_command_line(
    run: Path, given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = str(Path(given["data"]) / "val"), tmp_path / "out"
    assert main(["predict", images, "--model", str(run), "--out", str(out), "--threshold", "0.05"]) == 0
    assert len(list(out.rglob("overlays/**/*.png"))) == VAL and not (out / "masks").exists()
    capsys.readouterr()
    measure = ["eval", "--model", str(run), "--data", given["data"], "--num_workers", "0", "--format", "json"]
    tints: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_pictures, "tinted", lambda image, masks, *more: (tints.append(len(masks)), image)[1])
        assert main([*measure, "--picture", str(tmp_path / "cases.png")]) == 0
    assert len(tints) == 2 * VAL and any(tints[::2])  # truth and prediction of each image
    assert "segm_map50" in json.loads(capsys.readouterr().out.rpartition("}")[0] + "}")
    assert main(["export", str(run), "--out", str(tmp_path / "model.pt2")]) == 2
    assert "two stages" in capsys.readouterr().err


def test_boxes_alone(box_folder: Path, given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match="--head faster_rcnn"):
        train(TrainConfig(**given | {"data": str(box_folder)}, out=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()
    options = given | {"data": str(box_folder), "head": "faster_rcnn", "head_options": HEAD}
    result = train(TrainConfig(**options, out=str(tmp_path / "run"))).result
    assert "map50" in result and "segm_map" not in result
    image = Image.fromarray(next(shapes(1, 5))[0])
    boxes, masks = predict_objects(load_run(tmp_path / "run"), image, Looking(threshold=0.0))
    assert boxes.shape[1] == 6 and masks is None
