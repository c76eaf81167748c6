"""What each section of the comparison shows, computed: plain values, texts and drawings for the template."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from srattn.explain import compare_figures as figures
from srattn.explain.headlines import ACCURACY, Headline, headline_of
from srattn.explain.sections import wilson_interval

if TYPE_CHECKING:
    from srattn.explain.compare import Run

_CLASSES_SHOWN = 40
# What every run has of its own, and what says nothing of how it was trained.
_OWN_OPTIONS = ("out", "resume")


def palette(count: int) -> list[dict[str, Any]]:
    """Number, colour variable and stroke of each run, for the legend."""
    return [
        {"number": number, "colour": figures.variable(number), "dash": figures.svg_dash(number)}
        for number in range(count)
    ]


_MEASURED_ON = ("data", "val", "val_fraction", "split_seed")


def table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row a run: size, result, time."""
    rows = []
    for run in runs:
        headline = headline_of(run.result, run.config)
        value, images = number(run.result.get(headline.name)), run.result.get("val_images")
        interval = None
        # An interval of a share of images; other figures are no such share.
        if headline is ACCURACY and value is not None and 0 <= value <= 1 and isinstance(images, int) and images > 0:
            interval = wilson_interval(round(value * images), images)
        peak, epoch = best_epoch(run)
        loss = number(run.result.get("loss"))  # of the weights that were kept, which need not be the last
        speeds = values(run.history, "images_per_second")
        rows.append(
            {
                "name": run.name,
                "model": run.result.get("model") or run.config.get("model") or "–",
                "parameters": number(run.result.get("parameters")),
                "headline": headline,
                "value": value,
                "interval": interval,
                "peak": peak,
                "peak_epoch": epoch,
                "loss": last(run.history, "val_loss") if loss is None else loss,
                "epochs": len(run.history),
                "seconds": number(run.result.get("seconds")) or sum(values(run.history, "seconds")) or None,
                "speed": statistics.median(speeds) if speeds else None,
                "finished": bool(run.result),
            }
        )
    return rows


def one_headline(runs: Sequence[Run]) -> Headline | None:
    """The figure that names all results; None where runs have different ones."""
    found = {headline_of(run.result, run.config) for run in runs}
    return found.pop() if len(found) == 1 else None


def measured_alike(runs: Sequence[Run]) -> bool:
    """Whether all finished runs were measured by the same figure on the same images, as far as their options tell."""
    finished = [run for run in runs if run.result]
    told = {tuple(_text(run.config.get(name)) for name in _MEASURED_ON) for run in finished}
    return len(told) <= 1 and len({headline_of(run.result, run.config) for run in finished}) <= 1


