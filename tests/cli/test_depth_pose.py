"""The verbs with depths and joints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured import plain_people, write_depths, write_people
from PIL import Image

from srattn.cli.main import main
from srattn.cli.train import _report
from srattn.data.depth_files import read_depth
from srattn.data.preprocess import Preprocess
from srattn.engine import TrainConfig, train
from srattn.engine.people_boxes import read_people
from srattn.engine.weights import save_weights
from srattn.errors import SrattnError
from srattn.explain.joint_pictures import draw_joints
from srattn.tasks.models import build_task_model

BODY = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
JOINTS = ["nose", "left_eye", "right_eye", "left_hip"]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rooms") / "data"
    random = np.random.default_rng(0)
    for number in range(5):
        depth = random.uniform(1, 8, (1, 1)) + np.linspace(0, 1, 40)[None].repeat(32, 0)
        image = np.repeat((depth / 10 * 255)[..., None], 3, 2).astype(np.uint8)
        for folder, pixels in (("images", image), ("depths", (1000 * depth).astype(np.uint16))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    return root


def test_depth(rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    options = {"model": "mit_b0", "model_options": BODY, "head_options": {"hidden": 8}, "size": 40, "epochs": 1}
    result = train(
        TrainConfig(task="depth", data=str(rooms), out=str(run), threads=1, batch_size=4, num_workers=0, **options)
    )
    report = _report(result)
    assert report is not None and "within 25 %" in report.read_text("utf-8")
    assert main(["predict", str(rooms / "images"), "--model", str(run), "--out", str(out)]) == 0
    files = sorted((out / "depths").rglob("*.png"))
    assert len(files) == len(list((out / "overlays").rglob("*.png"))) == 5
    metres = read_depth(files[0])
    record = json.loads((out / "predictions.json").read_text())["images"][0]["metres"]
    assert metres.shape == (32, 40) and float(metres.max()) == pytest.approx(record["most"], abs=1e-3)
    capsys.readouterr()
    for looking in ([], ["--flip"], ["--native"]):
        assert main(["predict", str(rooms / "images/0.png"), "--model", str(run), *looking]) == 0
        assert " m" in capsys.readouterr().out
    picture = tmp_path / "cases.png"
    given = ["eval", "--model", str(run), "--data", str(rooms), "--num_workers", "0", "--format", "json"]
    assert main([*given, "--picture", str(picture)]) == 0 and picture.stat().st_size > 1000
    values = json.loads(capsys.readouterr().out.partition("\npicture")[0])
    expected = json.loads((run / "result.json").read_text())
    assert values["delta1"] == pytest.approx(expected["delta1"]) and values["images"] == 1
    assert values["per_image"] == [pytest.approx(expected["delta1"])]
    assert main(given[:-2]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "true distance pixels delta1 abs_rel rmse" in words and "9 to 10 m" in words
    rmse = next(line for line in words.split("rmse_log")[0].split("abs_rel ") if "rmse" in line)
    assert "%" not in rmse  # metres, and no share
    file = tmp_path / "model.pt2"
    assert main(["export", str(run), "--out", str(file)]) == 0
    assert "outputs depths" in capsys.readouterr().out
    found = []
    for model in (run / "model.safetensors", file):  # neither knows what was held out
        assert main([*given[:2], str(model), *given[3:]]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["images"] == found[1]["images"] == 5
    assert all(found[1][name] == pytest.approx(found[0][name], rel=1e-4) for name in ("delta1", "rmse", "loss"))
    assert main(["predict", str(rooms / "images"), "--model", str(file), "--out", str(tmp_path / "of_file")]) == 0
    again = read_depth(tmp_path / "of_file" / files[0].relative_to(out))
    assert (again - metres).abs().max() <= 0.0011  # millimetres, which may round otherwise


def test_a_file_alone_is_measured_in_its_own_reach_and_the_units_of_the_data(
    rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, found = tmp_path / "model.safetensors", []
    model: Any = build_task_model("depth", "mit_b0", 1, "glpn", {"hidden": 8, "max_depth": 5}, **BODY)
    save_weights(file, model.eval(), ["depth"], Preprocess(size=(32, 32), fit="shorter"), task="depth")
    given = ["eval", "--model", str(file), "--data", str(rooms), "--num_workers", "0", "--format", "json"]
    for scale in ([], ["--depth_scale", "0.0001"]):
        assert main([*given, *scale]) == 0
        found.append(json.loads(capsys.readouterr().out))
    millimetres, tenths = (values["by_distance"] for values in found)
    assert millimetres["edges"][-1] == tenths["edges"][-1] == 5
    assert found[1]["measured_pixels"] == 5 * 32 * 40 > found[0]["measured_pixels"]  # all within 5 metres; some beyond
    assert sum(tenths["pixels"][:2]) == found[1]["measured_pixels"]  # none is beyond 1 metre
    assert main([*given, "--depth_scale", "-1"]) == 2 and "above 0" in capsys.readouterr().err


def test_far_depths_are_written_in_units_that_hold_them(rooms: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "model.safetensors", tmp_path / "out"
    model: Any = build_task_model("depth", "mit_b0", 1, "glpn", {"hidden": 8, "max_depth": 80}, **BODY)
    torch.nn.init.constant_(model.head.depth.bias, 4.0)  # beyond the 65.535 metres of 16 bits of millimetres
    save_weights(file, model.eval(), ["depth"], Preprocess(size=(32, 32), fit="shorter"), task="depth")
    assert main(["predict", str(rooms / "images"), "--model", str(file), "--out", str(out)]) == 0
    told = json.loads((out / "predictions.json").read_text())
    assert told["depth_scale"] == 0.01
    for record in told["images"]:
        metres = read_depth(out / record["depth"], told["depth_scale"])
        assert float(metres.max()) == pytest.approx(record["metres"]["most"], abs=0.0051) and float(metres.max()) > 70


def test_people_from_data_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = write_people(tmp_path / "people", {"train": plain_people(), "val": plain_people()}), tmp_path / "run"
    options = {"model": "pvt_v2_b0", "model_options": BODY, "head_options": {"width": 16}, "size": 32, "epochs": 1}
    result = train(
        TrainConfig(task="pose", data=str(data), out=str(run), threads=1, batch_size=4, num_workers=0, **options)
    )
    assert len(result.result["per_image"]) == result.result["val_images"] == 5
    report = _report(result)
    assert report is not None and "Joint by joint" in report.read_text("utf-8")
    picture = tmp_path / "cases.png"
    given = ["eval", "--model", str(run), "--data", str(data), "--num_workers", "0"]
    capsys.readouterr()
    assert main([*given, "--picture", str(picture)]) == 0 and picture.stat().st_size > 1000
    words = " ".join(capsys.readouterr().out.split())
    assert "joint pck oks" in words and "left_hand" in words
    file, values = tmp_path / "model.pt2", []
    assert main(["export", str(run), "--out", str(file)]) == 0 and "outputs joints, maps" in capsys.readouterr().out
    for model in (run, file):
        assert main([*given[:2], str(model), *given[3:], "--format", "json"]) == 0
        values.append(json.loads(capsys.readouterr().out))
    assert all(values[1][name] == pytest.approx(values[0][name], rel=1e-3) for name in ("loss", "oks_ap", "pck"))


@pytest.mark.parametrize("kind", ["depths", "joints"])
def test_data_is_checked_and_shown(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    if kind == "depths":
        write_depths(data, {"train": 3, "val": 2})
        expected = ["5 images with depths", "beyond 10", "known"]
    else:
        write_people(data, {"train": plain_people(), "val": plain_people()})
        expected = ["10 people with 3 joints in 8 images", "left_hand", "train: labelled", "none visible"]
    files = [tmp_path / name for name in ("report.json", "check.png", "preview.png")]
    given = ["data", "check", str(data), "--num_workers", "0"]
    assert main([*given, "--out", str(files[0]), "--picture", str(files[1])]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert all(each in words for each in expected) and "a run would take this data" in words
    shown = ["--images", "1", "--draws", "1", "--size", "32"]
    assert main(["data", "preview", str(data), "--out", str(files[2]), *shown]) == 0
    assert all(file.stat().st_size > 100 for file in files)
    wrong = "--void" if kind == "depths" else "--max_depth"
    assert main([*given, wrong, "[3]" if kind == "depths" else "3"]) == 2
    assert f"{wrong} has no meaning for images with {kind}" in capsys.readouterr().err


def test_words_for_what_is_wrong_with_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_depths(tmp_path / "data", {"train": 3, "val": 2})
    (data / "depths" / "train" / "0.png").write_bytes(b"no depth")
    given = ["data", "check", str(data), "--task", "depth", "--num_workers", "0"]
    assert main([*given, "--on_bad_image", "error"]) == 1
    out = capsys.readouterr().out
    assert "cannot be read: 1" in out and "0.png" in out and "a run would refuse this: 1 file(s)" in out
    assert main(given) == 0
    assert main([*given, "--max_depth", "-1"]) == 2 and "above 0 metres, got -1" in capsys.readouterr().err


@pytest.fixture
def pose(tmp_path: Path) -> Path:
    model = build_task_model("pose", "pvt_v2_b0", len(JOINTS), "heatmap", {"width": 16}, img_size=32, **BODY)
    file = tmp_path / "pose.safetensors"
    save_weights(file, model.eval(), JOINTS, Preprocess(size=(32, 32), fit="inside"), task="pose")  # type: ignore[arg-type]
    return file


def test_joints_of_people(pose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "two.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(picture)
    boxes = [{"class": "person", "box": [0, 0, 30, 60]}, {"class": "dog", "box": [0, 0, 9, 9]}]
    found = tmp_path / "predictions.json"
    record = {"name": str(picture), "boxes": [*boxes, {"class": "person", "box": [40, 5, 80, 55]}]}
    found.write_text(json.dumps({"images": [record]}))
    given = ["predict", str(picture), "--model", str(pose)]
    for people, count in (([], 1), (["--people", str(found)], 2)):
        assert main([*given, *people, "--format", "json"]) == 0
        (answer,) = json.loads(capsys.readouterr().out)
        assert len(answer["people"]) == count and list(answer["people"][0]) == JOINTS
        for person in answer["people"]:
            assert all(-40 <= x <= 120 and -40 <= y <= 120 and 0 <= score <= 1 for x, y, score in person.values())
    out = tmp_path / "out"
    assert main([*given, "--people", str(found), "--out", str(out)]) == 0
    coco = json.loads((out / "coco.json").read_text())
    assert len(coco) == 2 and len(coco[0]["keypoints"]) == 3 * len(JOINTS)
    nose = json.loads((out / "predictions.json").read_text())["images"][0]["people"][0]["nose"]
    assert coco[0]["keypoints"][0] == pytest.approx(nose[0] - 0.5, abs=1e-3)  # COCO counts from the pixel's centre
    assert len(list((out / "overlays").rglob("*.png"))) == 1
    assert main([*given, "--out", str(out)]) == 2 and "another job" in capsys.readouterr().err


def test_people_from_a_file(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[1]")
    with pytest.raises(SrattnError, match=r"no predictions\.json"):
        read_people(wrong)


def test_a_bone_is_drawn_between_its_joints() -> None:
    image = torch.zeros(3, 60, 60, dtype=torch.uint8)
    people = torch.tensor([[[10.0, 30.0, 0.9], [50.0, 30.0, 0.9], [30.0, 5.0, 0.1]]])
    drawn = np.asarray(draw_joints(image, people, [(0, 1), (0, 2)]))
    assert drawn[30, 30].any() and not drawn[15, 20].any() and not drawn[5, 30].any()
    with pytest.raises(SrattnError, match="people must be"):
        draw_joints(image, people[0])
