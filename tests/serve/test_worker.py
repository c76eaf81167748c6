"""The thread that owns the model, and the figures."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from srattn.serve.fault import Fault
from srattn.serve.metrics import Histogram
from srattn.serve.worker import Worker


class Calls:
    """Doubles numbers; notes key and items of each call, and waits for `go` in each."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, list[int]]] = []
        self.threads: set[int] = set()
        self.go = threading.Event()
        self.inside = threading.Event()

    def __call__(self, key: Any, items: list[int]) -> list[int]:
        self.seen.append((key, list(items)))
        self.threads.add(threading.get_ident())
        self.inside.set()
        assert self.go.wait(30)
        if any(item < 0 for item in items):
            raise ValueError(f"negative among {items}")
        return [2 * item for item in items]


def held(worker: Worker, calls: Calls) -> Any:
    """Keeps the worker busy with one job, so that those that follow meet in the queue."""
    worker.start()
    first = worker.submit("first", 0)
    assert calls.inside.wait(30)
    return first


def test_what_waits_is_computed_together_by_key_in_order() -> None:
    calls, sizes = Calls(), []
    worker = Worker(calls, max_batch=4, max_wait=0, on_batch=sizes.append)
    held(worker, calls)
    futures = [worker.submit(key, item) for key, item in [("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5), ("a", 6)]]
    calls.go.set()
    assert [future.result(30) for future in futures] == [2, 4, 6, 8, 10, 12]
    worker.stop()
    assert calls.seen == [("first", [0]), ("a", [1, 3]), ("b", [2, 4]), ("a", [5, 6])]
    assert sizes == [1, 2, 2, 2] and len(calls.threads) == 1 and threading.get_ident() not in calls.threads


def test_the_first_waits_for_others() -> None:
    calls = Calls()
    calls.go.set()
    worker = Worker(calls, max_batch=3, max_wait=30)
    worker.start()
    futures = [worker.submit("a", item) for item in (1, 2, 3)]  # the third makes it full, long before 30 seconds
    assert [future.result(20) for future in futures] == [2, 4, 6]
    assert calls.seen == [("a", [1, 2, 3])]
    last = worker.submit("a", 4)
    worker.stop()  # ends the waiting
    assert last.result(0) == 8


def test_nothing_is_waited_for_that_is_not_expected() -> None:
    calls = Calls()
    calls.go.set()
    worker = Worker(calls, max_batch=8, max_wait=30, expected=lambda: 2)
    worker.start()
    futures = [worker.submit("a", item) for item in (1, 2)]
    assert [future.result(20) for future in futures] == [2, 4]
    assert calls.seen == [("a", [1, 2])]
    worker.stop()


def test_cancelled_jobs_cost_nothing() -> None:
    calls = Calls()
    worker = Worker(calls, max_batch=8, max_wait=0)
    held(worker, calls)
    futures = [worker.submit("a", item) for item in (1, 2, 3)]
    assert futures[1].cancel()
    calls.go.set()
    assert futures[2].result(30) == 6
    worker.stop()
    assert calls.seen[1:] == [("a", [1, 3])]


def test_an_error_reaches_the_one_that_caused_it() -> None:
    calls, sizes = Calls(), []
    worker = Worker(calls, max_batch=8, max_wait=0, on_batch=sizes.append)
    held(worker, calls)
    futures = [worker.submit("a", item) for item in (1, -2, 3)]
    calls.go.set()
    assert futures[0].result(30) == 2 and futures[2].result(30) == 6
    with pytest.raises(ValueError, match=r"negative among \[-2\]"):
        futures[1].result(30)
    worker.stop()
    assert sizes == [1, 1, 1]


def test_stopping_finishes_what_was_taken() -> None:
    calls = Calls()
    worker = Worker(calls, max_batch=2, max_wait=0)
    held(worker, calls)
    futures = [worker.submit("a", item) for item in range(7)]
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    while not worker._stopped:
        pass
    with pytest.raises(Fault, match="stopping") as caught:
        worker.submit("a", 9)
    assert caught.value.status == 503
    calls.go.set()
    stopper.join(30)
    assert [future.result(0) for future in futures] == [0, 2, 4, 6, 8, 10, 12]
    worker.stop()  # again does nothing


def test_a_worker_that_never_started_can_be_stopped() -> None:
    Worker(Calls(), 1, 0).stop()


def test_histogram_counts_like_a_loop() -> None:
    bounds, values = (0.5, 1.0, 4.0), [0.0, 0.5, 0.75, 1.0, 1.5, 4.0, 9.0]
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    expected = [f'h_bucket{{p="q",le="{name}"}} {sum(value <= bound for value in values)}'
                for name, bound in (("0.5", 0.5), ("1", 1.0), ("4", 4.0), ("+Inf", 1e9))]  # fmt: skip
    assert list(histogram.lines("h", 'p="q"')) == [*expected, 'h_sum{p="q"} 16.75', 'h_count{p="q"} 7']
    assert list(Histogram(bounds).lines("h"))[-2:] == ["h_sum 0", "h_count 0"]
