"""Many files by one string: globs, braces and URLs; and the part that a file name stands for."""

from __future__ import annotations

import glob
import itertools
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from srattn.data.index import PARTS, part_called
from srattn.errors import SrattnError

MAX_FILES = 100_000


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://", "file://"))


def is_pattern(text: str) -> bool:
    """Whether this is a brace pattern or a glob, and not the name of something that exists."""
    return not Path(text).exists() and bool(re.search(r"\{[^{}]*(\.\.|,)[^{}]*\}|[*?]|\[[^\]]+\]", text))


def expand(text: str) -> list[str]:
    """The files or URLs that a pattern stands for: "a-{000..011}.tar", "{a,b}.tar", "part-*/[0-9].tar".

    Braces are expanded whether or not the files exist, so that a missing one can be named; globs to what exists.

    Raises:
        SrattnError: more than `MAX_FILES`, or a glob that nothing matches.
    """
    names = _braces(text)
    if is_url(text):
        return names
    found: list[str] = []
    for name in names:
        if Path(name).exists() or not glob.has_magic(name):
            found.append(name)
        elif not (matches := sorted(glob.glob(name, recursive=True))):
            raise SrattnError(f"no file matches {name!r}")
        else:
            found += matches
    return found


def local_path(url: str) -> Path:
    """The path of a file:// URL.

    Raises:
        SrattnError: it names another machine.
    """
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise SrattnError(f"{url} names the machine {parts.netloc!r}; a file URL has three slashes: file:///path")
    return Path(url2pathname(parts.path))


def part_of(name: str) -> str | None:
    """The part that a file or folder name stands for: "train" for "imagenet-train-0007.tar"; None if it says none."""
    words = re.split(r"[^a-z0-9]+", name.casefold())
    return next((part for word in words if (part := part_called(word))), None)


def files_with(folder: Path, suffix: str) -> list[Path]:
    """The files with that suffix in a folder, in its data/ and in its folders that are named after parts, by name."""
    names = ("data", *itertools.chain.from_iterable(PARTS.values()))
    folders = [folder, *(folder / name for name in names if (folder / name).is_dir())]
    found = {
        path for one in folders for path in one.iterdir() if path.suffix == suffix and not path.name.startswith(".")
    }
    return sorted(found)


def _braces(text: str) -> list[str]:
    pieces = re.split(r"(\{[^{}]*\})", text)
    choices = [_choices(piece) if piece.startswith("{") else [piece] for piece in pieces]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_FILES:
        raise SrattnError(f"{text!r} stands for {count} files; at most {MAX_FILES} are accepted")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(piece: str) -> list[str]:
    inside = piece[1:-1]
    if found := re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inside):
        first, last = int(found[1]), int(found[2])
        if last < first or last - first >= MAX_FILES:
            raise SrattnError(f"{piece} must go up, by at most {MAX_FILES} files")
        return [f"{number:0{len(found[1])}d}" for number in range(first, last + 1)]
    return inside.split(",") if "," in inside else [piece]
