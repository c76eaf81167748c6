"""The page that compares several runs, or tells of one, finished or not: one HTML file that needs nothing beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from srattn.errors import SrattnError
from srattn.explain import compare_sections as sections
from srattn.explain import pages
from srattn.files import atomic_path

MAX_RUNS = 32
_MAX_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder tells.

    Attributes:
        name: the end of its path that tells it from the others.
        config: of config.yaml, nested options under names with dots.
        history: of metrics.jsonl, a record for each epoch.
        result: of result.json; empty where the run is not finished.
    """

    name: str
    config: dict[str, Any]
    history: list[dict[str, Any]]
    result: dict[str, Any]


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Reads run folders, finished or not.

    Raises:
        SrattnError: none or more than `MAX_RUNS`, one twice, a folder that is no run, or a damaged file.
    """
    folders = [Path(path) for path in paths]
    if not 1 <= len(folders) <= MAX_RUNS:
        raise SrattnError(f"a report is of 1 to {MAX_RUNS} runs, got {len(folders)}")
    real = [folder.resolve() for folder in folders]
    for folder, where in zip(folders, real, strict=True):
        if real.count(where) > 1:
            raise SrattnError(f"{folder} is given twice")
        if not folder.is_dir():
            raise SrattnError(f"{folder} {'is no run folder' if folder.exists() else 'does not exist'}")
        if not (folder / "config.yaml").is_file():
            raise SrattnError(f"{folder} is not a run: it has no config.yaml")
    names = _names(real)
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def write_comparison(path: Path, runs: Sequence[Run], overwrite: bool = False) -> None:
    """Writes the page to `path`, whole or not at all.

    The page has no outside resource and no script; text from runs (names, options, classes) is escaped.

    Raises:
        SrattnError: `path` exists and `overwrite` is false.
    """
    page = render(runs)
    with atomic_path(path, overwrite=overwrite) as aside:
        aside.write_bytes(page.encode("utf-8", "backslashreplace"))


def render(runs: Sequence[Run]) -> str:
    """The page as a string."""
    return pages.template("compare.html").render(
        style=pages.style(),
        palette=sections.palette(len(runs)),
        runs=sections.table(runs),
        best=sections.best(runs),
        headline=sections.one_headline(runs),
        alike=sections.measured_alike(runs),
        curves=sections.curves(runs),
        settings=sections.settings(runs),
        classes=sections.classes(runs),
        circumstances=sections.circumstances(runs),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ from each other, of one length."""
    longest = max(len(folder.parts) for folder in folders)
    for count in range(1, longest + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(folder: Path, name: str) -> Run:
    config = _parse(folder / "config.yaml", yaml.safe_load)
    result = _parse(folder / "result.json", json.loads) if (folder / "result.json").is_file() else {}
    lines: list[Any] = []
    if (folder / "metrics.jsonl").is_file():
        lines = _parse(folder / "metrics.jsonl", lambda text: [json.loads(line) for line in text.splitlines() if line])
    if not isinstance(config, dict) or not isinstance(result, dict) or not all(isinstance(r, dict) for r in lines):
        raise SrattnError(f"{folder} is damaged: config.yaml, result.json and metrics.jsonl hold names with values")
    return Run(name, flat(config), lines, result)


def _parse(path: Path, parse: Any) -> Any:
    if path.stat().st_size > _MAX_BYTES:
        raise SrattnError(f"{path}: {path.stat().st_size:,} bytes, refused above {_MAX_BYTES:,}")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise SrattnError(f"{path} is damaged ({reason})") from None


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as one level: {"model_options": {"depths": 1}} as {"model_options.depths": 1}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
