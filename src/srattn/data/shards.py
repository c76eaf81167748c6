"""WebDataset shards: tar archives in which files of one name, next to each other, are one sample.

https://github.com/webdataset/webdataset. Every image is found once by the archive's headers and read in place later,
so a shuffled epoch, its resumption and its split over processes are exact, which a stream cannot be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from srattn.data.decode import SUFFIXES, BadImage
from srattn.data.download import download
from srattn.data.index import Index, Skipped, part_called
from srattn.data.labels import Row, assign, plain_label, read_classes
from srattn.data.patterns import expand, files_with, is_url, part_of
from srattn.data.sources import Span, oversized
from srattn.data.tar import Member, read_contents
from srattn.errors import SrattnError

_MAX_LABEL_BYTES = 1 << 20
_LABEL_FILES = ("cls", "cls.txt", "label", "json")
_LABEL_KEYS = ("label", "cls", "class", "target", "category")


def index_shards(patterns: Sequence[str], labelled: bool = True) -> Index:
    """The images of tar shards; URLs are downloaded into the cache first.

    See `label_of` for a sample's class. A classes.txt beside the shards names numbered classes. A shard is of the part
    that its name says ("train", "val", "test"), else for training.

    Raises:
        SrattnError: no shard can be read, or no sample has an image.
    """
    rows: list[Row] = []
    skipped = Skipped()
    files = [name for pattern in patterns for name in _expand(pattern)]
    classes = None
    for name in files:
        part = _part(name)
        try:
            path = download(name) if is_url(name) else Path(name)
            members, wrong = read_contents(path)
        except (OSError, BadImage) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            skipped.add(f"shard {name}: {reason}", part)
            continue
        if wrong:
            skipped.add(f"shard {name} {wrong}", part)
        if classes is None and not is_url(name):
            classes = read_classes(path.parent)
        for key, parts in samples(members):
            image = image_of(parts)
            label = f"{PurePosixPath(name).name}/{key}"
            if image is None:
                if labelled:
                    skipped.add(f"{label}: there is no image among {', '.join(sorted(parts)) or 'nothing'}", part)
            elif bad := oversized(label, image.size):
                skipped.add(str(bad), part)
            else:
                rows.append(Row(label, label_of(path, parts, image), span_of(path, image), part))
    if not rows:
        raise SrattnError(
            f"{patterns[0]}: no image in {len(files)} shard(s){f'; {skipped.lines[0]}' if skipped.lines else ''}"
        )
    return assign(rows, classes, labelled, skipped)


def _part(name: str) -> str:
    path = PurePosixPath(name)
    folder = None if is_url(name) else part_called(Path(name).parent.name)
    return part_of(path.name) or folder or "train"


def _expand(pattern: str) -> list[str]:
    found: list[str] = []
    for name in expand(pattern):
        path = Path(name)
        found += [str(file) for file in files_with(path, ".tar")] if not is_url(name) and path.is_dir() else [name]
    return found


def samples(members: Sequence[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, {extension: member}) of files that share their name up to its first dot and follow each other."""
    key, parts = "", {}
    for member in members:
        path = PurePosixPath(member.name)
        if path.name.startswith((".", "__")):  # left by other systems; also the list of keys that some writers add
            continue
        stem, _, extension = path.name.partition(".")
        own, extension = str(path.with_name(stem)), extension.casefold()
        if parts and (own != key or extension in parts):
            yield key, parts
            parts = {}
        key = own
        parts[extension] = member
    if parts:
        yield key, parts


def image_of(parts: dict[str, Member]) -> Member | None:
    """The image of a sample: an extension of images alone, else the last part of a longer one (1.left.png)."""
    for extension, member in parts.items():
        if f".{extension}" in SUFFIXES:
            return member
    return next((member for extension, member in parts.items() if f".{extension.split('.')[-1]}" in SUFFIXES), None)


def span_of(path: Path, member: Member) -> Span:
    """Where the bytes of a member of the archive `path` are."""
    return Span(str(path), member.offset, member.size)


def label_of(path: Path, parts: dict[str, Member], image: Member) -> int | str | None:
    """The class of a sample of the archive `path`.

    That is its .cls file (a number or a name), else "label" (or cls, class, target, category) of its .json file, else
    the folder that its image lies in.
    """
    for extension in _LABEL_FILES:
        member = parts.get(extension)
        if member is not None and member.size <= _MAX_LABEL_BYTES:
            text = span_of(path, member).read().decode("utf-8", "replace").strip()
            return _from_json(text) if extension == "json" else text
    folder = PurePosixPath(image.name).parent.name
    return folder if folder and part_called(folder) is None else None


def _from_json(text: str) -> int | str | None:
    try:
        record: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    value = next((record[key] for key in _LABEL_KEYS if key in record), None)
    return plain_label(value)
