"""``srattn export`` and ``srattn predict --model FILE``: the same answers from the file as from the run."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import srattn
from srattn.cli.main import main
from srattn.data.palette import Palette
from srattn.data.preprocess import Preprocess, to_tensor
from srattn.engine.weights import LoadedRun, load_run, save_weights
from srattn.export import Options
from srattn.export.opened import open_export

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three classes, in the form of a run's weights."""
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        numbers = {"embed_dims": (8, 16), "num_heads": (1, 2), "mlp_ratios": (2, 2), "depths": (1, 1)}
        model = srattn.create_model("pvt_v2_b0", num_classes=3, sr_ratios=(2, 1), **numbers).eval()
        with torch.no_grad():
            model.head.weight.mul_(40)  # type: ignore[operator]
    save_weights(path, model, ["ant", "bee", "cat"], Preprocess(size=(40, 40)))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, size in enumerate([(64, 48), (40, 90), (37, 37)]):
        generator = torch.Generator().manual_seed(index)
        small = torch.randint(0, 256, (9 * 7 * 3,), generator=generator, dtype=torch.uint8)
        Image.frombytes("RGB", (9, 7), small.numpy().tobytes()).resize(size).save(folder / f"{index}.png")
    return folder


def predicted(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["predict", *arguments, "--format", "csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


@pytest.mark.parametrize("options", [[], ["--preprocess"]], ids=["images", "pictures"])
def test_predicts_from_the_file_as_from_the_run(
    options: list[str], weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert main(["export", str(weights), "--out", str(out), "--images", str(photos), *options]) == 0
    said = capsys.readouterr().out
    assert "verified against eager on" in said and ("tolerance 1.0e-05" in said) == (not options)
    from_file = predicted([str(photos), "--model", str(out)], capsys)
    from_run = predicted([str(photos), "--model", str(weights)], capsys)
    assert len(from_file) == 3 and from_file[0].keys() == from_run[0].keys()
    for a, b in zip(from_file, from_run, strict=True):
        assert (a["path"], a["class"]) == (b["path"], b["class"])
        # Resizing in the graph may round a level differently.
        assert float(a["probability"]) == pytest.approx(float(b["probability"]), abs=2e-2 if options else 1e-5)
    if not options:
        assert main(["embed", str(photos), "--model", str(out), "--out", str(tmp_path / "v.parquet")]) == 2
        assert "no features to embed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", f"{os.devnull}/model.onnx"], "cannot be written (not a directory"),
        (["--out", "model.txt"], "--out ends in .pt2, .onnx or .xml"),
        (["--out", "model.pt2", "--format", "onnx"], "is called NAME.onnx"),
        (["--out", "model.onnx", "--batch", "many"], "--batch is dynamic or at least 1, got 'many'"),
        (["--out", "model.onnx", "--size", "2x3x4"], "HEIGHTxWIDTH, got '2x3x4'"),
        (["--out", "model.onnx", "--dynamic", "height,depth"], "--dynamic is of height, width, got 'depth'"),
        (
            ["--out", "model.onnx", "--precision", "int8"],
            "--precision int8 needs images like those to come: --calibrate FOLDER",
        ),
        (
            ["--out", "model.onnx", "--calibrate", "photos"],
            "--calibrate goes with --precision int8 or int8-weights, got --precision float32",
        ),
        (["--out", "model.pt2", "--precision", "int8"], "--precision of torch is float32, bfloat16, got 'int8'"),
        (["--out", "model.onnx", "--formt", "onnx"], "did you mean '--format'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], words: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(weights), *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_calibrates_on_a_folder_and_says_what_it_costs(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    options = ["--precision", "int8", "--calibrate", str(photos), "--sensitivity", "--keep_float", "head"]
    assert main(["export", str(weights), "--out", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert "calibrated on 2 images; on 1 others noise is" in said
    assert "most is lost by" in said and "kept in float: head" in said
    assert len(predicted([str(photos), "--model", str(out)], capsys)) == 3


@pytest.mark.parametrize("beside", ["masks", "depths"])
@pytest.mark.parametrize("parts", [("",), ("train", "val")])
def test_masks_and_depths_are_no_images_to_calibrate_on(tmp_path: Path, beside: str, parts: tuple[str, ...]) -> None:
    from srattn.cli.export import _real_images

    for part in parts:
        for folder, level in (("images", 255), (beside, 0)):
            (tmp_path / folder / part).mkdir(parents=True)
            Image.new("L", (8, 8), level).save(tmp_path / folder / part / "0.png")
    preprocess = Preprocess(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    loaded = LoadedRun(torch.nn.Identity(), ["a"], preprocess, {}, tmp_path)  # type: ignore[arg-type]
    found = _real_images(loaded, str(tmp_path), Options(size=(8, 8)), 6, "--calibrate", together=False)
    assert [float(image.mean()) for image in found] == [1.0] * len(parts)


def test_images_to_calibrate_on_come_from_all_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from srattn.cli import export

    for level in range(12):
        Image.new("L", (8, 8), 20 * level).save(tmp_path / f"{level:02}.png")
    monkeypatch.setattr(export, "_BLOCK", 2)
    plain = Preprocess(channels=1, size=(8, 8), mean=(0.0,), std=(1.0,), fit="squash")
    loaded = LoadedRun(None, [], plain, {}, tmp_path)  # type: ignore[arg-type]
    found = export._real_images(loaded, str(tmp_path), Options(size=(8, 8)), 6, "--calibrate", together=False)
    assert [round(float(batch.mean()) * 255 / 20) for batch in found] == [0, 1, 4, 5, 8, 9]


def test_nothing_is_overwritten(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    assert main(["export", str(weights), "--out", str(out)]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert out.read_text() == "mine"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of masks and of boxes that find something, in the form of a run's weights."""
    from srattn.tasks.dense import segmentation_model
    from srattn.tasks.detection.model import fcos

    numbers = {
        "embed_dims": (4, 4, 8, 8),
        "num_heads": (1, 1, 2, 2),
        "mlp_ratios": (1, 1, 1, 1),
        "depths": (1, 1, 1, 1),
    }
    found = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        short = {key: value[1:3] for key, value in numbers.items()}
        masks = segmentation_model("pvt_v2_b0", 3, "segformer", {"hidden": 8}, sr_ratios=(2, 1), **short).eval()
        boxes = fcos("pvt_v2_b0", 3, width=8, convs=1, levels=3, norm="none", **numbers).eval()
        with torch.no_grad():
            boxes.head.classifier.weight.mul_(60)  # type: ignore[union-attr,operator]
            boxes.head.classifier.bias.fill_(-1.0)  # type: ignore[union-attr,operator]
    for task, model, fit in (("segmentation", masks, "shorter"), ("detection", boxes, "inside")):
        path = tmp_path_factory.mktemp(task) / "model.safetensors"
        preprocess = Preprocess(size=(64, 64), fit=fit)
        palette = Palette(("ant", "bee", "cat"), ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
        told: dict[str, Any] = {"palette": palette} | ({"of_255": "void"} if task == "segmentation" else {})
        save_weights(path, model, ["ant", "bee", "cat"], preprocess, task=task, **told)  # type: ignore[arg-type]
        found[task] = path
    return found


def answered(model: Path, photos: Path, out: Path, *options: str) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """The list of answers, and the masks, of a folder that predict writes."""
    assert main(["predict", str(photos), "--model", str(model), "--out", str(out), *options]) == 0
    assert len(list((out / "overlays").rglob("*.png"))) == 3
    masks = [to_tensor(Image.open(path))[0] for path in sorted((out / "masks").rglob("*.png"))]
    return json.loads((out / "predictions.json").read_text()), masks


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--preprocess", "--outputs", "classes"]], ids=["images", "pictures"])
def test_segments_from_the_file_as_from_the_run(
    options: list[str], scenes: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = scenes["segmentation"]
    out = tmp_path / "model.pt2"
    assert main(["export", str(weights), "--out", str(out), "--images", str(photos), *options]) == 0
    assert f"outputs {options[-1] if options else 'logits'}" in capsys.readouterr().out
    assert open_export(out).of_255 == load_run(weights).of_255 == "void"
    if options:  # one size: what keeps its shape in the run is stretched here
        loaded = load_run(weights)
        weights = tmp_path / "stretched.safetensors"
        preprocess = dataclasses.replace(loaded.preprocess, fit="squash")
        save_weights(weights, loaded.model, loaded.classes, preprocess, task=loaded.task, palette=loaded.palette)
    from_file, masks = answered(out, photos, tmp_path / "file")
    from_run, others = answered(weights, photos, tmp_path / "run")
    assert [each["mask"] for each in from_file["images"]] == [each["mask"] for each in from_run["images"]]
    assert (from_file["task"], from_file["classes"]) == ("segmentation", ["ant", "bee", "cat"])
    assert len(masks) == 3
    for mask, other in zip(masks, others, strict=True):
        assert mask.shape == other.shape and len(other.unique()) > 1
        # Probabilities are enlarged by the run, logits by the file; and levels may be rounded differently.
        assert float((mask == other).float().mean()) > (0.97 if options else 0.9999)
    if options:
        assert main(["predict", str(photos), "--model", str(out), "--scales", "[1.0,1.5]"]) == 2
        assert "resizes pictures itself" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".pt2", ["--preprocess"]), (".onnx", ["--nms", "in"])],
    ids=["pictures", "suppressed"],
)
def test_finds_boxes_from_the_file_as_from_the_run(
    suffix: str, options: list[str], scenes: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"model{suffix}"
    assert main(["export", str(scenes["detection"]), "--out", str(out), "--images", str(photos), *options]) == 0
    least = ("--threshold", "0.1")
    from_file, _ = answered(out, photos, tmp_path / "file", *least)
    from_run, _ = answered(scenes["detection"], photos, tmp_path / "run", *least)
    assert from_file["task"] == "detection" and sum(len(each["boxes"]) for each in from_run["images"]) > 10
    for file, run in zip(from_file["images"], from_run["images"], strict=True):
        # A level that is rounded differently moves scores a little, and with them the order of boxes.
        near = 2e-2 if "--preprocess" in options else 1e-5
        assert len(file["boxes"]) == len(run["boxes"])
        again = [
            any(a["class"] == b["class"] and a["box"] == pytest.approx(b["box"], abs=0.1) for b in file["boxes"])
            for a in run["boxes"]
        ]
        assert sum(again) >= 0.95 * len(again)
        for a, b in zip(file["boxes"], run["boxes"], strict=True):
            assert a["score"] == pytest.approx(b["score"], abs=near)
            if "--preprocess" not in options:
                assert a["class"] == b["class"] and a["box"] == pytest.approx(b["box"], abs=1e-2)


@pytest.mark.parametrize(
    ("task", "arguments", "words"),
    [
        ("segmentation", ["--outputs", "boxes"], "logits or classes, got 'boxes'"),
        ("segmentation", ["--nms", "in"], "--nms is for boxes, got --task segment"),
        ("detection", ["--nms", "in", "--outputs", "rows"], "--outputs rows"),
        ("detection", ["--nms", "in", "--format", "torch"], "--nms in is for onnx and openvino"),
        ("detection", ["--task", "classify"], "--task detect or features, got classify"),
    ],
)
def test_what_a_model_does_not_answer_is_refused(
    task: str, arguments: list[str], words: str, scenes: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(scenes[task]), "--out", "model.pt2", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_sigterm_takes_the_child_and_the_weights_away(weights: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "aside", tmp_path / "out.onnx"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "srattn", "export", str(weights), "--out", str(out)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        while not list(folder.glob("srattn-*/program.pt2")):  # then it starts the child
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()
        assert process.wait(30) == 143
    assert not list(folder.glob("srattn-*"))
    assert not out.exists()
