"""From what mask files hold to classes: names, colours, two levels, numbers that are none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srattn.data.decode import BadImage
from srattn.data.dense.classes import MaskClasses, named_classes, palette_of, settle
from srattn.data.dense.masks import MaskSet, open_masks, read_masks
from srattn.data.dense.pairs import index_pairs
from srattn.data.palette import standard_palette
from srattn.errors import SrattnError


def one_mask(root: Path, mask: np.ndarray, suffix: str = ".png", number: int = 0) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (mask.shape[1], mask.shape[0]), "red").save(root / "images" / f"{number}.png")
    Image.fromarray(mask).save(root / "masks" / f"{number}{suffix}", **({"quality": 95} if suffix == ".jpg" else {}))
    return root


def numbers(masks: MaskSet, place: int = 0) -> list[list[int]]:
    return masks.read(masks.pairs["train"][place]).tolist()


LEVELS = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)


def test_without_names_every_number_up_to_the_largest_is_a_class(tmp_path: Path) -> None:
    masks = open_masks(str(one_mask(tmp_path, LEVELS)))
    assert masks.classes.names == ["0", "1", "2"] and numbers(masks) == LEVELS.tolist()
    assert masks.counts == {0: 2, 1: 1, 2: 2, 255: 1} and masks.problems == []
    found = masks.found()
    target = found.parts["train"][0].target((2, 3))
    assert target.mask is not None and torch.equal(target.mask, torch.from_numpy(LEVELS)) and target.boxes is None
    assert found.classes == ["0", "1", "2"]
    two = open_masks(str(one_mask(tmp_path / "two", LEVELS % 2)))
    assert two.classes.names == ["background", "object"] and not two.classes.binary


def test_void_leaves_numbers_out(tmp_path: Path) -> None:
    root = str(one_mask(tmp_path, LEVELS))
    masks = open_masks(root, void=[2])
    assert masks.classes.names == ["background", "object"] and numbers(masks) == [[0, 1, 255], [255, 255, 0]]
    assert numbers(open_masks(root, "a,b,c", void=[0])) == [[255, 1, 2], [2, 255, 255]]
    with pytest.raises(SrattnError, match="--void 256 is no value of a mask; give numbers from 0 to 255"):
        open_masks(root, void=[256])


@pytest.mark.parametrize("levels", [[0, 255], [255, 255], [0, 1]])
def test_two_levels_are_background_and_object(tmp_path: Path, levels: list[int]) -> None:
    mask = np.array([levels, levels[::-1]], np.uint8)
    masks = open_masks(str(one_mask(tmp_path, mask)))
    assert masks.classes.names == ["background", "object"]
    assert numbers(masks) == (mask > 0).astype(int).tolist()
    named = open_masks(str(tmp_path), "skin,mole")
    assert named.classes.names == ["skin", "mole"] and numbers(named) == numbers(masks)


def test_0_and_255_with_more_names_are_a_class_and_none(tmp_path: Path) -> None:
    masks = open_masks(str(one_mask(tmp_path, np.array([[0, 255]], np.uint8))), "a,b,c")
    assert not masks.classes.binary and numbers(masks) == [[0, 255]]
    void = open_masks(str(tmp_path), "a,b", void=[255])
    assert not void.classes.binary and numbers(void) == [[0, 255]]


def test_what_255_is_may_be_known(tmp_path: Path) -> None:
    """From masks with both classes and void to a part in which no object is."""
    learnt = open_masks(str(one_mask(tmp_path / "train", np.array([[0, 1, 255]], np.uint8))))
    assert learnt.classes.of_255 == learnt.found().of_255 == "void" and learnt.notes == []
    root, two = one_mask(tmp_path / "test", np.array([[0, 255, 0]], np.uint8)), learnt.classes.palette
    guessed = read_masks(index_pairs(root), two)
    assert numbers(guessed) == [[0, 1, 0]] and guessed.classes.of_255 == "object" and guessed.notes == []
    known = read_masks(index_pairs(root), two, of_255="void")
    assert numbers(known) == [[0, 255, 0]] and known.classes.of_255 == "void"
    assert "255 is taken for no class" in known.notes[0] and known.found().notes == known.notes
    assert numbers(read_masks(index_pairs(root), two, of_255="object")) == [[0, 1, 0]]
    plain = open_masks(str(one_mask(tmp_path / "plain", np.array([[0, 1]], np.uint8))))
    assert plain.classes.of_255 is None and repr(plain.classes) == repr(
        dataclasses.replace(learnt.classes, of_255=None)
    )


def test_sixteen_bits_and_one_bit(tmp_path: Path) -> None:
    one_mask(tmp_path, LEVELS.astype(np.uint16))
    Image.fromarray(LEVELS == 1).save(one_mask(tmp_path, LEVELS, number=1) / "masks" / "1.png")
    masks = open_masks(str(tmp_path))
    assert numbers(masks) == LEVELS.tolist() and numbers(masks, 1) == (LEVELS == 1).astype(int).tolist()
    one_mask(tmp_path, 300 * LEVELS.astype(np.uint16))
    assert "0.png has the value 300 at (y, x) = (0, 1)" in open_masks(str(tmp_path)).problems[0]


def test_jpeg_is_for_two_classes(tmp_path: Path) -> None:
    mask = np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((16, 16), np.uint8))
    root = str(one_mask(tmp_path, mask, ".jpg"))
    assert numbers(open_masks(root)) == (mask == 255).astype(int).tolist()
    assert numbers(open_masks(root, "a,b")) == (mask == 255).astype(int).tolist()
    with pytest.raises(
        SrattnError, match=r"no mask that can be read; the first of 1: .*0\.jpg: JPEG changes the numbers"
    ):
        open_masks(root, "a,b,c")


COLOURS = "name r g b\nroad 128 64 128\nsky 70 130 180\nwall 102 102 102\n"


def coloured(root: Path) -> Path:
    """Two coloured masks, the second one all of a class that is grey."""
    table = np.array([[128, 64, 128], [70, 130, 180], [102, 102, 102], [224, 224, 224]], np.uint8)
    one_mask(root, table[np.array([[0, 1, 2], [3, 2, 1]])])
    return one_mask(root, table[np.full((2, 3), 2)], number=1)


@pytest.mark.parametrize("name", ["palette.txt", "classes.txt", "elsewhere.txt", "palette.json"])
def test_colours_of_a_file(tmp_path: Path, name: str) -> None:
    root, text = coloured(tmp_path / "data"), COLOURS
    if name.endswith(".json"):
        rows = [line.split() for line in COLOURS.splitlines()[1:]]
        text = json.dumps([{"name": row[0], "color": [int(level) for level in row[1:]]} for row in rows])
    path = (tmp_path if name == "elsewhere.txt" else root) / name
    path.write_text(text)
    masks = open_masks(str(root), str(path) if name == "elsewhere.txt" else None)
    assert masks.classes.names == ["road", "sky", "wall"] and masks.classes.coloured
    assert masks.classes.palette.colours[1] == (70, 130, 180)
    assert numbers(masks) == [[0, 1, 2], [255, 2, 1]] and numbers(masks, 1) == [[2, 2, 2]] * 2
    assert masks.counts == {0: 1, 1: 2, 2: 8, 255: 1} and masks.problems == []


def test_colours_that_are_no_class(tmp_path: Path) -> None:
    root = coloured(tmp_path)
    with pytest.raises(
        SrattnError, match=r"0\.png: a coloured mask needs a palette, .*: give --classes a file with a line"
    ):
        open_masks(str(root))
    (root / "palette.txt").write_text(COLOURS.replace("sky 70", "sky 71"))
    masks = open_masks(str(root))
    assert [pair.mask.stem for pair in masks.pairs["train"]] == ["1"]
    assert len(masks.problems) == 1 and "0.png: the colour (70, 130, 180) at (y, x) = (0, 1)" in masks.problems[0]


def test_files_of_names(tmp_path: Path) -> None:
    assert named_classes(None, tmp_path) is None
    (tmp_path / "labels.txt").write_text("# of the street\n\n road \nthe sky\n")
    (tmp_path / "own.txt").write_text("a\nb 2\nc\n")
    (tmp_path / "own.json").write_text('["a", "b 2", "c"]')
    for given, names in (
        (None, ("road", "the sky")),
        ("x, y", ("x", "y")),
        (str(tmp_path / "own.txt"), ("a", "b 2", "c")),
        (str(tmp_path / "own.json"), ("a", "b 2", "c")),
    ):
        palette = named_classes(given, tmp_path)
        assert palette is not None and palette.names == names
        assert palette.colours == standard_palette(names).colours


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("one.txt", b"road\n", "names 1 classes; give at least 2, a line each"),
        ("none.txt", b"", "names 0 classes"),
        ("twice.txt", b"a\nb\na\n", r"twice\.txt: .*'a' twice"),
        ("bytes.txt", b"\xff\xfe\xfd", "no text file of class names .*; save it in UTF-8"),
        ("broken.json", b"[", "not JSON"),
        ("numbers.json", b"[1, 2]", "class 0 must be a name and a colour"),
        ("long.txt", b"a" * ((1 << 20) + 1), "more than the 1,048,576 bytes"),
    ],
)
def test_files_that_name_nothing(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SrattnError, match=message) as raised:
        palette_of(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def test_more_names_than_a_path_can_hold(tmp_path: Path) -> None:
    names = [f"a class of a long name, number {number}".replace(",", "") for number in range(200)]
    palette = named_classes(",".join(names), tmp_path)
    assert palette is not None and palette.names == tuple(names)


@pytest.mark.parametrize("given", ["road", "road,", "road,,sky", "missing.txt"])
def test_options_that_name_nothing(tmp_path: Path, given: str) -> None:
    with pytest.raises(SrattnError, match="neither a file nor at least two names"):
        named_classes(given, tmp_path)


def test_what_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match=r"hold one class only; .* --classes"):
        settle(None, [], Counter({0: 5}), False)
    with pytest.raises(SrattnError, match="at least two classes, got 1: road; name the others too"):
        settle(standard_palette(["road"]), [], Counter({0: 5}), True)


def test_a_number_out_of_range_is_named_with_file_value_and_place(tmp_path: Path) -> None:
    masks = open_masks(str(one_mask(tmp_path, LEVELS)), "a,b")
    with pytest.raises(BadImage) as raised:
        masks.read(masks.pairs["train"][0])
    said = str(raised.value)
    assert said.startswith(
        f"{tmp_path / 'masks' / '0.png'} has the value 2 at (y, x) = (0, 2), but there are 2 classes"
    )
    assert "--classes" in said and "--void [2]" in said


def test_256_classes_leave_255_void() -> None:
    everything = MaskClasses(standard_palette(256))
    mask = torch.arange(256, dtype=torch.uint8).view(16, 16)
    assert torch.equal(everything.numbers(mask, "a"), mask)


def test_more_classes_than_masks_have_numbers(tmp_path: Path) -> None:
    root, names = one_mask(tmp_path, LEVELS), ",".join(map(str, range(257)))
    with pytest.raises(SrattnError, match="257 classes are too many for masks"):
        open_masks(str(root), names)


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    root = one_mask(tmp_path, LEVELS)
    Image.new("RGB", (4, 2)).save(root / "images" / "0.png")
    (entry,) = open_masks(str(root)).found().parts["train"]
    with pytest.raises(BadImage, match=r"masks/0\.png is 3x2 pixels, but its image .*images/0\.png is 4x2"):
        entry.target((2, 4))


def test_unreadable_masks_are_left_out_and_named(tmp_path: Path) -> None:
    for number in range(3):
        one_mask(tmp_path, LEVELS, number=number)
    whole = open_masks(str(tmp_path))
    (tmp_path / "masks" / "1.png").write_bytes((tmp_path / "masks" / "1.png").read_bytes()[:50])
    calls: list[tuple[int, int]] = []
    masks = open_masks(str(tmp_path), workers=2, notify=lambda done, total: calls.append((done, total)))
    assert [pair.mask.stem for pair in masks.pairs["train"]] == ["0", "2"] and calls == [(1, 3), (2, 3), (3, 3)]
    assert len(masks.problems) == 1 and "1.png" in masks.problems[0]
    assert masks.facts != whole.facts
    for number in range(3):
        (tmp_path / "masks" / f"{number}.png").write_bytes(b"")
    with pytest.raises(SrattnError, match=r"has no mask that can be read; the first of 3: .*0\.png"):
        open_masks(str(tmp_path))


def test_only_some_parts(save_pairs) -> None:
    root = save_pairs({"train": 2, "val": 1})
    (root / "masks" / "train" / "0.png").write_bytes(b"")
    masks = open_masks(str(root), only=["val"])
    assert list(masks.pairs) == ["val"] and masks.problems == []


def test_facts_change_with_every_mask(save_pairs) -> None:
    root = save_pairs({"": 3})
    before = open_masks(str(root)).facts
    assert open_masks(str(root), workers=2).facts == before
    assert open_masks(str(root), "a,b,c").facts != before
    first, second = (root / "masks" / f"{number}.png" for number in (0, 1))
    shutil.copy(first, root / "aside.png")
    shutil.copy(second, first)
    shutil.copy(root / "aside.png", second)
    swapped = open_masks(str(root))
    assert swapped.facts != before  # though there are as many pixels of each class
