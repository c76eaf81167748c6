"""`srattn predict` from the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from srattn.cli.main import main
from srattn.data.digits import digits_preprocess, read_digits
from srattn.data.preprocess import to_image
from srattn.engine.weights import save_weights
from srattn.models import build_model

CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of an untrained model: answers, if no good ones."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build_model(
        "pvt_v2_b0", num_classes=10, in_chans=1, img_size=8, stem_stride=1, embed_dims=(8, 8, 8, 8),
        depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), mlp_ratios=(1, 1, 1, 1),
    )  # fmt: skip
    save_weights(folder / "model.safetensors", model, CLASSES, digits_preprocess(8))  # type: ignore[arg-type]
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three images (one below, one in colour) and a text."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    val = read_digits(8).val
    to_image(val.pixels(0)).save(folder / "b.png")
    to_image(val.pixels(1)).convert("RGB").resize((50, 60)).save(folder / "a.jpg")
    to_image(val.pixels(2)).save(folder / "deep" / "c.bmp")
    (folder / "notes.txt").write_text("not an image")
    return folder


def predict(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["predict", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = predict(capsys, pictures, "--model", run, "--format", "json", "--top", 3)
    assert (code, err) == (0, "")
    records = json.loads(out)
    assert [record["path"] for record in records] == [str(pictures / name) for name in ("a.jpg", "b.png", "deep/c.bmp")]
    for record in records:
        assert len(record["classes"]) == len(record["probabilities"]) == 3
        assert record["class"] == record["classes"][0] and set(record["classes"]) <= set(CLASSES)
        assert record["probabilities"] == sorted(record["probabilities"], reverse=True)
    _, every, _ = predict(
        capsys, pictures / "b.png", "--model", run / "model.safetensors", "--format", "json", "--top", 99
    )
    assert sorted(json.loads(every)[0]["classes"]) == CLASSES
    assert sum(json.loads(every)[0]["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_csv(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = pictures / 'comma, "quote".png'
    (pictures / "b.png").rename(odd)
    code, out, _ = predict(
        capsys, odd, pictures / "a.jpg", "--model", run, "--format", "csv", "--top", 2, "--batch_size", 1
    )
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2"]
    assert [row["path"] for row in rows] == [str(odd), str(pictures / "a.jpg")]
    assert float(rows[0]["probability"]) >= float(rows[0]["probability_2"])


def test_table(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = pictures / ("long-" * 30 + "[bold].png")
    (pictures / "b.png").rename(long)
    code, out, _ = predict(capsys, pictures, "--model", run)
    assert code == 0
    line = next(line for line in out.splitlines() if str(long) in line)  # whole, on one line, no markup
    assert line.count("%") == 5


def test_standard_input(run: Path, pictures: Path) -> None:
    data = (pictures / "b.png").read_bytes()
    command = [
        sys.executable,
        "-m",
        "srattn",
        "predict",
        "-",
        str(pictures / "b.png"),
        "--model",
        str(run),
        "--format",
        "json",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(command, input=data, env=environment, capture_output=True, timeout=120)
    assert process.returncode == 0, process.stderr
    given, file = json.loads(process.stdout)
    assert given["path"] == "-"
    assert given["probabilities"] == file["probabilities"]


def test_unreadable_images(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "a.jpg").write_bytes((pictures / "a.jpg").read_bytes()[:200])
    code, out, err = predict(capsys, pictures, "--model", run, "--format", "json")
    assert code == 3 and len(json.loads(out)) == 2
    assert "a.jpg" in err.splitlines()[0] and "1 of 3 image(s) could not be read" in err.splitlines()[1]
    code, _, err = predict(capsys, pictures, "--model", run, "--on_bad_image", "error")
    assert code == 2 and err.startswith("srattn: error: ") and "a.jpg" in err and err.count("\n") == 1
    for kind, expected in [("json", "[]\n"), ("table", "")]:
        code, out, err = predict(capsys, pictures / "a.jpg", "--model", run, "--format", kind)
        assert (code, out) == (2, expected)
        assert err.splitlines()[-1] == "srattn: error: no image could be read"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png", "--model", "RUN"], "missing.png does not exist"),
        (["EMPTY", "--model", "RUN"], "has no image files"),
        (["PICTURE", "--model", "nowhere"], "nowhere does not exist"),
        (["PICTURE", "--model", "EMPTY"], "is not a run: it has no model.safetensors"),
        (["PICTURE", "--model", "PICTURE"], "is not a whole safetensors file"),
        (["PICTURE", "--model", "RUN", "--top", "0"], "--top must be at least 1"),
        (["PICTURE", "--model", "RUN", "--format", "xml"], "format"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "p.png")
    names = {"RUN": str(run), "EMPTY": str(tmp_path / "empty"), "PICTURE": str(tmp_path / "p.png")}
    code, out, err = predict(capsys, *(names.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("srattn: error: ") and err.count("\n") == 1 and message in err


def test_the_box_answers_where_no_model_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 30), (90, 160, 230)).save(tmp_path / "sky.png")
    code, out, err = predict(capsys, str(tmp_path / "sky.png"), "--format", "csv")
    assert code == 0 and "sky.png" in out and "the model in the box answers" in err
    assert any(name in out for name in ("airplane", "bird", "ship", "automobile"))
