"""Depth as a trained task: data, run, weights, measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import srattn
from srattn.data.preprocess import Preprocess
from srattn.engine import TrainConfig, train
from srattn.engine.defaults import resolve
from srattn.engine.run import RunResult
from srattn.engine.weights import load_run, save_weights
from srattn.errors import SrattnError
from srattn.tasks import make_task
from srattn.tasks.depth import depth_map
from srattn.tasks.models import build_task_model, rebuild, task_options

SMALL: dict[str, Any] = {
    "model": "mit_b0",
    "model_options": {"embed_dims": [16, 16, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "head_options": {"hidden": 16},
    "size": 32,
    "threads": 1,
    "num_workers": 0,
    "device": "cpu",
}


def save_slopes(root: Path, count: int = 8, size: tuple[int, int] = (32, 40), unit: float = 0.001) -> Path:
    """Walls that lean: brightness says how far each pixel is, from 1 to 9 metres; a corner is not known."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    for number in range(count):
        across, down = random.uniform(-1, 1, 2)
        slope = across * (x / size[1] - 0.5) + down * (y / size[0] - 0.5)
        depth = np.clip(5 + 5 * slope + random.uniform(-1, 1), 1, 9)
        image = (depth / 10 * 255).round().astype(np.uint8)
        units = (depth / unit).round().astype(np.uint16)
        units[:4, :4] = 0
        for folder, pixels in (("images", np.stack([image] * 3, 2)), ("depths", units)):
            path = root / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    root = tmp_path_factory.mktemp("depth")
    options = SMALL | {"augment": "flip", "epochs": 12, "batch_size": 3, "lr": 5e-3, "warmup_epochs": 1}
    return train(TrainConfig(task="depth", data=str(save_slopes(root / "slopes")), out=str(root / "run"), **options))


def test_a_toy_is_learnt_and_the_run_says_so(finished: RunResult) -> None:
    result = finished.result
    assert result["headline"] == "delta1" and result["delta1"] > 0.9 and result["task"] == "depth"
    assert finished.history[0]["val_delta1"] < 0.9  # which not every start has
    assert {"loss", "abs_rel", "rmse", "delta3"} <= result.keys()
    # two images are held out, at their own size and not at the model's, less a corner each
    assert result["measured_images"] == 2 and result["measured_pixels"] == 2 * (32 * 40 - 16)
    assert finished.config.depth_scale == 0.001 and finished.config.head == "glpn"
    assert finished.evaluation.answers.shape == (2, 3)


def test_weights_come_back_with_all_that_measuring_needs(finished: RunResult) -> None:
    run = load_run(finished.folder)
    assert run.task == "depth" and run.classes == ["depth"] and run.name == "mit_b0" and run.preprocess.fit == "shorter"
    images = torch.rand(1, 3, 33, 47)
    outputs = run.model(images)
    assert torch.equal(outputs, finished.model(images))
    assert depth_map(outputs, (66, 90)).shape == (1, 66, 90)
    task: Any = make_task(run.task, run.classes, **task_options(run.model))
    assert task.max_depth == run.model.max_depth == 10.0  # type: ignore[attr-defined]
    metrics = task.metrics()
    for batch in finished.loader.val():
        metrics.update(run.model(batch.inputs), batch.labels)
    assert metrics.compute() == pytest.approx({name: finished.result[name] for name in metrics.compute()})


def test_the_farthest_is_one_number_for_head_data_and_task(tmp_path: Path) -> None:
    data = save_slopes(tmp_path / "far", 4, unit=1 / 256)
    notes: list[str] = []

    class Notes:
        def __getattr__(self, name: str) -> Any:
            return notes.append if name == "note" else lambda *args: None

    options = SMALL | {"head_options": {"hidden": 16, "max_depth": 4}, "epochs": 1, "augment": "none"}
    config = TrainConfig(task="depth", data=str(data), out=str(tmp_path / "run"), depth_scale=1 / 256, **options)
    done = train(config, Notes())  # type: ignore[arg-type]
    assert any("beyond 4 metres" in note for note in notes)
    assert load_run(done.folder).model.max_depth == 4.0  # type: ignore[attr-defined]
    every = 2 if done.result["val_images"] == 2 else 1
    assert 0 < done.result["measured_pixels"] < every * (32 * 40 - 16)


