"""Folders of class folders, whole and broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srattn.data.augment import Augment
from srattn.data.decode import BadImage
from srattn.data.folder import find_images, index_folder
from srattn.data.preprocess import Preprocess
from srattn.data.reader import load_data
from srattn.data.samples import ImageData, Samples
from srattn.data.sources import stamp_of
from srattn.errors import SrattnError

PREPROCESS = Preprocess(size=(8, 8))


def read(root: Path, **options: Any) -> ImageData:
    return load_data(str(root), Augment("crop", PREPROCESS), **options)


def test_one_folder_is_split(make_folder) -> None:
    data = read(make_folder({"cat": 10, "dog": 5}))
    assert data.classes == ["cat", "dog"]
    assert (len(data.train), len(data.val)) == (12, 3)
    assert data.val.labels.tolist() == [0, 0, 1]
    assert data.train.names[0].startswith("cat/")
    assert data.val.pixels(0).shape == (3, 8, 8)
    assert data.train.pixels(0).shape == (3, 10, 12)  # the whole picture, for crops


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("train", "valid"), ("Training", "Validation")])
def test_train_and_val(make_folder, train: str, val: str) -> None:
    make_folder({"cat": 3, "dog": 2}, below=train)
    root = make_folder({"cat": 1, "dog": 2}, below=val)
    data = read(root)
    assert (len(data.train), len(data.val)) == (5, 3)
    assert data.val.names[0] == f"{val}/cat/0.png"


def test_depth_hidden_files_and_other_files(make_folder) -> None:
    root = make_folder({"cat": 2, "dog": 2})
    deep = root / "cat" / "a" / "b"
    deep.mkdir(parents=True)
    Image.new("L", (4, 4)).save(deep / "X.PNG", "PNG")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / "._0.png").write_bytes(b"left by another system")
    (root / ".hidden").mkdir()
    assert [path.name for path in find_images(root / "cat")] == ["0.png", "1.png", "X.PNG"]
    assert index_folder(root).classes == ["cat", "dog"]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_named_skipped_and_counted(make_folder, workers: int) -> None:
    root = make_folder({"cat": 10, "dog": 10})
    clean = {name for part in (read(root).train, read(root).val) for name in part.names}
    (root / "cat" / "0.png").write_bytes(b"")
    whole = (root / "dog" / "3.png").read_bytes()
    (root / "dog" / "3.png").write_bytes(whole[:-30])
    done: list[tuple[int, int]] = []
    data = read(root, workers=workers, notify=lambda *counts: done.append(counts))
    assert done == [(number, 20) for number in range(1, 21)]
    assert len(data.skipped) == 2
    assert "cat/0.png" in data.skipped[0] + data.skipped[1] and "dog/3.png" in data.skipped[0] + data.skipped[1]
    assert clean - {name for part in (data.train, data.val) for name in part.names} == {"cat/0.png", "dog/3.png"}
    with pytest.raises(BadImage, match=r"(cat/0|dog/3)\.png"):
        read(root, workers=workers, on_bad_image="error")


def test_held_or_not_the_pixels_are_the_same(make_folder) -> None:
    root = make_folder({"cat": 4, "dog": 4})
    held, read_again = read(root), read(root, hold_bytes=500)
    assert [isinstance(source, Path) for source in read_again.train.sources].count(True) == 5
    assert all(not isinstance(source, Path) for source in held.train.sources)
    for index in range(len(held.train)):
        assert (held.train.pixels(index) == read_again.train.pixels(index)).all()
    assert (held.val.pixels(0) == read_again.val.pixels(0)).all()


def test_structures_that_cannot_be_trained_on(make_folder, tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match="does not exist"):
        index_folder(tmp_path / "nowhere")
    with pytest.raises(SrattnError, match="only one class folder, 'cat'"):
        read(make_folder({"cat": 3}, name="one"))
    (tmp_path / "none").mkdir()
    with pytest.raises(SrattnError, match="no class folders"):
        read(tmp_path / "none")
    with pytest.raises(SrattnError, match=r"empty.dog has no images"):
        read(make_folder({"cat": 3, "dog": 0}, name="empty"))
    with pytest.raises(SrattnError, match="class 'dog' has 1"):
        read(make_folder({"cat": 3, "dog": 1}, name="single"))
    with pytest.raises(SrattnError, match="no val/"):
        read(make_folder({"cat": 3, "dog": 1}, below="train", name="trainonly"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SrattnError, match="not a folder"):
        index_folder(tmp_path / "file")


def test_classes_must_agree(make_folder) -> None:
    make_folder({"cat": 2, "dog": 2, "eel": 2}, below="train", name="a")
    with pytest.raises(SrattnError, match=r"'dog' is in .*train but not in .*val"):
        read(make_folder({"cat": 2, "eel": 2}, below="val", name="a"))
    make_folder({"cat": 2, "dog": 2}, below="train", name="b")
    with pytest.raises(SrattnError, match=r"'cow' is in .*val but not in .*train"):
        read(make_folder({"cat": 2, "cow": 2, "dog": 2}, below="val", name="b"))


def test_a_class_whose_every_image_is_bad(make_folder) -> None:
    make_folder({"cat": 2, "dog": 1}, below="train")
    root = make_folder({"cat": 2, "dog": 1}, below="val")
    (root / "val" / "dog" / "0.png").write_bytes(b"no")
    with pytest.raises(SrattnError, match=r"'dog' has no usable image for validation; 1 file.*dog/0\.png"):
        read(root)


def test_an_empty_class_is_left_out_if_asked(make_folder) -> None:
    root = make_folder({"ant": 0, "cat": 4, "dog": 4})
    augment = Augment("none", PREPROCESS)
    for options in ({}, {"on_empty_class": "error"}, {"on_bad_image": "skip"}):
        with pytest.raises(SrattnError, match=r"ant has no images .*or go on without it: --on_empty_class skip"):
            load_data(str(root), augment, **options)  # type: ignore[arg-type]
    data = load_data(str(root), augment, on_empty_class="skip")
    assert data.classes == ["cat", "dog"] and len(data.train) + len(data.val) == 8
    assert set(data.train.labels.tolist()) == {0, 1} and "ant has no images" in data.skipped[0]
    make_folder({"ant": 0, "cat": 4, "dog": 4}, below="train", name="parts")
    parts = make_folder({"ant": 2, "cat": 2, "dog": 0}, below="val", name="parts")
    data = load_data(str(parts), augment, on_empty_class="skip")
    assert data.classes == ["cat", "dog"] and data.val.labels.tolist() == [0, 0]
    for words in (
        "2 image(s) of val: their classes have no training image",
        "'dog' has no usable image for validation",
    ):
        assert any(words in line for line in data.skipped)


def test_names_and_paths(make_folder) -> None:
    augment = Augment("none", PREPROCESS)
    assert len(load_data(str(make_folder({"cat": 2, "dog": 2})), augment).train) == 2
    with pytest.raises(SrattnError, match="'digts' is neither digits nor an existing folder; did you mean 'digits'"):
        load_data("digts", augment)


def test_a_stamp_is_of_size_and_ends(tmp_path: Path) -> None:
    path, data = tmp_path / "file", bytes(range(256)) * 400
    path.write_bytes(data)
    assert stamp_of(path) == stamp_of(data)
    for other in (data[:-1], data + b"x", b"x" + data[1:], data[:-1] + b"x"):
        assert stamp_of(other) != stamp_of(data) and 0 <= stamp_of(other) < 1 << 63
    assert stamp_of(b"") == 0


def test_names_below_one_folder_are_the_same_elsewhere(tmp_path: Path) -> None:
    def named(*names: str) -> ImageData:
        samples = Samples(names, torch.zeros(len(names), dtype=torch.int64), torch.zeros(len(names), 1, 2, 2), 1)
        return ImageData(["x"], samples, samples, Preprocess(), [])

    one, other = named("/a/b/1.png", "/a/bc/2.png"), named("/d/e/f/b/1.png", "/d/e/f/bc/2.png")
    assert one.fingerprint() != other.fingerprint() and one.rootless() == other.rootless() != ""
    assert named("/a/b/1.png", "/a/bc/3.png").rootless() != one.rootless()
    assert named("b/1.png", "bc/2.png").rootless() == named("/a/b/1.png", "2.png").rootless() == ""
    assert named("/a/b/1.png").rootless() == named("/c/1.png").rootless() != ""
    assert one.contents() == ""  # no files
