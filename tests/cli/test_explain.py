"""`srattn explain` from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from srattn.cli.main import main
from srattn.data.preprocess import Preprocess
from srattn.engine.weights import save_weights
from srattn.models import build_model

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of an untrained model."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build_model(
        "pvt_v2_b0", num_classes=3, img_size=16, stem_stride=1, embed_dims=(8, 8, 8, 8), depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2), mlp_ratios=(1, 1, 1, 1),
    )  # fmt: skip
    save_weights(folder / "model.safetensors", model, CLASSES, Preprocess(size=(16, 16), crop_fraction=0.8))  # type: ignore[arg-type]
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a <b>.png"
    Image.effect_noise((40, 30), 80).save(path)
    return path


def explain(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["explain", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_page_and_pictures(run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    code, said, err = explain(
        capsys, picture, "--model", run, "--out", out, "--point", "20,15", "--point", "0.5,0.3", "--class", "cat"
    )
    assert (code, err) == (0, "") and said == f"{out / 'index.html'}: 1 image(s), and 6 pictures beside it\n"
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "01-a-b-attention-1.png", "01-a-b-attention-2.png", "01-a-b-grad-cam.png", "01-a-b-rollout.png", "index.html",
        "keys.png", "receptive-field.png",
    ]  # fmt: skip
    for name in names:
        if name.endswith(".png"):
            with Image.open(out / name) as opened:
                assert min(opened.size) > 100 and len(set(opened.convert("L").tobytes())) > 3
    page = (out / "index.html").read_text("utf-8")
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    (image,) = json.loads(found[1])["images"]
    assert image["cams"][0]["name"] == "cat"
    # 24 of 40 x 24 of 30 pixels are seen: x from 8, y from 3, as 16 x 16.
    assert image["points"] == [[8, 8, "point 20,15"], [8, 4, "point 0.5,0.3"]]


def test_nothing_is_overwritten(run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    code, _, err = explain(capsys, picture, "--model", run, "--out", out)
    assert code == 2 and "not overwritten" in err and [path.name for path in out.iterdir()] == ["mine"]


def test_bad_images_are_named(run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    code, said, err = explain(capsys, bad, picture, "--model", run, "--out", tmp_path / "out")
    assert code == 0 and "1 image(s)" in said and f"skipped {bad}" in err
    assert "bad.png: not an image" in (tmp_path / "out" / "index.html").read_text("utf-8")
    code, _, err = explain(capsys, bad, "--model", run, "--out", tmp_path / "none")
    assert code == 2 and "no image could be read" in err and str(bad) in err
    code, _, err = explain(capsys, bad, picture, "--model", run, "--out", tmp_path / "none", "--on_bad_image", "error")
    assert code == 2 and str(bad) in err and not (tmp_path / "none").exists()


def test_errors(run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in (
        (["--point", "40,0"], "40 pixels wide and 30 high"),
        (["--point", "0,0"], "x from 8 to 31 and y from 3 to 26 are left"),
        (["--point", "middle"], "a point is X,Y"),
        (["--class", "cst"], "did you mean 'cat'?"),
        (["--size", "7"], "below the minimum"),
        (["--size", "0"], "--size must be at least 1"),
    ):
        code, _, err = explain(capsys, picture, "--model", run, "--out", tmp_path / "out", *options)
        assert (code, err.count("\n")) == (2, 1) and words in err, err
        assert not (tmp_path / "out").exists()
    code, _, err = explain(capsys, *[picture] * 25, "--model", run, "--out", tmp_path / "out")
    assert code == 2 and "at most 24" in err


def test_files_that_cannot_be_explained(
    run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    from srattn.export.facts import Facts
    from srattn.export.options import Options

    def stamped(weights: str) -> bytes:
        card = {"source": "my-run"}
        facts = Facts(Options(), CLASSES, Preprocess(), ["logits"], {"name": "pvt_v2_b0"}, card, [], weights=weights)
        model = onnx.ModelProto(ir_version=8)
        model.metadata_props.add(key="srattn", value=facts.to_text())
        return model.SerializeToString()

    for file, content, words in (
        ("model.onnx", stamped("0" * 64), "give --source the run or the checkpoint that it was exported from: "
         "pvt_v2_b0, from my-run"),
        ("old.onnx", stamped(""), "does not say which weights it was made of: export it again"),
        ("other.onnx", b"none of ours", "is no whole ONNX file"),
    ):  # fmt: skip
        (tmp_path / file).write_bytes(content)
        code, _, err = explain(capsys, picture, "--model", tmp_path / file, "--out", tmp_path / "out")
        assert code == 2 and words in err, err
    given = ("--model", tmp_path / "model.onnx", "--source", run)
    code, _, err = explain(capsys, picture, *given, "--out", tmp_path / "out")
    assert code == 2 and f"made of other weights than those of {run}; it was made of pvt_v2_b0, from my-run" in err
    code, _, err = explain(capsys, picture, "--model", run, "--source", run, "--out", tmp_path / "out")
    assert code == 2 and "--source goes with an exported file" in err
    assert not (tmp_path / "out").exists()
    code, _, err = explain(capsys, picture, "--model", tmp_path / "no.onnx", "--out", tmp_path / "out")
    assert code == 2 and "no.onnx does not exist" in err
