"""CSV and JSONL lists of image files."""

from __future__ import annotations

from pathlib import Path

from srattn.data.columns import IMAGE, Columns, find_columns
from srattn.data.labels import plain_label
from srattn.data.lists import read_records
from srattn.engine.rows.base import Listed, Source
from srattn.errors import SrattnError


def read_listing(path: Path) -> Listed:
    """The rows of a list, see `srattn.data.lists`; a column `name` may hold the paths too, as in answers of ours.

    Raises:
        SrattnError: no column of paths, or a line that cannot be read.
    """
    sources: list[Source] = []
    columns: tuple[str, str, str] | None = None
    for line, record in read_records(path):
        if columns is None:
            usual = Columns() if record.keys() & set(IMAGE) else Columns("name" if "name" in record else None)
            columns = find_columns(list(record), usual, str(path), labelled=False, named=False)
        name, label = (record.get(column) if column else None for column in columns[:2])
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise SrattnError(f"{path}, line {line}: {columns[0]} is {str(name)[:80]!r}, expected a path")
        name = name.strip()
        label = plain_label(label)
        sources.append(Source(name, path.parent / name, None if label is None else str(label)))
    if not sources:
        raise SrattnError(f"{path} lists no image")
    return Listed(sources)
