"""Images and masks find each other in every layout that people use; what does not is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from srattn.data.dense.pairs import has_pairs, index_pairs
from srattn.errors import SrattnError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".xml", ".txt", ".json"):
            path.touch()
        else:
            Image.new("L", (4, 3)).save(path)
    return root


def found(root: Path) -> dict[str, list[tuple[str, str]]]:
    """(image, mask) by part, below `root`."""
    parts = index_pairs(root).parts
    return {
        part: [(pair.name, pair.mask.relative_to(root).as_posix()) for pair in pairs] for part, pairs in parts.items()
    }


LAYOUTS = {
    "parts below": (
        ["images/train/a.jpg", "images/val/b.jpg", "masks/train/a.png", "masks/val/b.png"],
        {"train": [("images/train/a.jpg", "masks/train/a.png")], "val": [("images/val/b.jpg", "masks/val/b.png")]},
    ),
    "parts above": (
        ["train/images/a.jpg", "train/masks/a.png", "valid/imgs/b.jpg", "valid/label/b.png"],
        {"train": [("train/images/a.jpg", "train/masks/a.png")], "val": [("valid/imgs/b.jpg", "valid/label/b.png")]},
    ),
    "flat": (["Images/a.jpg", "Ground_Truth/a.png"], {"train": [("Images/a.jpg", "Ground_Truth/a.png")]}),
    "in depth": (
        ["images/town/a.jpg", "images/wood/a.jpg", "masks/town/a.png", "masks/wood/a.png"],
        {"train": [("images/town/a.jpg", "masks/town/a.png"), ("images/wood/a.jpg", "masks/wood/a.png")]},
    ),
    "ADE20K": (
        ["images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png",
         "images/validation/ADE_valid_00000002.jpg", "annotations/validation/ADE_valid_00000002.png"],
        {"train": [("images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png")],
         "val": [("images/validation/ADE_valid_00000002.jpg", "annotations/validation/ADE_valid_00000002.png")]},
    ),
    "COCO-Stuff": (
        ["images/train2017/000000000009.jpg", "images/val2017/000000000139.jpg", "images/test2017/000000000001.jpg",
         "annotations/train2017/000000000009.png", "annotations/val2017/000000000139.png",
         "annotations/instances_train2017.json"],
        {"train": [("images/train2017/000000000009.jpg", "annotations/train2017/000000000009.png")],
         "val": [("images/val2017/000000000139.jpg", "annotations/val2017/000000000139.png")]},
    ),
    "two endings": (
        ["images/frame_07_image.jpg", "images/frame_17_image.jpg", "masks/frame_07_mask.png",
         "masks/frame_17_mask.png"],
        {"train": [("images/frame_07_image.jpg", "masks/frame_07_mask.png"),
                   ("images/frame_17_image.jpg", "masks/frame_17_mask.png")]},
    ),
    "an ending of two words": (
        ["images/aachen_1_leftImg8bit.png", "images/ulm_1_leftImg8bit.png", "gt/aachen_1_gtFine_labelIds.png",
         "gt/ulm_1_gtFine_labelIds.png"],
        {"train": [("images/aachen_1_leftImg8bit.png", "gt/aachen_1_gtFine_labelIds.png"),
                   ("images/ulm_1_leftImg8bit.png", "gt/ulm_1_gtFine_labelIds.png")]},
    ),
    "one ending, ends that are alike by chance": (
        ["images/cat.jpg", "images/bat.jpg", "masks/cat_mask.png", "masks/bat_mask.png"],
        {"train": [("images/bat.jpg", "masks/bat_mask.png"), ("images/cat.jpg", "masks/cat_mask.png")]},
    ),
    "beginnings": (
        ["images/img_1.jpg", "images/img_2.jpg", "masks/mask_1.png", "masks/mask_2.png"],
        {"train": [("images/img_1.jpg", "masks/mask_1.png"), ("images/img_2.jpg", "masks/mask_2.png")]},
    ),
    "Pascal VOC": (
        ["JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg", "SegmentationClass/a.png",
         "SegmentationClass/b.png", "Annotations/a.xml", "SegmentationObject/a.png"],
        {"train": [("JPEGImages/a.jpg", "SegmentationClass/a.png"), ("JPEGImages/b.jpg", "SegmentationClass/b.png")]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    names, expected = LAYOUTS[layout]
    root = touch(tmp_path, *names)
    assert found(root) == expected and has_pairs(root)


def test_the_lists_of_pascal_voc_make_its_parts(tmp_path: Path) -> None:
    root = touch(tmp_path, *LAYOUTS["Pascal VOC"][0], "ImageSets/Segmentation/train.txt")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\nc\n\n")
    index = index_pairs(root)
    assert {part: [pair.mask.stem for pair in pairs] for part, pairs in index.parts.items()} == {
        "train": ["a"],
        "val": ["b"],
    }
    assert len(index.skipped) == 1 and "c.jpg has no mask" in index.skipped[0]
    (lists / "train.txt").rename(lists / "trainval.txt")
    assert list(found(root)) == ["train"]


def test_what_has_no_partner_is_named(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"images/{name}.jpg" for name in "abc"), *(f"masks/{name}.png" for name in "bcd"))
    index = index_pairs(root)
    assert [pair.image.stem for pair in index.parts["train"]] == ["b", "c"]
    images, masks = root / "images", root / "masks"
    assert index.skipped == [
        f"{images / 'a.jpg'} has no mask in {masks}",
        f"{masks / 'd.png'} has no image in {images}",
    ]


def test_a_test_part_without_masks_is_passed_over_and_no_other(tmp_path: Path) -> None:
    root = touch(tmp_path, "images/train/a.jpg", "images/test/b.jpg", "masks/train/a.png", "masks/val/c.png")
    index = index_pairs(root)
    assert list(index.parts) == ["train"]
    assert index.skipped == [
        f"{root / 'masks' / 'val'} has masks, but there is no folder of that name for their images"
    ]
    touch(root, "images/val/c.jpg")
    assert list(found(root)) == ["train", "val"]
    (root / "masks" / "val" / "c.png").unlink()
    (root / "masks" / "val").rmdir()
    with pytest.raises(SrattnError, match=r"images/val has images, .* for their masks; add it"):
        index_pairs(root)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    root = touch(tmp_path, "images/a.jpg", "images/a.png", "masks/a.png")
    with pytest.raises(SrattnError, match=r"a\.jpg and .*a\.png have one name: .*; remove one"):
        index_pairs(root)


def test_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match=r"images and .*masks under the same names"):
        index_pairs(tmp_path)
    with pytest.raises(SrattnError, match="is not a folder: it does not exist"):
        index_pairs(tmp_path / "nowhere")
    root = touch(tmp_path, "images/a.jpg", "masks/b.png")
    with pytest.raises(SrattnError, match=r"under the same names; .*a\.jpg has no mask"):
        index_pairs(root)
    assert not has_pairs(root) and not has_pairs(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "names",
    [
        ("images/cat.jpg", "masks/dog.jpg"),  # classes that are called so
        ("train/images/cat.jpg", "train/masks/dog.jpg", "val/images/x.jpg", "val/masks/y.jpg"),
        ("train/cat/1.jpg", "train/image/1.jpg"),
        ("annotations/instances_train2017.json", "images/train2017/1.jpg"),
        ("Annotations/1.xml", "JPEGImages/1.jpg"),
        ("images/1.jpg",),
    ],
)
def test_what_only_looks_like_pairs(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert not has_pairs(touch(tmp_path, *names))
