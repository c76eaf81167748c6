"""What each section of the page of a run on masks or boxes shows, computed: plain values, texts and drawings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from torch import nn

from srattn.data.palette import Palette
from srattn.explain import figures, scenes_figures
from srattn.explain.compare_figures import COLOURS, variable
from srattn.explain.compare_sections import number, values
from srattn.explain.sections import _cell, _machine

_HISTORY_ROWS = 60
_PAIRS = 8
_OPEN_CLASSES = 40
_SHOWN_ELSEWHERE = ("support", "confusion", "per_image", "curves")

CLASS_FIGURES = {
    "segmentation": {
        "IoU": "per_class_iou", "Dice": "per_class_dice", "found": "per_class_accuracy",
        "boundary F": "per_class_boundary_f",
    },
    "detection": {"AP at IoU 0.5": "per_class_map50", "AP, IoU 0.5 to 0.95": "per_class_map"},
}  # fmt: skip
"""Columns of the table of classes and where result.json has them; the first one is drawn as a bar."""
_TILES = {
    "segmentation": {"mean Dice": "dice", "pixel accuracy": "pixel_accuracy", "boundary F": "boundary_f"},
    "detection": {"AP, IoU 0.5 to 0.95": "map", "AP at IoU 0.75": "map75"},
}


def summary(
    task: str, model: nn.Module, history: Sequence[Mapping[str, Any]], result: Mapping[str, object]
) -> dict[str, Any]:
    """The figures at the top."""
    seconds, speed = values(history, "seconds"), values(history, "images_per_second")
    figures = {words: number(result.get(key)) for words, key in _TILES[task].items()}
    return {
        "model": model_words(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "figures": {words: value for words, value in figures.items() if value is not None},
        "epochs": len(history),
        "seconds": sum(seconds) if seconds else None,
        "speed": statistics.median(speed) if speed else None,
        "machine": _machine(result),
    }


def model_words(model: nn.Module) -> str:
    """Names of the backbone and the head."""
    config: Any = getattr(model, "config", {})
    body, head = config.get("backbone", config), config.get("head", {})
    names = [str(part[key]) for part, key in ((body, "name"), (head, "kind")) if part.get(key)]
    return " with ".join(names) or type(model).__name__


def curves(task: str, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Two drawings and the records behind them, thinned to a readable number of rows."""
    if task == "segmentation":
        title, series = "Mean IoU", {"training": "train_miou", "validation": "val_miou"}
    else:
        title, series = "Validation AP", {"IoU 0.5 to 0.95": "val_map", "IoU 0.5": "val_map50"}
    names = dict.fromkeys(name for record in history for name in record)
    columns = [name for name in names if name.startswith(("train_", "val_")) and values(history, name)]
    step = max(1, math.ceil(len(history) / _HISTORY_ROWS))
    kept = [i for i in range(len(history)) if i % step == 0 or i == len(history) - 1]
    return {
        "loss": Markup(figures.loss_curve(history)),
        "headline": Markup(scenes_figures.share_curve(history, series, title)),
        "columns": [name.replace("val_", "validation ").replace("_", " ") for name in columns],
        "rows": [(history[i].get("epoch", i + 1), [_cell(history[i].get(name)) for name in columns]) for i in kept],
        "step": step,
        "records": len(history),
    }


def class_table(task: str, classes: Sequence[str], result: Mapping[str, object], palette: Palette) -> dict[str, Any]:
    """A row a class: colour, how much of it there is, and its figures."""
    columns = CLASS_FIGURES[task]
    support = [number(_of(result, "support").get(name)) for name in classes]
    total = sum(count for count in support if count) or 1
    rows = [
        {
            "name": name,
            "colour": "#{:02x}{:02x}{:02x}".format(*palette.colours[place]) if place < len(palette) else None,
            "support": count,
            "share": None if count is None else count / total,
            "figures": [number(_of(result, key).get(name)) for key in columns.values()],
        }
        for place, (name, count) in enumerate(zip(classes, support, strict=True))
    ]
    return {"columns": list(columns), "rows": rows[:_OPEN_CLASSES], "more": rows[_OPEN_CLASSES:]}


def confusion(classes: Sequence[str], result: Mapping[str, object]) -> dict[str, Any] | None:
    """The matrix of pixels, and the pairs of classes that lose most; None where it was not recorded."""
    counts = np.asarray(result.get("confusion") or [], dtype=np.float64)
    if counts.shape != (len(classes), len(classes)) or not np.isfinite(counts).all():
        return None
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    off = share - np.diag(np.diag(share))
    order = [index for index in np.argsort(-off, axis=None, kind="stable") if off.flat[index] > 0]
    places = [divmod(int(index), len(classes)) for index in order]
    return {
        "figure": Markup(scenes_figures.confusion_shares(counts, classes)),
        "pairs": [(classes[true], classes[said], float(off[true, said])) for true, said in places[:_PAIRS]],
        "more_pairs": max(0, len(places) - _PAIRS),
    }


def precision_recall(result: Mapping[str, object]) -> dict[str, Any] | None:
    """The curves, and the colours of the few that have one; None where no class has an object."""
    lines = {str(name): line for name, line in _of(result, "curves").items() if isinstance(line, Sequence) and line}
    if not lines or not all(number(value) is not None for line in lines.values() for value in line):
        return None
    colours = {name: variable(place) for place, name in enumerate(lines)} if len(lines) <= COLOURS else {}
    return {"figure": Markup(scenes_figures.precision_recall(lines)), "classes": len(lines), "colours": colours}


def other_facts(result: Mapping[str, object]) -> dict[str, object]:
    """What the page shows nowhere else."""
    return {
        key: value for key, value in result.items() if key not in _SHOWN_ELSEWHERE and not key.startswith("per_class_")
    }


def _of(result: Mapping[str, object], key: str) -> Mapping[Any, Any]:
    found = result.get(key)
    return found if isinstance(found, Mapping) else {}
