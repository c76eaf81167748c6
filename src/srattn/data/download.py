"""Files from the web, once, into a cache folder: resumed where they broke off, and never half there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from srattn.data.decode import BadImage
from srattn.data.patterns import local_path

MAX_BYTES = 64 << 30
"""A larger file is refused: shards are cut to about one gigabyte."""
_PIECE = 1 << 20
_TIMEOUT = 60.0


def cache_folder() -> Path:
    """SRATTN_CACHE, else srattn/ in XDG_CACHE_HOME, else ~/.cache/srattn."""
    if own := os.environ.get("SRATTN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "srattn"


def download(url: str, most: int | None = None) -> Path:
    """The local path of an http(s) or file URL, which is downloaded unless the cache has it.

    It is written beside its place and renamed when it is whole; what broke off is continued if the server still has the
    same file. Several processes may ask for the same at once: one downloads, the others wait. A progress line goes to
    standard error, if that is a terminal.

    Raises:
        BadImage: not there, broken off again, longer than `most` (`MAX_BYTES`) or than the space on the disk.
    """
    if url.startswith("file://"):
        return local_path(url)
    limit = MAX_BYTES if most is None else most
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(urlsplit(url).path).name)[-100:] or "file"
    target = cache_folder() / "shards" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with open(part, "ab") as file, _alone(file):
            if not target.is_file():  # else another process has just brought it
                _fetch(url, file, part, limit)
                os.replace(part, target)
                _facts_path(part).unlink(missing_ok=True)
    except (HTTPError, URLError, TimeoutError, ConnectionError, HTTPException) as error:
        raise BadImage(f"{url}: {_reason(error, part)}") from None
    part.unlink(missing_ok=True)
    return target


def _reason(error: Exception, part: Path) -> str:
    """What went wrong, and what is still there."""
    if isinstance(error, HTTPError):
        return f"{error.code} {error.reason}"
    text = str(getattr(error, "reason", error)) or type(error).__name__
    return f"{text}; what is there is kept, start again" if part.stat().st_size else text


def _fetch(url: str, file: IO[bytes], part: Path, limit: int) -> None:
    have, facts = file.tell(), _facts(part)
    request = Request(url, headers={"User-Agent": "srattn", "Accept-Encoding": "identity"})
    if have and facts.get("tag"):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", facts["tag"])  # changed meanwhile: the server sends all of it
    with _open(request, have, facts) as answer:
        if answer is None:
            return  # nothing was missing but the rename
        if answer.status != 206 or not _begins_at(answer.headers.get("Content-Range"), have):
            file.truncate(0)
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        if total is not None and total > limit:
            raise BadImage(f"{url}: {total:,} bytes are more than the {limit:,} that are accepted")
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise BadImage(f"{url}: {total - have:,} bytes, but {part.parent} has room for {free:,}; set SRATTN_CACHE")
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):
            _facts_path(part).write_text(json.dumps({"tag": tag, "total": total}), encoding="utf-8")
        with _progress(url, have, total) as told:
            for piece in _pieces(answer):
                have += len(piece)
                if have > limit:
                    file.truncate(0)
                    raise BadImage(f"{url}: more than the {limit:,} bytes that are accepted")
                file.write(piece)
                told(have)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and have != total:
        raise BadImage(f"{url}: broke off after {have:,} of {total:,} bytes; what is there is kept, start again")


def _pieces(answer: Any) -> Iterator[bytes]:
    """The body bit by bit, with what came before it broke off."""
    try:
        while piece := answer.read(_PIECE):
            yield piece
    except IncompleteRead as error:
        if error.partial:
            yield error.partial
        raise


@contextlib.contextmanager
def _open(request: Request, have: int, facts: dict[str, Any]) -> Iterator[Any]:
    try:
        with urlopen(request, timeout=_TIMEOUT) as answer:
            yield answer
    except HTTPError as error:
        error.close()
        if error.code != 416 or have != facts.get("total"):  # 416: there is nothing after what we have
            raise
        yield None


def _begins_at(content_range: str | None, have: int) -> bool:
    return bool(content_range and re.match(rf"bytes {have}-", content_range))


def _facts_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _facts(part: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_facts_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) and isinstance(facts.get("tag"), str) else {}


@contextlib.contextmanager
def _alone(file: IO[bytes]) -> Iterator[None]:
    """Waits until no other process writes this file."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    file.seek(0, os.SEEK_END)
    yield


@contextlib.contextmanager
def _progress(url: str, have: int, total: int | None) -> Iterator[Any]:
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(Path(urlsplit(url).path).name, completed=have, total=total)
        yield lambda done: bar.update(task, completed=done)
