"""Masks and boxes in whole numbers: files of the command, calibrated on a folder, answer much as the run does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scenes import CLASSES, SMALL, VAL

from srattn.cli.main import main
from srattn.data.preprocess import to_tensor
from srattn.engine import TrainConfig, train
from srattn.export.facts import Facts
from srattn.export.opened import read_facts
from srattn.ops.boxes import box_iou
from srattn.version import __version__

PACKAGES = {".onnx": ("onnxruntime", "onnxscript"), ".xml": ("openvino", "nncf")}
LONGER: dict[str, Any] = SMALL | {"lr": 4e-3, "augment": "flip", "drop_path_rate": 0.0, "size": 40}
# Two stages, since torch's symbolic sizes take long to trace.
SHORT = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "mlp_ratios": [2, 2], "sr_ratios": [2, 1]}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def segmenter(mask_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells squares and discs from the ground."""
    out = tmp_path_factory.mktemp("masks") / "run"
    given = LONGER | {"task": "segment", "data": str(mask_folder), "head_options": {"hidden": 16}, "epochs": 40}
    given |= {"model_options": {"stem_stride": 4, **SHORT}}
    train(TrainConfig(**given, out=str(out)))
    return out


@pytest.fixture(scope="module")
def detector(box_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that finds squares and discs."""
    out = tmp_path_factory.mktemp("boxes") / "run"
    head = {"head_options": {"width": 16, "convs": 1}}
    train(TrainConfig(**LONGER | head | {"task": "detect", "data": str(box_folder), "epochs": 60}, out=str(out)))
    return out


@pytest.fixture
def exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Path, Facts]]:
    """`exported(run, suffix, folder, *options)`: an int8 file, calibrated on a folder, and its stamp."""

    def make(run: Path, suffix: str, folder: Path, *options: str) -> tuple[Path, Facts]:
        for package in PACKAGES[suffix]:
            pytest.importorskip(package)
        out = tmp_path / f"model{suffix}"
        given = ["export", str(run), "--out", str(out), "--precision", "int8", "--calibrate", str(folder), *options]
        code = main(given)
        said = capsys.readouterr()
        assert code == 0, said.err
        assert "verified against eager" in said.out and "dB below the signal" in said.out
        facts = read_facts(out)
        assert facts.options.precision == "int8" and facts.quantised["kept"] == [] and facts.version == __version__
        assert facts.verified["error"] <= facts.verified["tolerance"]
        # What is known of the run, without places on this machine.
        assert facts.card["data"] == "shapes" and facts.card["result"]["headline"] in facts.card["result"]
        assert str(run.parent) not in facts.to_text() and str(folder.parent) not in facts.to_text()
        return out, facts

    return make


def answered(model: Path, images: Path, out: Path, *options: str) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
    """The records and the masks of `srattn predict`."""
    given = ["predict", str(images), "--model", str(model), "--out", str(out), "--num_workers", "0", "--no_overlays"]
    assert main([*given, *options]) == 0
    masks = [to_tensor(Image.open(path))[0] for path in sorted((out / "masks").rglob("*.png"))]
    return json.loads((out / "predictions.json").read_text())["images"], masks


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".onnx", ()), (".xml", ()), (".xml", ("--outputs", "classes", "--preprocess"))],
    ids=["onnx", "openvino", "openvino-pictures"],
)
def test_masks(
    suffix: str, options: tuple[str, ...], segmenter: Path, mask_folder: Path, exported: Any, tmp_path: Path
) -> None:
    file, facts = exported(segmenter, suffix, mask_folder / "images" / "train", *options)
    assert (facts.quantised["images"], facts.quantised["held"], facts.labels) == (9, 3, list(CLASSES))
    assert facts.quantised["same"] > 0.97
    images = mask_folder / "images" / "val"
    _, ours = answered(segmenter, images, tmp_path / "run")
    _, theirs = answered(file, images, tmp_path / "file")
    assert len(ours) == len(theirs) == VAL
    for mask, other in zip(ours, theirs, strict=True):
        assert len(mask.unique()) == len(CLASSES)
        # A file of one size stretches pictures, which the run does not.
        assert float((mask == other).float().mean()) > (0.9 if options else 0.98)


@pytest.mark.parametrize(("suffix", "nms"), [(".onnx", "out"), (".xml", "in")])
def test_boxes(suffix: str, nms: str, detector: Path, box_folder: Path, exported: Any, tmp_path: Path) -> None:
    images = box_folder / "JPEGImages"
    file, facts = exported(detector, suffix, images, "--nms", nms)
    assert facts.outputs == (["detections"] if nms == "in" else ["boxes", "scores"])
    ours, _ = answered(detector, images, tmp_path / "run", "--threshold", "0.3")
    theirs, _ = answered(file, images, tmp_path / "file", "--threshold", "0.25")
    matched = [match for a, b in zip(ours, theirs, strict=True) for match in matches(a["boxes"], b["boxes"])]
    assert len(matched) >= len(ours), "too little was found to be compared"
    assert sum(each > 0.8 for each in matched) >= 0.95 * len(matched)


def matches(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[float]:
    """Of each of our boxes the largest overlap with one of theirs of its class."""
    found = []
    for one in ours:
        others = [other["box"] for other in theirs if other["class"] == one["class"]]
        overlap = box_iou(torch.tensor([one["box"]]), torch.tensor(others)) if others else torch.zeros(1, 1)
        found.append(float(overlap.max()))
    return found
