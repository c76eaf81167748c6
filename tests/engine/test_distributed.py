"""Several processes give what one gives, whatever becomes of one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from srattn.engine import TrainConfig, train
from srattn.engine.checkpoint import Checkpoints
from srattn.engine.distributed import World
from srattn.engine.exam import open_exam
from srattn.engine.measure import measure
from srattn.engine.weights import LoadedRun, load_run
from srattn.errors import SrattnError

Launch = Callable[..., list[Any]]  # see conftest

# Three steps an epoch, the last of 207 images, which no two processes can divide evenly; two parts a step; augmentation
# and an average. No dropout: its draws depend on the number of processes.
OPTIONS = {"epochs": 2, "val_fraction": 0.6, "augment": "affine,flip", "ema_decay": 0.9, "accumulate": 2}

# A loss is a float32 mean of about 2.3 (eps 1.2e-7), computed in another order; 6 updates by AdamW, which divides
# small gradients by their own size, let the difference grow.
CLOSE = {"rel": 1e-5}


@pytest.fixture(scope="module")
def options(tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny | OPTIONS


@pytest.fixture(scope="module")
def one(options: dict[str, Any], launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run of one process: its report and its folder."""
    folder = tmp_path_factory.mktemp("one") / "run"
    (ended,) = launch(1, options=options | {"out": str(folder)})
    assert ended.code == 0, ended.text
    return ended.report | {"folder": folder}


def assert_equal(one: dict[str, Any], history: list[dict[str, float]], folder: Path) -> None:
    for record, other in zip(one["history"], history, strict=True):
        for name in ("epoch", "step", "train_accuracy", "val_accuracy", "learning_rate"):
            assert other[name] == pytest.approx(record[name], abs=1e-12), name
        for name in ("train_loss", "val_loss"):
            assert other[name] == pytest.approx(record[name], **CLOSE), name
    expected, found = (load_file(path / "model.safetensors") for path in (one["folder"], folder))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.allclose(tensor, found[name], rtol=1e-3, atol=2e-5), name
    results = [json.loads((path / "result.json").read_text()) for path in (one["folder"], folder)]
    assert results[0]["confusion"] == results[1]["confusion"]


@pytest.mark.parametrize(("kind", "world"), [("ddp", 2), ("fsdp", 2), ("ddp", 4), ("fsdp", 4)])
def test_losses_equal_those_of_one_process(
    options: dict[str, Any], one: dict[str, Any], launch: Launch, tmp_path: Path, kind: str, world: int
) -> None:
    folder = tmp_path / "run"
    ended = launch(world, options=options | {"out": str(folder), "distributed": kind})
    assert [process.code for process in ended] == [0] * world, [process.text for process in ended]
    for process in ended:
        assert process.report["losses"] == pytest.approx(one["losses"], **CLOSE)
        assert process.report["history"] == ended[0].report["history"]
    assert_equal(one, ended[0].report["history"], folder)
    assert [process.report["first"] for process in ended] == [True] + [False] * (world - 1)
    assert ended[0].report["answers"] == one["answers"] > 1000
    result = json.loads((folder / "result.json").read_text())
    assert (result["processes"], result["distributed"]) == (world, kind)


