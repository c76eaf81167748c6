"""A function over a sequence in a few threads, results in order and only a few ahead."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map(function, items)` with `workers` threads (none if 0), at most `workers` + 2 results in flight.

    Threads and not processes: decoding and resizing release the interpreter's lock, nothing is copied between
    processes, and Ctrl-C reaches one process alone. Each computes with one thread of torch: teams of them would fight
    the model's own for the cores, which costs a training on two of them a fifth of its speed. The first error is raised
    at its place in the order.

    Closed before its end, it tells the threads to end and does not wait for them: whoever tidies memory closes what was
    left lying about, in any thread and with any lock in hand, for which a worker may be waiting.
    """
    if workers <= 0:
        yield from map(function, items)
        return
    threads, owner, wait = torch.get_num_threads(), threading.get_ident(), True
    pool = ThreadPoolExecutor(workers, "srattn-data", initializer=torch.set_num_threads, initargs=(1,))
    flight: deque[Future[Result]] = deque()
    try:
        for item in items:
            flight.append(pool.submit(function, item))
            if len(flight) >= workers + 2:
                yield flight.popleft().result()
        while flight:
            yield flight.popleft().result()
    except GeneratorExit:
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
        if threading.get_ident() == owner:
            torch.set_num_threads(threads)  # for threads that begin later; this one never had another number
