"""``srattn data check`` and ``srattn data preview``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from srattn.cli.main import main
from srattn.data.augment import Augment
from srattn.data.check import check
from srattn.data.preprocess import Preprocess
from srattn.data.reader import load_data
from srattn.engine.weights import save_weights
from srattn.errors import SrattnError
from srattn.tasks.models import build_task_model


def photo(path: Path, seed: int, quality: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
    image.save(path, **({} if quality is None else {"quality": quality}))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images a class for training, two for validation, all different."""
    root = tmp_path / "photos"
    for label, name in enumerate(("cat", "dog")):
        for number in range(6):
            photo(root / "train" / name / f"{number}.png", 100 * label + number)
        for number in range(2):
            photo(root / "val" / name / f"{number}.png", 1000 + 100 * label + number)
    return root


def test_a_clean_folder(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "report.json", tmp_path / "report.png"
    code = main(["data", "check", str(photos), "--out", str(out), "--picture", str(picture)])
    said = capsys.readouterr().out
    assert code == 0 and "a run would take this data" in said and "16 images, 2 classes" in said
    report = json.loads(out.read_text())
    assert report["counts"] == {"train": {"cat": 6, "dog": 6}, "val": {"cat": 2, "dog": 2}}
    assert report["sizes"] == [{"width": 48, "height": 40, "images": 16}]
    assert report["duplicates"] == report["near"] == report["refused"] == []
    with Image.open(picture) as opened:
        assert opened.size[0] > 800
    assert main(["data", "check", str(photos), "--out", str(out)]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert main(["data", "check", str(photos), "--out", str(out), "--overwrite"]) == 0


def test_everything_that_can_be_wrong(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, val = photos / "train", photos / "val"
    (val / "cat" / "copy.png").write_bytes((train / "cat" / "3.png").read_bytes())
    photo(val / "dog" / "saved_again.jpg", 102, quality=80)
    (train / "cat" / "again.png").write_bytes((train / "cat" / "0.png").read_bytes())
    (train / "dog" / "wrong.png").write_bytes((train / "cat" / "1.png").read_bytes())
    (train / "dog" / "half.png").write_bytes((train / "dog" / "0.png").read_bytes()[:200])
    report = check(str(photos), workers=2)
    assert report.duplicates == [("train", "train/cat/3.png", "val", "val/cat/copy.png")]
    assert report.near == [("train", "train/dog/2.png", "val", "val/dog/saved_again.jpg")]
    assert report.repeated == {"train": 2}
    assert report.conflicts == [("train/cat/1.png", "cat", "train/dog/wrong.png", "dog")]
    assert len(report.unreadable) == 1 and "half.png" in report.unreadable[0]
    assert report.refused == []
    assert main(["data", "check", str(photos), "--on_bad_image", "error"]) == 1
    said = capsys.readouterr().out
    for words in ("the same picture in two parts: 1", "with two labels: 1", "refuse this: 1 unreadable"):
        assert words in said
    assert main(["data", "check", str(photos)]) == 0  # as a run, which leaves it out


def test_an_empty_class_hides_nothing_else(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "val"):
        (photos / part / "eel").mkdir()
    (photos / "train" / "dog" / "half.png").write_bytes((photos / "train" / "dog" / "0.png").read_bytes()[:200])
    assert main(["data", "check", str(photos)]) == 1
    said = capsys.readouterr().out
    assert "unreadable: 1" in said and "half.png" in said
    assert "train: class 'eel' has no image" in said
    assert "refuse this: class folder" in said and "eel has no images" in said
    assert main(["data", "check", str(photos), "--on_empty_class", "skip"]) == 0


Options = dict[str, Any]


@pytest.mark.parametrize(
    ("counts", "options", "refused"),
    [
        ({"train": {"a": 3, "b": 3, "c": 2}, "val": {"a": 1, "b": 1}}, {}, "class 'c' is in"),
        ({"train": {"a": 3, "b": 3, "c": 2}, "val": {"a": 1, "b": 1}}, {"on_empty_class": "skip"}, None),
        ({"train": {"a": 3, "b": 3}, "val": {"a": 1, "b": 1, "c": 2}}, {"on_empty_class": "skip"}, None),
        ({"train": {"a": 3, "b": 0}, "val": {"a": 1, "b": 1}}, {"on_empty_class": "skip"}, "'a' is the only class"),
        ({"": {"a": 4, "b": 1}}, {}, "class 'b' has 1 usable image"),
        ({"": {"a": 4, "b": 2}}, {"val_fraction": 1.5}, "val_fraction must be above 0"),
        (
            {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 1}},
            {"val": "val"},
            "val is 'val', but can be test or split",
        ),
        ({"train": {"a": 3, "b": 3, "bad c": 2}, "val": {"a": 1, "b": 1, "c": 1}}, {"on_empty_class": "skip"}, None),
        ({"": {"a": 4, "bad b": 4}}, {}, "class 'b' has no usable image for training"),
        ({"": {"a": 4, "bad b": 4}}, {"on_empty_class": "skip"}, "'a' is the only class"),
        ({"": {"a": 4, "b": 4, "bad a": 1}}, {}, None),
        ({"": {"a": 4, "b": 4, "bad a": 1}}, {"on_bad_image": "error"}, "unreadable"),
        ({"train": {"a": 4, "b": 4}, "val": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1, "bad b": 1}}, {}, None),
    ],
)
def test_a_check_says_what_a_run_does(
    tmp_path: Path, counts: dict[str, dict[str, int]], options: Options, refused: str | None
) -> None:
    for part, classes in counts.items():
        for name, count in classes.items():
            folder = tmp_path / part / name.removeprefix("bad ")
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                if name.startswith("bad "):
                    (folder / f"bad{number}.png").write_bytes(b"no image")
                else:
                    photo(folder / f"{number}.png", number + 10 * ord(name[0]) + 10_000 * len(part))
    reasons = check(str(tmp_path), **options).refused
    augment = Augment("none", Preprocess(size=(8, 8)))
    try:
        load_data(str(tmp_path), augment, **options)
        error = None
    except SrattnError as stopped:
        error = str(stopped)
    assert (error is None) == (not reasons) == (refused is None), (error, reasons)
    if refused is not None and error is not None and refused != "unreadable":
        assert refused in error and error in reasons


def test_a_list_of_one_class_is_refused(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 1)
    (tmp_path / "list.csv").write_text("path,label\na.png,cat\na.png,cat\na.png,cat\n")
    (reason,) = check(str(tmp_path / "list.csv")).refused
    with pytest.raises(SrattnError, match="'cat' is the only class with images for training"):
        load_data(str(tmp_path / "list.csv"), Augment("none", Preprocess(size=(8, 8))))
    assert "'cat' is the only class" in reason


def test_structures_that_a_run_refuses(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "train" / "eel").mkdir()
    assert main(["data", "check", str(photos)]) == 1
    assert "'eel'" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert "neither digits nor an existing folder" in capsys.readouterr().err


def test_digits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "digits"]) == 0
    assert "1,797 images, 10 classes" in capsys.readouterr().out


