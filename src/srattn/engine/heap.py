"""Memory that one training step leaves is kept for the next, instead of going back to the system and coming anew."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

# Of glibc's malloc.h, with its defaults.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEEP = {_TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20, _MMAP_MAX: 0}
_DEFAULTS = {_TRIM_THRESHOLD: 128 << 10, _TOP_PAD: 128 << 10, _MMAP_MAX: 65536}


@contextlib.contextmanager
def kept_heap() -> Iterator[None]:
    """Within, freed memory stays with the process; afterwards it goes back. Does nothing where malloc is not glibc's.

    A step frees gigabytes and asks for them again. By default large blocks come from the system each time, page by
    page, each of which it has to clear.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    try:
        for option, value in _KEEP.items():
            libc.mallopt(option, value)
        yield
    finally:
        for option, value in _DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
