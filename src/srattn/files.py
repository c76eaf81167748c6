"""Writing files and folders whole or not at all: aside under a temporary name, then one rename."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from srattn.errors import SrattnError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with its suffix; it becomes `path` when the block ends without an error.

    Missing parent folders are made. On any error, Ctrl-C included, the temporary file is removed, `path` untouched.

    Raises:
        SrattnError: `path` exists and `overwrite` is false (checked before the block runs and again at its end),
            or it exists and is not a regular file.
    """
    target = _free_target(Path(path), overwrite)
    if target.exists() and not target.is_file():
        raise SrattnError(f"{target} is not a regular file; choose another path")
    with _parents(target):
        aside = _aside(target)
        try:
            yield aside
            flush_to_disk(aside)
            if overwrite:
                os.replace(aside, target)
            else:
                _rename_to_new(aside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary empty folder beside `path`; it becomes `path` when the block ends without an error.

    With `overwrite` an existing folder is replaced as a whole, and stays in place until the new one is complete.

    Raises:
        SrattnError: `path` exists and `overwrite` is false, or it exists and is not a folder.
    """
    target = _free_target(Path(path), overwrite)
    if target.exists() and not target.is_dir():
        raise SrattnError(f"{target} is not a folder; choose another path")
    with _parents(target):
        aside = _aside(target)
        aside.mkdir()
        try:
            yield aside
            _check_free(target, overwrite)
            _replace_dir(aside, target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def check_writable(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuses, before any work, a file that `atomic_path` could not write at its end.

    Raises:
        SrattnError: as `atomic_path`; or no file can be made in the folder, or in that where folders would be made.
    """
    target = _free_target(Path(path), overwrite)
    if target.exists() and not target.is_file():
        raise SrattnError(f"{target} is not a regular file; choose another path")
    folder = target.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SrattnError(f"{path} cannot be written ({reason}: {folder}); choose another path") from None


def _free_target(path: Path, overwrite: bool) -> Path:
    """The path to write: what is behind a symbolic link, so that the link is written through and not replaced."""
    _check_free(path, overwrite)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _check_free(target: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(target):
        raise SrattnError(f"{target} exists and is not overwritten; remove it or choose another path")


def _aside(target: Path) -> Path:
    # The suffix is kept because some writers choose the format by it.
    return target.with_name(f".srattn-{secrets.token_hex(6)}{target.suffix}")


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Makes the folders above `target`; after an error those that it made are removed again if they are empty."""
    made = []
    folder = target.parent
    while not folder.exists():
        made.append(folder)
        folder = folder.parent
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no space left, or none of what a user may have.

    Writers in other languages (safetensors) pass the system's words on in errors of their own.
    """
    full = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    return getattr(error, "errno", None) in full or "No space left on device" in str(error)


def flush_to_disk(path: Path) -> None:
    """A full disk may show itself only here, and must do so before a rename."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _rename_to_new(aside: Path, target: Path) -> None:
    """Renames a file, and fails if `target` has come into being meanwhile."""
    try:
        os.link(aside, target)  # unlike a rename, a link never replaces
    except FileExistsError:
        _check_free(target, overwrite=False)
        raise
    except OSError:  # a file system without hard links
        _check_free(target, overwrite=False)
        os.replace(aside, target)
    else:
        aside.unlink()


def _replace_dir(aside: Path, target: Path) -> None:
    if not target.exists():
        os.rename(aside, target)
        return
    old = _aside(target)
    os.rename(target, old)
    try:
        os.rename(aside, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
