"""Small folders of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Maker = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> Maker:
    """`make_folder({"cat": 3, "dog": 2}, below="train")` writes PNG images of 12x10 pixels, a level of grey a class."""

    def make(classes: dict[str, int], below: str = "", name: str = "pictures") -> Path:
        root = tmp_path / name
        for number, (label, count) in enumerate(classes.items()):
            folder = root / below / label
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (12, 10), (60 * number + index,) * 3).save(folder / f"{index}.png")
        return root

    return make
