"""What stops a run that can be resumed: Ctrl-C and SIGTERM, as a request that the loop answers between two steps, and a
full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from srattn.files import is_disk_full


class Interrupted(KeyboardInterrupt):
    """Training was stopped and saved; `folder` is the run to resume, `number` the signal that stopped it.

    Of several processes those that had no signal say SIGINT.
    """

    def __init__(self, folder: Path, epoch: int, step: int, number: int = signal.SIGINT) -> None:
        super().__init__(f"stopped in epoch {epoch}, step {step}")
        self.folder, self.epoch, self.step, self.number = folder, epoch, step, number


class NoSpace(OSError):
    """The disk was full; the checkpoints of the run `folder` are whole, and it can be resumed."""

    def __init__(self, error: Exception, folder: Path) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC), getattr(error, "filename", None))
        self.folder = folder


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Within the block a full disk is a `NoSpace` of the run in `folder`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, NoSpace) or not is_disk_full(error):
            raise
        raise NoSpace(error, folder) from error


class StopRequest:
    """`requested` becomes true with the first signal, `number`; a second one acts as it would without us."""

    requested = False
    number: int = signal.SIGINT


@contextlib.contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Within the block SIGINT and SIGTERM set the request. Does nothing outside the main thread, where none arrive."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, frame: FrameType | None) -> None:
        request.requested, request.number = True, number
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handler)
    try:
        yield request
    finally:
        for number, old in before.items():
            signal.signal(number, old)
