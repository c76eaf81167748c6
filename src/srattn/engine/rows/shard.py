"""A WebDataset shard: a tar file in which the members of a sample follow each other under one key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from srattn.data.decode import SUFFIXES
from srattn.data.shards import image_of, label_of, samples, span_of
from srattn.data.sources import oversized
from srattn.data.tar import read_contents
from srattn.engine.rows.base import Source, file_stamp
from srattn.errors import SrattnError


class ShardRows:
    """The samples of one .tar file that have an image; found by the headers, read by their places.

    Raises:
        SrattnError: no tar file, one that ends early, or one without images.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        members, wrong = read_contents(path)
        if wrong:
            raise SrattnError(f"{path} is no whole tar file (it {wrong}): write it again, or leave it out")
        found = ((key, parts, image_of(parts)) for key, parts in samples(members))
        self._samples = [(key, parts, image) for key, parts, image in found if image is not None]
        if not self._samples:
            raise SrattnError(f"{path} has no images (looked for {', '.join(sorted(SUFFIXES))})")

    def __len__(self) -> int:
        return len(self._samples)

    def stamp(self) -> Iterator[str]:
        yield f"{self._path.name}\t{file_stamp(self._path)}"

    def read(self, start: int, stop: int) -> Iterator[Source]:
        for key, parts, image in self._samples[start:stop]:
            label = label_of(self._path, parts, image)
            data = oversized(key, image.size) or span_of(self._path, image)
            yield Source(key, data, None if label in (None, "") else str(label))
