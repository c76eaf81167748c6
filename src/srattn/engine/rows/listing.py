"""CSV and JSONL lists of image files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from srattn.engine.rows.base import Listed, Source
from srattn.errors import SrattnError

IMAGE_COLUMNS = ("path", "image", "file", "file_name", "filename", "image_path", "name")
LABEL_COLUMNS = ("label", "class", "target")
MAX_LINE = 1 << 20


def read_listing(path: Path) -> Listed:
    """The rows of a list; paths in it are relative to its own folder.

    Raises:
        SrattnError: no column of paths, or a line that cannot be read.
    """
    records = list(_json_lines(path) if path.suffix.lower() == ".jsonl" else _csv_lines(path))
    if not records:
        raise SrattnError(f"{path} lists no images")
    columns = list(records[0][1])
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    if image is None:
        raise SrattnError(f"{path} has the columns {columns[:12]}; a list needs one of {', '.join(IMAGE_COLUMNS)}")
    label = next((name for name in LABEL_COLUMNS if name in columns), None)
    sources = []
    for line, record in records:
        name = record.get(image)
        if not isinstance(name, str) or not name or "\0" in name:
            raise SrattnError(f"{path}, line {line}: {image} is {name!r}, expected a path")
        known = record.get(label) if label is not None else None
        sources.append(Source(name, path.parent / name, None if known in (None, "") else str(known)))
    return Listed(sources)


def _csv_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            for record in reader:
                yield reader.line_num, record
    except (csv.Error, UnicodeDecodeError) as error:
        raise SrattnError(f"{path} is no list in CSV ({error})") from None


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                record = json.loads(line) if len(line) <= MAX_LINE else None
                if not isinstance(record, dict):
                    raise SrattnError(f"{path}, line {number}: expected one JSON object a line")
                yield number, record
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SrattnError(f"{path} is no list in JSON lines ({error})") from None
