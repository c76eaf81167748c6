"""What a person sees while a run is under way: a live line on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO


class Progress(Protocol):
    """Told by `train` what happens; never changes the run."""

    def note(self, text: str) -> None: ...

    def checking(self, done: int, total: int) -> None:
        """Image files read before training."""
        ...

    def start(self, step: int, steps: int, epochs: int) -> None: ...

    def step(self, epoch: int, step: int, figures: Mapping[str, float], speed: float, waiting: float) -> None:
        """After training step `step` of the whole run; `figures` are those of the epoch so far.

        `speed` is in images a second, `waiting` the part of the time that went by in waiting for images.
        """
        ...

    def epoch(self, record: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Silent:
    """Shows nothing."""

    def note(self, text: str) -> None: ...

    def checking(self, done: int, total: int) -> None: ...

    def start(self, step: int, steps: int, epochs: int) -> None: ...

    def step(self, epoch: int, step: int, figures: Mapping[str, float], speed: float, waiting: float) -> None: ...

    def epoch(self, record: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


_MINUTE = 60.0  # seconds between two lines within an epoch


class Lines(Silent):
    """A line an epoch, for files and pipes; within epochs that take longer, a line a minute.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file or sys.stdout, clock
        self._began = self._told = 0.0
        self._epochs = 0
        self._steps = self._first = self._step = 0

    def note(self, text: str) -> None:
        print(text, file=self._file, flush=True)

    def checking(self, done: int, total: int) -> None:
        if done == total or done % 5000 == 0:
            self.note(f"checked {done} of {total} image files")

    def start(self, step: int, steps: int, epochs: int) -> None:
        self._first = step
        self._steps, self._epochs = steps, epochs
        self._began = self._told = self._clock()

    def step(self, epoch: int, step: int, figures: Mapping[str, float], speed: float, waiting: float) -> None:
        self._step = step
        now = self._clock()
        if now - self._told < _MINUTE:
            return
        self._told = now
        shown = "  ".join(f"{name} {figure_text(name, value)}" for name, value in figures.items())
        self.note(
            f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}  step {step} of {self._steps}  {shown}  "
            f"{speed:.0f} images/s  loader {100 * waiting:.0f}%  left {self._left(now)}"
        )

    def epoch(self, record: Mapping[str, float]) -> None:
        self._told = self._clock()
        self.note(f"{epoch_line(record, self._epochs)}  left {self._left(self._told)}")

    def _left(self, now: float) -> str:
        """By the steps of this session and its time: an epoch's own may have been spent before it was resumed."""
        done = max(1, self._step - self._first)
        return _clock((now - self._began) / done * (self._steps - self._step))


class Live:
    """One bar that moves, with a line left behind for every epoch."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = None
        self._epochs = 0

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def checking(self, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task("checking images", total=total, figures="")
            self._bar.start()
        self._bar.update(self._task, completed=done, figures=f"{done}/{total}")
        if done == total:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None

    def start(self, step: int, steps: int, epochs: int) -> None:
        self._epochs = epochs
        self._task = self._bar.add_task("training", total=steps, completed=step, figures="")
        self._bar.start()

    def step(self, epoch: int, step: int, figures: Mapping[str, float], speed: float, waiting: float) -> None:
        shown = " ".join(f"{name} {figure_text(name, value)}" for name, value in figures.items())
        if self._task is not None:
            self._bar.update(
                self._task,
                completed=step,
                description=f"epoch {epoch}/{self._epochs}",
                figures=f"{shown} {speed:.0f} images/s loader {100 * waiting:.0f}%",
            )

    def epoch(self, record: Mapping[str, float]) -> None:
        self.note(epoch_line(record, self._epochs))

    def close(self) -> None:
        self._bar.stop()


def make_progress() -> Progress:
    """`Live` where standard output is a terminal, else `Lines`."""
    return Live() if sys.stdout.isatty() else Lines()


def epoch_line(record: Mapping[str, float], epochs: int) -> str:
    """One record of the history for people."""
    names = [name for name in record if name.startswith(("train_", "val_"))]
    figures = "  ".join(f"{name} {figure_text(name, record[name])}" for name in names)
    width = len(str(epochs))
    pace = f"{record['images_per_second']:.0f} images/s  loader {100 * record.get('loader_share', 0):.0f}%"
    return f"epoch {record['epoch']:>{width}}/{epochs}  {figures}  {pace}"


_SHARES = ("miou", "dice", "boundary_f", "map50", "map75", "map", "delta1", "delta2", "delta3", "pck")


def is_share(name: str) -> bool:
    """Whether a figure, such as "val_miou", is a part of 1 that people read as per cent."""
    name = name.removeprefix("train_").removeprefix("val_").removeprefix("segm_")
    return name.endswith("accuracy") or name.startswith("oks_ap") or name in _SHARES


def figure_text(name: str, value: float) -> str:
    """A figure of a task for people."""
    return f"{per_cent(value, 2)}%" if is_share(name) else f"{value:.4f}"


def per_cent(share: float, digits: int) -> str:
    """`0.84958` -> `84.96`; 100 is written only where nothing is missing."""
    text = f"{100 * share:.{digits}f}"
    return f"{100 - 10**-digits:.{digits}f}" if float(text) == 100 and share < 1 - 1e-12 else text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