def test_stopped_and_resumed_by_other_numbers_of_processes(
    options: dict[str, Any], one: dict[str, Any], launch: Launch, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # SIGTERM reaches one process; all stop, since each might have to wait for it.
    ended = launch(2, options=options | {"out": str(folder), "distributed": "ddp"}, do={"terminate": [1, 1]})
    assert [process.code for process in ended] == [130, 130], [process.text for process in ended]
    resume = {"resume": str(folder)}
    ended = launch(4, options=resume | {"distributed": "fsdp"}, do={"terminate": [0, 4]})
    assert [process.code for process in ended] == [130] * 4, [process.text for process in ended]
    stops = [path.name for path in (folder / "checkpoints").glob("step-*")]
    assert max(stops) == "step-0000000005"  # agreed in the step after the signal
    (last,) = launch(1, options=resume)
    assert last.code == 0, last.text
    assert_equal(one, last.report["history"], folder)


def test_one_that_fails_stops_the_others_with_its_own_error(
    options: dict[str, Any], launch: Launch, tmp_path: Path
) -> None:
    ended = launch(2, options=options | {"out": str(tmp_path / "run")}, do={"raise": [1, 2]})
    assert all(process.code for process in ended)
    assert "LookupError: the attic is empty" in ended[1].text
    assert "error: process 1 of 2 failed and this one stops with it: LookupError: the attic is empty" in ended[0].text


def test_one_that_is_killed_leaves_no_other_waiting(options: dict[str, Any], launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = launch(2, options=options | {"out": str(folder)}, do={"kill": [1, 4]})
    assert (ended[1].code, ended[0].code) == (-9, 2), ended[0].text
    assert "Traceback" not in ended[0].text
    assert "is gone without a word" in ended[0].text
    assert Checkpoints(folder / "checkpoints", World(torch.device("cpu"))).names()  # something to resume


# With 300 fewer one process makes a step less and the other waits; with 20 fewer all would go on unnoticed.
@pytest.mark.parametrize("count", [20, 300])
def test_data_that_differs_between_processes_is_refused_by_all(
    options: dict[str, Any], launch: Launch, tmp_path: Path, count: int
) -> None:
    ended = launch(2, options=options | {"out": str(tmp_path / "run")}, lose=[1, count])
    assert [process.code for process in ended] == [2, 2], [process.text for process in ended]
    train, held = 719, 1078
    for process in ended:
        assert (
            f"digits is not the same for all processes: the first has {train} images for training, {held} held out"
            in (process.text)
        )
        assert f"process 1 has {train - count} images for training, {held} held out, 10 classes; of" in process.text
        assert f"those for training number {train - count + 1} is " in process.text
        assert "in the first, none in process 1; give all of them the same files" in process.text
    assert not (tmp_path / "run").exists()


def test_a_bad_batch_is_seen_by_all(options: dict[str, Any], launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = launch(2, options=options | {"out": str(folder)}, poison=[1, 4])
    assert [process.code for process in ended] == [2, 2], [process.text for process in ended]
    assert any("loss is nan in epoch 2, step 2" in process.text for process in ended)
    batch = load_file(folder / "bad_batch-0000000005.safetensors")
    assert batch["inputs"].shape == (256, 1, 8, 8) and len(batch["indices"].unique()) == 256
    assert batch["inputs"].isnan().flatten(1).all(1).tolist() == [False] * 128 + [True] * 128


def test_torchrun(tiny: dict[str, Any], environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny | {"epochs": 1}))
    (tmp_path / "train.py").write_text(
        "import sys, srattn.cli.train as train\n"
        "train._report = lambda result: None\n"  # which measures for seconds
        "from srattn.cli.main import main\n"
        "sys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "train.py"), "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/1") == 1 and done.stdout.count("held-out accuracy") == 1
    assert "2 processes (ddp)" in done.stdout
    alone = train(TrainConfig(**tiny | {"epochs": 1}, out=str(tmp_path / "alone")))
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["accuracy"] == pytest.approx(alone.result["accuracy"], abs=1e-12)


def test_processes_are_asked_for_by_torchrun_alone(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match="torchrun --nproc-per-node N"):
        train(TrainConfig(**tiny, distributed="fsdp", out=str(tmp_path / "run")))
    assert list(tmp_path.iterdir()) == []


CVT = {"embed_dims": [8, 8], "depths": [1, 1], "num_heads": [1, 1], "mlp_ratios": [1, 1], "sr_ratios": [2, 1]}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_batch_norms_are_measured_as_they_are_saved(
    options: dict[str, Any], launch: Launch, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "run"
    own = {
        "model": "cvt_13",
        "model_options": CVT,
        "size": 16,
        "epochs": 4,
        "lr": 1e-2,
        "ema_decay": 0.0,
        "batch_size": 32,
    }
    ended = launch(2, options=options | own | {"out": str(folder), "distributed": kind})
    assert [process.code for process in ended] == [0, 0], [process.text for process in ended]
    result = json.loads((folder / "result.json").read_text())
    run = load_run(folder)
    found = measure(run.model, *_held_out(run))
    assert result["loss"] == pytest.approx(found.nll, rel=1e-5)


def _held_out(run: LoadedRun) -> tuple[Any, ...]:
    exam = open_exam(run, "digits")
    return exam.samples, run.preprocess, exam.classes
