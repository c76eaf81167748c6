"""How far a pass over a data set is: a bar on a terminal, a line now and then elsewhere, on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

_EVERY = 10.0  # seconds between lines where nobody sees a bar


class Watch:
    """Shows nothing itself: what a rank other than the first, or a test, is given."""

    def start(self, done: int, total: int) -> None:
        """`done` of `total` rows were there already."""

    def advance(self, rows: int) -> None: ...

    def close(self) -> None: ...


class Lines(Watch):
    """A line every ten seconds."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stderr
        self._first = self._done = self._total = 0
        self._began = self._told = 0.0

    def start(self, done: int, total: int) -> None:
        self._first = self._done = done
        self._total = total
        self._began = self._told = time.monotonic()
        if done:
            self._say(f"{done} of {total} rows are there from before")

    def advance(self, rows: int) -> None:
        self._done += rows
        now = time.monotonic()
        if now - self._told >= _EVERY:
            self._told = now
            speed = (self._done - self._first) / (now - self._began)
            left = (self._total - self._done) / max(speed, 1e-9)
            self._say(f"{self._done} of {self._total} rows  {speed:.0f} rows/s  left {left:.0f} s")

    def _say(self, text: str) -> None:
        print(f"srattn: {text}", file=self._file, flush=True)


class Bar(Watch):
    """A bar that moves, with speed and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            BarColumn(bar_width=32),
            TextColumn("{task.completed:,} of {task.total:,} rows"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: Any = None
        self._first, self._began = 0, 0.0

    def start(self, done: int, total: int) -> None:
        self._first, self._began = done, time.monotonic()
        self._task = self._bar.add_task("rows", total=total, completed=done, speed="")
        self._bar.start()

    def advance(self, rows: int) -> None:
        if self._task is None:
            return
        self._bar.advance(self._task, rows)
        done = self._bar.tasks[0].completed - self._first
        self._bar.update(self._task, speed=f"{done / max(1e-9, time.monotonic() - self._began):.0f} rows/s")

    def close(self) -> None:
        self._bar.stop()


def make_watch(first: bool = True) -> Watch:
    """For the first rank a bar on a terminal or lines; nothing for the others."""
    if not first:
        return Watch()
    return Bar() if sys.stderr.isatty() else Lines()
