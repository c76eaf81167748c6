"""The files of a run, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srattn.engine.checkpoint import save_checkpoint
from srattn.engine.config import ResolvedConfig, to_yaml
from srattn.errors import SrattnError
from srattn.files import atomic_dir, atomic_path

CONFIG, WEIGHTS, RESULT, REPORT = "config.yaml", "model.safetensors", "result.json", "report.html"
CHECKPOINT = Path("checkpoints", "last.pt")


def check_free(out: str | None) -> None:
    """Raises SrattnError if `out` exists: a run folder is never written over."""
    if out is not None and Path(out).exists():
        raise SrattnError(
            f"{out} exists and is not overwritten; choose another --out, or continue it with --resume {out}"
        )


def create(config: ResolvedConfig, state: dict[str, Any]) -> Path:
    """Makes the run folder with its configuration and a first checkpoint, so that it can be resumed from the start.

    Without `config.out` it is the first free of runs/NAME-1, runs/NAME-2, ...

    Raises:
        SrattnError: `config.out` exists.
    """
    if config.out is not None:
        check_free(config.out)
        return _fill(Path(config.out), config, state)
    name = Path(config.data).name or "run"
    for number in itertools.count(1):
        folder = Path("runs", f"{name}-{number}")
        if folder.exists():
            continue
        try:
            return _fill(folder, config, state)
        except SrattnError:
            if not folder.exists():  # else another run has just taken this number
                raise
    raise AssertionError("unreachable")


def _fill(folder: Path, config: ResolvedConfig, state: dict[str, Any]) -> Path:
    with atomic_dir(folder) as aside:
        write_text(aside / CONFIG, to_yaml(config))
        save_checkpoint(aside / CHECKPOINT, state)
    return folder


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` in UTF-8."""
    with atomic_path(path, overwrite=True) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`."""
    with atomic_path(path, overwrite=True) as aside:
        aside.write_bytes(data)


def write_history(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """metrics.csv and metrics.jsonl, one record an epoch, replaced as a whole: a resumed run has no record twice."""
    if not history:
        return
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / "metrics.csv", table.getvalue())
    write_text(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history))


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """result.json."""
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
