"""What a model card says of the options: none of them names a place on the machine of the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest

from srattn.engine.card import _PATHS, recipe_of
from srattn.engine.config import TrainConfig
from srattn.engine.weights import LoadedRun

NAMES = {"task", "model", "head", "loss", "augment", "device", "image_column", "label_column", "split_column"}
"""Options of free text that are never a path."""


def recipe(**config: Any) -> dict[str, Any]:
    return recipe_of(LoadedRun(cast(Any, None), [], cast(Any, None), config, Path("run")))


def test_every_option_that_may_be_a_path_is_shortened() -> None:
    texts = {field.name for field in dataclasses.fields(TrainConfig) if field.type in ("str", "str | None")}
    assert set(_PATHS) == texts - NAMES
    found = recipe(**{name: f"/home/someone/secret/{name}" for name in _PATHS})
    assert found == {name: name for name in _PATHS}


@pytest.mark.parametrize("classes", ["sky,road,tree", "car/van,bus", None])
def test_names_of_classes_stay(classes: str | None) -> None:
    assert recipe(classes=classes) == {"classes": classes}
