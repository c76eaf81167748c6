"""What a row is, and what every kind of data answers: its length, its rows from any place on, its fingerprint."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from srattn.data.decode import BadImage
from srattn.data.sources import Fetched, Span


@dataclasses.dataclass(frozen=True)
class Source:
    """An image to answer: the `name` that its record carries, what to decode, and its label where the data knows it.

    `data` is a file, the bytes of one, a place of such, pixels as uint8 (C, H, W), or the reason why there is none.
    """

    name: str
    data: Path | bytes | Tensor | Span | Fetched | BadImage
    label: str | None = None


class Rows(Protocol):
    """Images in an order that never changes."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[Source]:
        """Rows `start` to `stop`, in order; cheapest where it goes on from the last call."""
        ...

    def stamp(self) -> Iterator[str]:
        """What tells this data from other data, without reading all of it: names, sizes, times of change."""
        ...


class Joined:
    """Several kinds of data, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = list(parts)
        self._ends = list(itertools.accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> Iterator[Source]:
        stop = min(stop, len(self))
        while start < stop:
            index = bisect.bisect_right(self._ends, start)
            begin, end = self._ends[index] - len(self._parts[index]), min(stop, self._ends[index])
            yield from self._parts[index].read(start - begin, end - begin)
            start = end

    def stamp(self) -> Iterator[str]:
        for part in self._parts:
            yield from part.stamp()


class Listed:
    """Rows that are known one by one: image files, or pixels in memory."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return len(self._sources)

    def read(self, start: int, stop: int) -> Iterator[Source]:
        yield from self._sources[start:stop]

    def stamp(self) -> Iterator[str]:
        for source in self._sources:
            yield f"{source.name}\t{source.label}\t{_stamp_of(source.data)}"


def file_stamp(path: Path) -> str:
    """Size and time of the last change of a file; "absent" where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return "absent"
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _stamp_of(data: Path | bytes | Tensor | Span | Fetched | BadImage) -> str:
    if isinstance(data, Path):
        return file_stamp(data)
    if isinstance(data, Span):
        return f"{data.offset} {data.size} {file_stamp(Path(data.path))}"
    if isinstance(data, Fetched):
        return str(data.number)
    if isinstance(data, Tensor):
        data = data.contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else str(data)
