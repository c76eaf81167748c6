"""The scripts of benchmarks/ as modules, and a data set of the form of CIFAR-10."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from srattn.models import registry
from srattn.models.registry import list_models

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def script(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """A script of benchmarks/ by name; models that it registers are forgotten afterwards."""
    list_models()  # those of the package and of its plugins first
    monkeypatch.setattr(registry, "_variants", dict(registry._variants))
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files as the hub has them: ten classes, 60 images for training and 20 for testing, of flat colours."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    colours = random.integers(0, 200, (10, 1, 1, 3))
    for part, count in (("train", 60), ("test", 20)):
        labels = [number % 10 for number in range(count)]
        pictures = []
        for label in labels:
            noisy = colours[label] + random.integers(0, 40, (32, 32, 3))
            file = io.BytesIO()
            Image.fromarray(noisy.astype(np.uint8)).save(file, "PNG")
            pictures.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"img": pictures, "label": labels})
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    (folder / "classes.txt").write_text("\n".join(f"class {number}" for number in range(10)) + "\n")
    return folder
