"""What a person sees while measurements run: a bar with the time left on a terminal, else lines; on standard error."""

from __future__ import annotations

import sys
import time
from typing import Protocol


class Progress(Protocol):
    """Told what is under way, and how much of the expected work is done."""

    def note(self, text: str) -> None: ...

    def advance(self, seconds: float) -> None: ...

    def close(self) -> None: ...


class Silent:
    """Shows nothing."""

    def note(self, text: str) -> None: ...

    def advance(self, seconds: float) -> None: ...

    def close(self) -> None: ...


class Lines:
    """A line for each thing that begins, with the time left by what the work so far took."""

    def __init__(self, total: float) -> None:
        self._total, self._done, self._start = total, 0.0, time.monotonic()

    def note(self, text: str) -> None:
        left = ""
        if self._done > 0:
            seconds = (time.monotonic() - self._start) / self._done * max(0.0, self._total - self._done)
            left = f" (about {clock(seconds)} left)"
        print(text + left, file=sys.stderr, flush=True)

    def advance(self, seconds: float) -> None:
        self._done += seconds

    def close(self) -> None: ...


class Live:
    """One bar."""

    def __init__(self, total: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("left"), TimeRemainingColumn())
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=total)
        self._bar.start()

    def note(self, text: str) -> None:
        self._bar.update(self._task, description=text)

    def advance(self, seconds: float) -> None:
        self._bar.update(self._task, advance=seconds)

    def close(self) -> None:
        self._bar.stop()


def make_progress(total: float) -> Progress:
    """`total` is the expected work in seconds."""
    return Live(total) if sys.stderr.isatty() else Lines(total)


def clock(seconds: float) -> str:
    """75 as 1:15, 3675 as 1:01:15."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
