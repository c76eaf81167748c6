"""Parquet files as the Hugging Face hub keeps image data sets: a column of image bytes and one of labels."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from srattn.data.columns import Columns, find_columns
from srattn.data.download import cache_folder
from srattn.data.index import Index, part_called
from srattn.data.labels import Row, assign, read_classes
from srattn.data.patterns import part_of
from srattn.data.sources import Source, Span
from srattn.errors import SrattnError, missing_extra
from srattn.files import atomic_path

HOLD_BYTES = 1 << 30
"""Encoded images of a file are kept in memory up to this size; of a larger file they are laid out in the cache folder,
since one row in the middle of a Parquet file cannot be reached without decompressing thousands."""


def index_parquet(
    files: Sequence[Path], columns: Columns | None = None, labelled: bool = True, hold_bytes: int | None = None
) -> Index:
    """The images of Parquet files: a column `image` of {bytes, path}, of bytes or of paths, and a column `label`.

    Names of classes come from the ClassLabel in the files' metadata, else from a classes.txt beside them. The part of
    a row is its column split, else what the name of the file or its folder says (train-00000-of-00001.parquet).

    Raises:
        SrattnError: pyarrow is missing, no file can be read, or a column is not there.
    """
    columns = columns or Columns()
    hold = HOLD_BYTES if hold_bytes is None else hold_bytes
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "train") from None
    rows: list[Row] = []
    skipped: list[str] = []
    classes: list[str] | None = None
    for path in files:
        whole = part_of(path.stem) or part_called(path.parent.name) or "train"
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                names = find_columns(schema.names, columns, str(path), labelled)
                classes = classes or _class_names(schema.metadata, names[1])
                size = _size(file.metadata, names[0])
                hold -= size
                found = _rows(file, path, names, whole)
                rows += found if hold >= 0 else _laid_out(path, found)
        except (pa.ArrowException, OSError) as error:
            skipped.append(f"{path}: unreadable ({str(error).partition(chr(10))[0][:200]})")
    if not rows:
        raise SrattnError(f"no image in {len(files)} Parquet file(s){f'; {skipped[0]}' if skipped else ''}")
    good = [row for row in rows if not (isinstance(row.source, bytes) and not row.source)]
    skipped += [f"{row.name}: there is no image in this row" for row in rows if row.source == b""]
    return assign(good, classes or read_classes(files[0].parent), labelled, skipped)


def _rows(file: Any, path: Path, names: tuple[str, str, str], whole: str) -> Iterator[Row]:
    image, label, split = names
    number = 0
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group, columns=[name for name in names if name])
        images = table.column(image).to_pylist()
        labels = table.column(label).to_pylist() if label else [None] * len(images)
        splits = table.column(split).to_pylist() if split else [None] * len(images)
        for one, known, part in zip(images, labels, splits, strict=True):
            source = _source(one, path.parent)
            known = known if isinstance(known, int | str) and not isinstance(known, bool) else None
            yield Row(f"{path.name}/{number}", known, source, (part and part_called(str(part))) or whole)
            number += 1


def _source(value: Any, folder: Path) -> Source:
    """Bytes, or a path where there are none; b"" for neither."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value and "\0" not in value:
        return folder / value
    return value if isinstance(value, bytes) else b""


def _laid_out(path: Path, rows: Iterator[Row]) -> list[Row]:
    """The rows with their bytes in one plain file of the cache, written by the first who needs it."""
    facts = path.stat()
    key = f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    target = cache_folder() / "parquet" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.bin"
    found: list[Row] = []
    offset = 0
    if target.is_file():
        for row in rows:
            size = len(row.source) if isinstance(row.source, bytes) else 0
            found.append(_at(row, target, offset, size))
            offset += size
        if offset == target.stat().st_size:
            return found
        raise SrattnError(f"{target} does not belong to {path}; remove it")
    with atomic_path(target, overwrite=True) as aside, open(aside, "wb") as file:
        for row in rows:
            size = file.write(row.source) if isinstance(row.source, bytes) else 0
            found.append(_at(row, target, offset, size))
            offset += size
    return found


def _at(row: Row, target: Path, offset: int, size: int) -> Row:
    source = Span(os.fspath(target), offset, size) if size else row.source
    return Row(row.name, row.label, source, row.part)


def _size(metadata: Any, column: str) -> int:
    """Bytes of a column before compression."""
    total = 0
    for group in range(metadata.num_row_groups):
        one = metadata.row_group(group)
        for number in range(one.num_columns):
            chunk = one.column(number)
            if chunk.path_in_schema.split(".")[0] == column:
                total += chunk.total_uncompressed_size
    return total


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The names of a ClassLabel, from the JSON that the `datasets` library leaves in the schema."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    good = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return names if good and len(set(names)) == len(names) else None
