"""What a run leaves behind, and what is refused before it begins."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srattn.engine import TrainConfig, run_folder, train
from srattn.engine.checkpoint import Checkpoints, read_tensors
from srattn.engine.checkpoint_files import SafeReader
from srattn.engine.config import from_dict
from srattn.engine.distributed import World
from srattn.errors import SrattnError


def test_the_run_folder(finished: Path) -> None:
    files = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/events.out.tfevents.")}
    assert len(events) == 1
    checkpoints = {f"checkpoints/step-{step:010d}" for step in (6, 12)}
    assert files - events == {
        "config.yaml", "metrics.csv", "metrics.jsonl", "model.safetensors", "result.json",
        *(f"{folder}/{name}" for folder in checkpoints for name in (".metadata", "__0_0.distcp", "state.json")),
    }  # fmt: skip
    assert b"val/accuracy" in (finished / events.pop()).read_bytes()
    table = list(csv.DictReader((finished / "metrics.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert list(lines[0]) == [
        "epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate",
        "images_per_second", "loader_share", "seconds",
    ]  # fmt: skip
    assert [{name: float(value) for name, value in row.items()} for row in table] == lines
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 6), (2, 12)]
    result = json.loads((finished / "result.json").read_text())
    assert result["accuracy"] == lines[-1]["val_accuracy"]
    assert sum(map(sum, result["confusion"])) == result["val_images"] == 359
    assert result["versions"]["torch"] == torch.__version__


def test_it_learns(tiny: dict[str, Any], tmp_path: Path) -> None:
    options = tiny | {"batch_size": 64, "epochs": 6, "lr": 5e-3}
    result = train(TrainConfig(**options, out=str(tmp_path / "run")))
    assert result.result["accuracy"] > 0.7  # chance is 0.1
    assert result.history[-1]["val_loss"] < result.history[0]["val_loss"]


def test_runs_are_numbered(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = tiny | {"epochs": 1}
    folders = [train(TrainConfig(**options)).folder for _ in range(2)]
    assert [str(folder) for folder in folders] == ["runs/digits-1", "runs/digits-2"]


@pytest.mark.parametrize(
    ("data", "name"),
    [("/a/shards/train-{0000..0099}.tar", "train-0000..0099"), ("/a/train-*.tar", "train"), ("/a/*.tar", "run"),
     ("hf:name:config", "hf-name-config"), ("/a/my photos", "my photos")],
)  # fmt: skip
def test_folders_are_called_by_their_data(
    data: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_folder.create(from_dict({"data": data})) == Path("runs", f"{name}-1")


def test_the_callers_threads_and_random_numbers_stay(tiny: dict[str, Any], tmp_path: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(TrainConfig(**tiny | {"epochs": 1, "threads": threads + 1}, out=str(tmp_path / "run")))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_an_existing_folder_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SrattnError, match="exists and is not overwritten"):
        train(TrainConfig(**tiny, out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 7}, r"size 7 is below the 8 pixels.*--size 8"),
        ({"model": "pvt_v9"}, "no model 'pvt_v9'"),
        ({"model_options": {"embed_dim": [8]}}, "did you mean 'embed_dims'"),
        ({"model_options": {"num_classes": 3}}, "num_classes is set by training itself"),
        ({"data": "nowhere/at/all"}, "neither digits nor an existing"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"val_fraction": 1.5}, "val_fraction"),
        ({"channels": 3}, "digits are grey"),
        ({"eval_size": 4}, r"eval_size 4 is below the 8 pixels.*--eval_size 8"),
        ({"augment": "melt"}, "unknown 'melt'"),
        ({"task": "clasification"}, "did you mean 'classification'"),
        ({"sinks": ["nowhere"]}, "no sink 'nowhere' is installed"),
        ({"init": "nowhere"}, "nowhere does not exist"),
        ({"distill": "nowhere"}, "nowhere does not exist"),
        ({"freeze": ["stages.9"]}, r"nothing in the model is called 'stages\.9'"),
        ({"lora_rank": 2, "lora_targets": ["w"]}, "no attention of this model has a projection 'w'"),
    ],
)
def test_refused_before_any_work(tiny: dict[str, Any], tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        train(TrainConfig(**(tiny | options), out=str(tmp_path / "run")))
    assert list(tmp_path.iterdir()) == []


def picture(folder: Path, name: str, level: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    noise = torch.randint(0, 40, (40, 50, 3), dtype=torch.uint8) + level
    Image.frombytes("RGB", (50, 40), noise.numpy().tobytes()).save(folder / name)


def test_a_folder_of_photos(tiny: dict[str, Any], tmp_path: Path) -> None:
    for index in range(10):
        picture(tmp_path / "photos" / "day", f"{index}.jpg", 200)
        picture(tmp_path / "photos" / "night", f"{index}.png", 0)
    (tmp_path / "photos" / "night" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    notes: list[str] = []

    class Listener:
        def __getattr__(self, name: str) -> Any:
            return (lambda text: notes.append(text)) if name == "note" else (lambda *_: None)

    options = tiny | {"data": str(tmp_path / "photos"), "size": 16, "batch_size": 4, "epochs": 4, "lr": 1e-2}
    result = train(TrainConfig(**options, out=str(tmp_path / "run"), num_workers=2), progress=Listener())  # type: ignore[arg-type]
    assert result.loader.data.classes == ["day", "night"]
    assert result.result["accuracy"] == 1.0
    assert result.result["skipped_images"] == 1 and "broken.jpg" in result.result["skipped"][0]
    assert any(note.startswith("skipped ") and "broken.jpg" in note for note in notes)


def test_photos_measured_at_another_size(tiny: dict[str, Any], tmp_path: Path) -> None:
    for index in range(4):
        picture(tmp_path / "photos" / "day", f"{index}.jpg", 200)
        picture(tmp_path / "photos" / "night", f"{index}.png", 0)
    options = tiny | {"data": str(tmp_path / "photos"), "size": 8, "eval_size": 16, "epochs": 1, "augment": "crop,flip"}
    result = train(TrainConfig(**options, out=str(tmp_path / "run")))
    assert next(result.loader.train(0)).inputs.shape[-2:] == (8, 8)
    assert next(result.loader.val()).inputs.shape[-2:] == (16, 16)


def test_an_unreadable_image_stops_it_before_it_starts_if_asked(tiny: dict[str, Any], tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / "photos" / "a", f"{index}.png", 200)
        picture(tmp_path / "photos" / "b", f"{index}.png", 0)
    (tmp_path / "photos" / "a" / "broken.png").write_bytes(b"no")
    options = tiny | {"data": str(tmp_path / "photos"), "size": 16, "on_bad_image": "error"}
    with pytest.raises(SrattnError, match=r"broken\.png"):
        train(TrainConfig(**options, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_the_average_is_what_is_measured_and_kept(tiny: dict[str, Any], tmp_path: Path) -> None:
    plain = train(TrainConfig(**tiny, out=str(tmp_path / "plain")))
    average = train(TrainConfig(**tiny, ema_decay=0.99, out=str(tmp_path / "average")))
    assert plain.history[0]["train_loss"] == average.history[0]["train_loss"]
    assert plain.history[0]["val_loss"] != average.history[0]["val_loss"]
    for run in (plain, average):
        state = last_state(run.folder)
        kept = run.model.state_dict()["head.weight"]
        assert torch.equal(kept, state["average.head.weight" if run is average else "model.head.weight"])
    assert not torch.equal(state["model.head.weight"], state["average.head.weight"])


def last_state(folder: Path) -> dict[str, torch.Tensor]:
    world = World(torch.device("cpu"))
    checkpoints = Checkpoints(folder / "checkpoints", world)
    path = checkpoints.folder / checkpoints.names()[0]
    index = SafeReader(path).read_metadata().state_dict_metadata
    state = {name: torch.empty(entry.size) for name, entry in index.items()}  # type: ignore[union-attr]
    read_tensors(path, state, world)
    return state
