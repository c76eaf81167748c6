"""The result file: one JSON object with the machine, the versions, the commit, the command and a row a figure."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srattn.errors import SrattnError
from srattn.files import atomic_path

FORMAT = 1
LARGEST = 64 << 20  # bytes of a result file that is read


class Kind(NamedTuple):
    """A kind of result: the fields that tell its rows apart, and the one that holds the summary of the times."""

    keys: tuple[str, ...]
    seconds: str = "seconds"


KINDS = {
    "model": Kind(("model", "size", "batch", "dtype", "mode", "candidate")),
    "attention": Kind(("attention", "side", "dim", "heads", "ratio", "mode")),
}


def collect(kind: str, rows: Sequence[Mapping[str, Any]], threads: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The object that is written: `rows` with all that stands beside them."""
    from srattn.bench.machine import describe, versions

    return {
        "kind": kind,
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["srattn", *sys.argv[1:]]),
        "machine": describe(threads),
        "versions": versions(),
        "settings": dict(settings),
        "rows": list(rows),
    }


def write(result: Mapping[str, Any], path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Writes a result whole or not at all; an existing file is replaced only with `overwrite`."""
    with atomic_path(path, overwrite) as aside:
        aside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A result that `write` wrote.

    Raises:
        SrattnError: no such file, or it is no result of `srattn bench`.
    """
    file = Path(path)
    if not file.is_file():
        raise SrattnError(f"{file} does not exist")
    if file.stat().st_size > LARGEST:
        raise SrattnError(f"{file} has {file.stat().st_size} bytes, a result has at most {LARGEST}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SrattnError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("kind") not in KINDS or found.get("format") != FORMAT:
        raise SrattnError(f"{file} is no result of srattn bench (kind {', '.join(KINDS)}, format {FORMAT})")
    rows, machine = found.get("rows"), found.get("machine")
    keys = KINDS[found["kind"]].keys
    if not isinstance(machine, dict) or not isinstance(rows, list) or not all(_is_row(row, keys) for row in rows):
        raise SrattnError(f"{file} lacks its machine, or one of its rows lacks one of {', '.join(keys)}")
    return found


def _is_row(row: Any, keys: Sequence[str]) -> bool:
    if not isinstance(row, dict) or not all(key in row for key in keys):
        return False
    seconds = row.get("seconds")
    names = ("median", "q1", "q3")
    if seconds is None:
        return True
    return isinstance(seconds, dict) and all(_is_positive(seconds.get(name)) for name in names)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def check_free(path: str | None, overwrite: bool, suffixes: Sequence[str]) -> None:
    """Refuses a path that could not be written at the end, before hours of work.

    Raises:
        SrattnError: it exists and `overwrite` is false, it is a folder, or it has another suffix.
    """
    if path is None:
        return
    file = Path(path)
    if file.suffix not in suffixes:
        raise SrattnError(f"{file}: unknown suffix {file.suffix!r}; choose one of {', '.join(suffixes)}")
    if os.path.lexists(file) and not overwrite:
        raise SrattnError(f"{file} exists and is not overwritten; choose another path, or say --overwrite")
    if file.is_dir():
        raise SrattnError(f"{file} is a folder; choose another path")
