"""Colours of classes, and masks in files: what is written is read back, and what is no class is refused by name."""

from __future__ import annotations

import io
import itertools
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from srattn import SrattnError
from srattn.data.decode import BadImage
from srattn.data.mask_files import read_mask, write_mask
from srattn.data.palette import IGNORED, Palette, class_numbers, read_palette, standard_palette

FEW = Palette(("sky", "tree", "road"), ((10, 20, 30), (40, 50, 60), (70, 80, 90)))


def lab(colours: Any) -> np.ndarray:
    """sRGB levels (n, 3) to CIELAB with the white of D65 (CIE 15:2004, IEC 61966-2-1)."""
    levels = np.asarray(colours, dtype=np.float64) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = linear @ np.array(matrix).T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances (n, m) of CIE 1976."""
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))


def test_standard_colours_are_distinct_and_neighbours_far_apart() -> None:
    palette = standard_palette(256)
    assert len(set(palette.colours)) == 256 and palette.names[7] == "class 7"
    places = lab(palette.colours)
    distances = apart(places, places) + 1e9 * np.eye(256)
    # A just noticeable difference is about 2.3.
    assert distances.min() > 12 and distances[:20, :20].min() > 25
    assert min(distances[n, n + 1] for n in range(255)) > 19
    assert standard_palette(["a", "b"]).colours == palette.colours[:2]


def test_more_classes_than_masks_have_numbers() -> None:
    """Of boxes; their colours begin again."""
    palette = standard_palette(600)
    assert len(palette) == 600 and palette.names[599] == "class 599"
    assert palette.colours[256:512] == palette.colours[:256] and palette.colours[512:] == palette.colours[:88]
    with pytest.raises(SrattnError, match="600 classes are too many for masks, which have 8 bits: at most 256"):
        palette.table()


def test_standard_colours_are_each_the_farthest_from_those_before() -> None:
    colours = standard_palette(256).colours
    okabe_ito = "000000 e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7"
    assert [bytes(colour).hex() for colour in colours[:8]] == okabe_ito.split()
    candidates = np.array(list(itertools.product(range(0, 256, 17), repeat=3)))
    places = lab(candidates)
    places = places[(places[:, 0] >= 25) & (places[:, 0] <= 92)]
    nearest = apart(places, lab(colours[:8])).min(1)
    for colour in colours[8:]:
        assert all(level % 17 == 0 for level in colour)
        own = apart(places, lab([colour]))[:, 0]
        assert nearest[own.argmin()] >= nearest.max() - 1e-6 and own.min() < 1e-9
        nearest = np.minimum(nearest, own)


@pytest.mark.parametrize(
    ("names", "colours", "message"),
    [
        ((), (), "at least one name and a colour for each, got 0 names"),
        (("a",), (), "got 1 names and 0 colours"),
        (("a",), ((0, 0, 256),), r"class 'a' must be three numbers from 0 to 255, got \(0, 0, 256\)"),
        (("a",), ((0, 0, True),), "three numbers"),
        (("a",), ((0, 0),), "three numbers"),
        (("a", "b", "a"), ((0, 0, 1),) * 3, "name every class once, got 'a' twice"),
    ],
)
def test_palettes_that_are_none(names: Any, colours: Any, message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        Palette(names, colours)


TEXTS = {
    "spaces.txt": "# a comment\n\nsky 10 20 30\ntree\t40 50  60\nroad 70 80 90\n",
    "commas.csv": "name, r, g, b\nsky,10,20,30\ntree, 40, 50, 60\n road,70,80,90",
    "lists.json": json.dumps([["sky", 10, 20, 30], ["tree", 40, 50, 60], ["road", 70, 80, 90]]),
    "objects.JSON": json.dumps(
        [
            {"name": "sky", "color": [10, 20, 30], "id": 7},
            {"name": "tree", "colour": [40, 50, 60]},
            {"name": "road", "color": [70, 80, 90]},
        ]
    ),
    "mapping.json": "\ufeff" + json.dumps({"sky": [10, 20, 30], "tree": [40, 50, 60], "road": [70, 80, 90]}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_palette_from_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TEXTS[name], encoding="utf-8")
    assert read_palette(tmp_path / name) == FEW


def test_names_with_spaces_and_no_names(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("traffic light 1 2 3\n4 5 6\n", encoding="utf-8")
    assert read_palette(tmp_path / "p.txt") == Palette(("traffic light", "class 1"), ((1, 2, 3), (4, 5, 6)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"sky 1 2 3\ntree 1 2\n", r"p\.txt: line 2 must be a name and three numbers .* got 'tree 1 2'"),
        ("p.txt", b"sky 1 2 300\n", "line 1 must be"),
        ("p.txt", "sky 1 2 \u0663\n".encode(), "line 1 must be"),
        ("p.txt", b"", "at least one name"),
        ("p.txt", b"\xff\xfe\x00", r"p\.txt: not a text in UTF-8"),
        ("p.txt", b"# " + b"x" * (1 << 20), "more than 1,048,576 bytes"),
        ("p.json", b"[", r"p\.json: not JSON"),
        ("p.json", b"[" * 100_000, "not JSON"),
        ("p.json", b'[["a", ' + b"9" * 5000 + b", 0, 0]]", "not JSON"),
        ("p.txt", b"sky 1 2 " + b"0" * 5000, "line 1 must be"),
        ("p.json", b"3", "at least one name"),
        ("p.json", b'[["a", 1, 2]]', r"class 0 must be a name and a colour \[r, g, b\], got \['a', 1, 2\]"),
        ("p.json", b'[{"name": "a"}]', "class 0 must be"),
        ("p.json", b'[["a", 1, 2, 0.5]]', "three numbers from 0 to 255"),
        ("p.json", b'{"a": "red"}', "class 0 must be"),
    ],
)
def test_files_that_are_no_palette(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SrattnError, match=message):
        read_palette(tmp_path / name)


def test_a_palette_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match=r"none\.txt: No such file"):
        read_palette(tmp_path / "none.txt")
    with pytest.raises(SrattnError, match="a directory"):
        read_palette(tmp_path)


def test_every_number_has_its_colour() -> None:
    table = FEW.table()
    assert table.dtype == torch.uint8 and table.shape == (256, 3)
    assert [tuple(colour) for colour in table[:3].tolist()] == list(FEW.colours)
    assert tuple(table[255].tolist()) == IGNORED
    whole = standard_palette(256)
    assert [tuple(colour) for colour in whole.table().tolist()] == list(whole.colours)
    assert torch.equal(table[3:255], whole.table()[3:255])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([[0, 1], [2, 3]]), r"value 3 at \(y, x\) = \(1, 1\): must be below the 3 classes or 255"),
        (torch.tensor([[0, -1]], dtype=torch.int8), r"value -1 at \(y, x\) = \(0, 1\)"),
        (torch.tensor([[256]], dtype=torch.int16), "value 256"),
        (torch.zeros(1, 2, 2, dtype=torch.uint8), r"whole numbers \(H, W\), got torch.uint8 \(1, 2, 2\)"),
        (torch.zeros(2, 2), "got torch.float32"),
    ],
)
def test_masks_with_other_values(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        class_numbers(mask, len(FEW))


def test_numbers_of_every_type() -> None:
    assert class_numbers(torch.tensor([[True, False]]), 2).tolist() == [[1, 0]]
    assert class_numbers(torch.tensor([[127]], dtype=torch.int8), 256).dtype == torch.uint8
    with pytest.raises(SrattnError, match=r"value 255 .* below the 3 classes$"):
        class_numbers(torch.tensor([[255]], dtype=torch.uint8), 3, ignore=None)


@pytest.mark.parametrize("classes", [1, 2, 3, 16, 17, 256])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (64, 33)])
def test_a_written_mask_comes_back(tmp_path: Path, classes: int, size: tuple[int, int]) -> None:
    palette, path = standard_palette(classes), tmp_path / "new" / "mask.png"
    mask = torch.randint(0, classes, size, dtype=torch.uint8)
    mask[-1, -1] = 255
    write_mask(path, mask, palette)
    assert torch.equal(read_mask(path, palette), mask) and torch.equal(read_mask(path.read_bytes()), mask)
    with Image.open(path) as image:
        assert image.mode == "P"
        shown = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
        assert torch.equal(shown, palette.table()[mask.int()].permute(2, 0, 1))
        # And as colours, of which no two are the same.
        assert torch.equal(read_mask(saved(image.convert("RGB")), palette), mask)
    with pytest.raises(SrattnError, match="exists and is not overwritten"):
        write_mask(path, mask, palette)
    write_mask(path, mask.T, palette, overwrite=True)
    assert torch.equal(read_mask(path), mask.T)
    assert [file.name for file in path.parent.iterdir()] == ["mask.png"]


def test_what_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match="value 3"):
        write_mask(tmp_path / "m.png", torch.tensor([[3]]), FEW)
    with pytest.raises(SrattnError, match=r"end the name in \.png"):
        write_mask(tmp_path / "m.jpg", torch.tensor([[0]]), FEW)
    with pytest.raises(SrattnError, match=r"without pixels \(0, 3\)"):
        write_mask(tmp_path / "m.png", torch.zeros(0, 3, dtype=torch.uint8), FEW)
    assert list(tmp_path.iterdir()) == []


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NUMBERS = np.array([[0, 1, 2], [2, 255, 1]], dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_grey_files_hold_the_numbers(kind: str) -> None:
    assert read_mask(saved(Image.fromarray(NUMBERS), kind), FEW).tolist() == NUMBERS.tolist()
    assert read_mask(saved(Image.fromarray(NUMBERS).convert("RGB"), kind)).tolist() == NUMBERS.tolist()


def test_files_of_16_bits_hold_the_numbers() -> None:
    assert read_mask(saved(Image.fromarray(NUMBERS.astype(np.uint16)))).tolist() == NUMBERS.tolist()
    assert read_mask(saved(Image.fromarray(NUMBERS.astype(np.int32)), "TIFF")).tolist() == NUMBERS.tolist()
    with pytest.raises(BadImage, match=r"road\.png has the value 1000 at \(y, x\) = \(0, 1\)"):
        read_mask(saved(Image.fromarray(np.array([[1, 1000]], dtype=np.uint16))), name="road.png")


def test_opaque_alpha_is_no_hindrance() -> None:
    grey = Image.fromarray(NUMBERS)
    assert read_mask(saved(grey.convert("LA"))).tolist() == NUMBERS.tolist()
    assert read_mask(saved(grey.convert("RGBA"))).tolist() == NUMBERS.tolist()
    clear = grey.convert("LA")
    clear.putpixel((0, 0), (0, 254))
    with pytest.raises(BadImage, match=r"the mask: a mask cannot be transparent \(mode LA\)"):
        read_mask(saved(clear))


@pytest.mark.parametrize("size", [(4, 6), (600, 3)])
def test_colours_of_a_palette(size: tuple[int, int]) -> None:
    mask = torch.randint(0, 3, size, dtype=torch.uint8)
    mask[0, 0] = 255
    picture = FEW.table()[mask.int()].numpy()
    assert torch.equal(read_mask(saved(Image.fromarray(picture)), FEW), mask)
    picture = picture.copy()
    picture[-1, 1] = (40, 50, 61)
    where = rf"\(40, 50, 61\) at \(y, x\) = \({size[0] - 1}, 1\) is that of no class"
    with pytest.raises(BadImage, match=f"a.png: the colour {where}"):
        read_mask(saved(Image.fromarray(picture)), FEW, name="a.png")
    with pytest.raises(BadImage, match="a coloured mask needs a palette"):
        read_mask(saved(Image.fromarray(picture)))
    with pytest.raises(BadImage, match=r"\(224, 224, 224\) at \(y, x\) = \(0, 0\) is that of no class"):
        read_mask(saved(Image.fromarray(picture)), FEW, ignore=None)


def test_a_colour_of_two_classes_says_nothing() -> None:
    twice = Palette(("a", "b", "c"), ((1, 1, 1), (2, 2, 2), (1, 1, 1)))
    assert read_mask(saved(Image.new("RGB", (2, 2), (2, 2, 2))), twice).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(BadImage, match=r"the colour \(1, 1, 1\) .* of several classes"):
        read_mask(saved(Image.new("RGB", (2, 2), (1, 1, 1))), twice)


def test_two_classes_by_a_threshold() -> None:
    levels = np.array([[0, 127], [128, 255]], dtype=np.uint8)
    blocks = levels.repeat(8, axis=0).repeat(8, axis=1)
    half = [[0, 0], [1, 1]]
    assert read_mask(saved(Image.fromarray(levels)), binary=True).tolist() == half
    assert read_mask(saved(Image.fromarray(levels.astype(np.uint16) * 257)), binary=True).tolist() == half
    assert read_mask(saved(Image.fromarray(levels > 127)), standard_palette(2)).tolist() == half
    for mode in ("L", "RGB", "CMYK"):
        jpeg = saved(Image.fromarray(blocks).convert("RGB").convert(mode), "JPEG", quality=100, subsampling=0)
        found = read_mask(jpeg, standard_palette(2))
        assert found[::8, ::8].tolist() == half and set(found.unique().tolist()) == {0, 1}
    with pytest.raises(BadImage, match=r"m\.jpg: JPEG changes the numbers of 3 classes; save masks as PNG"):
        read_mask(saved(Image.fromarray(blocks), "JPEG"), FEW, name="m.jpg")
    with pytest.raises(BadImage, match="JPEG changes the numbers of 5 classes"):
        read_mask(saved(Image.fromarray(blocks), "JPEG"), classes=5)


def test_a_value_that_is_no_class_is_named() -> None:
    data = saved(Image.fromarray(np.array([[0, 3]], dtype=np.uint8)))
    with pytest.raises(BadImage, match=r"a\.png has the value 3 at \(y, x\) = \(0, 1\): must be below the 3 classes"):
        read_mask(data, FEW, name="a.png")
    assert read_mask(data).tolist() == [[0, 3]] and read_mask(data, classes=4).tolist() == [[0, 3]]


def test_a_mask_is_turned_upright_as_its_image_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for image in (Image.fromarray(NUMBERS), Image.fromarray(NUMBERS.astype(np.uint16))):
        assert read_mask(saved(image, exif=exif)).tolist() == np.rot90(NUMBERS, -1).tolist()


def header(width: int, height: int) -> bytes:
    """A PNG that says it is large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return start + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(30_000, 20_000), (8_001, 8_000)])
def test_masks_that_are_too_large_are_refused_by_their_header(width: int, height: int) -> None:
    with pytest.raises(BadImage, match=r"big\.png: .*more than the 64,000,000 pixels that are accepted"):
        read_mask(header(width, height), name="big.png")


def test_files_that_are_no_masks(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"none\.png: no such file"):
        read_mask(tmp_path / "none.png")
    with pytest.raises(BadImage, match="the mask: not an image of the formats PNG"):
        read_mask(b"text")
    with pytest.raises(BadImage, match="cut: unreadable"):
        read_mask(saved(Image.effect_noise((64, 64), 50))[:500], name="cut")
    with pytest.raises(BadImage, match="mode F holds no class numbers"):
        read_mask(saved(Image.new("F", (2, 2)), "TIFF"))
    with pytest.raises(BadImage, match="mode CMYK holds no class numbers"):
        read_mask(saved(Image.new("CMYK", (2, 2)), "TIFF"))
