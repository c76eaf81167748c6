"""Lists of images: .csv (commas, semicolons or tabs) or .jsonl, a row an image, paths relative to the list."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from srattn.data.columns import Columns, find_columns
from srattn.data.index import Index, Skipped, part_called
from srattn.data.labels import Row, assign, plain_label, read_classes
from srattn.data.patterns import part_of
from srattn.errors import SrattnError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_MAX_LINE = 1 << 20


def index_list(path: Path, columns: Columns | None = None, labelled: bool = True) -> Index:
    """The images of a list with the columns path, label and perhaps split (see `Columns` for other names).

    A row without a split is of the part that the file's name says, else for training. A classes.txt beside the list
    names numbered classes. Rows without a path or with an unknown split are named in `skipped`.

    Raises:
        SrattnError: not a table in UTF-8, no rows, or a column that is not there.
    """
    columns = columns or Columns()
    whole = part_of(path.stem) or "train"
    rows: list[Row] = []
    skipped = Skipped()
    names: tuple[str, str, str] | None = None
    for number, record in read_records(path):
        if names is None:
            names = find_columns(list(record), columns, str(path), labelled)
        image, label, split = (record.get(name) if name else None for name in names)
        part = whole if split is None or split == "" else part_called(str(split).strip())
        if not isinstance(image, str) or not image.strip() or "\0" in image:
            skipped.add(f"{path.name}, line {number}: it names no image", part)
            continue
        if part is None:
            skipped.add(f"{path.name}, line {number}: the split {str(split)[:80]!r} is not train, val or test")
            continue
        rows.append(Row(image.strip(), plain_label(label), path.parent / image.strip(), part))
    if not rows:
        raise SrattnError(f"{path} lists no image{f'; {skipped.lines[0]}' if skipped.lines else ''}")
    return assign(rows, read_classes(path.parent), labelled, skipped)


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, {column: value}) of every row of a list.

    Raises:
        SrattnError: not a table in UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from (_json_lines if path.suffix.casefold() in (".jsonl", ".ndjson") else _csv_lines)(path, file)
    except UnicodeDecodeError:
        raise SrattnError(f"{path} is no text in UTF-8") from None
    except csv.Error as error:
        raise SrattnError(f"{path} is no table that can be read: {error}") from None


def _json_lines(path: Path, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), ""), 1):
        if len(line) > _MAX_LINE:
            raise SrattnError(f"{path}, line {number} is longer than {_MAX_LINE} characters")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of more digits than Python reads
            raise SrattnError(f"{path}, line {number} is no JSON that can be read: {error}") from None
        if not isinstance(record, dict):
            raise SrattnError(f"{path}, line {number} is no object such as {{'path': ..., 'label': ...}}")
        yield number, record


def _csv_lines(path: Path, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    head = file.readline(_MAX_LINE)
    file.seek(0)
    reader = csv.DictReader(file, delimiter=max(",;\t", key=head.count), skipinitialspace=True)
    for record in reader:
        yield reader.line_num, {name.strip(): value for name, value in record.items() if name is not None}
