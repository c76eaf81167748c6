"""One thread that owns the model, and gathers what is waiting into batches."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from srattn.serve.fault import busy


class Job(NamedTuple):
    key: Hashable
    item: Any
    future: Future[Any]
    since: float


class Worker:
    """Computes items of equal keys together, first come, first served.

    The first job of a batch waits up to `max_wait` seconds after its arrival for others, until there are `max_batch` or
    all that are `expected`.
    A job that was cancelled while it waited costs nothing. Where a batch fails, its jobs are computed one by one, so
    that an error reaches the one that caused it.

    Args:
        compute: from a key and its items to as many results, called in the thread alone.
        on_batch: told of the size of each group that was computed.
        expected: how many jobs there are or will soon be, those of the batch among them; without it, ever more.
    """

    def __init__(
        self,
        compute: Callable[[Any, list[Any]], list[Any]],
        max_batch: int,
        max_wait: float,
        on_batch: Callable[[int], None] = lambda size: None,
        expected: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._compute, self._on_batch, self._expected = compute, on_batch, expected
        self._max_batch, self._max_wait = max_batch, max_wait
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = False
        # A daemon: an application that is thrown away without a shutdown does not hold the interpreter.
        self._thread = threading.Thread(target=self._loop, name="srattn-model", daemon=True)

    def start(self) -> None:
        """Starts the thread; once is enough, and again does nothing."""
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()

    def submit(self, key: Hashable, item: Any) -> Future[Any]:
        """The future result of `item`.

        Raises:
            Fault: 503, the worker was stopped.
        """
        with self._lock:
            if self._stopped:
                raise busy("the service is stopping")
            future: Future[Any] = Future()
            self._waiting.put(Job(key, item, future, time.monotonic()))
            return future

    def stop(self) -> None:
        """Takes no more jobs, finishes those that it has, and waits for that."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._waiting.put(None)
            started = self._thread.ident is not None
        if started:
            self._thread.join()

    def _loop(self) -> None:
        going = True
        while going:
            jobs, going = self._gather()
            groups: dict[Hashable, list[Job]] = {}
            for job in jobs:
                if job.future.set_running_or_notify_cancel():
                    groups.setdefault(job.key, []).append(job)
            for key, group in groups.items():
                self._answer(key, group)

    def _gather(self) -> tuple[list[Job], bool]:
        """The jobs of the next batch, and whether more may come."""
        first = self._waiting.get()
        if first is None:
            return [], False
        jobs = [first]
        while len(jobs) < self._max_batch:
            left = first.since + self._max_wait - time.monotonic()
            try:
                waits = left > 0 and len(jobs) < self._expected()
                job = self._waiting.get(timeout=left) if waits else self._waiting.get_nowait()
            except Empty:
                break
            if job is None:
                return jobs, False
            jobs.append(job)
        return jobs, True

    def _answer(self, key: Hashable, group: list[Job]) -> None:
        try:
            results = self._compute(key, [job.item for job in group])
            if len(results) != len(group):
                raise RuntimeError(f"{len(group)} items gave {len(results)} results")
        except Exception as error:
            if len(group) == 1:
                group[0].future.set_exception(error)
            else:
                for job in group:
                    self._answer(key, [job])
            return
        self._on_batch(len(group))
        for job, result in zip(group, results, strict=True):
            job.future.set_result(result)