def test_refusals_name_the_way_out(tmp_path: Path) -> None:
    data = str(save_slopes(tmp_path / "slopes", 2))
    for options, words in (
        ({"task": "segment", "data": data, "depth_scale": 0.001}, "--depth_scale has no meaning for segmentation"),
        ({"task": "depth", "data": data, "loss": "ce"}, "--loss has no meaning for depth, which learns from depths"),
        ({"task": "depth", "data": data, "depth_scale": -1.0}, "depth_scale is metres a unit"),
        ({"task": "depth"}, "takes a folder of images and depths"),
    ):
        with pytest.raises(SrattnError, match=words):
            resolve(TrainConfig(**options))
    for options, words in (
        ({"head": "fcos"}, "no head 'fcos'.*; depth has: glpn"),
        ({"head_options": {"max_dept": 3}}, "did you mean 'max_depth'"),
        ({"head_options": {"max_depth": 0.0}}, "max_depth takes a number above 0"),
        ({"data": str(tmp_path)}, "no images with depths"),
    ):
        with pytest.raises(SrattnError, match=words):
            train(TrainConfig(**{"task": "depth", "data": data, **SMALL, **options}))
    with pytest.raises(SrattnError, match="stride 4"):
        build_task_model("depth", "mit_b0", 1, stem_stride=2)


def test_a_model_is_built_again_from_its_config() -> None:
    options = SMALL["model_options"]
    model: Any = build_task_model("depth", "mit_b0", 1, "glpn", {"hidden": 8, "max_depth": 80}, **options)
    again: Any = rebuild(model.config, device="meta")
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert again.max_depth == 80 and again.num_classes == 1 and task_options(again) == {"max_depth": 80.0}


def test_published_numbers_through_the_task(shared: Path, tmp_path: Path) -> None:
    """The weights of another implementation in the task's model, measured against what it made of them."""
    entry = json.loads((shared / "goldens" / "index.json").read_text())["glpn_depth_hf"]
    tensors = load_file(shared / "goldens" / "glpn_depth_hf.safetensors")
    config = entry["config"]
    model: Any = build_task_model(
        "depth",
        "mit_b0",
        1,
        "glpn",
        {"hidden": config["decoder_hidden_size"], "max_depth": config["max_depth"]},
        embed_dims=config["hidden_sizes"],
        depths=config["depths"],
        num_heads=config["num_attention_heads"],
        sr_ratios=config["sr_ratios"],
        mlp_ratios=config["mlp_ratios"],
    )
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    report = srattn.load_checkpoint(model.eval(), state)
    assert report.layout == "transformers" and not report.missing and not report.unexpected
    save_weights(tmp_path / "model.safetensors", model, ["depth"], Preprocess(fit="shorter"), task="depth")
    run = load_run(tmp_path / "model.safetensors")
    task: Any = make_task(run.task, run.classes, **task_options(run.model))
    metrics, worst = task.metrics(), 0.0
    for number in range(len(entry["input_sizes"])):
        images, theirs = tensors[f"run{number}.input"], tensors[f"run{number}.output"]
        with torch.no_grad():
            ours = run.model(images)
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
        metrics.update(ours, theirs)
    figures = metrics.compute()
    assert worst <= 1e-5, worst  # the limit of benchmarks/parity.py
    assert figures["delta1"] == 1 and figures["abs_rel"] < 1e-5 and figures["rmse"] < 1e-4
    assert metrics.details()["measured_images"] == 2 * entry["batch"]
