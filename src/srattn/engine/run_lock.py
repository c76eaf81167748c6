"""One training at a time in a run folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from srattn.errors import SrattnError

NAME = ".in-use"
_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # what systems say of a lock that another has
_FAR = 1 << 30  # where Windows locks one byte: it would let nobody read those that are there


@contextlib.contextmanager
def locked(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Within the block no other process trains in `folder`: it holds the system's lock on the file `NAME` there.

    The system releases the lock of a process that is killed, so what such a process leaves behind blocks nobody. Where
    a file system or a platform has no locks, the file's word is taken, of this machine's processes alone.

    Args:
        note: told where there are no locks.

    Raises:
        SrattnError: another process trains there.
        OSError: nothing can be written there.
    """
    path = folder / NAME
    file, lockable = _open(path)
    try:
        if not lockable:
            note(f"{folder} cannot be locked on this file system: see to it that no other machine trains there")
        yield
    finally:
        # Removed before it is released: whoever opened it meanwhile finds that it is not the one in the folder.
        if os.name != "nt":
            _remove(path)
        os.close(file)
        if os.name == "nt":  # where an open file cannot be removed
            _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _open(path: Path) -> tuple[int, bool]:
    """The open file, and whether it could be locked; if not, nobody of this machine is known to train there."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            lockable = _lock(file, path)
            if not lockable and _lives(other := _read(file)):
                raise _refusal(path, other)
            if _still_there(file, path):
                _write(file)
                return file, lockable
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder has just removed it


def _lock(file: int, path: Path) -> bool:
    """Whether there is a lock, which is ours then.

    Raises:
        SrattnError: another process has it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file, _FAR, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return False
    except OSError as error:
        if error.errno in _HELD:
            raise _refusal(path, _read(file)) from None
        return False
    return True


def _still_there(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _write(file: int) -> None:
    facts = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    os.lseek(file, 0, os.SEEK_SET)
    os.ftruncate(file, 0)
    os.write(file, json.dumps(facts).encode())


def _read(file: int) -> dict[str, Any]:
    """What the process that wrote the file says of itself; nothing if it has not come to it."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        facts = json.loads(os.read(file, 4096))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _lives(other: dict[str, Any]) -> bool:
    """Whether a process of this machine that wrote such a file is still there."""
    pid = other.get("pid")
    if os.name != "posix" or other.get("host") != platform.node() or pid == os.getpid():
        return False
    if not isinstance(pid, int) or not 0 < pid < 1 << 31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _refusal(path: Path, other: dict[str, Any]) -> SrattnError:
    named = f"process {other['pid']} on {other.get('host')}" if "pid" in other else "another process"
    since = f" since {other['since']}" if "since" in other else ""
    return SrattnError(
        f"{path.parent} is in use: {named} trains there{since}; wait until it has ended, or stop it, and try again"
    )
