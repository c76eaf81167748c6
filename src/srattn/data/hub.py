"""Image data sets of the `datasets` library: by a name on the Hugging Face hub, or a path on this machine."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from srattn.convert.reach import reach_hub
from srattn.data.columns import Columns, find_columns
from srattn.data.decode import BadImage
from srattn.data.index import Index, Skipped, part_called
from srattn.data.labels import Row, assign, plain_label
from srattn.data.sources import Fetched, oversized, within
from srattn.errors import SrattnError, missing_extra


def index_hub(name: str, columns: Columns | None = None, labelled: bool = True) -> Index:
    """The images of `datasets.load_dataset(name)`, "NAME" or "NAME:CONFIG", or of a folder that `save_to_disk` wrote.

    Code of a data set is never run. Images stay encoded in the library's own tables and are fetched by row. Those that
    are files of their own have to lie in the data set's folder, or where the library keeps what it fetches.

    Raises:
        SrattnError: the library is missing, cannot load that name, or the table has no images.
    """
    columns = columns or Columns()
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise missing_extra("datasets", "hub") from None
    splits, folders = _load(datasets, name), _folders(datasets, name)
    rows: list[Row] = []
    classes: list[str] | None = None
    skipped = Skipped()
    for split, table in splits.items():
        part = part_called(split)
        if part is None:
            skipped.add(f"{name}: the split {split!r} is not train, val or test")
            continue
        image, label, _ = find_columns(table.column_names, columns, f"hf:{name}", labelled)
        if label:
            classes = classes or getattr(table.features[label], "names", None)
        if isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        labels = table[label] if label else [None] * len(table)
        fetch = _fetcher(table.select_columns([image]), image, f"{split}/", folders)
        for number, known in enumerate(labels):
            rows.append(Row(f"{split}/{number}", plain_label(known), Fetched(fetch, number), part))
    if not rows:
        raise SrattnError(f"hf:{name} has no images{f'; {skipped.lines[0]}' if skipped.lines else ''}")
    return assign(rows, classes, labelled, skipped)


def _load(datasets: Any, name: str) -> dict[str, Any]:
    path = Path(name)
    try:
        if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists()):
            loaded = datasets.load_from_disk(os.fspath(path))
        else:
            base, _, config = (name, "", "") if path.exists() else name.partition(":")
            if not path.exists() and not _is_kept(datasets, base):
                reach_hub()
            loaded = datasets.load_dataset(base, config or None)
    except SrattnError as error:
        raise SrattnError(
            f"hf:{name} cannot be loaded: {error}. Without a network, name a folder that the data set's save_to_disk "
            f"wrote, hf:FOLDER, or put it into the library's cache (HF_HOME; HF_HUB_OFFLINE=1 asks no server)"
        ) from error
    except Exception as error:  # the library, the network and the hub raise errors of many kinds
        raise SrattnError(f"hf:{name} cannot be loaded: {str(error).partition(chr(10))[0][:300]}") from None
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def _is_kept(datasets: Any, name: str) -> bool:
    """Whether the library may have what it fetched of a data set, which it takes where the hub does not answer."""
    hub: Any = importlib.import_module("huggingface_hub.constants")
    made = Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___"))
    return made.exists() or Path(hub.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}").exists()


def _folders(datasets: Any, name: str) -> list[Path]:
    """Where the images of a data set may lie as files."""
    hub: Any = importlib.import_module("huggingface_hub.constants")
    kept = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, hub.HF_HUB_CACHE)
    own = [Path(name).parent if Path(name).is_file() else Path(name)] if Path(name).exists() else []
    return [*own, *map(Path, kept)]


def _fetcher(table: Any, column: str, before: str, folders: Sequence[Path]) -> Callable[[int], bytes]:
    def fetch(number: int) -> bytes:
        value, name = table[number][column], f"{before}{number}"
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and "\0" not in value:
            try:
                path = within(folders[0] / value, folders)
                if bad := oversized(value, path.stat().st_size):
                    raise bad
                value = path.read_bytes()
            except OSError as error:
                raise BadImage(f"{name}: {error.strerror}: {error.filename}") from None
            except BadImage as error:
                raise BadImage(f"{name}: {error}") from None
        if not isinstance(value, bytes):
            raise BadImage(f"{name}: there is no image in this row")
        return value

    return fetch
