"""A loss that is no number."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from srattn.engine import TrainConfig, train
from srattn.engine.checkpoint import Checkpoints, read_facts
from srattn.engine.distributed import World
from srattn.engine.guard import check_finite
from srattn.engine.learner import Learner
from srattn.errors import SrattnError


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The steps whose inputs are no numbers."""
    steps: set[int] = set()
    step = Learner.step

    def poisoned(self: Learner, batch: Any, images: int, number: int, rate: float) -> Any:
        if number in steps:
            batch.inputs.mul_(float("nan"))
        return step(self, batch, images, number, rate)

    monkeypatch.setattr(Learner, "step", poisoned)
    return steps


def test_it_stops_the_run_and_keeps_the_batch(tiny: dict[str, Any], tmp_path: Path, poison: set[int]) -> None:
    poison.add(8)
    seen: list[int] = []
    with pytest.raises(
        SrattnError, match=r"loss is nan in epoch 2, step 3: .* --lr \(.*\), or lower --clip_grad \(now 1\)"
    ):
        train(TrainConfig(**tiny, out=str(tmp_path / "run")), on_step=seen.append)
    assert seen == list(range(1, 9))  # within the step
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", World(torch.device("cpu")))
    assert read_facts(checkpoints.folder / checkpoints.names()[0])["position"]["epoch"] == 1
    path = tmp_path / "run" / "bad_batch-0000000009.safetensors"
    batch = load_file(path)
    assert batch["inputs"].shape == (256, 1, 8, 8) and batch["inputs"].isnan().all()
    assert batch["labels"].shape == batch["indices"].shape == (256,)
    with safe_open(path, framework="pt") as file:
        assert '"step": 3' in file.metadata()["srattn"] and "digits/" in file.metadata()["srattn"]


def test_it_goes_back_and_leaves_the_batch_out(tiny: dict[str, Any], tmp_path: Path, poison: set[int]) -> None:
    poison.update({3, 8})
    seen: list[int] = []
    options = tiny | {"on_nan": "rollback", "checkpoint_steps": 2}
    result = train(TrainConfig(**options, out=str(tmp_path / "run")), on_step=seen.append)
    assert result.result["steps_left_out"] == 2 and result.result["epochs"] == 2
    assert seen == [1, 2, 3, 3, 5, 6, 7, 8, 10, 11, 12]  # back to 2 without the fourth, to 8 without the ninth
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "run" / "model.safetensors").values())
    assert [record["step"] for record in result.history] == [6, 12]
    # Each bad batch is kept.
    kept = sorted(path.name for path in (tmp_path / "run").glob("bad_batch*"))
    assert kept == ["bad_batch-0000000004.safetensors", "bad_batch-0000000009.safetensors"]


@pytest.mark.parametrize("bad", [0, 1])
def test_an_epoch_whose_steps_are_all_left_out(
    tiny: dict[str, Any], tmp_path: Path, poison: set[int], bad: int
) -> None:
    poison.add(bad)
    options = tiny | {"on_nan": "rollback", "batch_size": 2048}  # one step an epoch
    result = train(TrainConfig(**options, out=str(tmp_path / "run")))
    assert result.result["steps_left_out"] == 1 and result.result["epochs"] == 2
    empty, full = result.history[bad], result.history[1 - bad]
    assert full.keys() - empty.keys() == {"train_loss", "train_accuracy"} and empty["images_per_second"] == 0
    table = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert table[bad]["train_loss"] == "" and float(table[bad]["val_loss"]) == empty["val_loss"]
    assert float(table[1 - bad]["train_loss"]) == full["train_loss"]


def test_the_advice_is_of_the_options_as_they_are(tiny: dict[str, Any], tmp_path: Path, poison: set[int]) -> None:
    poison.add(0)
    with pytest.raises(SrattnError, match=r"lower --lr \(now .*\), or set --clip_grad, now off$"):
        train(TrainConfig(**tiny, clip_grad=0, out=str(tmp_path / "run")))


def test_a_step_that_is_looked_at_during_the_next(
    tiny: dict[str, Any], tmp_path: Path, poison: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, which is not waited for."""
    at_once = train(TrainConfig(**tiny, out=str(tmp_path / "at_once")))
    monkeypatch.setattr("srattn.engine.trainer._LOOKED_AT_LATER", ("cpu",))
    options = tiny | {"checkpoint_steps": 2}
    later = train(TrainConfig(**options, out=str(tmp_path / "later")))
    times = ("images_per_second", "loader_share", "seconds")
    histories = [[{k: v for k, v in r.items() if k not in times} for r in run.history] for run in (at_once, later)]
    assert histories[0] == histories[1]
    poison.add(8)
    seen: list[int] = []
    options |= {"on_nan": "rollback"}
    result = train(TrainConfig(**options, out=str(tmp_path / "bad")), on_step=seen.append)
    assert result.result["steps_left_out"] == 1
    # The save that is due after 8 waits until 9 has been looked at, which is bad: back to 6, 8 again, and 9 left out.
    assert seen == [*range(1, 10), 7, 8, 10, 11, 12]
    poison.clear()
    poison.add(11)  # the last of all
    with pytest.raises(SrattnError, match="loss is nan in epoch 2, step 6"):
        train(TrainConfig(**tiny, out=str(tmp_path / "stopped")), on_step=seen.append)


def test_a_step_before_one_that_is_left_out_has_its_own_number(
    tiny: dict[str, Any], tmp_path: Path, poison: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth is bad, and once it is left out the fourth, which is looked at during the sixth."""
    monkeypatch.setattr("srattn.engine.trainer._LOOKED_AT_LATER", ("cpu",))
    poison.add(4)
    seen: list[int] = []

    def on_step(done: int) -> None:
        seen.append(done)
        if seen.count(1) == 2:
            poison.add(3)

    options = tiny | {"on_nan": "rollback", "epochs": 1}
    result = train(TrainConfig(**options, out=str(tmp_path / "run")), on_step=on_step)
    assert result.result["steps_left_out"] == 2
    assert seen == [1, 2, 3, 4, 5, 1, 2, 3, 4, 1, 2, 3, 6]
    with safe_open(tmp_path / "run" / "bad_batch-0000000004.safetensors", framework="pt") as file:
        assert '"step": 4' in file.metadata()["srattn"]


def test_not_for_ever(tiny: dict[str, Any], tmp_path: Path, poison: set[int]) -> None:
    poison.update(range(2, 99))
    options = tiny | {"on_nan": "rollback", "max_rollbacks": 2}
    with pytest.raises(SrattnError, match="step 5: training stopped after 2 rollbacks"):
        train(TrainConfig(**options, out=str(tmp_path / "run")))


def test_what_is_no_number() -> None:
    nan, inf = float("nan"), float("inf")
    assert check_finite(1.0, 2.0, False) is None
    assert check_finite(inf, 2.0, False) == ("loss", inf)
    assert check_finite(nan, 2.0, True) is not None
    assert check_finite(1.0, inf, False) == ("norm of the gradients", inf)
    assert check_finite(1.0, inf, True) is None  # the scaler of fp16 leaves such a step out
