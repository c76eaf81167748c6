"""The searches before a run: what they suggest and why, what they refuse, and that they leave nothing behind."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import SMALL

from srattn.engine import TrainConfig, batch_probe
from srattn.engine.batch_probe import Steps, Trial
from srattn.engine.batch_size import _of_group, batch_size_search, count_classes, free_memory, predicted, search
from srattn.engine.config import to_dict
from srattn.engine.defaults import resolve
from srattn.engine.made_up import OBJECTS, made_up
from srattn.engine.tune import _judged, lr_range, smooth
from srattn.errors import SrattnError

RATES = [10 ** (-6 + 6 * step / 199) for step in range(200)]


def sweep(losses: list[float], rates: list[float] = RATES) -> Any:
    facts = {"steps": len(losses), "planned_steps": 200}
    return _judged(rates[: len(losses)], losses, facts)


def valley(rate: float, fall: float = 1e-3, rise: float = 2e-2) -> float:
    """2.3, falling to 0.8 around `fall`, rising again around `rise`."""
    x = math.log10(rate)
    down = 1 / (1 + math.exp(-8 * (x - math.log10(fall))))
    up = 1 / (1 + math.exp(-8 * (x - math.log10(rise))))
    return 2.3 - 1.5 * down + 3 * up


def test_suggestion_lies_between_steepest_and_lowest() -> None:
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    found = sweep([valley(rate) + 0.05 * n for rate, n in zip(RATES, noise, strict=True)])
    assert found.steepest == pytest.approx(1e-3, rel=0.6)
    assert found.steepest < found.suggestion < found.best < 2e-2
    assert found.suggestion == pytest.approx(math.sqrt(found.steepest * found.best), rel=0.05)
    assert "falls fastest at" in found.reason and "above which it rises" in found.reason


def test_smoothing_keeps_a_straight_line_and_is_centred() -> None:
    line = [float(i) for i in range(200)]
    middle = smooth(RATES, line)[20:-20]
    torch.testing.assert_close(torch.tensor(middle), torch.tensor(line[20:-20]), rtol=1e-3, atol=1e-2)


def test_no_suggestion_without_a_fall() -> None:
    found = sweep([2.3] * 200)
    assert found.suggestion is None and "never fell" in found.reason
    broken = sweep([float("nan")])
    assert broken.suggestion is None and "no number" in broken.reason
    late = sweep([valley(rate, fall=0.1, rise=10) for rate in RATES])
    assert late.best == RATES[-1] and "higher end" in late.reason
    ended = sweep([*[valley(rate) for rate in RATES[:150]], float("nan")])
    assert ended.suggestion is not None and len(ended.rates) == 150


def test_sweep_uses_the_runs_own_steps_and_leaves_nothing(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[int, int]] = []
    before, drawn = torch.get_num_threads(), torch.random.get_rng_state()
    found = lr_range(
        TrainConfig(**{**tiny, "batch_size": 64}), lowest=1e-4, highest=1.0, steps=40,
        notify=lambda step, steps, rate, loss: seen.append((step, steps)),
    )  # fmt: skip
    assert os.listdir(tmp_path) == []
    assert seen[0] == (1, 40) and len(seen) == len(found.rates) == len(found.losses)
    assert found.rates[0] == 1e-4
    assert found.rates[1] / found.rates[0] == pytest.approx(1e4 ** (1 / 39))
    assert found.losses[0] == pytest.approx(math.log(10), rel=0.1)  # an untrained model of ten classes
    assert min(found.smoothed) < 2.2
    assert found.facts["batch_size"] == 64
    assert torch.get_num_threads() == before and torch.equal(torch.random.get_rng_state(), drawn)


def test_sweep_takes_batches_of_a_data_set_below_the_batch_size(tiny: dict[str, Any]) -> None:
    # Two passes are an epoch of two batches here, neither of which is ever whole.
    found = lr_range(TrainConfig(**{**tiny, "val_fraction": 0.9, "passes": 2}), steps=20)
    assert len(found.losses) == 20


def test_ranges_are_checked(tiny: dict[str, Any]) -> None:
    config = TrainConfig(**tiny)
    with pytest.raises(SrattnError, match=r"0 < lowest < highest, got 1 and 0\.1"):
        lr_range(config, lowest=1.0, highest=0.1)
    with pytest.raises(SrattnError, match="steps must be at least 20, got 3"):
        lr_range(config, steps=3)
    with pytest.raises(SrattnError, match="1 <= first <= most"):
        batch_size_search(config, first=8, most=4)
    with pytest.raises(SrattnError, match="memory must be above 0"):
        batch_size_search(config, memory_gb=0.0)


class Machine:
    """Memory and time that grow with the batch, and a record of what was asked."""

    def __init__(self, base: int = 100, an_image: int = 10, room: int | None = None) -> None:
        self.base, self.an_image, self.room, self.asked = base, an_image, room, []

    def __call__(self, batch: int) -> Trial | None:
        self.asked.append(batch)
        peak = self.base + self.an_image * batch
        if self.room is not None and peak > self.room:
            return None
        seconds = 0.01 + 0.001 * batch if batch <= 64 else 0.0012 * batch  # slower again beyond 64
        return Trial(batch, seconds, peak)


def test_careful_search_never_tries_what_may_not_fit() -> None:
    machine = Machine()
    found = search(machine, 100 + 10 * 300, 8, 4096, 60, careful=True)
    assert machine.asked == [8, 16, 32, 64, 128, 256]  # 512 would need 5,220 of 3,100
    assert found.largest == 296 and not found.measured  # 300, as a multiple of 8
    assert "512 images would need about" in found.reason
    assert found.recommended == 64
    assert predicted(found.trials, 512) == 100 + 10 * 512


def test_daring_search_halves_the_gap() -> None:
    machine = Machine(room=100 + 10 * 300)
    found = search(machine, 10**9, 8, 4096, 60, careful=False)
    assert found.measured and 256 < found.largest <= 300 and 300 - found.largest <= 300 // 8
    assert max(machine.asked) == 512
    assert found.largest == max(trial.batch for trial in found.trials)


def test_search_ends_at_the_most_and_at_slow_steps() -> None:
    assert search(Machine(), 10**9, 8, 64, 60, careful=True).largest == 64
    slow = search(Machine(), 10**9, 8, 4096, 0.1, careful=True)
    assert max(trial.batch for trial in slow.trials) <= 64 and "longer than 0.1 seconds" in slow.reason
    with pytest.raises(SrattnError, match="not even the smallest batch of 8 fits"):
        search(Machine(room=50), 10**9, 8, 64, 60, careful=False)
    with pytest.raises(SrattnError, match=r"of the 0\.00 GB allowed: not even"):
        search(Machine(), 100, 8, 64, 60, careful=True)


def test_child_process_measures_its_own_peak(tiny: dict[str, Any]) -> None:
    told: list[Trial] = []
    found = batch_size_search(TrainConfig(**tiny), memory_gb=8.0, first=8, most=32, notify=told.append)
    assert [trial.batch for trial in found.trials] == [8, 16, 32] and told == found.trials
    assert all(50e6 < trial.peak < 4e9 and trial.images_per_second > 0 for trial in found.trials)
    assert found.recommended in (8, 16, 32) and found.largest == 32
    assert found.facts == {"device": "cpu", "model": "pvt_v2_b0", "size": 8, "precision": "fp32"}


STAGES = {"width": 16, "hidden": 16, "proposals": 20, "regions": 8, "mask_hidden": 8, "mask_convs": 1}
SCENES: dict[str, dict[str, Any]] = {
    "segment": {"loss": "ce+dice", "head_options": {"hidden": 16}},
    "depth": {"head_options": {"hidden": 16, "max_depth": 4}},
    "pose": {"head_options": {"width": 16}},
    "fcos": {"head_options": {"width": 16, "convs": 1}},
    "mask_rcnn": {"head_options": STAGES},
}


@pytest.mark.parametrize("name", SCENES)
def test_steps_have_the_targets_of_their_task(
    name: str, coco_folder: Path, mask_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_probe, "_SECONDS", 0.0)
    task = {"fcos": "detect", "mask_rcnn": "detect"}.get(name, name)
    head = {"head": name} if task == "detect" else {}
    data = mask_folder if task == "segment" else coco_folder
    config = resolve(TrainConfig(task=task, data=str(data), **SMALL | SCENES[name] | head))
    classes = {"segment": 3, "depth": 1, "pose": 4}.get(task, 2)
    assert task == "pose" or count_classes(config) == classes
    steps = Steps({"config": to_dict(config), "classes": classes})
    before = [parameter.clone() for parameter in steps.learner.model.parameters()]
    assert steps.time(2) > 0
    moved = [not torch.equal(*pair) for pair in zip(before, steps.learner.model.parameters(), strict=True)]
    assert any(moved)
    labels = made_up(config, classes, 3).labels
    if task == "detect":
        assert labels.shape[:2] == (3, OBJECTS) and (labels.shape[2] > 5) == (name == "mask_rcnn")
        assert bool((labels[..., 2:4] > labels[..., :2]).all()) and float(labels[..., :4].max()) < config.size + 1e-3
    if task == "depth":
        assert float(labels.min()) > 0 and float(labels.max()) <= 4


def test_free_memory_counts_the_container(tmp_path: Path) -> None:
    assert free_memory(torch.device("cpu")) > 0
    for name, text in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 5\ninactive_file 100\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert _of_group(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert _of_group(tmp_path) is None and _of_group(tmp_path / "none") is None
