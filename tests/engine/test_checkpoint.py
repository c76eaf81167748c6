"""Checkpoints and other files of a run: whole, or as they were, and never a program."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srattn.engine import checkpoint, checkpoint_files
from srattn.engine.checkpoint import Checkpoints, name_of, read_facts, read_tensors
from srattn.engine.distributed import World
from srattn.engine.run_folder import write_history
from srattn.errors import SrattnError

ONE = World(torch.device("cpu"))


def tensors(value: float) -> dict[str, Tensor]:
    return {"model.a": torch.full((3, 4), value), "step": torch.tensor(value), "half": torch.full((2,), value).half()}


def test_there_and_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep", ONE)
    state = tensors(0.1)
    checkpoints.save(7, state, {"position": {"seconds": 0.1}, "list": [1]})
    state["model.a"].zero_()  # at once: what is written is what was
    checkpoints.wait()
    path = tmp_path / "deep" / name_of(7)
    assert read_facts(path)["position"] == {"seconds": 0.1} and read_facts(path)["step"] == 7
    found = tensors(0.0)
    read_tensors(path, found, ONE)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(0.1).items())


def test_the_latest_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ONE, keep=2)
    (tmp_path / ".aside-step-0000000000").mkdir()  # of a process that was killed
    for step in range(6):
        checkpoints.save(step, tensors(step), {"n": step}, best=1 if step else None)
    checkpoints.wait()
    assert checkpoints.names() == [name_of(step) for step in (5, 4, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(checkpoints.names())
    checkpoints.save(5, tensors(50), {"n": 50})  # again, after going back
    checkpoints.poll()
    checkpoints.wait()
    assert read_facts(tmp_path / name_of(5))["n"] == 50
    assert checkpoints.names() == [name_of(5), name_of(4)]


def test_one_that_was_being_replaced_by_a_killed_process_is_found_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ONE)
    for step in (5, 6):
        checkpoints.save(step, tensors(step), {"n": step})
    checkpoints.wait()
    (tmp_path / name_of(6)).rename(tmp_path / f".old-{name_of(6)}")
    shutil.copytree(tmp_path / name_of(5), tmp_path / f".old-{name_of(5)}")  # whose place is taken
    (tmp_path / f".old-{name_of(7)}").mkdir()  # half removed
    assert checkpoints.names() == [name_of(5)]
    assert [path.name for path in checkpoints.set_aside()] == [f".old-{name_of(6)}"]
    checkpoints.recover()
    assert checkpoints.names() == [name_of(6), name_of(5)] and checkpoints.set_aside() == []
    assert read_facts(tmp_path / name_of(6))["n"] == 6


def test_another_process_may_make_the_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree

    def removed(path: Path, ignore_errors: bool = False) -> None:
        remove(path, ignore_errors=ignore_errors)
        if path.name.startswith(".aside-"):
            path.mkdir(parents=True)  # as torch does in every process that plans

    monkeypatch.setattr(checkpoint.shutil, "rmtree", removed)
    checkpoints = Checkpoints(tmp_path / "run", ONE)
    checkpoints.save(3, tensors(3.0), {})
    checkpoints.wait()
    assert checkpoints.names() == [name_of(3)]


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ONE)
    checkpoints.save(1, tensors(1.0), {})
    checkpoints.wait()
    for wanted in ({"model.b": torch.zeros(1)}, {"model.a": torch.zeros(4, 4)}):
        with pytest.raises(SrattnError, match="does not fit the model"):
            read_tensors(tmp_path / name_of(1), wanted, ONE)
    with pytest.raises(SrattnError, match="not a checkpoint of a training run"):
        read_facts(tmp_path)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", ONE)
    checkpoints.save(1, tensors(1.0), {})
    checkpoints.wait()
    path = tmp_path / "run" / name_of(1)
    good = (path / ".metadata").read_bytes()
    index = pickle.loads(good)
    owned = tmp_path / "owned"

    # The index itself.
    (path / ".metadata").write_bytes(pickle.dumps(Hostile(owned)))
    with pytest.raises(SrattnError, match="which has no place there"):
        read_tensors(path, tensors(0.0), ONE)
    # An entry of bytes, which torch would unpickle.
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    index.state_dict_metadata["step"] = BytesStorageMetadata()
    (path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(SrattnError, match=r"BytesStorageMetadata, which has no place there"):
        read_tensors(path, tensors(0.0), ONE)
    # A file elsewhere.
    index = pickle.loads(good)
    for info in index.storage_data.values():
        info.relative_path = "../../elsewhere"
    (path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(SrattnError, match="points out of its folder"):
        read_tensors(path, tensors(0.0), ONE)
    # The tensors.
    (path / ".metadata").write_bytes(good)
    torch.save(Hostile(owned), path / "__0_0.distcp")
    with pytest.raises(SrattnError, match="damaged, or does not fit"):
        read_tensors(path, tensors(0.0), ONE)
    # No index at all.
    (path / ".metadata").write_bytes(b"hello")
    with pytest.raises(SrattnError, match="damaged, or does not fit"):
        read_tensors(path, tensors(0.0), ONE)
    assert not owned.exists()


@pytest.mark.parametrize("room", [0, 100, 5000])
def test_a_full_disk_is_named_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    checkpoints = Checkpoints(tmp_path, ONE)
    checkpoints.save(1, tensors(1.0), {})
    checkpoints.wait()
    left = [room]

    def full(self: Any, data: Any) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)

    monkeypatch.setattr(checkpoint_files._Watched, "put", full)
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoints.save(2, tensors(2.0), {})
        checkpoints.wait()
    assert caught.value.errno == errno.ENOSPC  # and not torch's own error
    assert [path.name for path in tmp_path.iterdir()] == [name_of(1)]


def test_one_without_its_sizes_is_not_chosen(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ONE, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, tensors(step), {})
    checkpoints.wait()
    facts = json.loads((tmp_path / name_of(3) / "state.json").read_text())
    facts["files"]["__0_0.distcp"] += 1
    (tmp_path / name_of(3) / "state.json").write_text(json.dumps(facts))
    (tmp_path / name_of(2) / "state.json").write_text("{")
    assert checkpoints.names() == [name_of(1)]


def test_history_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_history(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    for count in (3, 2):
        write_history(tmp_path, [{"epoch": n, "val_loss": 0.1 * n} for n in range(count)])
    assert (tmp_path / "metrics.csv").read_text() == "epoch,val_loss\n0,0.0\n1,0.1\n"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
