"""What a check of depths and of people with joints finds, and what is drawn of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from measured import DEPTH_SIZE, NAMES, person, plain_people, write_depths, write_people
from PIL import Image

from srattn.data.dense import measured_pictures
from srattn.data.dense.check import check_scenes
from srattn.data.dense.joint import DRAWS, parse_joint
from srattn.data.dense.joints import SIDES
from srattn.data.dense.kinds import scene_kind
from srattn.data.dense.person import PersonAugment
from srattn.data.dense.pictures import draw_scene_preview, draw_scene_report
from srattn.data.dense.preview import read_some_scenes
from srattn.data.dense.survey import SceneReport
from srattn.data.dense.survey_depths import DepthCount
from srattn.data.keyed import uniform
from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError

PIXELS = DEPTH_SIZE[0] * DEPTH_SIZE[1]


def test_a_clean_folder_of_depths(tmp_path: Path) -> None:
    root = write_depths(tmp_path, {"train": 4, "val": 2})
    assert scene_kind(str(root)) == "depths"
    calls: list[tuple[int, int]] = []
    report = check_scenes(str(root), "depths", workers=2, notify=lambda done, total: calls.append((done, total)))
    assert calls[0] == (1, 12) and calls[-1] == (12, 12)  # depths first, then images with them
    assert report.refused == [] and report.images == {"train": 4, "val": 2} and report.empty == []
    files = [np.asarray(Image.open(root / "depths" / "train" / f"{n}.png")) for n in range(4)]
    count = report.depths["train"]
    assert count.pixels == 4 * PIXELS and count.known == 4 * (PIXELS - 12) and count.beyond == 0
    assert count.nearest == pytest.approx(min(file[file > 0].min() for file in files) / 1000)
    assert count.farthest == pytest.approx(max(file.max() for file in files) / 1000)
    assert report.heading == "6 images with depths" and len(report.examples) == 4
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["depths"]["val"]["known"] == 2 * (PIXELS - 12) and "counts" not in plain and "outside" not in plain
    assert sum(plain["depths"]["train"]["histogram"]) == count.known
    limit = max(float(file[file > 0].min()) for file in files) + 500.5  # of each some are nearer
    near = check_scenes(str(root), "depths", max_depth=limit / 1000, on_bad_image="error").depths["train"]
    assert near.beyond == sum(int((file > limit).sum()) for file in files) and near.known == count.known


def test_everything_that_can_be_wrong_with_depths(tmp_path: Path) -> None:
    root = write_depths(tmp_path, {"train": 8, "val": 2})
    (root / "images" / "train" / "0.png").write_bytes(b"no image")
    (root / "depths" / "train" / "1.png").write_bytes(b"no depth")
    (root / "depths" / "train" / "2.png").unlink()
    Image.fromarray(np.full((3, 2), 5000, np.uint16)).save(root / "depths" / "train" / "3.png")
    Image.fromarray(np.zeros(DEPTH_SIZE, np.uint16)).save(root / "depths" / "train" / "4.png")
    Image.fromarray(np.full(DEPTH_SIZE, 20_000, np.uint16)).save(root / "depths" / "train" / "5.png")
    report = check_scenes(str(root), "depths", on_bad_image="error")
    for lines, names in (
        (report.unreadable, ["depths/train/1.png", "images/train/0.png"]),
        (report.alone, ["2.png has no depth"]),
        (report.mismatched, ["3.png is 2x3 pixels"]),
        (report.wrong, ["4.png knows no depth", "5.png knows no depth up to 10 metres, its nearest is 20"]),
    ):
        assert len(lines) == len(names) and all(name in line for name, line in zip(names, lines, strict=True)), lines
    assert report.refused == [
        "2 file(s) that cannot be read",
        "1 image(s) or depth(s) without a partner",
        "1 depth(s) of another size than their images",
        "2 file(s) without a depth that is learnt",
    ]
    assert check_scenes(str(root), "depths").refused == []
    far = check_scenes(str(root), "depths", max_depth=30.0, on_bad_image="error")
    assert len(far.wrong) == 1 and far.depths["train"].farthest == 20 and far.depths["train"].beyond == 0
    (only,) = check_scenes(str(root), "depths", depth_scale=1.0, on_bad_image="error").refused
    assert "can be used; the first of 10: " in only
    (tmp_path / "whole").mkdir()
    whole = write_depths(tmp_path / "whole", {"train": 4, "val": 2})
    (only,) = check_scenes(str(whole), "depths", depth_scale=1.0, on_bad_image="error").refused
    assert "is --depth_scale 1 the metres of one unit?" in only
    with pytest.raises(SrattnError, match="is not a folder of images with depths"):
        check_scenes(str(tmp_path / "nowhere"), "depths", on_bad_image="error")


def test_counting_depths() -> None:
    count = DepthCount(10.0)
    assert count.at(0.5) is None and count.to_dict()["nearest"] is None
    count.add(torch.zeros(2, 2))
    count.add(torch.tensor([[1.0, 1.0, 9.0, 10.0, 0.0, 12.0]]))
    assert (count.pixels, count.known, count.beyond) == (10, 5, 1) and int(count.bins.sum()) == 4
    assert count.at(0.5) == pytest.approx(1.025) and count.at(1.0) == pytest.approx(9.975)
    assert count.nearest == 1 and count.farthest == 12


def test_a_clean_folder_of_people(tmp_path: Path) -> None:
    root = write_people(tmp_path, {"train": plain_people(), "val": plain_people()})
    assert scene_kind(str(root)) == "joints"
    report = check_scenes(str(root), "joints", on_bad_image="error")
    assert report.refused == []
    assert report.images == {"train": 5, "val": 5} and report.classes == NAMES
    assert sum(report.sizes.values()) == 8 and report.repeated == {}  # two people of one image are no repetition
    assert report.amounts["train"] == [5, 5, 5] and report.present["train"] == [5, 5, 0]
    assert report.heading == "10 people with 3 joints in 8 images" and report.bones == [(0, 1), (0, 2)]
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["counts"]["train"]["right_hand"] == {"visible": 0, "labelled": 5} and plain["outside"] == []
    (root / "annotations" / "instances_train.json").write_text("{}")
    assert scene_kind(str(root)) == "boxes"


def test_everything_that_can_be_wrong_with_people(tmp_path: Path) -> None:
    place = [(20.0, 10.0, 2), (12.0, 30.0, 2), (28.0, 30.0, 2)]
    rows = [person(n + 1, n, place) for n in range(5)]
    rows[0]["keypoints"][0] = 70.0
    rows.append(person(10, 1, [(x, y, 1) for x, y, _ in place]))
    rows.append(person(11, 1, [(x, y, 0) for x, y, _ in place], num_keypoints=0))
    rows.append(person(12, 1, place, bbox=[500, 500, 5, 5]))
    rows.append(person(13, 77, place))
    val = [person(1, 0, [(20.0, 10.0, 2), (12.0, 30.0, 0), (28.0, 30.0, 2)])]
    root = write_people(tmp_path, {"train": rows, "val": val}, images=5)
    (root / "images" / "train" / "2.png").write_bytes((root / "images" / "train" / "2.png").read_bytes()[:-300])
    Image.new("RGB", (10, 10)).save(root / "images" / "train" / "3.png")
    report = check_scenes(str(root), "joints", on_bad_image="error")
    assert report.outside == ["0.png (1): nose at (70.5, 10.5) is outside of the image of 64x48"]
    assert report.without == [("train", "1.png (10)")] and report.unlabelled == 1
    assert len(report.unreadable) == 1 and "2.png" in report.unreadable[0]
    assert len(report.mismatched) == 1 and "3.png (4)" in report.mismatched[0]
    assert len(report.wrong) == 2 and "annotation 12 has a box outside" in report.wrong[0]
    assert report.empty == ["val: joint 'left_hand' is never labelled"]
    assert report.refused == [
        "1 file(s) that cannot be read",
        "1 annotation(s) of another size than their images",
        "2 person(s) that cannot be used",
    ]
    assert check_scenes(str(root), "joints").refused == []
    (only,) = check_scenes(str(tmp_path / "images"), "joints", on_bad_image="error").refused
    assert "no people in COCO's form" in only


# -- pictures ---------------------------------------------------------------------------------------------------------


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def test_reports_are_drawn(tmp_path: Path) -> None:
    depths = write_depths(tmp_path / "depths", {"train": 5, "val": 2})
    people = write_people(tmp_path / "people", {"train": plain_people(), "val": plain_people()})
    draw_scene_report(check_scenes(str(depths), "depths", on_bad_image="error"), tmp_path / "depths.png")
    draw_scene_report(check_scenes(str(people), "joints", on_bad_image="error"), tmp_path / "people.png")
    for kind in ("depths", "joints"):
        draw_scene_report(SceneReport("$nothing$", kind, refused=["empty"]), tmp_path / f"no {kind}.png")
        assert drawn(tmp_path / f"no {kind}.png").shape[1] == 1210
    assert drawn(tmp_path / "depths.png").shape[1] == 1210
    assert (drawn(tmp_path / "people.png") == SIDES["left"]).all(-1).sum() > 100


@pytest.mark.parametrize("kind", ["depths", "joints"])
def test_a_preview_shows_targets_where_they_lie(tmp_path: Path, kind: str) -> None:
    if kind == "depths":
        root = write_depths(tmp_path, {"train": 4})
        augment = parse_joint("scale=1-1.5,flip", Preprocess(size=(32, 32), fit="shorter"))
        data = read_some_scenes(str(root), "depths", augment, 2)
    else:
        root = write_people(tmp_path, {"train": plain_people()})
        augment = parse_joint("rotate=40,flip", Preprocess(size=(32, 32), fit="inside"), PersonAugment)
        data = read_some_scenes(str(root), "joints", augment, 2)
    assert data.train.names == data.val.names and len(data.train) >= 2
    assert data.bones == ([] if kind == "depths" else [(0, 1), (0, 2)])
    draw_scene_preview(data, augment, tmp_path / "preview.png", images=2, draws=3)
    assert drawn(tmp_path / "preview.png").shape[1] > 700


def test_colours_of_depth_follow_the_image(tmp_path: Path) -> None:
    """What is drawn over a window is the depth of its own pixels, whichever way the window was moved."""
    root = write_depths(tmp_path, {"train": 3})
    augment = parse_joint("scale=1-1.5,flip=0.5", Preprocess(size=(24, 24), fit="shorter"))
    data = read_some_scenes(str(root), "depths", augment, 2)
    for number in range(6):
        window, target = augment.scene(*data.train.scene(0), uniform(DRAWS, number))  # type: ignore[attr-defined]
        assert target.depth is not None
        known = target.depth > 0
        red = window[0] * 255 * 40 / 1000  # metres, by how the image was painted
        assert (red - target.depth)[known].abs().median() < 0.1
        image = Image.fromarray(np.zeros((24, 24, 3), np.uint8))
        shown = np.asarray(measured_pictures.over_depth(image, target.depth, 1.0, 9.0)).astype(int).sum(-1)
        assert (shown[~known.numpy()] == 0).all()
        near, far = (target.depth[known].quantile(part) for part in (0.1, 0.9))
        if far - near > 0.5:  # the nearer the brighter
            values = target.depth.numpy()
            there = known.numpy()
            assert shown[there & (values <= float(near))].mean() > shown[there & (values >= float(far))].mean()
