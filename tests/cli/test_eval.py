"""`srattn eval` from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from srattn.cli.main import main
from srattn.data.digits import digits_preprocess
from srattn.data.preprocess import Preprocess
from srattn.engine.corruptions import CORRUPTIONS
from srattn.engine.weights import save_weights
from srattn.models import build_model

SMALL = {
    "stem_stride": 1, "embed_dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1),
    "mlp_ratios": (1, 1, 1, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of an untrained model of the digits."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build_model("pvt_v2_b0", num_classes=10, in_chans=1, img_size=8, **SMALL)  # type: ignore[arg-type]
    save_weights(folder / "model.safetensors", model, [str(i) for i in range(10)], digits_preprocess(8))
    return folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Photos of two classes in train/, val/ and test/, and a model of them whose classes are in another order."""
    root = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 3), ("val", 2), ("test", 4)):
        for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (12, 12), colour).save(root / part / name / f"{number}.png")
    model = build_model("pvt_v2_b0", num_classes=2, img_size=8, **SMALL)  # type: ignore[arg-type]
    file = root.parent / "model.safetensors"
    file.unlink(missing_ok=True)
    save_weights(file, model, ["red", "blue"], Preprocess(size=(8, 8)))
    return root, file


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["eval", *map(str, arguments), "--device", "cpu", "--num_workers", "0"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_table_file_and_picture(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "eval.json", tmp_path / "deep" / "eval.png"
    code, shown, err = evaluate(
        capsys, "--model", run, "--data", "digits", "--out", out, "--picture", picture, "--corruptions",
        "contrast,gaussian_noise", "--severities", "[1, 5]", "--batch_size", 100,
    )  # fmt: skip
    assert (code, err) == (0, "")
    values = json.loads(out.read_text())
    assert values["images"] == 359 and values["split"] == "20 % held out of each class"
    assert f"{100 * values['top1']:.2f}%" in shown and "calibration error" in shown and "gaussian noise" in shown
    assert sum(map(sum, values["confusion"])) == 359 == sum(values["support"].values())
    assert set(values["corruptions"]) == {"contrast", "gaussian_noise"}
    assert set(values["corruptions"]["contrast"]) == {"1", "5"}
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 1000


def test_a_table_in_a_pipe_is_whole(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    deep = run / "a place with a name that is longer than a line of eighty letters" / "and another folder in it"
    deep.mkdir(parents=True)
    (deep / "model.safetensors").symlink_to(run / "model.safetensors")
    _, shown, _ = evaluate(
        capsys, "--model", deep, "--data", "digits", "--corruptions", "contrast", "--severities", "[1, 2, 3, 4, 5]"
    )
    assert "…" not in shown
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == ["model"]]
    assert str(deep) in line
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == ["contrast"]]
    assert line.count("%") == 5
    assert sum(f"severity {number}" in shown for number in range(1, 6)) == 5


def test_json_is_alone_on_standard_output(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "eval.json"
    code, shown, err = evaluate(capsys, "--model", run, "--data", "digits", "--format", "json", "--out", out)
    assert (code, err) == (0, f"figures {out}\n")
    assert json.loads(shown) == json.loads(out.read_text())


@pytest.mark.parametrize(("option", "name"), [("--out", "eval.json"), ("--picture", "eval.png")])
def test_what_cannot_be_written_is_refused_before_the_work(
    option: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    code, _, err = evaluate(capsys, "--model", "nowhere", "--data", "digits", option, tmp_path / "file" / name)
    assert code == 2 and "cannot be written (not a directory" in err


def test_size_and_split(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", run, "--data", "digits", "--format", "json", "--size", 16, "--tta", "flip", "--split", "val")
    code, shown, _ = evaluate(capsys, *options)
    values = json.loads(shown)
    assert (code, values["images"], values["size"], values["tta"]) == (0, 359, [16, 16], "flip")
    assert values["corruptions"] == {} and values["corrupted"] is None


def test_classes_are_matched_by_name(colours: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    root, file = colours
    code, shown, _ = evaluate(capsys, "--model", file, "--data", root, "--split", "test", "--format", "json")
    values = json.loads(shown)
    assert code == 0 and values["images"] == 8 and values["split"] == "the test part"
    assert values["classes"] == ["red", "blue"] and values["support"] == {"red": 4, "blue": 4}
    code, shown, _ = evaluate(capsys, "--model", file, "--data", root, "--format", "json")
    assert json.loads(shown)["images"] == 4  # val comes before test
    for part in ("val", "test"):
        rows = [f"{image},{image.parent.name},{part}\n" for image in sorted((root / part).rglob("*.png"))]
        (root / "list.csv").write_text("path,label,split\n" + "".join(rows))
        code, shown, _ = evaluate(capsys, "--model", file, "--data", root / "list.csv", "--format", "json")
        assert code == 0 and json.loads(shown)["split"] == f"the {part} part"
    (root / "list.csv").unlink()
    code, shown, _ = evaluate(capsys, "--model", file, "--data", root / "test", "--format", "json")
    assert json.loads(shown)["images"] == 8  # a folder without parts is taken whole


def test_corruptions_without_names_are_all(colours: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    root, file = colours
    options = ("--model", file, "--data", root, "--corruptions", "--severities", "[5]", "--format", "json")
    code, shown, _ = evaluate(capsys, *options)
    assert code == 0 and list(json.loads(shown)["corruptions"]) == list(CORRUPTIONS)


def test_unreadable_images_are_counted(
    colours: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, file = colours
    for name in ("blue", "red"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (12, 12)).save(tmp_path / name / "a.png")
    (tmp_path / "red" / "b.png").write_bytes(b"no image")
    code, shown, _ = evaluate(capsys, "--model", file, "--data", tmp_path)
    assert code == 0 and "left out" in shown and "b.png" in shown
    code, _, err = evaluate(capsys, "--model", file, "--data", tmp_path, "--on_bad_image", "error")
    assert code == 2 and "b.png" in err


def test_nothing_is_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "eval.json"
    there.write_text("mine")
    code, _, err = evaluate(capsys, "--model", run, "--data", "digits", "--out", there)
    assert code == 2 and "exists and is not overwritten" in err
    assert there.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--corruptions", "foggy"), "no corruption 'foggy'; did you mean 'fog'"),
        (("--batch_size", "0"), "--batch_size must be at least 1, got 0"),
        (("--size", "4"), "size 4 is below the 8 pixels"),
        (("--split", "test"), "digits have no test part"),
        (("--picture", "x.gif"), "a picture is written to a file that ends in .png or .pdf or .svg, got x.gif"),
        (("--picture", "x.json"), "a picture is written to a file that ends in .png or .pdf or .svg, got x.json"),
        (("--out", "x.png"), "figures are written to a file that ends in .json, got x.png"),
        (("--severities", "[9]"), "severity is 1 to 5, got 9"),
        (("--data", "nowhere"), "data 'nowhere' is neither"),
        (("--tta", "ten"), "tta"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: Path, options: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--model": str(run), "--data": "digits", "--corruptions": "contrast"} | dict([options])
    code, out, err = evaluate(capsys, *(part for pair in given.items() for part in pair))
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_unknown_class_is_named(run: Path, colours: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = evaluate(capsys, "--model", colours[1], "--data", "digits")
    assert code == 2 and "does not know the class '0' of the data" in err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_exported_file_is_worth_the_same(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "digits.pt2"
    assert main(["export", str(run), "--out", str(file)]) == 0
    capsys.readouterr()
    found = []
    for model in (run, file):
        code, shown, err = evaluate(capsys, "--model", model, "--data", "digits", "--format", "json")
        assert code == 0, err
        found.append(json.loads(shown))
    assert found[1]["top1"] == found[0]["top1"] and found[1]["nll"] == pytest.approx(found[0]["nll"], rel=1e-5)
    assert found[1]["parameters"] is None and found[0]["parameters"] > 0
    code, shown, err = evaluate(capsys, "--model", file, "--data", "digits")
    assert code == 0 and "(pvt_v2_b0)" in shown, (shown, err)
    code, _, err = evaluate(capsys, "--model", file, "--data", "digits", "--weights", "some.pth")
    assert code == 2 and "leave out --weights" in err
    code, _, err = evaluate(capsys, "--model", tmp_path / "no.onnx", "--data", "digits")
    assert code == 2 and "does not exist" in err


def trained_on(file: Path, folder: Path, **config: object) -> Path:
    """A run folder with the weights of `file` and a configuration."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(file.read_bytes())
    (folder / "config.yaml").write_text(yaml.safe_dump({"split_seed": 0, **config}))
    return folder


def test_a_run_that_was_measured_with_other_data_held_out_none_of_its_own(
    colours: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, file = colours
    data, other = root / "train", str(root / "val")
    run = trained_on(file, tmp_path / "run", data=str(data), val=other, val_fraction=0.5)
    code, out, _ = evaluate(capsys, "--model", run, "--data", data)
    assert code == 0 and "all images, which the run was trained on, 6 images" in out
    assert "the training part, 6 images" in evaluate(capsys, "--model", run, "--data", data, "--split", "train")[1]
    assert "all images, 4 images" in evaluate(capsys, "--model", run, "--data", other)[1]
    code, _, err = evaluate(capsys, "--model", run, "--data", data, "--split", "val")
    assert code == 2 and f"was measured with {other} and held out nothing of {data}: give --data {other}, or" in err


def test_what_a_run_held_out_is_found_by_any_name_of_its_part(
    colours: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, file = colours
    run = trained_on(file, tmp_path / "run", data=str(root), val="testing")
    assert "the test part, 8 images" in evaluate(capsys, "--model", run, "--data", root)[1]


def test_classes_that_a_run_left_out_are_left_out(
    colours: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, file = colours
    shutil.copytree(root / "test", tmp_path / "photos")
    (tmp_path / "photos" / "amber").mkdir()  # before the others, whose numbers choose what is held out
    options = {"data": str(tmp_path / "photos"), "on_empty_class": "skip", "val_fraction": 0.5}
    run = trained_on(file, tmp_path / "run", **options)
    code, out, err = evaluate(capsys, "--model", run, "--data", tmp_path / "photos")
    assert code == 0 and "50 % held out of each class, 4 images" in out, err
