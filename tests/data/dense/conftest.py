"""Small folders of images with masks or boxes, whose pixels say what their targets are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image

SaveScene = Callable[..., None]


def painted(seed: int, size: tuple[int, int], classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Noise of low contrast with a rectangle of each class but 0: RGB (H, W, 3) and class numbers (H, W), uint8."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 40, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    for number in range(1, classes):
        top, left = (int(random.integers(0, max(1, side - 1))) for side in size)
        place = slice(top, top + max(1, size[0] // 3)), slice(left, left + max(1, size[1] // 3))
        mask[place] = number
        image[place] = 100 + 50 * number
    return image, mask


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def save_pairs(tmp_path: Path) -> Callable[..., Path]:
    """`save_pairs({"train": 3, "val": 2})` writes images/PART/N.png and masks/PART/N.png; "" is no part."""

    def make(parts: dict[str, int], size: tuple[int, int] = (14, 18), classes: int = 3, name: str = "street") -> Path:
        root = tmp_path / name
        for place, (part, count) in enumerate(parts.items()):
            for number in range(count):
                image, mask = painted(100 * place + number, size, classes)
                save(root / "images" / part / f"{number}.png", image)
                save(root / "masks" / part / f"{number}.png", mask)
        return root

    return make


def xml(boxes: Sequence[tuple[str, int, int, int, int]], size: tuple[int, int]) -> str:
    """An annotation of Pascal VOC: pixels from 1, both ends meant; `size` (height, width)."""
    body = "".join(
        f"<object><name>{escape(name)}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in boxes
    )
    return f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{body}</annotation>"


@pytest.fixture
def save_voc(tmp_path: Path) -> Callable[..., Path]:
    """`save_voc({"train": 3, "val": 2})` writes a folder of Pascal VOC whose boxes are around bright rectangles."""

    def make(parts: dict[str, int], size: tuple[int, int] = (24, 30), name: str = "cells") -> Path:
        root = tmp_path / name
        (root / "Annotations").mkdir(parents=True)
        (root / "ImageSets" / "Main").mkdir(parents=True)
        for place, (part, count) in enumerate(parts.items()):
            names = [f"{part}{number}" for number in range(count)]
            for number, stem in enumerate(names):
                random = np.random.default_rng(100 * place + number)
                image = random.integers(0, 40, (*size, 3), dtype=np.uint8)
                x1, y1 = int(random.integers(0, size[1] - 10)), int(random.integers(0, size[0] - 10))
                image[y1 : y1 + 8, x1 : x1 + 9] = 220
                save(root / "JPEGImages" / f"{stem}.png", image)
                label = ("cat", "dog")[number % 2]
                text = xml([(label, x1 + 1, y1 + 1, x1 + 9, y1 + 8)], size)
                (root / "Annotations" / f"{stem}.xml").write_text(text)
            (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{stem}\n" for stem in names))
        return root

    return make
