"""What a run and `srattn eval` say of images with labels is of the parts that they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srattn.data.augment import Augment
from srattn.data.preprocess import Preprocess
from srattn.data.reader import load_data
from srattn.engine.exam import Split, open_exam
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError


@pytest.fixture
def listed(make_folder: Any, tmp_path: Path) -> Path:
    """Of the training part a row without a label, of the test part one without an image and one of no class."""
    make_folder({"cat": 4, "dog": 4})
    rows = [
        f"pictures/{name}/{number}.png,{name},{('train', 'train', 'val', 'test')[number]}"
        for name in ("cat", "dog")
        for number in range(4)
    ]
    more = ["pictures/cat/0.png,,train", ",dog,test", "pictures/cat/1.png,eel,test"]
    file = tmp_path / "list.csv"
    file.write_text("\n".join(["image,label,split", *rows, *more]) + "\n")
    return file


@pytest.mark.parametrize(
    ("val", "split", "count"), [(None, "val", (1, 0)), ("test", "test", (3, 2)), ("split", "all", (1, 3))]
)
def test_rows_of_a_list(listed: Path, val: str | None, split: Split, count: tuple[int, int]) -> None:
    plain = Preprocess(size=(16, 16))
    assert len(load_data(str(listed), Augment("none", plain), val=val, val_fraction=0.5).skipped) == count[0]
    model: Any = torch.nn.Identity()
    run = LoadedRun(model, ["cat", "dog"], plain, {}, Path("-"), "classification")
    assert len(open_exam(run, str(listed), split).skipped) == count[1]


def test_an_empty_class_of_a_part_that_is_not_read(make_folder: Any) -> None:
    root = Path()
    for part, counts in {"train": {"cat": 4, "dog": 4}, "val": {"cat": 2, "dog": 2}, "test": {"cat": 2}}.items():
        root = make_folder(counts, below=part)
    plain = Augment("none", Preprocess(size=(16, 16)))
    assert not load_data(str(root), plain).skipped
    with pytest.raises(SrattnError, match="dog"):
        load_data(str(root), plain, val="test")