@pytest.mark.parametrize("spec", ["crop,flip,jitter", "shift=2,rand=1x9,mixup,cutmix"])
def test_preview(photos: Path, tmp_path: Path, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "preview.png"
    options = ["--size", "16", "--images", "3", "--draws", "2", "--out", str(out)]
    assert main(["data", "preview", str(photos), "--augment", spec, *options]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as opened:
        assert opened.size[0] > 300
    assert main(["data", "preview", str(photos), "--augment", spec, *options]) == 2


@pytest.mark.parametrize("spec", ["affine,mixup", "none", "crop"])
def test_preview_of_digits(spec: str, tmp_path: Path) -> None:
    out = tmp_path / "preview.png"
    assert main(["data", "preview", "digits", "--augment", spec, "--images", "3", "--out", str(out)]) == 0
    assert out.is_file()


def street(root: Path, parts: tuple[str, ...] = ("train", "val"), images: int = 3) -> Path:
    """images/ and masks/ of two classes, all different."""
    for place, part in enumerate(parts):
        for number in range(images):
            photo(root / "images" / part / f"{number}.png", 10 * place + number)
            mask = np.zeros((40, 48), np.uint8)
            mask[5 : 20 + number, 8:30] = 1
            (root / "masks" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / part / f"{number}.png")
    return root


def cells(root: Path) -> Path:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part in ("train", "val"):
        for number in range(2):
            photo(root / "JPEGImages" / f"{part}{number}.png", ord(part[0]) + number)
            box = "<xmin>5</xmin><ymin>6</ymin><xmax>30</xmax><ymax>28</ymax>"
            (root / "Annotations" / f"{part}{number}.xml").write_text(
                f"<annotation><object><name>cell</name><bndbox>{box}</bndbox></object></annotation>"
            )
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{part}0\n{part}1\n")
    return root


def test_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out, picture = street(tmp_path / "street"), tmp_path / "report.json", tmp_path / "report.png"
    options = ["--classes", "road,car", "--out", str(out), "--picture", str(picture)]
    assert main(["data", "check", str(root), *options]) == 0
    said = capsys.readouterr().out
    for words in ("6 images with masks, 2 classes", "road", "a run would take this data", f"report {out}"):
        assert words in said
    report = json.loads(out.read_text())
    assert report["kind"] == "masks" and report["counts"]["val"]["car"]["images"] == 3 and picture.is_file()
    assert main(["data", "check", str(root), *options]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    Image.new("L", (48, 40), 7).save(root / "masks" / "train" / "0.png")
    assert main(["data", "check", str(root), "--classes", "road,car", "--on_bad_image", "error"]) == 1
    said = capsys.readouterr().out
    assert "numbers that are no class: 1" in said and "refuse this: 1 mask(s) with numbers" in said
    assert main(["data", "check", str(root), "--classes", "road,car"]) == 0
    assert main(["data", "check", str(root), "--classes", "road,car", "--val", "test"]) == 1
    assert main(["data", "check", str(root), "--classes", "road,car", "--void", "[7]"]) == 0
    capsys.readouterr()
    (root / "images" / "val").rename(root / "images" / "other")
    assert main(["data", "check", str(root), "--task", "segment", "--on_bad_image", "error"]) == 1
    assert "without a partner: 1" in capsys.readouterr().out


def test_masks_are_read_as_a_model_learnt_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, file = street(tmp_path / "street"), tmp_path / "model.safetensors"
    for mask in root.glob("masks/*/*.png"):
        Image.fromarray(np.asarray(Image.open(mask)) * 255).save(mask)
    model = build_task_model("segmentation", "mit_b0", 2, "segformer", {"hidden": 8}, depths=[1] * 4)
    save_weights(file, model, ["road", "car"], Preprocess(size=(32, 32)), task="segmentation", of_255="void")  # type: ignore[arg-type]
    assert main(["data", "check", str(root)]) == 0
    assert "255 in the masks is the object" in capsys.readouterr().out
    assert main(["data", "check", str(root), "--model", str(file)]) == 0
    assert "255 in the masks is no class" in capsys.readouterr().out


def test_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = cells(tmp_path / "cells")
    assert main(["data", "check", str(root), "--picture", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out
    assert "4 images with boxes, 1 classes" in said and "24  24  24" in said
    (root / "JPEGImages" / "val0.png").unlink()
    assert main(["data", "check", str(root), "--on_bad_image", "error"]) == 1
    assert "cannot be read: 1" in capsys.readouterr().out
    assert main(["data", "check", str(root), "--task", "segment"]) == 1
    assert "has no images with masks" in capsys.readouterr().out


def test_classes_are_compared_with_those_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, file, out = street(tmp_path / "street"), tmp_path / "model.safetensors", tmp_path / "report.json"
    body = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    model: Any = build_task_model("segmentation", "mit_b0", 3, "segformer", {"hidden": 8}, **body)
    preprocess = Preprocess(size=(32, 32), fit="shorter")
    save_weights(file, model.eval(), ["car", "road", "tree"], preprocess, task="segmentation")
    given = ["data", "check", str(root), "--model", str(file), "--classes"]
    assert main([*given, "road,car"]) == 0
    said = capsys.readouterr().out
    assert "'road' is 0 here and 1 in the model" in said and "'car' is 1 here and 0 in the model" in said
    assert main([*given, "car,road"]) == 0 and "not the model's" not in capsys.readouterr().out
    assert main([*given, "road,cra", "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "'cra' is unknown to the model" in said and "does not know the class 'cra' of the data; did you mean" in said
    assert "'cra'" in json.loads(out.read_text())["refused"][0]
    assert main(["data", "preview", str(root), "--model", str(file), "--out", "x.png"]) == 2
    assert "--model belongs to check" in capsys.readouterr().err


@pytest.mark.parametrize("make", [street, cells])
def test_preview_of_scenes(make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = make(tmp_path / "data"), tmp_path / "preview.png"
    options = ["--size", "32", "--images", "2", "--draws", "2", "--out", str(out)]
    assert main(["data", "preview", str(root), "--augment", "scale=0.5-2,flip,rotate=20,jitter", *options]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as opened:
        assert opened.size[0] > 500
    assert main(["data", "preview", str(root), *options, "--overwrite"]) == 0  # as a run varies them
    assert main(["data", "preview", str(root), *options]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["data", "preview", str(root), *options, "--overwrite", "--augment", "crop"]) == 2
    assert "unknown 'crop'" in capsys.readouterr().err


def test_class_folders_that_are_called_images_and_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "shop"
    for number in range(6):
        photo(root / "images" / f"poster{number}.png", number)
        photo(root / "masks" / f"{number}carnival.png", 100 + number)
    assert main(["data", "check", str(root)]) == 0
    assert "12 images, 2 classes" in capsys.readouterr().out
    paired = street(tmp_path / "paired", parts=("",))
    assert main(["data", "check", str(paired), "--task", "classification"]) == 0
    assert "6 images, 2 classes" in capsys.readouterr().out
    for options, words in (
        (["--void", "[3]"], "--void has no meaning for images with labels"),
        (["--classes", "a,b"], "--classes has no meaning for images with labels"),
    ):
        assert main(["data", "check", str(root), *options]) == 2
        assert words in capsys.readouterr().err
    assert main(["data", "check", str(paired), "--on_empty_class", "skip"]) == 2
    assert "--on_empty_class has no meaning for images with masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preview", "digits"], "--out preview.png"),
        (["preview", "digits", "--out", "a.txt"], "must end in .png"),
        (["preview", "digits", "--out", "a.png", "--augment", "crp"], "did you mean 'crop'"),
        (["preview", "digits", "--out", "a.png", "--images", "0"], "--images must be at least 1"),
        (["chek", "digits"], "did you mean 'check'"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *arguments]) == 2
    assert message in capsys.readouterr().err
