"""Parquet files as the Hugging Face hub keeps image data sets: a column of image bytes and one of labels."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from srattn.data.columns import IMAGE, LABEL, Columns, find_columns
from srattn.data.decode import BadImage
from srattn.data.download import cache_folder
from srattn.data.index import Index, Skipped, part_called
from srattn.data.labels import Row, assign, plain_label, read_classes
from srattn.data.patterns import part_of
from srattn.data.sources import Span, below, oversized
from srattn.errors import SrattnError, missing_extra
from srattn.files import atomic_path

HOLD_BYTES = 1 << 30
"""Encoded images of a file are kept in memory up to this size; of a larger file they are laid out in the cache folder,
since one row in the middle of a Parquet file cannot be reached without decompressing thousands."""
_BATCH = 128


def index_parquet(
    files: Sequence[Path], columns: Columns | None = None, labelled: bool = True, hold_bytes: int | None = None
) -> Index:
    """The images of Parquet files: a column `image` of {bytes, path}, of bytes or of paths, and a column `label`.

    Names of classes come from the ClassLabel in the files' metadata, else from a classes.txt beside them. The part of
    a row is its column split, else what the name of the file or its folder says (train-00000-of-00001.parquet). Paths
    are those of files below the folder of the Parquet file.

    Raises:
        SrattnError: pyarrow is missing, no file can be read, or a column is not there.
    """
    columns = columns or Columns()
    hold = HOLD_BYTES if hold_bytes is None else hold_bytes
    rows: list[Row] = []
    skipped = Skipped()
    classes: list[str] | None = None
    for path in files:
        whole = part_of(path.stem) or part_called(path.parent.name) or "train"
        try:
            with opened(path) as file:
                schema = file.schema_arrow
                names = table_columns(schema, columns, str(path), labelled)
                classes = classes or class_names(schema.metadata, names[1])
                hold -= _size(file.metadata, names[0])
                found = _rows(file, path, names, whole, skipped)
                rows += found if hold >= 0 else _laid_out(path, found)
        except BadImage as error:
            skipped.add(str(error), whole)
    if not rows:
        raise SrattnError(f"no image in {len(files)} Parquet file(s){f'; {skipped.lines[0]}' if skipped.lines else ''}")
    return assign(rows, classes or read_classes(files[0].parent), labelled, skipped)


def table_columns(
    schema: Any, columns: Columns, where: str, labelled: bool = True, named: bool = True
) -> tuple[str, str, str]:
    """As `find_columns`, for columns that have types: of the usual names those that can hold an image, or a label.

    Where no such name is there, the first column of bytes holds the images.

    Args:
        schema: a `pyarrow.Schema`.

    Raises:
        SrattnError: as `find_columns`.
    """
    from pyarrow.types import is_nested

    def first(names: Sequence[str], fits: Callable[[Any], bool]) -> str | None:
        return next((name for name in names if name in schema.names and fits(schema.field(name).type)), None)

    image = columns.image or first(IMAGE, _may_be_image) or first(schema.names, _has_bytes)
    label = columns.label or first(LABEL, lambda kind: not is_nested(kind))
    return find_columns(schema.names, Columns(image, label, columns.split), where, labelled, named)


def _may_be_image(kind: Any) -> bool:
    """Whether a column is one of bytes or of paths."""
    from pyarrow.types import is_large_string, is_string

    return _has_bytes(kind) or is_string(kind) or is_large_string(kind)


def _has_bytes(kind: Any) -> bool:
    from pyarrow.types import is_binary, is_large_binary, is_struct

    if is_struct(kind):
        return any(field.name == "bytes" and _has_bytes(field.type) for field in kind)
    return is_binary(kind) or is_large_binary(kind)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`.

    Raises:
        SrattnError: pyarrow is missing.
        BadImage: the file is damaged, also where that is met while it is open.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "train") from None
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise BadImage(f"{path} has two columns of one name, got {names[:12]}")
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise BadImage(f"{path} is no whole Parquet file ({reason})") from None


def group_rows(file: Any, group: int, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of columns in a row group, row by row; None for a column of the name ""."""
    for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[name for name in names if name]):
        none = [None] * len(batch)
        columns = [(value.as_py() for value in batch.column(name)) if name else none for name in names]
        yield from zip(*columns, strict=True)


def source_of(name: str, value: Any, folder: Path) -> bytes | Path:
    """An image as a column has it: bytes, or a path where there are none.

    Raises:
        BadImage: neither is there, too many bytes, or a path that leads out of `folder`; it begins with `name`.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        if bad := oversized(name, len(value)):
            raise bad
        return value
    if not isinstance(value, str) or not value:
        raise BadImage(f"{name}: there is no image in this row")
    try:
        return below(folder, value)
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from None


def _rows(file: Any, path: Path, names: tuple[str, str, str], whole: str, skipped: Skipped) -> Iterator[Row]:
    """The rows with an image; a line in `skipped` for each of the others."""
    numbers = itertools.count()
    for group in range(file.metadata.num_row_groups):
        for image, label, split in group_rows(file, group, names):
            name = f"{path.name}/{next(numbers)}"
            part = (split and part_called(str(split))) or whole
            try:
                source = source_of(name, image, path.parent)
            except BadImage as error:
                skipped.add(str(error), part)
                continue
            yield Row(name, plain_label(label), source, part)


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


def class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The names of a ClassLabel, from the JSON that the `datasets` library leaves in the schema."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    good = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return names if good and len(set(names)) == len(names) else None
