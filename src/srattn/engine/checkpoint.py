"""Checkpoints by torch.distributed.checkpoint: written while training goes on, loadable by any number of processes.

A checkpoint is a folder "step-00001234" of tensors in the form of `torch.distributed.checkpoint` and a state.json of
plain values, which names every file with its size. It has its name only once all of it is on the disk, and is passed
over when a file is missing or of another size. Nothing in it is executed when it is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from srattn.engine.checkpoint_files import SafeReader, Writer, cause
from srattn.engine.distributed import World
from srattn.errors import SrattnError

FORMAT = 2
STATE = "state.json"
_ASIDE, _OLD = ".aside-", ".old-"


class Checkpoints:
    """The checkpoints in `folder`.

    Args:
        keep: how many of the latest stay.
    """

    def __init__(self, folder: Path, world: World, keep: int = 2) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self._pending: tuple[Future[Any], Writer, str, dict[str, Any], str | None] | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], best: int | None = None) -> None:
        """Begins to write the state after `step`; the tensors may change as soon as this returns.

        Args:
            facts: plain values, the same in all processes.
            best: the step whose checkpoint stays too.

        Raises:
            OSError: the disk is full, among other reasons; here or when it is waited for.
        """
        self.wait()
        name = name_of(step)
        aside = self.folder / f"{_ASIDE}{name}"
        if self.world.first:
            shutil.rmtree(aside, ignore_errors=True)
            # Another process may have made it again by now. None writes into it before all have come to a plan.
            aside.mkdir(parents=True, exist_ok=True)
        writer = Writer(aside)
        _quiet()
        with _named(writer):
            future = async_save(
                dict(tensors),
                storage_writer=writer,
                process_group=self.world.writing,
                no_dist=self.world.size == 1,
            )
        whole = {"format": FORMAT, "step": step, **facts}
        self._pending = (cast("Future[Any]", future), writer, name, whole, None if best is None else name_of(best))

    def poll(self) -> None:
        """Gives a checkpoint its name if it is complete; to be called now and then."""
        if self._pending is not None and self._pending[0].done():
            self.wait()

    def wait(self) -> None:
        """Ends the writing that is under way.

        Raises:
            OSError: it failed; what was there before is as it was.
        """
        if self._pending is None:
            return
        (future, writer, name, facts, best), self._pending = self._pending, None
        aside = self.folder / f"{_ASIDE}{name}"
        try:
            with _named(writer):
                future.result()
            if self.world.first:
                _complete(aside, self.folder / name, facts)
                self._tidy({best, name})
        except BaseException:
            if self.world.first:
                shutil.rmtree(aside, ignore_errors=True)
            raise

    def names(self) -> list[str]:
        """Every complete checkpoint, the latest first."""
        found = sorted((path.name for path in self.folder.glob("step-*") if path.is_dir()), reverse=True)
        return [name for name in found if _is_complete(self.folder / name)]

    def set_aside(self) -> list[Path]:
        """Complete checkpoints whose place is empty: a process was killed that was putting others there."""
        found = self.folder.glob(f"{_OLD}step-*")
        return [path for path in found if not self._place_of(path).exists() and _is_complete(path)]

    def recover(self) -> None:
        """Gives those their names again; to be called by who alone writes here."""
        for path in self.set_aside():
            os.rename(path, self._place_of(path))

    def _place_of(self, old: Path) -> Path:
        return self.folder / old.name.removeprefix(_OLD)

    def _tidy(self, kept: set[str | None]) -> None:
        """Removes what is neither among the latest nor kept by name, and what a killed process left half-written."""
        kept |= set(self.names()[: self.keep])
        for path in self.folder.iterdir():
            stale = path.name.startswith("step-") and path.name not in kept
            if stale or path.name.startswith((_ASIDE, _OLD)):
                _remove(path)


def name_of(step: int) -> str:
    """The folder of the checkpoint after `step`."""
    return f"step-{step:010d}"


def read_facts(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint.

    Raises:
        SrattnError: no complete checkpoint of this format.
    """
    try:
        facts = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SrattnError(f"{path} is damaged, or not a checkpoint of a training run") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise SrattnError(f"{path} is not a checkpoint of a training run of this version")
    return facts


def read_tensors(path: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Fills `tensors` in place; to be called in all processes, however many wrote it.

    Raises:
        SrattnError: a damaged or foreign checkpoint, or other tensors than these.
    """
    _quiet()
    try:
        load(
            cast("dict[str, Any]", tensors),
            storage_reader=SafeReader(path),
            process_group=world.group,
            no_dist=world.size == 1,
        )
    except SrattnError:
        raise
    # What a broken file makes of its reader is of any kind, and comes wrapped in an exception of no kind.
    except (Exception, CheckpointException) as error:
        first = cause(error)
        if isinstance(first, SrattnError):
            raise first from None
        reason = " ".join(str(first).split())
        raise SrattnError(f"{path} is damaged, or does not fit the model of this run: {reason}") from None


def _complete(aside: Path, target: Path, facts: dict[str, Any]) -> None:
    """Writes state.json, which says what must be there, and gives the folder its name."""
    files = {entry.name: entry.stat().st_size for entry in sorted(aside.iterdir())}
    with open(aside / STATE, "w", encoding="utf-8") as file:
        json.dump(facts | {"files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    if target.exists():  # of an earlier life of this run
        old = target.with_name(f"{_OLD}{target.name}")
        _remove(old)
        os.rename(target, old)
    os.rename(aside, target)


def _is_complete(path: Path) -> bool:
    with contextlib.suppress(SrattnError, OSError, AttributeError):
        files = read_facts(path)["files"]
        return bool(files) and all((path / Path(name).name).stat().st_size == size for name, size in files.items())
    return False


def _remove(path: Path) -> None:
    """Never leaves half a checkpoint under a good name."""
    if path.name.startswith("step-"):
        old = path.with_name(f"{_OLD}{path.name}")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
        path = old
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _named(writer: Writer) -> Iterator[None]:
    """Raises the system's own error (no space left), which torch wraps in others."""
    try:
        yield
    except (Exception, CheckpointException) as error:
        raise (writer.error or cause(error)) from None


def _quiet() -> None:
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
