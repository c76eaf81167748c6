"""From what a user names to rows: image files, folders, lists, Parquet files, WebDataset shards, the digits."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from srattn.data.folder import find_images
from srattn.data.index import part_called
from srattn.data.lists import SUFFIXES as LIST_SUFFIXES
from srattn.data.patterns import expand, is_pattern, is_url
from srattn.engine.rows.base import Joined, Listed, Rows, Source
from srattn.errors import SrattnError, nearest

BUILT_IN = ("digits",)


def open_rows(arguments: Iterable[str], split: str | None = None) -> Rows:
    """The rows of all arguments, in their order.

    Args:
        arguments: image files; folders of images (searched in depth, ascending by path), of Parquet files or of
            shards; .csv and .jsonl lists; .parquet and .tar files; patterns such as "train-{000..009}.tar"; "digits";
            and what else training reads: "hf:NAME", URLs of shards, folders of IDX files.
        split: of a folder of Parquet files or shards, or with a folder for each split: "train", "test", ...

    Raises:
        SrattnError: an argument that does not exist, holds no images, or has no such split.
    """
    return Joined([_open(argument, split) for argument in arguments])


def _open(argument: str, split: str | None) -> Rows:
    path = Path(argument)
    if argument.startswith("hf:") or is_url(argument):
        return _of_training(argument, split)
    if path.is_dir():
        has_idx = any("idx3-ubyte" in entry.name for entry in path.iterdir())
        return _of_training(argument, split) if has_idx else _open_folder(path, split)
    if not path.exists() and is_pattern(argument):
        return Joined([_open(file, split) for file in expand(argument)])
    if not path.exists():
        if argument in BUILT_IN:
            return _digits(split)
        raise SrattnError(f"{path} does not exist{nearest(argument, BUILT_IN)}")
    return _open_file(path)


def _open_file(path: Path) -> Rows:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from srattn.engine.rows.table import TableRows

        return TableRows(path)
    if suffix == ".tar":
        from srattn.engine.rows.shard import ShardRows

        return ShardRows(path)
    if suffix in LIST_SUFFIXES:
        from srattn.engine.rows.listing import read_listing

        return read_listing(path)
    if suffix in (".gz", ".tgz", ".zst", ".xz", ".bz2"):
        raise SrattnError(f"{path} is compressed as a whole and has no rows to go back to: unpack it first")
    return Listed([Source(str(path), path)])


def _open_folder(path: Path, split: str | None) -> Rows:
    root = path
    if split is not None and (path / split).is_dir():
        root = path / split
    if images := [image for image in find_images(root) if not _is_special(image)]:
        if split is not None and root is path:
            raise SrattnError(f"{path} has no folder {split!r} for --split")
        labels = _class_of(root)
        return Listed([Source(str(image), image, labels(image)) for image in images])
    for suffix in (".parquet", ".tar"):
        if files := _files(root, suffix):
            chosen = files if root is not path else _of_split(path, files, split)
            return Joined([_open_file(file) for file in chosen])
    raise SrattnError(f"{root} has no image files, Parquet files or shards")


def _of_training(data: str, split: str | None) -> Rows:
    """What only the readers of training know, without what they leave out; its parts in the order of their names."""
    from srattn.data.idx import index_idx
    from srattn.data.reader import open_data

    index = index_idx(Path(data)) if Path(data).is_dir() else open_data(data, labelled=False)
    part = None if split is None else part_called(split) or split
    if part is not None and part not in index.parts:
        raise SrattnError(f"{data} has no split {split!r}; there are {', '.join(index.parts)}")
    items = [item for name in sorted(index.parts) if part in (None, name) for item in index.parts[name]]
    return Listed(
        [Source(item.name, item.source, None if item.label < 0 else index.classes[item.label]) for item in items]
    )


def _is_special(path: Path) -> bool:
    """Whether it is a pipe, a socket or a device, on whose bytes one may wait for ever; no file at all is not."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(
        (file for file in folder.rglob(f"*{suffix}") if not file.name.startswith(".") and file.is_file()),
        key=lambda file: file.as_posix(),
    )


def _of_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    """The files of a split, by the beginning of their names, as the Hugging Face hub writes them: test-00000-of-..."""
    if split is None:
        return files
    chosen = [file for file in files if file.name.startswith(split)]
    if not chosen:
        raise SrattnError(f"{folder} has no files of split {split!r}; there are {', '.join(f.name for f in files[:8])}")
    return chosen


def _class_of(root: Path) -> Callable[[Path], str | None]:
    """The class of an image by its folder below `root` (and below train/, val/, test/), where there are classes."""
    folders = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    deep = bool(folders) and all(part_called(name) is not None for name in folders)
    at = 1 if deep else 0

    def label(image: Path) -> str | None:
        parts = image.relative_to(root).parts
        return parts[at] if len(parts) > at + 1 else None

    return label if deep or len(folders) > 1 else lambda image: None


def _digits(split: str | None) -> Rows:
    from srattn.data.digits import read_digits

    if split not in (None, "train", "val"):
        raise SrattnError(f"digits have the splits train and val, got {split!r}")
    data = read_digits(8)
    parts = [part for name, part in (("train", data.train), ("val", data.val)) if split in (None, name)]
    sources = [
        Source(part.names[i], part.pixels(i), data.classes[int(part.labels[i])])
        for part in parts
        for i in range(len(part))
    ]
    if split is None:  # as scikit-learn has them, not as they were split
        sources.sort(key=lambda source: int(source.name.rpartition("/")[2]))
    return Listed(sources)
