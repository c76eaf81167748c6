"""A Parquet file of images, in the form of the Hugging Face hub or with a plain column of bytes."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srattn.data.columns import Columns
from srattn.data.decode import BadImage
from srattn.data.parquet import class_names, group_rows, opened, source_of, table_columns
from srattn.engine.rows.base import Source, file_stamp

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
            image, label, _ = table_columns(schema, Columns(), str(path), labelled=False, named=False)
            self._columns = image, label, _name_column(schema)
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


def _name_column(schema: pa.Schema) -> str:
    """The first of the usual columns of names that holds text or whole numbers; "" where there is none."""
    from pyarrow.types import is_integer, is_string

    kinds = {name: schema.field(name).type for name in _NAME if name in schema.names}
    return next((name for name, kind in kinds.items() if is_string(kind) or is_integer(kind)), "")