def best(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The run of the highest headline, and whether the images are enough to tell it from the second.

    None where runs were measured on different images, or by different figures.
    """
    if not measured_alike(runs):
        return None
    rows = sorted((row for row in table(runs) if row["value"] is not None), key=lambda row: -row["value"])
    if not rows:
        return None
    first = rows[0]
    second = rows[1] if len(rows) > 1 else None
    apart = None
    if second is not None and first["interval"] and second["interval"]:
        apart = first["interval"][0] > second["interval"][1]
    return {"row": first, "second": second, "apart": apart}


def curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The drawings: loss, headlines and learning rate over the epochs, headlines over the time."""
    headlines = list(dict.fromkeys(headline_of(run.result, run.config) for run in runs))
    wanted: list[tuple[str, str, float, bool]] = []
    for each in headlines:
        title, scale = _titled(each)
        wanted += [(f"val_{each.name}", f"Validation {title}", scale, by_time) for by_time in (False, True)]
    wanted += [("val_loss", "Validation loss", 1.0, False), ("train_loss", "Training loss", 1.0, False)]
    for each in headlines:
        title, scale = _titled(each)
        wanted.append((f"train_{each.name}", f"Training {title}", scale, False))
    wanted.append(("learning_rate", "Learning rate", 1.0, False))
    drawn = []
    for key, title, scale, by_time in wanted:
        series = [points(run.history, key, scale, by_time) for run in runs]
        if any(x for x, _ in series):
            title = f"{title} over the time" if by_time else title
            drawn.append(Markup(figures.overlay(series, [run.name for run in runs], title, by_time)))
    return drawn


def _titled(headline: Headline) -> tuple[str, float]:
    """A title, and what the values are multiplied by."""
    return (f"{headline.words}, %", 100.0) if headline.share else (headline.words, 1.0)


def settings(runs: Sequence[Run]) -> dict[str, Any]:
    """Options that differ, with a cell for each run, and those that are the same."""
    names = list(dict.fromkeys(name for run in runs for name in run.config if name not in _OWN_OPTIONS))
    differ, same = [], []
    for name in names:
        found = [_text(run.config[name]) if name in run.config else "–" for run in runs]
        if len(set(found)) > 1:
            differ.append((name, found))
        else:
            same.append((name, found[0]))
    return {"differ": differ, "same": same}


def classes(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The headline of each class in the runs that have the same classes and headline as the first that has any.

    Widest spread first.
    """
    known = [(index, run) for index, run in enumerate(runs) if _per_class(run)]
    if not known:
        return None
    names, headline = list(_per_class(known[0][1])), headline_of(known[0][1].result, known[0][1].config)
    alike = [
        (index, run)
        for index, run in known
        if set(_per_class(run)) == set(names) and headline_of(run.result, run.config) == headline
    ]
    if len(alike) < 2:
        return None
    rows = []
    for name in names:
        found = [number(_per_class(run)[name]) for _, run in alike]
        present = [value for value in found if value is not None]
        rows.append({"name": name, "values": found, "spread": max(present) - min(present) if present else 0.0})
    rows.sort(key=lambda row: -row["spread"])
    shown = rows[:_CLASSES_SHOWN]
    return {
        "headline": headline,
        "figure": Markup(
            figures.per_class(
                shown, [index for index, _ in alike], [run.name for _, run in alike], headline.of_class, headline.share
            )
        ),
        "rows": rows,
        "runs": [(index, run.name) for index, run in alike],
        "left_out": [run.name for index, run in enumerate(runs) if index not in {i for i, _ in alike}],
        "shown": len(shown),
    }


def circumstances(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Machine and versions of each run, where they differ or not."""
    rows: list[tuple[str, list[str]]] = []
    for group in ("machine", "versions"):
        parts = [run.result.get(group) for run in runs]
        maps: list[Mapping[str, Any]] = [part if isinstance(part, Mapping) else {} for part in parts]
        for name in dict.fromkeys(key for part in maps for key in part):
            rows.append((str(name).replace("_", " "), [_text(part[name]) if name in part else "–" for part in maps]))
    return rows


def number(value: object) -> float | None:
    """A finite number, else None."""
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fine else None  # type: ignore[arg-type]


def values(history: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    found = (number(record.get(key)) for record in history)
    return [value for value in found if value is not None]


def last(history: Sequence[Mapping[str, Any]], key: str) -> float | None:
    found = values(history, key)
    return found[-1] if found else None


def best_epoch(run: Run) -> tuple[float | None, int | None]:
    """The highest headline on the validation images of a run, and its epoch (the first of equals)."""
    name = f"val_{headline_of(run.result, run.config).name}"
    found = [(number(r.get(name)), number(r.get("epoch"))) for r in run.history]
    known = [(value, epoch) for value, epoch in found if value is not None]
    if not known:
        return None, None
    value, epoch = max(known, key=lambda pair: pair[0])
    return value, None if epoch is None else int(epoch)


def points(
    history: Sequence[Mapping[str, Any]], key: str, scale: float, by_time: bool
) -> tuple[list[float], list[float]]:
    """Epochs (or minutes since the start) and the values of `key`; records without it are left out."""
    xs, ys, minutes = [], [], 0.0
    for index, record in enumerate(history):
        minutes += (number(record.get("seconds")) or 0.0) / 60
        value = number(record.get(key))
        if value is not None:
            xs.append(minutes if by_time else number(record.get("epoch")) or index + 1.0)
            ys.append(value * scale)
    return xs, ys


def _per_class(run: Run) -> Mapping[str, Any]:
    found = run.result.get(headline_of(run.result, run.config).by_class)
    return found if isinstance(found, Mapping) else {}


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_text, value)) or "none" if isinstance(value, (list, tuple)) else str(value)
