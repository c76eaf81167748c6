"""Boxes in VOC's and COCO's forms, right ones and wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srattn import SrattnError
from srattn.data.boxes import (
    BoxIndex,
    read_coco,
    read_coco_folder,
    read_voc,
    voc,
    write_coco,
    write_coco_results,
    write_voc,
)

OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def annotation(*objects: tuple[Any, ...], size: tuple[int, int] = (40, 30)) -> str:
    body = "".join(OBJECT.format(*entry) for entry in objects)
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{body}</annotation>"


def picture(path: Path, size: tuple[int, int] = (40, 30), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)


def make_voc(root: Path, annotations: dict[str, str], **lists: list[str]) -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, text in annotations.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        picture(root / "JPEGImages" / f"{name}.jpg")
    for part, names in lists.items():
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def test_voc_counts_from_one_and_means_both_ends(tmp_path: Path) -> None:
    texts = {"a": annotation(("dog", 0, 1, 1, 40, 30), ("cat", 1, 11, 6, 12, 9.5)), "b": annotation()}
    index = read_voc(make_voc(tmp_path, texts, train=["a"], val=["b"], trainval=["a", "b"]))
    (item,) = index.parts["train"]
    assert index.classes == ["cat", "dog"] and set(index.parts) == {"train", "val"} and index.problems == []
    assert item.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 12, 9.5]]
    assert item.labels.tolist() == [1, 0] and item.difficult.tolist() == [False, True]
    assert item.size == (30, 40) and item.source.is_file()
    assert index.parts["val"][0].boxes.shape == (0, 4)
    assert index.counts("train") == [1, 1] and index.counts("val") == index.counts("test") == [0, 0]
    assert read_voc(tmp_path, ["dog", "cat"]).parts["train"][0].labels.tolist() == [0, 1]


def test_voc_without_a_training_list_takes_both(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": annotation(("x", 0, 2, 2, 9, 9))}, trainval=["a"], val=["a"])
    assert {part: len(items) for part, items in read_voc(root).parts.items()} == {"train": 1}


WRONG = {
    "outside": (("dog", 0, 50, 5, 60, 9), r"a: object 1 \(dog, 50 5 60 9\) is outside of the image of 40x30"),
    "turned": (("dog", 0, 9, 5, 4, 9), r"\(dog, 9 5 4 9\) has no area"),
    "a point": (("dog", 0, 9, 5, 9, 5), "has no area"),
    "a line down": (("dog", 0, 9, 5, 9, 9), r"\(dog, 9 5 9 9\) has no area"),
    "a line across": (("dog", 0, 4, 5, 9, 5), r"\(dog, 4 5 9 5\) has no area"),
    "no number": (("dog", 0, "x", 5, 9, 9), r"\(dog, x 5 9 9\) has no box of four numbers"),
    "not finite": (("dog", 0, "nan", 5, 9, 9), "no box of four numbers"),
    "other class": (("cow", 0, 4, 5, 9, 9), r"\(cow, 4 5 9 9\) is of no known class"),
    "partly": (("dog", 0, 4, 5, 90, 9), "reaches out of the image of 40x30 and is cut"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_voc_names_wrong_boxes(tmp_path: Path, kind: str) -> None:
    entry, message = WRONG[kind]
    root = make_voc(tmp_path, {"a": annotation(entry, ("dog", 0, 5, 5, 10, 10))}, train=["a"])
    index = read_voc(root, ["dog"])
    (problem,) = index.problems
    assert len(index.parts["train"][0].boxes) == (2 if kind == "partly" else 1)
    assert index.parts["train"][0].boxes[-1].tolist() == [4, 4, 10, 10]
    with pytest.raises(SrattnError, match=message) as raised:
        read_voc(root, ["dog"], on_bad_box="error")
    assert problem in str(raised.value)


def test_one_pixel_over_the_edge_is_cut_unsaid(tmp_path: Path) -> None:
    index = read_voc(make_voc(tmp_path, {"a": annotation(("dog", 0, 0, 0, 41, 31))}, train=["a"]), on_bad_box="error")
    assert index.parts["train"][0].boxes.tolist() == [[0, 0, 40, 30]]


def test_voc_names_wrong_images(tmp_path: Path) -> None:
    good = ("dog", 0, 5, 5, 10, 10)
    root = make_voc(
        tmp_path,
        {name: annotation(good) for name in "abcd"} | {"e": annotation(good, size=(30, 40)), "f": "<annotation>"},
        train=[*"abcdefg"],
    )
    (root / "JPEGImages" / "b.jpg").unlink()
    (root / "JPEGImages" / "c.jpg").write_bytes(b"no image")
    picture(root / "JPEGImages" / "d.PNG", format="png")
    (root / "JPEGImages" / "d.jpg").unlink()
    index = read_voc(root)
    assert [item.name for item in index.parts["train"]] == ["a", "d"]
    told = "\n".join(sorted(index.problems))
    for words in (
        "b.jpg: no such file",
        "c.jpg: not an image",
        "40x30, declared is 30x40",
        "f.xml: no usable",
        "g.xml",
    ):
        assert words in told
    assert len(index.problems) == 5
    assert len(read_voc(root, check_images=False).parts["train"]) == 4  # those that are there, unopened
    with pytest.raises(SrattnError, match=r"g\.xml"):
        read_voc(make_voc(tmp_path / "other", {}, train=["g"]), on_bad_box="error")


def test_a_picture_on_its_side_has_its_upright_size(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": annotation(("dog", 0, 5, 5, 10, 40), size=(30, 40))}, train=["a"])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(root / "JPEGImages" / "a.jpg", exif=exif)
    assert read_voc(root, on_bad_box="error").parts["train"][0].size == (40, 30)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_unread(tmp_path: Path, encoding: str) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]>'
    root = make_voc(tmp_path, {"a": ""}, train=["a"])
    text = f'<?xml version="1.0" encoding="{encoding}"?>{bomb}<annotation>&y;</annotation>'
    (root / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(SrattnError, match=r"a\.xml: no usable annotation: a document type \(a\)"):
        read_voc(root, on_bad_box="error")


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voc, "MAX_XML", 100)
    root = make_voc(tmp_path, {"a": annotation() + " " * 100}, train=["a"])
    with pytest.raises(SrattnError, match="more than the 100 bytes"):
        read_voc(root, on_bad_box="error")


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "x/a", "x\\a"])
def test_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(SrattnError, match="no name of an image"):
        read_voc(make_voc(tmp_path, {}, train=[name]))


def test_no_voc_at_all(tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match="no Annotations/"):
        read_voc(tmp_path)
    with pytest.raises(SrattnError, match=r"has no train\.txt"):
        read_voc(make_voc(tmp_path, {}))
    (tmp_path / "ImageSets/Main/train.txt").touch()
    with pytest.raises(SrattnError, match="name no class"):
        read_voc(tmp_path)
    with pytest.raises(SrattnError, match="'skip' or 'error', got 'warn'"):
        read_voc(tmp_path, on_bad_box="warn")  # type: ignore[arg-type]


def test_voc_goes_round(tmp_path: Path) -> None:
    texts = {"a": annotation(("dog &amp; co", 0, 1, 1, 40, 30), ("cat", 1, 11, 6.25, 12.5, 9)), "b": annotation()}
    index = read_voc(make_voc(tmp_path / "in", texts, train=["a"], val=["b"]))
    assert index.classes == ["cat", "dog & co"]
    again = read_voc(write_voc(tmp_path / "out", index), on_bad_box="error")
    assert again.classes == index.classes
    for part, items in index.parts.items():
        for item, other in zip(items, again.parts[part], strict=True):
            assert torch.equal(item.boxes, other.boxes) and torch.equal(item.labels, other.labels)
            assert torch.equal(item.difficult, other.difficult) and item.size == other.size
            assert item.source.read_bytes() == other.source.read_bytes()
    with pytest.raises(SrattnError, match="exists"):
        write_voc(tmp_path / "out", index)
    twice = BoxIndex(index.classes, {"train": index.parts["train"] * 2})
    with pytest.raises(SrattnError, match="two images are called 'a'"):
        write_voc(tmp_path / "twice", twice)
    assert not (tmp_path / "twice").exists()


# -- COCO -------------------------------------------------------------------------------------------------------------


def coco(**changes: Any) -> dict[str, Any]:
    box = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 2.5, 4], "iscrowd": 0}
    return {
        "images": [
            {"id": 7, "file_name": "in/a.jpg", "width": 40, "height": 30},
            {"id": 9, "file_name": "b.jpg", "width": 40, "height": 30},
        ],
        "annotations": [box, {**box, "id": 2, "category_id": 18, "bbox": [0, 0, 40, 30], "iscrowd": 1}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
        **changes,
    }


def make_coco(root: Path, content: Any, name: str = "train2017") -> tuple[Path, Path]:
    file = root / "annotations" / f"instances_{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    for image in ("in/a.jpg", "b.jpg"):
        picture(root / name / image)
    return file, root / name


@pytest.mark.parametrize("check_images", [False, True])
def test_coco(tmp_path: Path, check_images: bool) -> None:
    index = read_coco(*make_coco(tmp_path, coco()), check_images=check_images)
    assert index.classes == ["cat", "dog"] and index.category_ids == [3, 18] and index.problems == []
    first, second = index.parts["train"]
    assert first.boxes.tolist() == [[10, 5, 12.5, 9], [0, 0, 40, 30]] and first.labels.tolist() == [0, 1]
    assert first.difficult.tolist() == [False, True] and (first.number, first.size) == (7, (30, 40))
    assert second.boxes.shape == (0, 4) and second.source.is_file()


def test_coco_names_what_is_wrong(tmp_path: Path) -> None:
    box = {"id": 5, "image_id": 7, "category_id": 3}
    wrong = [
        {**box, "bbox": [1, 2, 0, 4]},
        {**box, "bbox": [1, 2, 3]},
        {**box, "bbox": [1, 2, None, 3]},
        {**box, "bbox": [50, 2, 3, 3]},
        {**box, "bbox": [1, 2, 3, 3], "category_id": 4},
        {**box, "bbox": [1, 2, 3, 3], "image_id": 8},
        {**box, "bbox": [1, 2, 10**400, 3]},
        {**box, "bbox": [1, 2, 3, 3], "category_id": []},
    ]
    file, images = make_coco(tmp_path, coco(annotations=wrong))
    (images / "b.jpg").unlink()
    index = read_coco(file, images)
    assert [len(item.boxes) for item in index.parts["train"]] == [0]
    told = "\n".join(index.problems)
    for words in ("has no area", "no box of four", "outside", "category 4", "of image 8", "b.jpg: no such file"):
        assert words in told
    assert len(index.problems) == 9
    for entry in wrong:
        make_coco(tmp_path, coco(annotations=[entry]))
        with pytest.raises(SrattnError, match=r"annotation"):
            read_coco(file, images, on_bad_box="error")


@pytest.mark.parametrize("width", [10**400, 10**6, 0, -40], ids=["endless", "huge", "none", "negative"])
def test_a_size_that_no_image_has_is_not_believed(tmp_path: Path, width: int) -> None:
    images = [{"id": 7, "file_name": "in/a.jpg", "width": width, "height": 10**6}]
    index = read_coco(*make_coco(tmp_path, coco(images=images, annotations=[])))
    assert index.parts["train"] == []
    (problem,) = index.problems
    assert "in/a.jpg: the image is 40x30, declared is" in problem and len(problem) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not in COCO's form"),
        ({"categories": [{"id": 1, "name": "a"}]}, "no list of annotations"),
        (coco(categories=[]), "has no category"),
        (coco(categories=[{"id": 1, "name": "a"}] * 2), "of its own"),
        (coco(images=[{"id": 7}]), "an id of its own and a file_name"),
        (coco(images=[{"id": 7, "file_name": "../a.jpg"}]), "leads out of the folder"),
        (coco(images=[{"id": 7, "file_name": "/a.jpg"}]), "leads out of the folder"),
    ],
)
def test_no_coco_at_all(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        read_coco(*make_coco(tmp_path, content))


def test_no_json(tmp_path: Path) -> None:
    file, images = make_coco(tmp_path, {})
    for text in ("{", "[" * 100_000, "9" * 5000, "\udcff"):
        file.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(SrattnError, match="no JSON"):
            read_coco(file, images)


def test_a_folder_of_parts(tmp_path: Path) -> None:
    make_coco(tmp_path, coco())
    make_coco(tmp_path, coco(annotations=[]), "val2017")
    make_coco(tmp_path, coco(annotations=[]), "train_extra")  # of another name: none of the parts
    index = read_coco_folder(tmp_path)
    assert {part: len(items) for part, items in index.parts.items()} == {"train": 2, "val": 2}
    make_coco(tmp_path, coco(categories=[{"id": 3, "name": "dog"}, {"id": 18, "name": "cat"}]), "val2017")
    with pytest.raises(SrattnError, match="other numbers"):
        read_coco_folder(tmp_path)
    make_coco(tmp_path, coco(), "val2014")
    with pytest.raises(SrattnError, match=r"instances_val2014\.json and instances_val2017\.json; leave one"):
        read_coco_folder(tmp_path)
    with pytest.raises(SrattnError, match="no folder in COCO's layout"):
        read_coco_folder(tmp_path / "annotations")


def test_coco_goes_round(tmp_path: Path) -> None:
    content = coco()
    polygons, counts = [[10.5, 5, 12.5, 5, 12.5, 9]], {"size": [30, 40], "counts": [40, 1100, 60]}
    for entry, mask in zip(content["annotations"], (polygons, counts), strict=True):
        entry["segmentation"] = mask
    make_coco(tmp_path / "in", content)
    make_coco(tmp_path / "in", coco(annotations=[]), "val2017")
    index = read_coco_folder(tmp_path / "in", masks=True)
    again = read_coco_folder(write_coco(tmp_path / "out", index), masks=True, on_bad_box="error", check_images=True)
    assert again.classes == index.classes == ["cat", "dog"] and again.category_ids == [3, 18]
    for part, items in index.parts.items():
        for item, other in zip(items, again.parts[part], strict=True):
            assert torch.equal(item.boxes, other.boxes) and torch.equal(item.labels, other.labels)
            assert torch.equal(item.difficult, other.difficult) and item.outlines == other.outlines
            assert (item.name, item.size, item.number) == (other.name, other.size, other.number)
            assert item.source.read_bytes() == other.source.read_bytes()
    voc_index = read_voc(make_voc(tmp_path / "v", {"a": annotation(("x", 1, 1, 1, 9, 9))}, train=["a"]))
    other = read_coco_folder(write_coco(tmp_path / "of_voc", voc_index))
    assert other.classes == ["x"] and torch.equal(other.parts["train"][0].boxes, voc_index.parts["train"][0].boxes)
    assert other.parts["train"][0].difficult.tolist() == [True]
    with pytest.raises(SrattnError, match="two images of the part train are called"):
        write_coco(tmp_path / "twice", BoxIndex(index.classes, {"train": index.parts["train"] * 2}))
    assert not (tmp_path / "twice").exists()


def test_results_are_what_its_tools_take(tmp_path: Path) -> None:
    index = read_coco(*make_coco(tmp_path, coco()))
    rows = torch.tensor([[10, 5, 12.5, 9, 0.75, 1], [0, 0, 0, 0, 0, -1.0]])
    path = write_coco_results(tmp_path / "out.json", index.parts["train"], [rows, rows[1:]], index.category_ids)
    expected = [{"image_id": 7, "category_id": 18, "bbox": [10.0, 5.0, 2.5, 4.0], "score": 0.75}]
    assert json.loads(path.read_text()) == expected
    with pytest.raises(SrattnError, match="has no number"):
        items = read_voc(make_voc(tmp_path / "v", {"a": annotation(("x", 0, 1, 1, 9, 9))}, train=["a"])).parts["train"]
        write_coco_results(tmp_path / "other.json", items, [rows], [1])


def test_blood_cells(shared: Path) -> None:
    if not (shared / "data" / "bccd").is_dir():
        pytest.skip("needs data/bccd")
    index = read_voc(shared / "data" / "bccd")
    assert index.classes == ["Platelets", "RBC", "WBC"]
    assert {part: len(items) for part, items in index.parts.items()} == {"train": 205, "val": 87}
    assert len(index.problems) == 2 and all("has no area" in line for line in index.problems)
    assert sum(sum(index.counts(part)) for part in index.parts) == 3350 + 301 + 292 - 2
