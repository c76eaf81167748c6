"""From labels as people write them (names or numbers) to class numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from srattn.data.index import Index, Skipped
from srattn.data.sources import Item, Source
from srattn.errors import SrattnError

MAX_CLASSES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Row:
    """An image with its label as it is written: a number, a name, or None."""

    name: str
    label: int | str | None
    source: Source
    part: str = "train"


def assign(
    rows: Iterable[Row], classes: Sequence[str] | None, labelled: bool = True, skipped: Skipped | None = None
) -> Index:
    """Class numbers for `rows`.

    With `classes` a name is one of them and a number a place in them. Without, the classes are the different labels of
    the training part: numbers ascending if all are plain ones, else names in alphabetical order, of which "01" and "1"
    are two. What has no label, or one that is no class,
    is named in `skipped`; with `labelled` false it gets the class number -1 instead.
    """
    rows, skipped = list(rows), skipped or Skipped()
    places = classes is not None  # whether a number is a place in `classes`, or itself the name of one
    if classes is None:
        classes = _classes_of(rows)
    numbers = {name: number for number, name in enumerate(classes)}
    parts: dict[str, list[Item]] = {}
    for row in rows:
        number = _number(row.label, numbers, places)
        if number is None and not labelled:
            number = -1
        if number is None:
            skipped.add(f"{row.name}: {_complaint(row.label, classes)}", row.part)
            continue
        parts.setdefault(row.part, []).append(Item(row.name, number, row.source))
    return Index(list(classes), parts, skipped.lines, of_parts=skipped.of_parts)


def read_classes(folder: Path) -> list[str] | None:
    """The lines of classes.txt in a folder, which name the classes 0, 1, ... where labels are numbers.

    Raises:
        SrattnError: the file has two equal lines, an empty one, or is no text.
    """
    path = folder / "classes.txt"
    if not path.is_file():
        return None
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise SrattnError(f"{path} is no text in UTF-8") from None
    names = [name.strip() for name in names]
    if not names or "" in names or len(set(names)) != len(names) or len(names) > MAX_CLASSES:
        raise SrattnError(f"{path} must have one name a line, each once, got {len(names)} lines")
    return names


def plain_label(value: Any) -> int | str | None:
    """The label that a record has, None where it is neither a whole number nor a name.

    Tables with a missing number hold the others as floats: 1.0 is the class 1.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) and value != "" else None


def as_number(label: int | str, padded: bool = False) -> int | None:
    """The number that a label is, also when it is written as text; "01" is one only with `padded`."""
    if isinstance(label, int):
        return label
    text = label.strip()
    number = int(text) if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 19 else None
    return number if padded or text == str(number) else None


def _classes_of(rows: Sequence[Row]) -> list[str]:
    training = [row for row in rows if row.part == "train"] or rows
    found = {row.label.strip() if isinstance(row.label, str) else row.label for row in training}
    labels = [label for label in found if label is not None and label != ""]
    if len(labels) > MAX_CLASSES:
        raise SrattnError(f"{len(labels)} different labels are more than the {MAX_CLASSES} classes that are accepted")
    numbers = [as_number(label) for label in labels]
    if all(number is not None and number >= 0 for number in numbers):
        return [str(number) for number in sorted({n for n in numbers if n is not None})]
    return sorted({str(label) for label in labels})


def _number(label: int | str | None, numbers: dict[str, int], places: bool) -> int | None:
    if label is None:
        return None
    if isinstance(label, str) and label.strip() in numbers:
        return numbers[label.strip()]
    number = as_number(label, padded=places)
    if number is not None and places:
        return number if 0 <= number < len(numbers) else None
    return None if number is None else numbers.get(str(number))


def _complaint(label: int | str | None, classes: Sequence[str]) -> str:
    if label is None or label == "":
        return "it has no label"
    shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return f"the label {str(label)[:80]!r} is none of the {len(classes)} classes ({shown})"
