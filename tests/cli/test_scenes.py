"""The verbs with masks and boxes, from data to pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from scenes import CLASSES, HEIGHT, VAL, WIDTH

from srattn.cli.main import main

BODY = [
    "--model_options.embed_dims", "[8,8,16,16]", "--model_options.depths", "[1,1,1,1]",
    "--model_options.num_heads", "[1,1,2,2]", "--model_options.mlp_ratios", "[2,2,2,2]",
    "--model_options.sr_ratios", "[2,1,1,1]", "--model", "pvt_v2_b0", "--size", "32", "--epochs", "1",
    "--batch_size", "6", "--threads", "1", "--num_workers", "0", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def segmenter(mask_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cli-masks") / "run"
    given = [
        "train",
        "--task",
        "segment",
        "--data",
        str(mask_folder),
        "--loss",
        "ce+dice",
        "--head_options.hidden",
        "16",
    ]
    assert main([*given, *BODY, "--out", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def detector(box_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cli-boxes") / "run"
    head = ["--head_options.width", "16", "--head_options.convs", "1"]
    given = ["train", "--task", "detect", "--data", str(box_folder), "--classes", "disc,square", *head]
    assert main([*given, *BODY, "--out", str(run)]) == 0
    return run


def test_masks(segmenter: Path, mask_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = mask_folder / "images" / "val", tmp_path / "masks.v2"
    assert main(["predict", str(images), "--model", str(segmenter), "--out", str(out), "--num_workers", "0"]) == 0
    masks, overlays = (sorted(out.rglob(f"{folder}/**/*.png")) for folder in ("masks", "overlays"))
    assert len(masks) == len(overlays) == VAL
    with Image.open(masks[0]) as mask, Image.open(overlays[0]) as overlay:
        assert (mask.mode, mask.size) == ("P", (WIDTH, HEIGHT)) and overlay.size == mask.size
    capsys.readouterr()
    one = str(images / "00.png")
    for looking in ([], ["--native"], ["--flip", "--scales", "[0.5,1]"]):
        assert main(["predict", one, "--model", str(segmenter), "--format", "json", *looking]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        assert sum(record["shares"].values()) == pytest.approx(1, abs=1e-5) and set(record["shares"]) <= set(CLASSES)
    assert main(["predict", one, "--model", str(segmenter)]) == 0
    assert "%" in capsys.readouterr().out


def test_boxes(detector: Path, box_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "boxes"
    given = ["predict", str(box_folder / "JPEGImages"), "--model", str(detector), "--threshold", "0.01"]
    assert main([*given, "--out", str(out), "--no_overlays"]) == 0
    assert not (out / "overlays").exists() and not (out / "masks").exists()
    assert json.loads((out / "predictions.json").read_text())["classes"] == ["disc", "square"]
    capsys.readouterr()
    assert main([*given, "--out", str(out), "--no_overlays"]) == 0  # all of it is there already
    assert main([*given[:-1], "0.5", "--out", str(out)]) == 2
    assert "another job" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["segmenter", "detector"])
def test_measured(
    task: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Path = request.getfixturevalue(task)
    data = request.getfixturevalue("mask_folder" if task == "segmenter" else "box_folder")
    out, picture = tmp_path / "eval.json", tmp_path / "cases.png"
    given = ["eval", "--model", str(run), "--data", str(data), "--num_workers", "0"]
    assert main([*given, "--out", str(out), "--picture", str(picture)]) == 0
    values, result = json.loads(out.read_text()), json.loads((run / "result.json").read_text())
    assert values["images"] == VAL and values[values["headline"]] == pytest.approx(result[values["headline"]])
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 100
    capsys.readouterr()
    if task == "segmenter":
        assert main([*given, "--tta", "flip", "--native", "--format", "json"]) == 0
        assert 0 <= json.loads(capsys.readouterr().out)["miou"] <= 1
    else:
        assert main([*given, "--tta", "flip"]) == 2
        assert "are for masks" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("task", ["segmenter", "detector"])
def test_an_exported_file_is_worth_the_same(
    task: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Path = request.getfixturevalue(task)
    data = request.getfixturevalue("mask_folder" if task == "segmenter" else "box_folder")
    file, size = tmp_path / "model.pt2", ["--size", "40"]  # more than the least of a graph of any size
    assert main(["export", str(run), "--out", str(file), *size]) == 0
    found = []
    for model in ([str(run), *size], [str(file)]):
        capsys.readouterr()
        given = ["eval", "--data", str(data), "--split", "val", "--num_workers", "0", "--format", "json"]
        assert main([*given, "--model", *model]) == 0
        found.append(json.loads(capsys.readouterr().out))
    ours, theirs = found
    assert theirs["images"] == VAL and theirs[ours["headline"]] == pytest.approx(ours[ours["headline"]], abs=1e-4)
    if task == "segmenter":
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)
    else:
        assert "loss" in ours and "loss" not in theirs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_of_classes_has_no_loss(
    segmenter: Path, mask_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.pt2"
    assert main(["export", str(segmenter), "--out", str(file), "--outputs", "classes", "--size", "40"]) == 0
    capsys.readouterr()
    given = ["eval", "--data", str(mask_folder), "--split", "val", "--num_workers", "0", "--format", "json"]
    assert main([*given, "--model", str(file)]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert "loss" not in found and 0 <= found["miou"] <= 1
    assert "without a loss" in shown.err and "--outputs logits" in shown.err


def test_words_for_mistakes(segmenter: Path, mask_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(mask_folder / "images" / "val" / "00.png")
    for given, words in (
        (["predict", image, "--model", str(segmenter), "--out", "x.parquet"], "looks like a file"),
        (["predict", image, "--model", str(segmenter), "--scales", "[0]"], "scales must be"),
        (["predict", image, "--model", str(segmenter), "--format", "csv"], "--format json"),
        (["eval", "--data", str(mask_folder), "--model", str(segmenter), "--classes", "sky,sea,land"], "does not know"),
        (["eval", "--data", str(mask_folder), "--model", str(segmenter), "--corruptions"], "for models that classify"),
    ):
        assert main(given) == 2
        assert words in capsys.readouterr().err


def test_no_option_is_ignored(
    segmenter: Path, detector: Path, mask_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, data = str(mask_folder / "images" / "val" / "00.png"), str(mask_folder)
    for given, words in (
        (["predict", image, "--native"], "--native is for models of masks"),
        (["predict", image, "--people", "x.json"], "--people is for models of masks"),
        (["predict", image, "--model", str(segmenter), "--top", "2"], "--top is for models of classes"),
        (["predict", image, "--model", str(segmenter), "--threshold", "0.5"], "threshold has no meaning for segm"),
        (["predict", image, "--model", str(segmenter), "--overlap", "0.5"], "give native too"),
        (["predict", image, "--model", str(detector), "--flip"], "flip has no meaning for detection"),
        (["predict", image, "--model", str(detector), "--scales", "[0.5]"], "scales has no meaning for detection"),
        (["eval", "--data", data, "--void", "[3]"], "--void is for models of masks"),
        (["eval", "--data", data, "--model", str(detector), "--void", "[3]"], "--void has no meaning for detection"),
    ):
        assert main(given) == 2, given
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["predict", "eval"])
def test_what_is_refused_is_what_was_given(verb: str) -> None:
    from srattn.cli import eval as eval_verb
    from srattn.cli import eval_scenes, predict, predict_scenes
    from srattn.cli.parser import make_parser

    module, own = {"predict": (predict, predict_scenes.OWN), "eval": (eval_verb, eval_scenes.OWN)}[verb]
    parser = make_parser(verb, "")
    module.add_arguments(parser)
    assert {name: parser.get_default(name) for name in own} == own


def test_a_line_of_pixels_is_named_and_passed_over(
    segmenter: Path, mask_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (70_000, 1)).save(tmp_path / "line.png")  # its shorter side at 32 pixels would be 72 megapixels
    images = [str(tmp_path / "line.png"), str(mask_folder / "images" / "val" / "00.png")]
    assert main(["predict", *images, "--model", str(segmenter), "--out", str(tmp_path / "out")]) == 3
    assert "line.png" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 1
