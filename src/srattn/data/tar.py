"""The table of contents of a tar archive: where each file lies, without reading or unpacking any.

POSIX.1-2001 (ustar and pax), and GNU's long names. Read by our own few lines and not by `tarfile`, because a shard has
many thousands of members, and because an archive from a stranger may claim headers of any size.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import BinaryIO

_BLOCK = 512
_MAX_NAME = 1 << 20  # bytes of a long name or of a pax header


@dataclasses.dataclass(frozen=True)
class Member:
    """A regular file in an archive: its name and where its bytes are."""

    name: str
    offset: int
    size: int


def read_contents(path: Path) -> tuple[list[Member], str]:
    """The regular files of an archive that are there as a whole, and what is wrong with it ("" for nothing).

    An archive that ends early gives those before the end. Nothing is trusted: names are text and no paths.

    Raises:
        OSError: the archive cannot be read.
    """
    members: list[Member] = []
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        long_name, long_size = None, None
        offset = 0
        while True:
            file.seek(offset)
            header = file.read(_BLOCK)
            if len(header) < _BLOCK:
                return members, f"ends early, after {length:,} bytes and {len(members)} whole files"
            if header == bytes(_BLOCK):
                return members, ""
            size = _number(header[124:136])
            if size is None or not _sum_is_right(header):
                return members, f"is no tar archive from byte {offset:,} on, after {len(members)} whole files"
            kind, offset = header[156:157], offset + _BLOCK
            if kind in b"123456":  # links, devices and folders have no bytes
                size = 0
            if kind in (b"L", b"x"):
                if size > _MAX_NAME:
                    return members, f"has a name of {size:,} bytes, after {len(members)} whole files"
                name, own_size = _extended(file, size, kind)
                long_name = name if name is not None else long_name
                long_size = own_size if own_size is not None else long_size
            else:
                size = long_size if long_size is not None else size
                if offset + size > length:
                    return members, f"ends early, {offset + size - length:,} bytes within the file {_name(header)!r}"
                if kind in (b"0", b"\0", b"7"):
                    name = long_name if long_name is not None else _name(header)
                    members.append(Member(name, offset, size))
                if kind not in (b"g", b"K"):
                    long_name = long_size = None
            offset += -(-size // _BLOCK) * _BLOCK


def _number(field: bytes) -> int | None:
    if field[0] & 0x80:  # GNU: base 256 for large numbers
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        value = int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None
    return value if value >= 0 else None


def _sum_is_right(header: bytes) -> bool:
    return _number(header[148:156]) == sum(header[:148]) + 8 * 32 + sum(header[156:])


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _extended(file: BinaryIO, size: int, kind: bytes) -> tuple[str | None, int | None]:
    """The name and size that an extra header gives to the next member."""
    data = file.read(size)
    if kind == b"L":
        return _text(data.partition(b"\0")[0]), None
    name, number, at = None, None, 0
    while (space := data.find(b" ", at, at + 20)) >= 0:  # a record is its own length, a space, key=value, a new line
        length = data[at:space]
        if not length.isdigit() or not space < (end := at + int(length)) <= len(data):
            break
        key, _, value = data[space + 1 : end].rstrip(b"\n").partition(b"=")
        at = end
        if key == b"path":
            name = _text(value)
        elif key == b"size" and value.isdigit() and len(value) < 20:
            number = int(value)
    return name, number
