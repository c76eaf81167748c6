"""A WebDataset shard: a tar file in which the members of a sample follow each other under one key."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srattn.data.decode import SUFFIXES, BadImage
from srattn.engine.rows.base import MAX_IMAGE_BYTES, Source, file_stamp
from srattn.errors import SrattnError

_MAX_TEXT = 1 << 20
_Span = tuple[int, int]  # where a member's bytes begin, and how many they are


class ShardRows:
    """The samples of one .tar file that have an image; found by the headers, read by their places.

    Raises:
        SrattnError: no tar file, one that ends early, or one without images.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._samples = [(key, parts) for key, parts in _samples(path) if _image_of(parts) is not None]
        if not self._samples:
            raise SrattnError(f"{path} has no images (looked for {', '.join(sorted(SUFFIXES))})")

    def __len__(self) -> int:
        return len(self._samples)

    def stamp(self) -> Iterator[str]:
        yield f"{self._path.name}\t{file_stamp(self._path)}"

    def read(self, start: int, stop: int) -> Iterator[Source]:
        with open(self._path, "rb") as file:
            for key, parts in self._samples[start:stop]:
                offset, size = parts[_image_of(parts) or ""]
                if size > MAX_IMAGE_BYTES:
                    reason = f"{key}: more than the {MAX_IMAGE_BYTES:,} bytes that are accepted"
                    yield Source(key, BadImage(reason), self._label(file, parts))
                    continue
                file.seek(offset)
                yield Source(key, file.read(size), self._label(file, parts))

    def _label(self, file: Any, parts: dict[str, _Span]) -> str | None:
        for suffix in (".cls", ".label", ".json"):
            offset, size = parts.get(suffix, (0, 0))
            if not 0 < size <= _MAX_TEXT:
                continue
            file.seek(offset)
            text = file.read(size).decode("utf-8", "replace").strip()
            if suffix != ".json":
                return text or None
            try:
                record = json.loads(text)
            except (ValueError, RecursionError):
                return None
            label = record.get("label", record.get("class")) if isinstance(record, dict) else None
            return None if label is None else str(label)
        return None


def _image_of(parts: dict[str, _Span]) -> str | None:
    return next((suffix for suffix in parts if f".{suffix.rpartition('.')[2]}" in SUFFIXES), None)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, _Span]]]:
    """(key, {suffix: place}) in the order of the file; a suffix begins at the first dot of the member's name."""
    key, parts = None, {}
    size = path.stat().st_size
    try:
        _check_end(path, size)
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends in {member.name!r}")
                folder, slash, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if not stem:
                    continue
                if (name := folder + slash + stem) != key:
                    if key is not None:
                        yield key, parts
                    key, parts = name, {}
                parts[dot + suffix.lower()] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise SrattnError(f"{path} is no whole tar file ({error}): write it again, or leave it out") from None
    if key is not None:
        yield key, parts


def _check_end(path: Path, size: int) -> None:
    """A tar file ends in two blocks of zeros; one that was cut between two members is whole in every other respect."""
    with open(path, "rb") as file:
        file.seek(max(0, size - 1024))
        if size < 1024 or any(file.read(1024)):
            raise tarfile.ReadError(f"it has no end after {size:,} bytes")
