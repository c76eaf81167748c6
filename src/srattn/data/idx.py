"""IDX files, as MNIST and Fashion-MNIST come: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., or .gz.

Format: https://yann.lecun.com/exdb/mnist/ (two zero bytes, 8 for bytes, the number of sides, each side as a big-endian
32-bit number, then the bytes).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

from srattn.data.index import Index
from srattn.data.labels import Row, assign, read_classes
from srattn.data.sources import Fetched
from srattn.errors import SrattnError

MAX_BYTES = 4 << 30
_PARTS = {"train": ("train",), "test": ("t10k", "test"), "val": ("val", "valid", "validation")}


def index_idx(folder: Path) -> Index:
    """The images of a folder of IDX files; a classes.txt in it names the classes, else they are "0", "1", ...

    Raises:
        SrattnError: a file is missing, is no IDX file, or ends early; or images and labels differ in number.
    """
    rows: list[Row] = []
    for part, prefixes in _PARTS.items():
        for prefix in prefixes:
            images, labels = (_find(folder, prefix, kind) for kind in ("images-idx3", "labels-idx1"))
            if images is None:
                continue
            if labels is None:
                raise SrattnError(f"{folder} has {images.name} but no {prefix}-labels-idx1-ubyte")
            (count, height, width), pixels = _read(images, 3)
            (known,), classes = _read(labels, 1)
            if count != known:
                raise SrattnError(f"{images} has {count} images but {labels.name} {known} labels")
            fetch = _Pictures(pixels, height, width)
            rows += [
                Row(f"{prefix}/{number}", label, Fetched(fetch, number), part) for number, label in enumerate(classes)
            ]
            break
    if not rows:
        raise SrattnError(f"{folder} has no train-images-idx3-ubyte with at least one image")
    return assign(rows, read_classes(folder))


class _Pictures:
    """Image files made of a block of grey levels when they are asked for."""

    def __init__(self, pixels: memoryview, height: int, width: int) -> None:
        self._pixels, self._size = pixels, height * width
        self._header = f"P5 {width} {height} 255\n".encode()  # a portable grey map is a header and the levels

    def __call__(self, number: int) -> bytes:
        return self._header + self._pixels[number * self._size : (number + 1) * self._size]


def _find(folder: Path, prefix: str, kind: str) -> Path | None:
    names = [f"{prefix}-{kind}{dot}ubyte{packed}" for dot in "-." for packed in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read(path: Path, sides: int) -> tuple[tuple[int, ...], memoryview]:
    """The sides and the bytes of one file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(4 + 4 * sides)
            if len(header) < 4 + 4 * sides or header[:4] != bytes([0, 0, 8, sides]):
                raise SrattnError(f"{path} is no IDX file of bytes with {sides} side(s)")
            shape = struct.unpack(f">{sides}I", header[4:])
            size = 1
            for side in shape:
                size *= side
            if size > MAX_BYTES or (sides == 3 and not all(shape[1:])):
                raise SrattnError(f"{path} claims {'x'.join(map(str, shape))} bytes; 1 to {MAX_BYTES:,} are accepted")
            data = file.read(size)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise SrattnError(f"{path} is damaged or ends early") from None
    if len(data) != size:
        raise SrattnError(f"{path} ends early: {len(data):,} of {size:,} bytes")
    return shape, memoryview(data)
