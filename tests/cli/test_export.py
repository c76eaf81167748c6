"""``srattn export`` and ``srattn predict --model FILE``: the same answers from the file as from the run."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

import srattn
from srattn.cli.main import main
from srattn.data.preprocess import Preprocess
from srattn.engine.weights import save_weights

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
        (["--out", "model.txt"], "--out ends in .pt2, .onnx or .xml"),
        (["--out", "model.pt2", "--format", "onnx"], "is called NAME.onnx"),
        (["--out", "model.onnx", "--batch", "many"], "--batch is dynamic or at least 1, got 'many'"),
        (["--out", "model.onnx", "--size", "2x3x4"], "HEIGHTxWIDTH, got '2x3x4'"),
        (["--out", "model.onnx", "--dynamic", "height,depth"], "--dynamic is of height, width, got 'depth'"),
        (["--out", "model.onnx", "--formt", "onnx"], "did you mean '--format'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], words: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(weights), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_nothing_is_overwritten(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    assert main(["export", str(weights), "--out", str(out)]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert out.read_text() == "mine"
