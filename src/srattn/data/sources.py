"""Where the bytes of an image lie, so that any image is reached by its number and nothing is unpacked."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from torch import Tensor

from srattn.data.decode import BadImage

MAX_IMAGE_BYTES = 256 << 20
"""Encoded images of archives and tables are refused beyond it: four bytes for each of `MAX_PIXELS`."""

_STAMPED = 16 << 10  # bytes at each end


@dataclass(frozen=True)
class Span:
    """`size` bytes from `offset` on in a larger file, such as one member of a tar archive."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes; any number of threads may read at once.

        Raises:
            BadImage: the file is gone or has become shorter.
        """
        try:
            file = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            try:
                data = _read_at(file, self.size, self.offset)
            finally:
                os.close(file)
        except OSError as error:
            raise BadImage(f"{self.path}: {error.strerror}") from None
        if len(data) != self.size:
            raise BadImage(f"{self.path}: ends {self.size - len(data)} bytes before the image at {self.offset} does")
        return data


def _read_at(file: int, size: int, offset: int) -> bytes:
    if not hasattr(os, "pread"):  # Windows; the descriptor is this call's own
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, size)
    parts = []
    while size > 0 and (part := os.pread(file, size, offset)):  # one call gives at most 2 GB
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


@dataclass(frozen=True)
class Fetched:
    """An image that a function fetches by number, such as a row of a table of the `datasets` library."""

    fetch: Callable[[int], bytes]
    number: int

    def read(self) -> bytes:
        return self.fetch(self.number)


Source: TypeAlias = Tensor | Path | bytes | Span | Fetched
"""Prepared pixels, uint8 (C, H, W), or where an image file's bytes are."""


def file_of(source: Source) -> Path | bytes:
    """What `decode` takes, for a source that is not pixels already."""
    assert not isinstance(source, Tensor)
    return source.read() if isinstance(source, Span | Fetched) else source


def stamp_of(file: Path | bytes) -> int:
    """Size and a checksum of the first and last bytes of a file in one number of 63 bits: a cheap word on its content.

    Raises:
        OSError: the file cannot be read any more.
    """
    if isinstance(file, bytes):
        size, head, tail = len(file), file[:_STAMPED], file[-_STAMPED:]
    else:
        with open(file, "rb") as opened:
            head = opened.read(_STAMPED)
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - _STAMPED))
            tail = opened.read(_STAMPED)
    return (size & 0x7FFFFFFF) << 32 | zlib.crc32(tail, zlib.crc32(head))


def size_in(stamp: int) -> int:
    """Of the file, below 2 GiB, from what `stamp_of` made of it."""
    return stamp >> 32


def leads_out(name: str) -> bool:
    """Whether a path from a stranger's file is anything but one of a file below a folder."""
    pure = PurePosixPath(name.replace("\\", "/"))
    return not pure.parts or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0] or "\0" in name


def below(folder: Path, name: str) -> Path:
    """The file that a table from a stranger, which lies in `folder`, calls by this path.

    Raises:
        BadImage: it leads out of the folder, by itself or by a link, or to what is no regular file.
    """
    if leads_out(name):
        raise BadImage(f"the path {name[:80]!r} leads out of the folder of its table")
    return within(folder / name, [folder])


def within(path: Path, folders: Sequence[Path]) -> Path:
    """`path`, if it lies in one of the folders once links are followed, and is a regular file or nothing.

    Raises:
        BadImage: it does not, or is not.
    """
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(folder)) for folder in folders):
        raise BadImage(f"{path} leads out of {folders[0]}")
    if os.path.exists(real) and not os.path.isfile(real):
        raise BadImage(f"{path} is no regular file")
    return path


def oversized(name: str, size: int) -> BadImage | None:
    """Why an encoded image of `size` bytes is not read; None where it is."""
    most = f"the {MAX_IMAGE_BYTES:,} that are accepted"
    return BadImage(f"{name}: {size:,} bytes are more than {most}") if size > MAX_IMAGE_BYTES else None


def called(name: str, source: Source) -> str:
    """What messages call an image: the whole path of a file, since somebody will want to open it."""
    return str(source) if isinstance(source, Path) else name


@dataclass(frozen=True)
class Item:
    """One image before it is decoded: its name in messages, its class number (-1: none known), its place."""

    name: str
    label: int
    source: Source
