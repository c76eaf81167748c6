"""A Parquet file of images, in the form of the Hugging Face hub or with a plain column of bytes."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from srattn.data.decode import BadImage
from srattn.engine.rows.base import MAX_IMAGE_BYTES, Source, file_stamp
from srattn.errors import SrattnError, missing_extra

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label", "cls", "target")
NAME_COLUMNS = ("name", "file_name", "path", "id", "__key__", "key")
_BATCH = 128


class TableRows:
    """The rows of one file, read group by group.

    Raises:
        SrattnError: pyarrow is missing, the file is damaged, or it has no column of images.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise missing_extra("pyarrow", "train") from None
        self._path = path
        try:
            # Opened again for every group: a data set may have more files than a process may hold open.
            with pq.ParquetFile(path) as file:
                schema, facts = file.schema_arrow, file.metadata
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise SrattnError(f"{path} is no whole Parquet file ({_first_line(error)})") from None
        self._ends = list(itertools.accumulate(facts.row_group(i).num_rows for i in range(facts.num_row_groups)))
        self._image = _image_column(path, schema)
        self._label = _first(schema, LABEL_COLUMNS, lambda kind: not pa.types.is_nested(kind))
        self._name = _first(schema, NAME_COLUMNS, lambda kind: pa.types.is_string(kind) or pa.types.is_integer(kind))
        self._classes = _class_names(schema, self._label)
        # Where a reading stands: its group, the next row, and the rest of the rows of the group.
        self._group, self._next = -1, 0
        self._rest: Iterator[Source] = iter(())

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def stamp(self) -> Iterator[str]:
        yield f"{self._path.name}\t{file_stamp(self._path)}"

    def read(self, start: int, stop: int) -> Iterator[Source]:
        while start < min(stop, len(self)):
            group = bisect.bisect_right(self._ends, start)
            begin = self._ends[group - 1] if group else 0
            if group != self._group or self._next > start:
                self._group, self._next, self._rest = group, begin, self._read_group(group, begin)
            end = min(stop, self._ends[group])
            while self._next < end:
                source = next(self._rest)
                self._next += 1
                if self._next > start:
                    yield source
            start = end

    def _read_group(self, group: int, row: int) -> Iterator[Source]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [name for name in (self._image, self._label, self._name) if name is not None]
        try:
            with pq.ParquetFile(self._path) as file:
                for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns):
                    none = [None] * len(batch)
                    images = batch.column(self._image)
                    labels = batch.column(self._label).to_pylist() if self._label else none
                    names = batch.column(self._name).to_pylist() if self._name else none
                    for image, label, name in zip(images, labels, names, strict=True):
                        yield self._source(row, image.as_py(), label, name)
                        row += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise SrattnError(f"{self._path}, row {row}: the file is damaged ({_first_line(error)})") from None

    def _source(self, row: int, image: Any, label: Any, name: Any) -> Source:
        path = image.get("path") if isinstance(image, dict) else None
        data = image.get("bytes") if isinstance(image, dict) else image
        shown = str(name if name is not None else path if path else f"{self._path.name}:{row}")
        if data is None and path and _is_below(path):
            data = self._path.parent / path
        if data is None:
            data = BadImage(f"{shown}: row {row} of {self._path.name} holds no image")
        elif isinstance(data, bytes) and len(data) > MAX_IMAGE_BYTES:
            data = BadImage(f"{shown}: more than the {MAX_IMAGE_BYTES:,} bytes that are accepted")
        return Source(shown, data, self._class(label))

    def _class(self, label: Any) -> str | None:
        if isinstance(label, int) and 0 <= label < len(self._classes):
            return self._classes[label]
        # The hub writes -1 where a test set keeps its labels back.
        return None if label is None or (label == -1 and self._classes) else str(label)


def _image_column(path: Path, schema: pa.Schema) -> str:
    import pyarrow as pa

    def is_image(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
        return _is_bytes(kind)

    found = _first(schema, IMAGE_COLUMNS, is_image) or _first(schema, schema.names, is_image)
    if found is None:
        raise SrattnError(f"{path} has the columns {schema.names[:12]}; none holds images as bytes")
    return found


def _is_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _first(schema: pa.Schema, names: Any, fits: Callable[[Any], bool]) -> str | None:
    return next((name for name in names if name in schema.names and fits(schema.field(name).type)), None)


def _class_names(schema: pa.Schema, label: str | None) -> list[str]:
    """Of a label that the hub describes as a ClassLabel."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _is_below(path: str) -> bool:
    """Whether a path from a stranger's file stays in its folder."""
    pure = PurePosixPath(path.replace("\\", "/"))
    return not pure.is_absolute() and ".." not in pure.parts and "\0" not in path and ":" not in pure.parts[0]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
