"""What a check of images with masks or boxes finds, and what is drawn of it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import FigureBase
from PIL import Image

from srattn.cli.main import main
from srattn.data import object_overlay
from srattn.data.dense.check import SHOWN, check_scenes
from srattn.data.dense.joint import parse_joint
from srattn.data.dense.kinds import scene_kind
from srattn.data.dense.pictures import draw_scene_preview, draw_scene_report
from srattn.data.dense.preview import read_some_scenes
from srattn.data.dense.shown import has_ignored
from srattn.data.dense.survey import SceneReport, size_words
from srattn.data.dense.target import Target
from srattn.data.palette import UNCOUNTED, standard_palette
from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError

Maker = Callable[..., Path]


def mask_at(root: Path, part: str, number: int) -> Path:
    return root / "masks" / part / f"{number}.png"


def test_a_clean_folder_of_masks(save_pairs: Maker) -> None:
    root = save_pairs({"train": 4, "val": 2})
    calls: list[tuple[int, int]] = []
    report = check_scenes(str(root), "masks", workers=2, notify=lambda done, total: calls.append((done, total)))
    assert calls[0] == (1, 12) and calls[-1] == (12, 12)  # masks first, then images with them
    assert report.classes == ["0", "1", "2"] and report.images == {"train": 4, "val": 2} and report.refused == []
    for part, amounts in report.amounts.items():
        masks = [np.asarray(Image.open(mask_at(root, part, number))) for number in range(report.images[part])]
        assert amounts == [sum(int((mask == number).sum()) for mask in masks) for number in range(3)]
        assert report.present[part] == [sum(bool((mask == number).any()) for mask in masks) for number in range(3)]
    assert report.sizes == {(18, 14): 6} and report.void == {"train": 0, "val": 0}
    assert not (report.unreadable or report.alone or report.mismatched or report.wrong or report.without)
    assert len(report.examples) == 4 and report.examples[0].pixels.shape == (3, 14, 18)


def test_everything_that_can_be_wrong_with_masks(save_pairs: Maker) -> None:
    root = save_pairs({"train": 9, "val": 3})
    (root / "images" / "train" / "0.png").write_bytes(b"no image")
    mask_at(root, "train", 1).write_bytes(b"no mask")
    mask_at(root, "train", 2).unlink()
    (root / "images" / "train" / "3.png").unlink()
    Image.new("L", (3, 2)).save(mask_at(root, "train", 4))
    mask = np.asarray(Image.open(mask_at(root, "train", 5))).copy()
    mask[2, 7] = 9
    Image.fromarray(mask).save(mask_at(root, "train", 5))
    Image.new("L", (18, 14)).save(mask_at(root, "train", 6))
    for folder, kind in (("images", "val"), ("images", "train")):
        target = root / folder / kind / ("0.png" if kind == "val" else "8.png")
        target.write_bytes((root / folder / "train" / "7.png").read_bytes())
    Image.new("L", (18, 14), 255).save(mask_at(root, "val", 1))
    report = check_scenes(str(root), "masks", classes="background,car,tree", on_bad_image="error")
    for lines, names in (
        (report.unreadable, ["masks/train/1.png", "images/train/0.png"]),
        (report.alone, ["2.png has no mask", "3.png has no image"]),
        (report.mismatched, ["4.png is 3x2 pixels"]),
        (report.wrong, ["5.png has the value 9 at (y, x) = (2, 7)"]),
    ):
        assert len(lines) == len(names) and all(name in line for name, line in zip(names, lines, strict=True))
        assert all("\n" not in line for line in lines)
    assert report.without == [("train", "images/train/6.png"), ("val", "images/val/1.png")]
    assert report.duplicates == [("train", "images/train/7.png", "val", "images/val/0.png")]
    assert report.repeated == {"train": 1} and report.images == {"train": 3, "val": 3}
    assert report.void["val"] == 14 * 18
    assert report.refused == [
        "2 file(s) that cannot be read",
        "2 image(s) or mask(s) without a partner",
        "1 mask(s) of another size than their images",
        "1 mask(s) with numbers that are no class",
    ]
    assert check_scenes(str(root), "masks", classes="background,car,tree").refused == []


def test_classes_that_a_part_lacks(save_pairs: Maker) -> None:
    root = save_pairs({"train": 2, "val": 1})
    Image.new("L", (18, 14)).save(mask_at(root, "val", 0))
    report = check_scenes(str(root), "masks", classes="a,b,c,d", on_bad_image="error")
    assert report.empty == [f"{part}: class {name!r} has no pixels" for part, name in
                            (("train", "d"), ("val", "b"), ("val", "c"), ("val", "d"))]  # fmt: skip
    assert report.without == []  # class a is an object like any other


def test_what_a_run_would_refuse_whatever_it_leaves_out(save_pairs: Maker, tmp_path: Path) -> None:
    root = save_pairs({"train": 1})
    assert "one image only" in check_scenes(str(root), "masks").refused[0]
    (root / "images" / "train" / "0.png").write_bytes(b"")
    assert "no training part" in check_scenes(str(root), "masks").refused[0]
    (root / "masks" / "train" / "0.png").unlink()
    (only,) = check_scenes(str(root), "masks").refused
    assert "has no images with masks" in only
    with pytest.raises(SrattnError, match="is not a folder of images with boxes"):
        check_scenes(str(tmp_path / "nowhere"), "boxes", on_bad_image="error")


def test_boxes(save_voc: Maker) -> None:
    root = save_voc({"train": 6, "val": 2})
    report = check_scenes(str(root), "boxes", on_bad_image="error")
    assert report.refused == [] and report.classes == ["cat", "dog"] and report.amounts["train"] == [3, 3]
    assert report.present == {"train": [3, 3], "val": [1, 1]} and report.void == {}
    assert report.box_sides[0] == pytest.approx([72**0.5] * 4)
    plain = report.to_dict()
    assert plain["counts"]["train"]["cat"] == {"images": 3, "boxes": 3}
    assert plain["box_sizes"]["dog"] == {
        "smallest": 8.49, "median": 8.49, "largest": 8.49, "small": 4, "medium": 0, "large": 0
    }  # fmt: skip


def ignore(path: Path) -> None:
    """Marks the only object as difficult."""
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))


def test_boxes_that_are_ignored_are_counted_apart(save_voc: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    root = save_voc({"train": 4, "val": 2})
    ignore(root / "Annotations" / "train0.xml")
    report = check_scenes(str(root), "boxes", on_bad_image="error")
    assert report.amounts["train"] == [1, 2] and report.ignored == {"train": 1, "val": 0}
    assert report.without == [("train", "train0")] and len(report.box_sides[0]) == 2
    assert report.to_dict()["ignored"] == {"train": 1, "val": 0}
    assert main(["data", "check", str(root), "--num_workers", "0"]) == 0
    assert "ignored" in capsys.readouterr().out
    for number in range(1, 4):
        ignore(root / "Annotations" / f"train{number}.xml")
    assert "there is no box to learn from" in check_scenes(str(root), "boxes", on_bad_image="error").refused[0]


def test_everything_that_can_be_wrong_with_boxes(save_voc: Maker) -> None:
    root = save_voc({"train": 7, "val": 2})
    box = (
        "<object><name>cat</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
    )
    for number, edges in ((0, (50, 2, 60, 9)), (1, (5, 5, 5, 5)), (2, (1, 1, 90, 9)), (3, ("x", 1, 2, 3))):
        path = root / "Annotations" / f"train{number}.xml"
        path.write_text(path.read_text().replace("</annotation>", box.format(*edges) + "</annotation>"))
    image = root / "JPEGImages" / "train4.png"
    image.write_bytes(image.read_bytes()[:-300])  # its header is whole
    (root / "JPEGImages" / "train5.png").unlink()
    text = (root / "Annotations" / "train6.xml").read_text()
    start, end = text.index("<object>"), text.index("</annotation>")
    (root / "Annotations" / "train6.xml").write_text(text[:start] + text[end:])
    report = check_scenes(str(root), "boxes", on_bad_image="error")
    told = "\n".join(report.wrong)
    assert len(report.wrong) == 4
    for words in ("is outside of the image", "has no area", "is cut at its edge", "no box of four numbers"):
        assert words in told
    assert len(report.unreadable) == 2
    assert {Path(line.split(":")[0]).stem for line in report.unreadable} == {"train4", "train5"}
    assert report.without == [("train", "train6")] and report.images == {"train": 5, "val": 2}
    assert report.refused == ["2 file(s) that cannot be read", "4 wrong box(es)"]
    assert check_scenes(str(root), "boxes").refused == []


def test_everything_that_can_be_wrong_with_coco(coco_folder: Path, tmp_path: Path) -> None:
    content = json.loads((coco_folder / "annotations" / "instances_train.json").read_text())
    content["annotations"][0]["segmentation"] = {"size": [3, 4], "counts": [12]}
    content["images"][1]["width"] = 57
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    (tmp_path / "train").symlink_to(coco_folder / "train")
    report = check_scenes(str(tmp_path), "boxes", on_bad_image="error")
    (wrong, another), (size,) = report.wrong, report.mismatched
    assert "01.png: the mask of annotation 1" in wrong and "of size [3, 4] (height, width) in an image" in wrong
    assert "02.png: the mask of annotation" in another and "[40, 56]" in another
    assert "02.png: the image is 56x40, declared is 57x40" in size and report.images == {"train": 11}
    assert report.refused == ["1 annotation(s) of another size than their images", "2 wrong box(es)"]
    assert all(example.target.masks is not None for example in report.examples)
    draw_scene_report(report, tmp_path / "report.png")


def test_masks_of_objects_are_shown_where_augmentation_puts_them(coco_folder: Path, tmp_path: Path) -> None:
    augment = parse_joint("flip", Preprocess(size=(32, 32), fit="inside"))
    data = read_some_scenes(str(coco_folder), "boxes", augment, 1)
    drawn_masks: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            object_overlay, "tinted", lambda image, masks, colours: (drawn_masks.append(len(masks)), image)[1]
        )
        draw_scene_preview(data, augment, tmp_path / "preview.png", 1, 2)
    assert drawn_masks == [2, 2, 2]  # as measured, and twice as it is learnt


def test_an_image_beyond_all_bounds_is_named(save_pairs: Maker) -> None:
    root = save_pairs({"train": 3})
    header = struct.pack(">IIBBBBB", 30_000, 20_000, 8, 2, 0, 0, 0)
    with (root / "images" / "train" / "0.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")):
            file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    (line,) = check_scenes(str(root), "masks", on_bad_image="error").unreadable
    assert "0.png" in line and "more than the 64,000,000 pixels that are accepted" in line


def test_a_training_part_without_boxes(save_voc: Maker) -> None:
    root = save_voc({"train": 2, "val": 1})
    for number in range(2):
        (root / "Annotations" / f"train{number}.xml").write_text("<annotation></annotation>")
    assert check_scenes(str(root), "boxes", on_bad_image="error").refused == [
        "there is no box to learn from; put some into the training part"
    ]


def test_sizes_in_words() -> None:
    assert size_words([]) == {"small": 0, "medium": 0, "large": 0}
    found = size_words([100.0, 31.9, 32.0, 96.0, 10.0])
    assert found == {"smallest": 10.0, "median": 32.0, "largest": 100.0, "small": 2, "medium": 2, "large": 1}


def test_255_is_void_however_many_classes_there_are(save_pairs: Maker) -> None:
    report = SceneReport("a", "masks")
    report.begin([str(number) for number in range(256)], None, ["train"])
    report.count("train", "x", (1, 2), Target(mask=torch.tensor([[255], [3]], dtype=torch.uint8)))
    assert report.void == {"train": 1} and sum(report.amounts["train"]) == report.amounts["train"][3] == 1
    names = ",".join(f"c{number}" for number in range(256))
    (reason,) = check_scenes(str(save_pairs({"train": 2, "val": 1})), "masks", classes=names).refused
    assert "masks have at most 255 classes" in reason  # as the task says when a run makes it


def test_255_is_what_a_model_learnt(save_pairs: Maker) -> None:
    root = save_pairs({"train": 2, "val": 1})
    for part, number in (("train", 0), ("train", 1), ("val", 0)):
        mask = np.zeros((14, 18), np.uint8)
        mask[3:5] = 255
        Image.fromarray(mask).save(mask_at(root, part, number))
    report = check_scenes(str(root), "masks")
    assert report.of_255 == "object" and report.amounts["val"][1] == 36 and report.void["val"] == 0
    report = check_scenes(str(root), "masks", learnt=(standard_palette(["ground", "car"]), "void"))
    assert report.of_255 == "void" and report.amounts["val"] == [14 * 18 - 36, 0] and report.void["val"] == 36
    assert report.to_dict()["of_255"] == "void"


def test_kinds(save_pairs: Maker, save_voc: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, boxes = save_pairs({"train": 1}), save_voc({"train": 1})
    assert scene_kind(str(masks)) == "masks" and scene_kind(str(boxes)) == "boxes"
    for name, mask in (("images", "cat"), ("masks", "dog")):  # classes that are called so
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "classes" / name / f"{mask}.png")
    for data in (str(tmp_path / "classes"), str(tmp_path / "nowhere"), "hf:name", "digits"):
        assert scene_kind(data) is None
    masks.rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert scene_kind("digits") is None and scene_kind("./digits") == "masks"


# -- pictures ---------------------------------------------------------------------------------------------------------


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.mark.parametrize("classes", [None, ",".join(f"class {number}" for number in range(35))])
def test_a_report_is_drawn(save_pairs: Maker, tmp_path: Path, classes: str | None) -> None:
    root = save_pairs({"train": SHOWN + 2, "val": 2, "test": 1})
    report = check_scenes(str(root), "masks", classes=classes, on_bad_image="error")
    assert len(report.examples) == SHOWN
    draw_scene_report(report, tmp_path / "report.png")
    pixels = drawn(tmp_path / "report.png")
    assert pixels.shape[1] == 1210
    orange = (pixels == report.palette.colours[1]).all(-1)  # the second class, on examples' borders
    assert orange.sum() > 100
    with pytest.raises(SrattnError, match="exists"):
        draw_scene_report(report, tmp_path / "report.png")


def test_reports_of_boxes_and_of_nothing_are_drawn(save_voc: Maker, tmp_path: Path) -> None:
    root = save_voc({"train": 3})
    path = root / "Annotations" / "train0.xml"
    path.write_text(path.read_text().replace("<xmin>", "<xmin>0").replace("</annotation>", (
        "<object><name>$a_b$</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>29</xmax><ymax>23</ymax></bndbox>"
        "</object></annotation>")))  # fmt: skip
    draw_scene_report(check_scenes(str(root), "boxes", on_bad_image="error"), tmp_path / "boxes.png")
    draw_scene_report(SceneReport("$nothing$", "masks", refused=["empty"]), tmp_path / "nothing.png")
    assert drawn(tmp_path / "boxes.png").shape[1] == drawn(tmp_path / "nothing.png").shape[1] == 1210


@pytest.mark.parametrize("ignored", [False, True])
def test_boxes_that_are_ignored_are_drawn_in_grey_and_named(save_voc: Maker, tmp_path: Path, ignored: bool) -> None:
    root = save_voc({"train": 1, "val": 1})
    if ignored:
        ignore(root / "Annotations" / "train0.xml")
    report = check_scenes(str(root), "boxes", on_bad_image="error")
    assert has_ignored(report.examples[0].target) == ignored
    augment = parse_joint("none", Preprocess(size=(32, 32), fit="inside"))
    legends: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            FigureBase, "legend", lambda self, **given: legends.append([h.get_label() for h in given["handles"]])
        )
        draw_scene_preview(read_some_scenes(str(root), "boxes", augment, 1), augment, tmp_path / "a.png", 1, 2)
        draw_scene_report(report, tmp_path / "b.png")
    assert legends == ([["ignored"], ["ignored"]] if ignored else [["cat"]])  # the bars name the class
    pixels = drawn(tmp_path / "a.png")
    assert bool((pixels == UNCOUNTED).all(-1).any()) == ignored


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_a_preview_shows_targets_where_they_lie(save_pairs: Maker, save_voc: Maker, tmp_path: Path, kind: str) -> None:
    masks = kind == "masks"
    root = save_pairs({"train": 5, "val": 2}, classes=2) if masks else save_voc({"train": 5, "val": 2})
    (root / ("images/train/0.png" if masks else "JPEGImages/train0.png")).write_bytes(b"")
    augment = parse_joint("scale=0.8-1.5,flip", Preprocess(size=(32, 32), fit="shorter" if masks else "inside"))
    data = read_some_scenes(str(root), "masks" if masks else "boxes", augment, 3, seed=1)
    assert data.train.names == data.val.names and len(data.train) >= 3
    draw_scene_preview(data, augment, tmp_path / "preview.png", images=3, draws=4)
    pixels = drawn(tmp_path / "preview.png")
    assert pixels.shape[1] > 900
    colour = (0, 0, 0) if not masks else (230, 159, 0)
    assert (pixels == colour).all(-1).sum() > 200
    with pytest.raises(SrattnError, match="exists"):
        draw_scene_preview(data, augment, tmp_path / "preview.png")


def test_a_report_is_json(save_pairs: Maker) -> None:
    report = check_scenes(str(save_pairs({"train": 2, "val": 1})), "masks")
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["counts"]["train"]["1"]["pixels"] == report.amounts["train"][1]
    assert plain["sizes"] == [{"width": 18, "height": 14, "images": 3}] and "examples" not in plain
