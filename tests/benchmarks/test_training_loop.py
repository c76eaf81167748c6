"""benchmarks/training_loop.py: steps are timed in a run, and a GPU's standing still is added up from what overlaps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from srattn.engine import TrainConfig


@pytest.fixture
def module(script: Callable[[str], ModuleType]) -> Any:
    return script("training_loop")


def config(folder: Path, **options: Any) -> TrainConfig:
    numbers = {"embed_dims": [8], "depths": [1], "num_heads": [1], "mlp_ratios": [1], "sr_ratios": [1]}
    model = {"model": "pvt_v2_b0", "model_options": numbers, "size": 8, "threads": 1}
    return TrainConfig(data="digits", out=str(folder / "run"), **model, **options)


def test_times_are_those_of_the_steps_after_the_first(module: Any, tmp_path: Path) -> None:
    watch = module.Watch(warm=3, steps=5, recorded=2)
    found = module.measure(config(tmp_path, epochs=4, batch_size=200), watch)
    assert len(watch.milliseconds()) == 5 and min(watch.milliseconds()) > 0
    assert found["images_per_second"] == pytest.approx(200e3 / found["step_ms"]["mean"], rel=1e-3)
    assert sum(found["where"].values()) <= 1.001


def test_a_run_that_is_too_short_says_so(module: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="more epochs, or fewer --steps"):
        module.measure(config(tmp_path, epochs=1, batch_size=500), module.Watch(warm=3, steps=5, recorded=2))


def test_what_overlaps_is_not_counted_twice(module: Any) -> None:
    spans = [(0.0, 100.0), (50.0, 80.0), (150.0, 200.0), (190.0, 1000.0)]
    assert module.idle(spans) == {"milliseconds": 1.0, "still": 0.05, "longest_ms": 0.05}
    assert module.idle([]) == {}


def test_nobody_looks_on_when_it_is_over(module: Any, tmp_path: Path) -> None:
    watch = module.Watch(warm=1, steps=50, recorded=2)
    with pytest.raises(SystemExit):
        module.measure(config(tmp_path, epochs=1, batch_size=500), watch)
    assert watch.places is not None and not watch.places.is_alive()
