"""What a .pt2 archive holds, looked at without running anything, and what of it torch may read."""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from srattn.errors import SrattnError
from srattn.export.formats import STAMP
from srattn.export.formats.program_check import checked

_NATIVE = "data/aotinductor/"
_EXTRA = f"extra/{STAMP}"
_KEPT = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder|\.data/version"
    r"|data/weights/model_weights_config\.json|data/constants/model_constants_config\.json|models/model\.json",
    re.ASCII,
)
_INPUTS = "data/sample_inputs/model.pt"
_LEFT_OUT = (_INPUTS, _EXTRA, ".data/serialization_id")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive.

    Raises:
        SrattnError: it is none, or broken.
    """
    try:
        with zipfile.ZipFile(path) as file:
            yield file
    except SrattnError:
        raise
    # RuntimeError: encrypted, NotImplementedError: packed in another way; ValueError: no JSON, no text.
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, zlib.error) as error:
        raise SrattnError(f"{path} is no whole .pt2 archive ({error})") from None


def _inner(name: str) -> str:
    """A name without the archive's own folder."""
    return name.partition("/")[2]


def is_compiled(path: Path) -> bool:
    """Whether it holds machine code (AOTInductor)."""
    with _opened(path) as file:
        return any(_inner(name).startswith(_NATIVE) for name in file.namelist())


def read_stamp(path: Path) -> str | None:
    with _opened(path) as file:
        for entry in file.infolist():
            if entry.filename == STAMP or _inner(entry.filename) == _EXTRA:
                if entry.file_size > path.stat().st_size:
                    raise SrattnError(f"{path}: {entry.filename} claims {entry.file_size:,} bytes; it is not read")
                return file.read(entry).decode("utf-8", "replace")
    return None


def stamp(path: str, text: str) -> None:
    """Adds the stamp beside the archive's own entries."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as file:
        root = file.namelist()[0].partition("/")[0]
        file.writestr(f"{root}/{_EXTRA}", text)


def without_code(path: Path) -> io.BytesIO:
    """The program as an archive made anew of its tensors and its checked JSON.

    torch looks names up in a way of its own (without case, among others), and takes pickles: it gets none of the
    file itself, and no example of inputs, which are pickled.

    Raises:
        SrattnError: something that `srattn export` does not write, such as a pickle, a script or a guard.
    """
    found = io.BytesIO()
    with _opened(path) as file, zipfile.ZipFile(found, "w", zipfile.ZIP_STORED) as anew:
        for name, entry in _entries(path, file).items():
            if name in _LEFT_OUT:
                continue
            data = file.read(entry)
            if name.endswith(".json"):
                data = json.dumps(checked(path, name, json.loads(data))).encode()
            anew.writestr(zipfile.ZipInfo(f"model/{name}"), data)
        anew.writestr(zipfile.ZipInfo(f"model/{_INPUTS}"), b"")
    found.seek(0)
    return found


def _entries(path: Path, file: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Those of a program by their names without the folder, each once, all within one folder and the file's size."""
    entries = file.infolist()
    root = entries[0].filename.partition("/")[0] if entries else ""
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        whole, name = entry.filename, _inner(entry.filename)
        known = whole == f"{root}/{name}" and (name in _LEFT_OUT or _KEPT.fullmatch(name))
        if not known or name in found:
            twice = "a second time, " if known else ""
            raise SrattnError(f"{path} holds {whole[:80]!r}, {twice}which could run code; it is not loaded")
        found[name] = entry
    size = path.stat().st_size
    if (claimed := sum(entry.file_size for entry in entries)) > size:
        raise SrattnError(f"{path} has {size:,} bytes and claims to hold {claimed:,}; it is not loaded")
    return found
