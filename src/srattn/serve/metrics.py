"""Figures of a running service in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """Counts of values up to each of `bounds`, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        """`labels` as in `path="/predict"`."""
        comma, total = "," if labels else "", 0
        for bound, count in zip((*map(_number, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{comma}le="{bound}"}} {total}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {_number(self._sum)}"
        yield f"{name}_count{braces} {total}"


class Metrics:
    """Requests by path and code, their seconds, the sizes of batches, and the length of the queue.

    Args:
        queue_length: asked whenever the figures are written.
    """

    def __init__(self, queue_length: Callable[[], int]) -> None:
        self._queue_length = queue_length
        self._lock = threading.Lock()  # requests are counted by the event loop, batches by the model's thread
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, Histogram] = {}
        self._batches = Histogram(_SIZES)

    def request(self, path: str, code: int, seconds: float) -> None:
        """`path` must be one of few: each has its own lines."""
        with self._lock:
            self._requests[path, code] += 1
            self._seconds.setdefault(path, Histogram(_SECONDS)).observe(seconds)

    def batch(self, size: int) -> None:
        with self._lock:
            self._batches.observe(size)

    def text(self) -> str:
        """All of it, for `CONTENT_TYPE`."""
        with self._lock:
            lines = _head("srattn_requests_total", "counter", "Requests by path and status code.")
            for (path, code), count in sorted(self._requests.items()):
                lines.append(f'srattn_requests_total{{path="{path}",code="{code}"}} {count}')
            lines += _head("srattn_request_seconds", "histogram", "Seconds from the first byte to the whole answer.")
            for path, histogram in sorted(self._seconds.items()):
                lines += histogram.lines("srattn_request_seconds", f'path="{path}"')
            lines += _head("srattn_batch_size", "histogram", "Items that the model was given at once.")
            lines += self._batches.lines("srattn_batch_size")
        lines += _head("srattn_queue_length", "gauge", "Images that are accepted and not yet answered.")
        lines.append(f"srattn_queue_length {self._queue_length()}")
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, words: str) -> list[str]:
    return [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")
