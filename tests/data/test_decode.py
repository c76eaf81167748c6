"""Images of every kind that people have, and files that only look like images."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srattn.data.decode import MAX_PIXELS, BadImage, decode, shrink


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "colour", "kind", "level"),
    [
        ("1", 1, "PNG", 255),
        ("L", 90, "PNG", 90),
        ("LA", (90, 255), "PNG", 90),
        ("LA", (90, 0), "PNG", 255),
        ("RGB", (90, 90, 90), "BMP", 90),
        ("RGBA", (90, 90, 90, 255), "WEBP", 90),
        ("RGBA", (0, 0, 0, 0), "PNG", 255),
        ("RGBA", (0, 0, 0, 128), "PNG", 127),
        ("P", 0, "GIF", 0),
        ("CMYK", (0, 0, 0, 165), "JPEG", 90),
        ("CMYK", (0, 0, 0, 165), "TIFF", 90),
        ("YCbCr", (90, 128, 128), "JPEG", 90),
        ("I;16", 90 * 257, "PNG", 90),
        ("I", 90 * 257, "TIFF", 90),
        ("I", 90, "TIFF", 90),
        ("F", 90 / 255, "TIFF", 90),
        ("F", 90.0, "TIFF", 90),
    ],
)
def test_modes(mode: str, colour: object, kind: str, level: int, channels: int) -> None:
    data = saved(Image.new(mode, (6, 4), colour), kind, **({"lossless": True} if kind == "WEBP" else {}))  # type: ignore[arg-type]
    image = decode(data, channels)
    assert image.mode == ("L" if channels == 1 else "RGB")
    assert image.size == (6, 4)
    assert np.abs(np.asarray(image).astype(int) - level).max() <= 2


def test_palette_with_a_transparent_colour_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    assert decode(saved(image, "PNG", transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(saved(image, "PNG", transparency=b"\xff\x00")).getpixel((0, 0)) == (255, 255, 255)
    assert decode(saved(image, "PNG")).getpixel((0, 0)) == (200, 10, 10)


def test_levels_without_an_agreed_white_are_stretched() -> None:
    levels = np.linspace(-1000, 3000, 16, dtype=np.float32).reshape(4, 4)
    image = np.asarray(decode(saved(Image.fromarray(levels), "TIFF"), channels=1))
    assert image.min() == 0
    assert image.max() == 255


def test_levels_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BadImage, match="not finite"):
        decode(saved(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "TIFF"))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("L", (4, 4), level) for level in (10, 200)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, 1).getpixel((0, 0)) == 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(orientation: int) -> None:
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    # What a camera stores for each orientation: the inverse of what a viewer must do.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode(saved(stored, "PNG", exif=exif), 1)), np.asarray(upright))


def test_damaged_exif_does_not_spoil_the_picture() -> None:
    data = saved(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\x00" * 8)
    assert decode(data).size == (8, 8)


@pytest.mark.parametrize("side", [9_000, 11_000, 60_000])
def test_decompression_bombs_are_refused_by_their_header(side: int) -> None:
    assert side * side > MAX_PIXELS
    with pytest.raises(BadImage, match=r"64,000,000 pixels"):
        decode(png_header(side, side), name="bomb.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadImage, match=r"half\."):
        decode(path)


def test_what_is_no_image() -> None:
    with pytest.raises(BadImage, match="empty: not an image"):
        decode(b"", name="empty")
    with pytest.raises(BadImage, match="not an image of the formats"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", name="a.eps")
    with pytest.raises(BadImage, match="no such file"):
        decode(Path("nowhere.png"))


def test_shrink_keeps_the_shape_and_never_enlarges() -> None:
    assert shrink(Image.new("L", (400, 200)), 50).size == (100, 50)
    assert shrink(Image.new("L", (40, 20)), 50).size == (40, 20)
    assert shrink(Image.new("L", (1000, 2)), 1).size == (500, 1)
