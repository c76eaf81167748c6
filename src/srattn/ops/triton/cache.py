"""What was tuned, kept on disk: one JSON file in the user's cache folder, by device and versions of Triton and torch.

`$SRATTN_CACHE`, else `$XDG_CACHE_HOME/srattn`, else `~/.cache/srattn`. A file that is absent, unreadable or not ours
counts as empty; it is replaced whole.
"""

import contextlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from srattn.files import atomic_path
from srattn.ops.triton.language import triton

VERSION = 1
MAX_BYTES = 4 << 20


def path() -> Path:
    """Of the file, which need not exist."""
    if given := os.environ.get("SRATTN_CACHE"):
        return Path(given) / "kernels.json"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "srattn" / "kernels.json"


@lru_cache
def machine(device: torch.device) -> str:
    """What a tuned choice holds for: device, Triton, torch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else device.type
    return f"{name} | triton {getattr(triton, '__version__', 'absent')} | torch {torch.__version__}"


@lru_cache
def _content(file: Path) -> dict[str, dict[str, list[Any]]]:
    """machine -> key -> entries; read once in a process."""
    try:
        if file.stat().st_size > MAX_BYTES:
            return {}
        content = json.loads(file.read_text())
        return content["machines"] if content["version"] == VERSION and isinstance(content["machines"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def entries(device: torch.device, key: str) -> list[Any]:
    """Entries under a key on this device; each is a list whose first element is a number of queries."""
    try:
        found = _content(path())[machine(device)][key]
        return [e for e in found if isinstance(e, list) and e and isinstance(e[0], int)]
    except (KeyError, TypeError, RuntimeError):  # RuntimeError: there is no home folder
        return []


def keep(device: torch.device, key: str, entry: list[Any]) -> None:
    """Adds an entry, replacing that of the same number of queries. A folder that cannot be written is left alone."""
    try:
        file = path()
    except RuntimeError:
        return
    _content.cache_clear()  # another process may have written since
    content = _content(file)
    table = content.setdefault(machine(device), {})
    if not isinstance(table, dict):
        table = content[machine(device)] = {}
    old = table.get(key)
    kept = [e for e in old if isinstance(e, list) and e and e[0] != entry[0]] if isinstance(old, list) else []
    table[key] = [*kept, entry]
    with contextlib.suppress(OSError, ValueError), atomic_path(file, overwrite=True) as aside:
        aside.write_text(json.dumps({"version": VERSION, "machines": content}, indent=1) + "\n")
