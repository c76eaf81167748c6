"""``srattn tune``: a learning-rate range test, or a search for the size of the batch. Leaves no run behind."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from srattn.cli.eval import free_targets
from srattn.cli.train import add_config_argument
from srattn.errors import SrattnError

if TYPE_CHECKING:
    import jsonargparse

    from srattn.engine.batch_probe import Trial
    from srattn.engine.batch_size import BatchSearch
    from srattn.engine.tune import LRRange

_OWN = ("what", "config", "lowest", "highest", "steps", "memory", "first", "most", "seconds", "csv", "picture")


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    import jsonargparse

    from srattn.engine.config import TrainConfig

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_argument("what", type=Literal["lr", "batch"], help="lr: range test; batch: speed and memory by size")
    add_config_argument(parser)
    parser.add_argument("--lowest", type=float, default=1e-6, help="lr: the first rate")
    parser.add_argument("--highest", type=float, default=1.0, help="lr: the last rate")
    parser.add_argument("--steps", type=int, default=200, help="lr: training steps of the sweep")
    parser.add_argument(
        "--memory", type=float | None, help="batch: stay below this many GB; 0.8 of the free by default"
    )
    parser.add_argument("--first", type=int, default=8, help="batch: the smallest to try")
    parser.add_argument("--most", type=int, default=4096, help="batch: the largest to try")
    parser.add_argument("--seconds", type=float, default=10.0, help="batch: the longest step to try")
    parser.add_argument("--csv", type=str | None, help="write what was measured to this .csv file")
    parser.add_argument("--picture", type=str | None, help="draw it to this .png (or .pdf, .svg) file")
    parser.add_class_arguments(TrainConfig, as_group=False, skip={"out", "resume"})


def run(args: jsonargparse.Namespace) -> int:
    from srattn.engine.config import TrainConfig
    from srattn.engine.rows.ranks import check_alone

    check_alone("tune")
    free_targets(args.csv, ".csv", args.picture)
    values: dict[str, Any] = {name: value for name, value in args.as_dict().items() if name not in _OWN}
    config = TrainConfig(**values)
    return _lr(args, config) if args.what == "lr" else _batch(args, config)


def _lr(args: jsonargparse.Namespace, config: Any) -> int:
    from srattn.engine.tune import lr_range

    with _Bar(args.steps) as bar:
        found = lr_range(config, lowest=args.lowest, highest=args.highest, steps=args.steps, notify=bar.step)
    rows = zip(found.rates, found.losses, found.smoothed, strict=False)
    _write(args, ["rate", "loss", "smoothed"], rows, lambda path: _draw_lr(path, found))
    facts = found.facts
    print(f"{facts['steps']} steps with {facts['batch_size']} images each, {facts['model']} on {facts['data']}")
    print(found.reason)
    if found.suggestion is None:
        raise SrattnError("no learning rate can be suggested from this sweep: see the line above")
    print(f"suggested: --lr {found.suggestion:g}")
    return 0


def _batch(args: jsonargparse.Namespace, config: Any) -> int:
    from srattn.engine.batch_size import batch_size_search

    found = batch_size_search(
        config,
        memory_gb=args.memory,
        first=args.first,
        most=args.most,
        seconds=args.seconds,
        notify=_tell,
    )
    rows = [(t.batch, t.seconds, t.images_per_second, t.peak) for t in sorted(found.trials, key=lambda t: t.batch)]
    header = ["batch", "seconds_per_step", "images_per_second", "peak_bytes"]
    _write(args, header, rows, lambda path: _draw_batch(path, found))
    how = "was tried" if found.measured else "follows from the growth of memory, and was not tried"
    print(f"{found.reason}; the largest batch below {found.limit / 1e9:.2f} GB is {found.largest} ({how})")
    print(f"fastest: --batch_size {found.recommended} (another batch wants another --lr: srattn tune lr)")
    return 0


def _tell(trial: Trial) -> None:
    memory = f"{trial.peak / 1e9:6.2f} GB"
    print(f"batch {trial.batch:>5}: {trial.images_per_second:9.1f} images/s, peak {memory}", flush=True)


def _write(args: jsonargparse.Namespace, header: list[str], rows: Any, draw: Any) -> None:
    from srattn.files import atomic_path

    if args.csv is not None:
        with atomic_path(args.csv) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
        print(f"figures {args.csv}")
    if args.picture is not None:
        with atomic_path(args.picture) as aside:
            draw(aside)
        print(f"picture {args.picture}")


def _draw_lr(path: Path, found: LRRange) -> None:
    from srattn.explain.tune_figures import lr_picture

    facts = found.facts
    lr_picture(path, found, f"Learning-rate range test: {facts['model']} on {Path(facts['data']).name}")


def _draw_batch(path: Path, found: BatchSearch) -> None:
    from srattn.explain.tune_figures import batch_picture

    facts = found.facts
    batch_picture(path, found, f"{facts['model']}, training at {facts['size']}x{facts['size']} on {facts['device']}")


class _Bar:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, steps: int) -> None:
        self._bar = self._task = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(24), TextColumn("{task.description}"), TextColumn("left"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("reading", total=steps)

    def __enter__(self) -> _Bar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, done: int, steps: int, rate: float, loss: float) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, description=f"rate {rate:.1e} loss {loss:.3f}")
