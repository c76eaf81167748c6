"""The files of a run, each written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from srattn.engine.config import OF_THE_PLACE, ResolvedConfig, to_yaml
from srattn.errors import SrattnError
from srattn.files import atomic_dir, atomic_path, check_writable

CONFIG, WEIGHTS, RESULT, REPORT = "config.yaml", "model.safetensors", "result.json", "report.html"
_UNFIT = re.compile(r'-*[*?\[\]{}:"<>|\\]+-*')  # of patterns and hf:NAME; shells and some systems read them otherwise
CHECKPOINTS, ADAPTERS = "checkpoints", "lora.safetensors"


def check_free(out: str | None) -> None:
    """Raises SrattnError if `out` exists: a run folder is never written over."""
    if out is not None and Path(out).exists():
        raise SrattnError(
            f"{out} exists and is not overwritten; choose another --out, or continue it with --resume {out}"
        )


def check_place(out: str | None) -> None:
    """Raises SrattnError if no run folder can be made there, before anything is read."""
    check_free(out)
    check_writable("runs/.srattn-new" if out is None else out)


def create(config: ResolvedConfig) -> Path:
    """Makes the run folder with its configuration.

    Without `config.out` it is the first free of runs/NAME-1, runs/NAME-2, ...

    Raises:
        SrattnError: `config.out` exists.
    """
    if config.out is not None:
        check_free(config.out)
        return _fill(Path(config.out), config)
    name = _UNFIT.sub("-", Path(config.data).stem).strip("-") or "run"
    for number in itertools.count(1):
        folder = Path("runs", f"{name}-{number}")
        if folder.exists():
            continue
        try:
            return _fill(folder, config)
        except SrattnError:
            if not folder.exists():  # else another run has just taken this number
                raise
    raise AssertionError("unreachable")


def _fill(folder: Path, config: ResolvedConfig) -> Path:
    with atomic_dir(folder) as aside:
        write_text(aside / CONFIG, to_yaml(config))
    return folder


def places(folder: Path) -> dict[str, str | None]:
    """Where the data of a run lies by its configuration, options of `OF_THE_PLACE`; none if it cannot be read."""
    try:
        values = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    found = {name: values[name] for name in OF_THE_PLACE if name in values} if isinstance(values, dict) else {}
    return {name: value for name, value in found.items() if value is None or isinstance(value, str)}


def move(folder: Path, config: ResolvedConfig, step: int) -> None:
    """Puts the places of a run's data into its configuration; where they were until `step` stays there as a comment."""
    before = places(folder)
    now = {name: getattr(config, name) for name in OF_THE_PLACE}
    if before == now:
        return
    lines = (folder / CONFIG).read_text(encoding="utf-8", errors="replace").splitlines() if before else []
    history = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    for name, value in before.items():
        if value != now[name]:
            history.append(f"# until step {step}: {name}: {json.dumps(value, ensure_ascii=False)}")
    write_text(folder / CONFIG, "".join(f"{line}\n" for line in history) + to_yaml(config))


def remove(folder: Path) -> None:
    """Takes away a run folder that has only just been made, and the folders above it that are empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        if folder.parent.name == "runs":
            folder.parent.rmdir()


def write_adapters(folder: Path, model: nn.Module) -> None:
    """lora.safetensors: the adapters, and all that is trained beside them, as `srattn.engine.lora_file` reads it."""
    from srattn.engine.lora_file import beside_adapters, save_lora

    beside = [name for name in model.state_dict() if beside_adapters(model, name)]
    save_lora(folder / ADAPTERS, model, beside, overwrite=True)


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
    fullest = max(history, key=len)  # an epoch whose steps were all left out has no training figures
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(fullest), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / "metrics.csv", table.getvalue())
    write_text(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history))


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """result.json."""
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
