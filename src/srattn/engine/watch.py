"""When one process of several fails, the others end at once and say why, rather than wait for it."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sys
import threading
from collections.abc import Iterator

import torch

from srattn.engine.distributed import World
from srattn.engine.interrupt import Interrupted
from srattn.errors import SrattnError

_POLL, _WORD, _GRACE, _LAST = 0.25, 3.0, 5.0, 5.0  # seconds
_KEY, _HEARD = "failed", "heard"
_BROKEN = re.compile(r"gloo|connection (was )?(closed|reset|refused|lost)|broken pipe", re.IGNORECASE)


@contextlib.contextmanager
def watch_others(world: World) -> Iterator[None]:
    """Within the block the first process that fails leaves word in the store of the group, where the others look.

    A process that computes ends between two steps, one that waits for an answer in the middle of it.

    Raises:
        SrattnError: another process failed; the message is that process's own.
    """
    if world.size == 1 or "MASTER_ADDR" not in os.environ:
        yield
        return
    watcher = _Watcher(world)
    watcher.start()
    try:
        yield
    except Interrupted:  # agreed by all
        raise
    except BaseException as error:
        # Torch's own errors are mostly echoes: the connection to a process that is gone.
        echo = isinstance(error, RuntimeError)
        if watcher.found.wait(_WORD if echo else 0.0):
            raise SrattnError(watcher.words) from error
        lost = _lost(error) if echo else None
        watcher.leave_word(lost or error, wait=not echo)
        if lost is not None:
            raise lost from error
        raise
    finally:
        watcher.left.set()
        watcher.join()


def _lost(error: BaseException) -> SrattnError | None:
    """What to say of torch's word on a connection that broke; None for any other error."""
    if not isinstance(error, torch.distributed.DistError) and not _BROKEN.search(str(error)):
        return None
    reason = str(error).strip().partition("\n")[0][:200]
    return SrattnError(
        f"another process is gone without a word, killed perhaps, by its machine for want of memory or by a person, or "
        f"the network between them is ({reason}); see what torchrun says of each process. A run goes on from its last "
        f"checkpoint: --resume"
    )


class _Watcher(threading.Thread):
    def __init__(self, world: World) -> None:
        super().__init__(name="srattn-watch", daemon=True)
        from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

        # A connection of its own: that of the main thread is taken while it waits.
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=30),
        )
        run = f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._store = PrefixStore(f"srattn/{run}", store)
        self._lock = threading.Lock()
        self._world = world
        self.found, self.left = threading.Event(), threading.Event()
        self.words = ""

    def run(self) -> None:
        while not self.left.wait(_POLL):
            try:
                with self._lock:
                    if not self._store.check([_KEY]):
                        continue
                    rank, _, message = self._store.get(_KEY).decode().partition(" ")
                    if int(rank) == self._world.rank:
                        return
                    self._store.add(_HEARD, 1)
                self.words = f"process {rank} of {self._world.size} failed and this one stops with it: {message}"
            except RuntimeError:  # the store is gone, and with it the process that kept it
                self.words = "the first process is gone without a word; see what it printed"
            self.found.set()
            if not self.left.wait(_GRACE):
                print(f"srattn: error: {self.words}", file=sys.stderr, flush=True)
                os._exit(2)  # the main thread is deep in a call that will not return
            return

    def leave_word(self, error: BaseException, wait: bool) -> None:
        """Says why this process fails, unless another was first, and may wait a little until all have heard it."""
        message = " ".join(str(error).split()) or type(error).__name__
        kind = "" if isinstance(error, SrattnError | OSError) else f"{type(error).__name__}: "
        with contextlib.suppress(RuntimeError):
            with self._lock:
                words = f"{self._world.rank} {kind}{message}"
                if self._store.compare_set(_KEY, "", words).decode() != words:
                    return
            for _ in range(round(_LAST / _POLL) if wait else 0):
                with self._lock:
                    if self._store.add(_HEARD, 0) >= self._world.size - 1:
                        return
                threading.Event().wait(_POLL)
