"""Checkpoints and other files of a run: whole, or as they were."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from srattn.engine.checkpoint import PARTS, _save, load_checkpoint, save_checkpoint
from srattn.engine.run_folder import write_history
from srattn.errors import SrattnError


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.pt"
    state = dict.fromkeys(PARTS, 1.5)
    save_checkpoint(path, state | {"model": {"weight": torch.arange(3)}, "config": ["a"]})
    save_checkpoint(path, state | {"model": {"weight": torch.arange(4)}, "config": ["a"]})
    found = load_checkpoint(path)
    assert found["model"]["weight"].tolist() == [0, 1, 2, 3] and found["config"] == ["a"]
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


def test_damaged_and_hostile_files(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "owned",))

    good = tmp_path / "good.pt"
    save_checkpoint(good, {"weights": torch.zeros(1000)})
    for name, data in {
        "empty.pt": b"",
        "text.pt": b"hello",
        "half.pt": good.read_bytes()[:2000],
        "pickle.pt": pickle.dumps(str),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SrattnError, match=name):
            load_checkpoint(tmp_path / name)
    torch.save(Hostile(), tmp_path / "hostile.pt")
    with pytest.raises(SrattnError, match=r"hostile\.pt"):
        load_checkpoint(tmp_path / "hostile.pt")
    assert not (tmp_path / "owned").exists()
    for foreign in ({"model": {}}, {"format": 1, "model": {}}, [1, 2]):
        torch.save(foreign, tmp_path / "foreign.pt")
        with pytest.raises(SrattnError, match="not a checkpoint of a training run of this version"):
            load_checkpoint(tmp_path / "foreign.pt")


class FullDisk:
    """Takes `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)

    def flush(self) -> None: ...


@pytest.mark.parametrize("room", [0, 100, 5000])
def test_a_full_disk_is_named_and_not_torchs_own_error(room: int) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        _save({"weights": torch.zeros(5000)}, FullDisk(room))  # type: ignore[arg-type]
    assert caught.value.errno == errno.ENOSPC


def test_a_failed_save_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    before = path.read_bytes()

    def full(state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("srattn.engine.checkpoint._save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"step": 2})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_history_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_history(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    for count in (3, 2):
        write_history(tmp_path, [{"epoch": n, "val_loss": 0.1 * n} for n in range(count)])
    assert (tmp_path / "metrics.csv").read_text() == "epoch,val_loss\n0,0.0\n1,0.1\n"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
