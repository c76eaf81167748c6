"""Resume state: written whole or not at all, loadable without running code from the file."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import IO, Any, cast

import torch

from srattn.errors import SrattnError
from srattn.files import atomic_path

FORMAT = 1
PARTS = {"config", "fingerprint", "position", "model", "average", "optimiser"}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain values; an earlier file at `path` stays until the new one is complete.

    Raises:
        OSError: the disk is full, among other reasons.
    """
    with atomic_path(path, overwrite=True) as aside, open(aside, "wb") as file:
        _save({"format": FORMAT, **state}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU.

    Raises:
        SrattnError: no such file, or not a checkpoint of this format.
    """
    if not path.is_file():
        raise SrattnError(f"{path} does not exist: there is nothing to resume")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are not torch's: they are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise SrattnError(f"{path} is damaged, or not a checkpoint of a training run") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= PARTS:
        raise SrattnError(f"{path} is not a checkpoint of a training run of this version")
    return state


def _save(state: dict[str, Any], file: IO[bytes]) -> None:
    watched = _Watched(file)
    try:
        torch.save(state, cast(IO[bytes], watched))  # it only writes and flushes
    except Exception:
        # torch replaces the system's error (no space left) by one of its own
        if watched.error is not None:
            raise watched.error from None
        raise


class _Watched:
    """A file that remembers the first error of writing."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()
