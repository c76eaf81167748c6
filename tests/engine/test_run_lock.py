"""Two trainings never write into one run folder."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srattn.engine import TrainConfig, train
from srattn.engine.run_lock import NAME, locked
from srattn.errors import SrattnError

Launch = Callable[..., list[Any]]  # see conftest


def silent(_: str) -> None: ...


def in_use(folder: Path) -> str:
    return rf"{folder} is in use: process {os.getpid()} on {platform.node()} trains there since 2.*wait until it has"


def test_a_run_that_is_under_way_is_not_resumed(tiny: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    seen: list[int] = []

    def on_step(step: int) -> None:
        seen.append(step)
        if step == 7:  # there is a checkpoint to take it up at
            before = sorted(path.name for path in folder.rglob("*"))
            with pytest.raises(SrattnError, match=in_use(folder)):
                train(TrainConfig(resume=str(folder)))
            assert sorted(path.name for path in folder.rglob("*")) == before

    train(TrainConfig(**tiny, out=str(folder)), on_step=on_step)
    assert seen == list(range(1, 13))
    assert not (folder / NAME).exists()
    train(TrainConfig(resume=str(folder)))


def test_a_run_that_is_being_resumed_is_not_resumed_again(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with locked(folder, silent), pytest.raises(SrattnError, match=in_use(folder)):
        train(TrainConfig(resume=str(folder)))
    train(TrainConfig(resume=str(folder)))
    assert not (folder / NAME).exists()


def test_all_processes_of_a_second_run_are_refused(finished: Path, tmp_path: Path, launch: Launch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with locked(folder, silent):
        ended = launch(2, options={"resume": str(folder)})
    assert [process.code for process in ended] == [2, 2]
    assert all(f"process {os.getpid()} on" in process.text for process in ended)


def test_a_killed_holder_blocks_nobody(tmp_path: Path) -> None:
    command = """if True:
        import sys
        from pathlib import Path
        from srattn.engine.run_lock import locked
        with locked(Path(sys.argv[1]), print):
            print("held", flush=True)
            sys.stdin.readline()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(SrattnError, match=f"process {process.pid} on"), locked(tmp_path, silent):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert (tmp_path / NAME).exists()
    with locked(tmp_path, silent):
        pass
    assert not (tmp_path / NAME).exists()


def test_a_lock_that_is_removed_while_it_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened the file just before its holder removed it must not hold a file that nobody else can find."""
    flock, times = fcntl.flock, 0

    def removed_first(file: int, how: int) -> None:
        nonlocal times
        times += 1
        if times == 1:
            (tmp_path / NAME).unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with locked(tmp_path, silent):
        assert times == 2
        with pytest.raises(SrattnError, match="is in use"), locked(tmp_path, silent):
            pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    notes: list[str] = []
    with locked(tmp_path, notes.append):
        assert notes == [
            f"{tmp_path} cannot be locked on this file system: see to it that no other machine trains there"
        ]
    host = platform.node()
    for facts, free in [
        (f'{{"pid": {os.getppid()}, "host": "{host}"}}', False),
        (f'{{"pid": {os.getppid()}, "host": "another"}}', True),
        (f'{{"pid": {2**31 - 1}, "host": "{host}"}}', True),  # no process has such a number
        (f'{{"pid": {10**30}, "host": "{host}"}}', True),
        ("cut off", True),
        ("[]", True),
    ]:
        (tmp_path / NAME).write_text(facts)
        if free:
            with locked(tmp_path, silent):
                pass
        else:
            with pytest.raises(SrattnError, match=f"process {os.getppid()} on {host}"), locked(tmp_path, silent):
                pass
