"""Lists, Parquet files, IDX files and tables of the `datasets` library: whole, broken and hostile."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srattn.data.columns import Columns
from srattn.data.decode import BadImage
from srattn.data.hub import _fetcher
from srattn.data.preprocess import Preprocess
from srattn.data.reader import absolute, is_built_in, load_data, open_data
from srattn.data.samples import ImageData
from srattn.data.sources import MAX_IMAGE_BYTES, Span
from srattn.data.spec import parse_augment
from srattn.engine.rows.find import open_rows
from srattn.errors import SrattnError

RGB = Preprocess(size=(8, 8))


def load(data: Path | str, **options: Any) -> ImageData:
    return load_data(str(data), parse_augment("none", RGB), **options)


def png(level: int, size: tuple[int, int] = (9, 7)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (level,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Twelve image files below tmp_path, all different."""
    (tmp_path / "files").mkdir()
    names = [f"files/{number}.png" for number in range(12)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(png(20 * number))
    return names


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", [",", ";", "\t", "jsonl"])
def test_lists(tmp_path: Path, images: list[str], kind: str) -> None:
    rows = [
        {"path": name, "label": "cat" if number % 2 else "dog", "split": "validation" if number > 7 else "train"}
        for number, name in enumerate(images)
    ]
    if kind == "jsonl":
        path = tmp_path / "list.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path = write_csv(tmp_path / "list.csv", rows, kind)
    data = load(path)
    assert data.classes == ["cat", "dog"] and data.skipped == []
    assert (len(data.train), len(data.val)) == (8, 4)
    assert data.train.labels.tolist() == [1, 0] * 4
    assert data.train.pixels(3).unique().tolist() == [60]
    assert load(path, val="split").val.labels.unique().tolist() == [0, 1]
    with pytest.raises(SrattnError, match="val is 'test', but can be val or split"):
        load(path, val="test")
    for name in ("train", "training"):  # which is learnt from
        with pytest.raises(SrattnError, match=f"val is '{name}', but can be val or split"):
            load(path, val=name)


def test_lists_with_mistakes_name_and_count_them(tmp_path: Path, images: list[str]) -> None:
    rows = [{"file": name, "kind": number % 2} for number, name in enumerate(images)]
    rows[0]["kind"], rows[1]["file"], rows[2]["file"] = "", "", "files/none.png"
    (tmp_path / images[3]).write_bytes(b"junk")
    path = write_csv(tmp_path / "list.csv", rows)
    columns = Columns(image="file", label="kind")
    data = load(path, columns=columns)
    assert data.classes == ["0", "1"]
    said = "\n".join(data.skipped)
    assert len(data.skipped) == 4
    for words in (
        "files/0.png: it has no label",
        "line 3: it names no image",
        "none.png: no such file",
        "3.png: not an",
    ):
        assert words in said
    with pytest.raises(BadImage, match="names no image"):
        load(path, columns=columns, on_bad_image="error")
    with pytest.raises(SrattnError, match=r"no column for the label .* or name it with --label_column"):
        load(path, columns=Columns(image="file"))
    with pytest.raises(SrattnError, match="no column 'kid'; did you mean 'kind'"):
        load(path, columns=Columns(image="file", label="kid"))
    (tmp_path / "empty.csv").write_text("path,label\n")
    with pytest.raises(SrattnError, match="lists no image"):
        load(tmp_path / "empty.csv")
    (tmp_path / "bad.jsonl").write_text('{"path": ')
    with pytest.raises(SrattnError, match="line 1 is no JSON that can be read"):
        load(tmp_path / "bad.jsonl")
    (tmp_path / "bytes.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(SrattnError, match="UTF-8"):
        load(tmp_path / "bytes.csv")


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000 + "]" * 100_000], ids=["digits", "depth"])
def test_lists_of_json_that_python_does_not_read(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"path": "a.png", "label": 1}\n{"path": "b.png", "label": ' + value + "}\n")
    with pytest.raises(SrattnError, match=r"a\.jsonl, line 2 is no JSON that can be read"):
        open_data(str(tmp_path / "a.jsonl"))


def test_another_data_set_to_measure_with(tmp_path: Path, images: list[str], make_folder) -> None:
    train = make_folder({"cat": 3, "dog": 3})
    rows = [{"path": name, "label": ("eel", "dog", "cat")[number % 3]} for number, name in enumerate(images)]
    other = write_csv(tmp_path / "other.csv", rows)
    data = load(train, val=str(other))
    assert (len(data.train), len(data.val), len(data.skipped)) == (6, 8, 4)
    assert data.val.labels.tolist() == [1, 0] * 4
    assert "its class 'eel' is none of the training classes" in data.skipped[0]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_whole_numbers_that_a_table_holds_as_floats_are_classes(tmp_path: Path, images: list[str], kind: str) -> None:
    labels = [2.0, 10.0, None, 0.5, *([2.0, 10.0] * 4)]
    if kind == "jsonl":
        path = tmp_path / "list.jsonl"
        rows = [{"path": name, "label": label} for name, label in zip(images, labels, strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = tmp_path / "list.parquet"
        pq.write_table(pa.table({"image": [png(n) for n in range(len(labels))], "label": labels}), path)
    data = load(path)
    assert data.classes == ["2", "10"] and len(data.train) + len(data.val) == 10
    assert sum("it has no label" in line for line in data.skipped) == 2
    (first, *_) = open_rows([str(path)]).read(0, 1)
    assert first.label == "2"


def test_text_is_a_number_only_where_all_labels_are_plain_ones(tmp_path: Path, images: list[str]) -> None:
    labels = ["01", "1", "10", "2"] * 3
    padded = write_csv(
        tmp_path / "a.csv", [{"path": image, "label": label} for image, label in zip(images, labels, strict=True)]
    )
    index = open_data(str(padded))
    assert index.classes == ["01", "1", "10", "2"]
    assert [item.label for item in index.parts["train"]] == [0, 1, 2, 3] * 3
    plain = write_csv(
        tmp_path / "b.csv",
        [{"path": image, "label": label.lstrip("0")} for image, label in zip(images, labels, strict=True)],
    )
    assert open_data(str(plain)).classes == ["1", "2", "10"]
    rows = write_csv(
        tmp_path / "f.csv",
        [
            {"path": images[n], "label": label, "split": split}
            for n, (label, split) in enumerate(
                [("None", "train"), ("cat", "train"), ("dog", "val"), ("cat", "val"), ("None", "val")]
            )
        ],
    )
    assert any("the label 'dog' is none of the 2 classes" in line for line in open_data(str(rows)).skipped)


def test_numbers_with_zeros_before_them_are_places_among_named_classes(tmp_path: Path, images: list[str]) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    path = write_csv(tmp_path / "a.csv", [{"path": name, "label": f"0{n % 2}"} for n, name in enumerate(images)])
    assert [item.label for item in open_data(str(path)).parts["train"]] == [0, 1] * 6


def test_numbered_classes_with_names(tmp_path: Path, images: list[str]) -> None:
    (tmp_path / "classes.txt").write_text("zebra\nant\nbee\n")
    path = write_csv(tmp_path / "l.csv", [{"path": n, "label": i % 4} for i, n in enumerate(images)])
    data = load(path)
    assert data.classes == ["zebra", "ant", "bee"]
    assert len(data.skipped) == 3 and "'3' is none of the 3 classes" in data.skipped[0]


def table(count: int, levels: int = 0, **metadata: Any) -> Any:
    import pyarrow as pa

    images = [{"bytes": png(levels + number), "path": f"{number}.png"} for number in range(count)]
    made = pa.table({"image": images, "label": [number % 2 for number in range(count)]})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["yes", "no"]}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}} | metadata)})


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table(10), tmp_path / "train-00000-of-00002.parquet", row_group_size=4)
    pq.write_table(table(5, 100), tmp_path / "train-00001-of-00002.parquet")
    pq.write_table(table(4, 200), tmp_path / "test-00000-of-00001.parquet")
    data = load(tmp_path, workers=2)
    assert data.classes == ["yes", "no"]
    assert (len(data.train), len(data.val)) == (15, 4)
    assert data.train.labels.tolist()[:3] == [0, 1, 0]
    assert data.train.pixels(11).unique().tolist() == [101]
    assert data.train.names[11] == "train-00001-of-00002.parquet/1"

    # Files too large for memory are laid out in the cache once.
    import srattn.data.parquet as parquet

    monkeypatch.setenv("SRATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet, "HOLD_BYTES", 0)
    for _ in range(2):
        index = open_data(str(tmp_path))
        assert all(isinstance(item.source, Span) for items in index.parts.values() for item in items)
        assert load(tmp_path, hold_bytes=0).train.pixels(11).unique().tolist() == [101]
    assert len(list((tmp_path / "cache").rglob("*.bin"))) == 3


def test_broken_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = tmp_path / "train-0.parquet"
    made = table(8).to_pydict()
    made["image"][2], made["image"][3], made["label"][4] = {"bytes": None, "path": None}, {"bytes": b"no"}, 7
    features = table(1).schema.metadata
    pq.write_table(pa.table(made).replace_schema_metadata(features), whole)
    (tmp_path / "train-1.parquet").write_bytes(whole.read_bytes()[:-50])
    data = load(tmp_path, val="split")
    assert len(data.train) + len(data.val) == 5
    said = "\n".join(data.skipped)
    for words in (
        "train-1.parquet is no whole Parquet file",
        "/2: there is no image",
        "/3: not an image",
        "label '7' is none of",
    ):
        assert words in said
    with pytest.raises(BadImage, match=r"train-0\.parquet/2: there is no image"):
        load(tmp_path, val="split", on_bad_image="error")
    whole.unlink()
    with pytest.raises(SrattnError, match=r"no image in 1 Parquet file.*train-1"):
        load(tmp_path)


def test_paths_in_tables_stay_below_their_folder(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("private.png", "set/own.png", "set/deep/own.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(7))
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "private.png")
    (tmp_path / "set" / "own_link.png").symlink_to(tmp_path / "set" / "own.png")
    os.mkfifo(tmp_path / "set" / "pipe.png")
    bad = [
        str(tmp_path / "private.png"),
        "../private.png",
        "deep/../../private.png",
        "link.png",
        "pipe.png",
        ".",
        "C:/x",
    ]
    good = ["own.png", "deep/own.png", "own_link.png"]
    images = [{"bytes": None, "path": path} for path in (*bad, *good)]
    made = pa.table({"image": images, "label": ["a", "b"] * 5})
    pq.write_table(made, tmp_path / "set" / "train.parquet")
    index = open_data(str(tmp_path / "set"))
    assert [item.source for item in index.parts["train"]] == [tmp_path / "set" / path for path in good]
    said = [line for line in index.skipped if "leads out of" in line or "is no regular file" in line]
    assert len(said) == len(bad) and "train.parquet/3" in said[3]
    # Of the tables of the `datasets` library too, in which files have their whole path.
    fetch = _fetcher([{"image": value} for value in images], "image", "train/", [tmp_path / "set", tmp_path / "kept"])
    for number in range(len(bad) - 1):
        with pytest.raises(BadImage, match=rf"train/{number}: .*(leads out of|is no regular file)"):
            fetch(number)
    assert fetch(len(bad)) == png(7)
    whole = _fetcher([{"image": str(tmp_path / "set" / "own.png")}], "image", "", [tmp_path / "kept", tmp_path / "set"])
    assert whole(0) == png(7)
    os.truncate(tmp_path / "set" / "own.png", MAX_IMAGE_BYTES + 1)
    with pytest.raises(BadImage, match="268,435,457 bytes are more than the 268,435,456"):
        whole(0)
    # A list is its owner's, who may name any file.
    rows = [{"path": path, "label": number % 2} for number, path in enumerate([bad[0], "../private.png"])]
    index = open_data(str(write_csv(tmp_path / "set" / "list.csv", rows)))
    assert [item.source for item in index.parts["train"]] == [tmp_path / "private.png", tmp_path / "set/../private.png"]


def test_a_table_with_two_columns_of_one_name(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = pa.Table.from_arrays([pa.array([png(1)]), pa.array([png(2)])], names=["image", "image"])
    pq.write_table(made, tmp_path / "a.parquet")
    with pytest.raises(SrattnError, match="two columns of one name"):
        open_data(str(tmp_path / "a.parquet"), labelled=False)


def test_cifar10(shared: Path) -> None:
    index = open_data(str(shared / "data" / "cifar10"))
    assert {part: len(items) for part, items in index.parts.items()} == {"train": 50_000, "test": 10_000}
    assert index.classes[3] == "cat" and index.skipped == []


def idx(shape: tuple[int, ...], data: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data


def test_idx(tmp_path: Path) -> None:
    levels = bytes(range(100)) + bytes(100)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx((8, 5, 5), levels)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx((8,), bytes([3, 5] * 4))))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx((2, 5, 5), levels[:50]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx((2,), bytes([5, 3])))
    grey = parse_augment("none", Preprocess(1, (5, 5), (0.5,), (0.5,), crop_fraction=1.0))
    data = load_data(str(tmp_path), grey)
    assert data.classes == ["3", "5"]
    assert (data.train.labels.tolist(), data.val.labels.tolist()) == ([0, 1] * 4, [1, 0])
    assert data.train.pixels(1).flatten().tolist() == list(range(25, 50))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx((2, 5, 5), levels[:40]))
    with pytest.raises(SrattnError, match="ends early: 40 of 50"):
        load_data(str(tmp_path), grey)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx((1 << 31, 1 << 31, 5), b""))
    with pytest.raises(SrattnError, match="claims 2147483648x2147483648x5 bytes"):
        load_data(str(tmp_path), grey)
    packed = (tmp_path / "train-images-idx3-ubyte.gz").read_bytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(packed[:-20])
    with pytest.raises(SrattnError, match="damaged or ends early"):
        load_data(str(tmp_path), grey)


