"""Times of several candidates, taken in turn, so that a slow moment of the machine meets all alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

LEAST_ROUNDS = 3
_TURN = 0.1  # seconds that a candidate runs at a stretch, about
_LONG = 0.3  # seconds of one run from which on it needs no run before it to warm the caches


class Summary(NamedTuple):
    """Seconds of one run over all rounds: median, quartiles, the least, and the number of rounds."""

    median: float
    q1: float
    q3: float
    least: float
    rounds: int

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, relative to the median."""
        return (self.q3 - self.q1) / (2 * self.median) if self.median else 0.0


def summarise(values: Sequence[float]) -> Summary:
    """Median and quartiles of the values, of which there is at least one."""
    ordered = sorted(values)
    if len(ordered) < 2:
        return Summary(ordered[0], ordered[0], ordered[0], ordered[0], len(ordered))
    q1, median, q3 = statistics.quantiles(ordered, n=4, method="inclusive")
    return Summary(median, q1, q3, ordered[0], len(ordered))


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 10.0,
    rounds: int | None = None,
    tell: Callable[[float], None] | None = None,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Runs all candidates round after round, in an order that changes, and gives each one's seconds by round.

    In its turn a candidate runs once uncounted, so that it finds its own data in the caches as it would in use, and
    then for about a tenth of a second; the round's value is the median of those. A long run is taken alone.

    Args:
        runs: what to time, by name.
        seconds: how long to go on, about; at least three rounds are made.
        rounds: exactly so many rounds instead.
        tell: called with the part of the work done, 0 to 1, after every turn.

    Returns:
        For each name a value a round, in the order of the rounds.
    """
    once = {name: min(_timed(run) for _ in range(2)) for name, run in runs.items()}
    order, shuffle = list(runs), random.Random(seed)
    values: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    done = 0
    while not _finished(done, rounds, time.perf_counter() - start, seconds):
        shuffle.shuffle(order)
        for turn, name in enumerate(order):
            values[name].append(_turn(runs[name], once[name]))
            if tell is not None:
                part = (done + (turn + 1) / len(order)) / (LEAST_ROUNDS if rounds is None else rounds)
                if rounds is None and seconds > 0:
                    part = min(part, (time.perf_counter() - start) / seconds)
                tell(min(1.0, part))
        done += 1
    return values


def ratios(values: Sequence[float], base: Sequence[float]) -> Summary:
    """How many times as long as `base`, round by round, which takes out what slowed both."""
    return summarise([a / b for a, b in zip(values, base, strict=True)])


def _finished(done: int, rounds: int | None, passed: float, seconds: float) -> bool:
    return done >= rounds if rounds is not None else done >= LEAST_ROUNDS and passed >= seconds


def _turn(run: Callable[[], object], once: float) -> float:
    if once >= _LONG:
        return _timed(run)
    run()
    return statistics.median(_timed(run) for _ in range(max(1, min(20, round(_TURN / max(once, 1e-9))))))


def _timed(run: Callable[[], object]) -> float:
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    finally:
        if collecting:
            gc.enable()
