"""Processes as threads, for what is summed over all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor


class Together:
    """Processes as threads: each adds, and all have the sum."""

    def __init__(self, size: int) -> None:
        self.size, self.own = size, threading.local()
        self.barrier, self.lock, self.sums = threading.Barrier(size, timeout=20), threading.Lock(), dict[int, Tensor]()

    def add(self, values: Tensor) -> Tensor:
        turn = self.own.turn = getattr(self.own, "turn", 0) + 1
        with self.lock:
            self.sums[turn] = self.sums[turn] + values if turn in self.sums else values.clone()
        self.barrier.wait()
        return self.sums[turn].clone()

    def run(self, work: Callable[[int], None]) -> None:
        def start(rank: int) -> None:
            self.own.rank = rank
            work(rank)

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