def test_the_datasets_library_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SrattnError, match=r"datasets is not installed.*srattn\[hub\]"):
        load("hf:someone/flowers")


@pytest.mark.filterwarnings("ignore")  # another project's
def test_tables_of_the_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the datasets library, which is not installed")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["yes", "no"])})
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(8)], "label": [n % 2 for n in range(8)]}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": made, "validation": made.select(range(2))}).save_to_disk(str(tmp_path / "saved"))
    data = load(f"hf:{tmp_path / 'saved'}", hold_bytes=0, workers=2)
    assert data.classes == ["yes", "no"] and (len(data.train), len(data.val)) == (8, 2)
    assert data.train.pixels(5).unique().tolist() == [5]
    with pytest.raises(SrattnError, match="cannot be loaded"):
        load(f"hf:{tmp_path / 'nothing_here'}")


def test_images_without_labels(tmp_path: Path, make_folder) -> None:
    (tmp_path / "loose" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        (tmp_path / "loose" / name).write_bytes(png(9))
    index = open_data(str(tmp_path / "loose"), labelled=False)
    assert [(item.name, item.label) for item in index.parts["train"]] == [("a.png", -1), ("deep/b.png", -1)]
    assert (index.classes, index.skipped) == ([], [])
    index = open_data(str(make_folder({"cat": 2, "dog": 2})), labelled=False)
    assert (index.classes, [item.label for item in index.parts["train"]]) == (["cat", "dog"], [0, 0, 1, 1])


def test_train_and_test_folders(make_folder) -> None:
    make_folder({"cat": 3, "dog": 2}, below="train")
    root = make_folder({"cat": 1, "dog": 1}, below="test")
    assert len(load(root).val) == 2
    make_folder({"cat": 1, "dog": 2}, below="val")
    assert len(load(root).val) == 3
    assert len(load(root, val="test").val) == 2


def test_what_data_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_built_in("digits")
    for name in ("hf:mnist", "https://example.org/{000..009}.tar", "shards/a-{0..3}.tar", "x*.tar"):
        assert not is_built_in(name)
    assert absolute("photos") == str(tmp_path / "photos")
    assert absolute("s/{0..3}.tar") == str(tmp_path / "s/{0..3}.tar")
    for name in ("digits", "hf:mnist", "https://example.org/a.tar"):
        assert absolute(name) == name
    with pytest.raises(SrattnError, match="neither digits nor an existing folder"):
        load("photos")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(SrattnError, match="compressed"):
        load("a.tar.gz")


def test_pixels_are_one_tensor_where_they_can_be(make_folder) -> None:
    data = load(make_folder({"cat": 4, "dog": 4}))
    assert isinstance(data.train.sources, torch.Tensor) and data.train.sources.dtype == torch.uint8
    assert data.train.sources.shape == (len(data.train), 3, 8, 8)
