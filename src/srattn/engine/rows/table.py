"""A Parquet file of images, in the form of the Hugging Face hub or with a plain column of bytes."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srattn.data.columns import IMAGE, LABEL
from srattn.data.decode import BadImage
from srattn.data.parquet import class_names, group_rows, opened, source_of
from srattn.engine.rows.base import Source, file_stamp
from srattn.errors import SrattnError

if TYPE_CHECKING:
    import pyarrow as pa

_NAME = ("name", "file_name", "path", "id", "__key__", "key")


class TableRows:
    """The rows of one file, read group by group.

    Raises:
        SrattnError: pyarrow is missing, the file is damaged, or it has no column of images.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Opened again for every group: a data set may have more files than a process may hold open.
        with opened(path) as file:
            schema, facts = file.schema_arrow, file.metadata
            self._ends = list(itertools.accumulate(facts.row_group(i).num_rows for i in range(facts.num_row_groups)))
            self._columns = (_image_column(path, schema), *_other_columns(schema))
            self._classes = class_names(schema.metadata, self._columns[1]) or []
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

    def _read_group(self, group: int, first: int) -> Iterator[Source]:
        with opened(self._path) as file:
            for row, (image, label, name) in enumerate(group_rows(file, group, self._columns), first):
                yield self._source(row, image, label, name)

    def _source(self, row: int, image: Any, label: Any, name: Any) -> Source:
        path = image.get("path") if isinstance(image, dict) else None
        shown = str(name if name is not None else path if path else f"{self._path.name}:{row}")
        try:
            data = source_of(shown, image, self._path.parent)
        except BadImage as error:
            data = error
        return Source(shown, data, self._class(label))

    def _class(self, label: Any) -> str | None:
        label = int(label) if isinstance(label, float) and label.is_integer() else label
        if isinstance(label, int) and 0 <= label < len(self._classes):
            return self._classes[label]
        # The hub writes -1 where a test set keeps its labels back.
        return None if label is None or (label == -1 and self._classes) else str(label)


def _image_column(path: Path, schema: pa.Schema) -> str:
    """A column of bytes, of the usual names if one is."""
    import pyarrow as pa

    def is_image(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
        return _is_bytes(kind)

    found = _first(schema, (*IMAGE, *schema.names), is_image)
    if not found:
        raise SrattnError(f"{path} has the columns {schema.names[:12]}; none holds images as bytes")
    return found


def _other_columns(schema: pa.Schema) -> tuple[str, str]:
    """Of labels and of names; "" where there is none."""
    from pyarrow.types import is_integer, is_nested, is_string

    label = _first(schema, LABEL, lambda kind: not is_nested(kind))
    return label, _first(schema, _NAME, lambda kind: is_string(kind) or is_integer(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _first(schema: pa.Schema, names: Sequence[str], fits: Callable[[Any], bool]) -> str:
    return next((name for name in names if name in schema.names and fits(schema.field(name).type)), "")
