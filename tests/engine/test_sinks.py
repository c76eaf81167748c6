"""Where figures go."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from srattn.engine import TrainConfig, sinks, train

TOLD: list[tuple[int, dict[str, float]]] = []
CLOSED: list[bool] = []


class Remembers:
    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        assert (folder / "config.yaml").is_file() and options["epochs"] == 2

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        TOLD.append((step, dict(figures)))

    def close(self) -> None:
        CLOSED.append(True)


class Fails(Remembers):
    def write(self, step: int, figures: Mapping[str, float]) -> None:
        raise ConnectionError("the line is dead")


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sinks, as another package would offer them."""
    module = type(sys)("sinks_of_another")
    module.Remembers, module.Fails = Remembers, Fails  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    points = [EntryPoint(name, f"{module.__name__}:{name}", sinks.GROUP) for name in ("Remembers", "Fails")]
    monkeypatch.setattr(sinks, "entry_points", lambda group: points if group == sinks.GROUP else [])


def test_another_packages_sinks(tiny: dict[str, Any], tmp_path: Path, offered: None) -> None:
    notes: list[str] = []

    class Listener:
        def __getattr__(self, name: str) -> Any:
            return (lambda text: notes.append(text)) if name == "note" else (lambda *_: None)

    TOLD.clear()
    train(TrainConfig(**tiny, sinks=["Remembers", "Fails"], out=str(tmp_path / "run")), Listener())  # type: ignore[arg-type]
    assert [step for step, figures in TOLD if "val_accuracy" in figures] == [6, 12]
    assert CLOSED == [True]
    # One that fails is told of once, and the run goes on.
    assert [note for note in notes if "Fails" in note] == [
        "the figures no longer go to Fails: ConnectionError: the line is dead"
    ]


def test_without_tensorboard_it_is_said_once(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    notes: list[str] = []
    opened = sinks.open_sinks({}, tmp_path, {}, 0, notes.append)
    opened.write(1, {"val_loss": 1.0})
    opened.close()
    assert len(notes) == 1 and 'pip install "srattn[train]"' in notes[0]
    assert list(tmp_path.iterdir()) == []


def test_event_files_hold_the_figures(tmp_path: Path) -> None:
    for step in (0, 6):  # the second life of a run
        opened = sinks.open_sinks({}, tmp_path, {}, step, print)
        opened.write(step + 6, {"val_accuracy": 0.5, "learning_rate": 0.1, "step_loss": 1.0})
        opened.close()
    files = list((tmp_path / "tensorboard").iterdir())
    assert len(files) == 2 or len(files) == 1
    data = b"".join(file.read_bytes() for file in files)
    for tag in (b"val/accuracy", b"run/learning_rate", b"step/loss"):
        assert data.count(tag) == 2
