"""What each section of the page of a run on scenes shows, computed: plain values, texts and drawings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from torch import nn

from srattn.engine.progress import is_share
from srattn.explain import figures, scenes_figures
from srattn.explain.compare_sections import number, values
from srattn.explain.distance_figures import distance_bars, error_curve
from srattn.explain.scenes_tables import error_words, of, steps
from srattn.explain.sections import _cell, _machine
from srattn.explain.words import percent_text

_HISTORY_ROWS = 60
_PAIRS = 8
_SHOWN_ELSEWHERE = ("support", "confusion", "per_image", "curves", "by_distance")

_TILES = {
    "segmentation": {"mean Dice": "dice", "pixel accuracy": "pixel_accuracy", "boundary F": "boundary_f"},
    "detection": {"AP, IoU 0.5 to 0.95": "map", "AP at IoU 0.75": "map75"},
    "depth": {"AbsRel": "abs_rel", "RMSE": "rmse", "SILog": "silog", "within 1.25²": "delta2"},
    "pose": {"AP at OKS 0.5": "oks_ap50", "AP at OKS 0.75": "oks_ap75", "PCK": "pck"},
}
# A title, and in the legend the name of each line with its key; the last one is the subject.
_CURVES = {
    "segmentation": ("Mean IoU", {"training": "train_miou", "validation": "val_miou"}),
    "detection": ("Validation AP", {"IoU 0.5 to 0.95": "val_map", "IoU 0.5": "val_map50"}),
    "depth": ("delta1 (within 25 %)", {"training": "train_delta1", "validation": "val_delta1"}),
    "pose": ("Validation", {"PCK": "val_pck", "AP of poses": "val_oks_ap"}),
}
_SIMILARITIES = ("0.50", "0.75", "0.90")  # of ten; all of them would hide each other


def summary(
    task: str, model: nn.Module, history: Sequence[Mapping[str, Any]], result: Mapping[str, object]
) -> dict[str, Any]:
    """The figures at the top."""
    seconds, speed = values(history, "seconds"), values(history, "images_per_second")
    figures = {words: (key, number(result.get(key))) for words, key in _TILES[task].items()}
    return {
        "model": model_words(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "figures": {words: figure_words(key, value) for words, (key, value) in figures.items() if value is not None},
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
    title, series = _CURVES[task]
    names = dict.fromkeys(name for record in history for name in record)
    columns = [name for name in names if name.startswith(("train_", "val_")) and values(history, name)]
    step = max(1, math.ceil(len(history) / _HISTORY_ROWS))
    kept = [i for i in range(len(history)) if i % step == 0 or i == len(history) - 1]
    return {
        "loss": Markup(figures.loss_curve(history)),
        "headline": Markup(scenes_figures.share_curve(history, series, title)),
        "error": Markup(error_curve(history)) if task == "depth" else None,
        "columns": [name.replace("val_", "validation ").replace("_", " ") for name in columns],
        "rows": [(history[i].get("epoch", i + 1), [_cell(history[i].get(name)) for name in columns]) for i in kept],
        "step": step,
        "records": len(history),
    }


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


def precision_recall(task: str, result: Mapping[str, object]) -> dict[str, Any] | None:
    """The curves, and how many there are; None where there is nothing to find."""
    lines = {str(name): line for name, line in of(result, "curves").items() if isinstance(line, Sequence) and line}
    if not lines or not all(number(value) is not None for line in lines.values() for value in line):
        return None
    if task == "detection":
        return {"figure": Markup(scenes_figures.precision_recall(lines)), "classes": len(lines)}
    mean = np.mean([np.asarray(line, np.float64) for line in lines.values()], axis=0)
    chosen = {f"OKS {name}": lines[name] for name in _SIMILARITIES if name in lines}
    return {"figure": Markup(scenes_figures.precision_recall(chosen, mean, "people")), "classes": len(chosen)}


def distances(result: Mapping[str, object]) -> list[Markup]:
    """Drawings of the errors by distance; none where they are not recorded."""
    edges, found = steps(result)
    return [
        Markup(distance_bars(edges, [None if value is None else factor * value for value in found[key]], title, unit))
        for key, title, factor, unit in (("abs_rel", "AbsRel, %", 100.0, "%"), ("rmse", "RMSE, m", 1.0, "m"))
        if any(value is not None for value in found.get(key, []))
    ]


def other_facts(result: Mapping[str, object]) -> dict[str, object]:
    """What the page shows nowhere else."""
    return {
        key: value
        for key, value in result.items()
        if key not in _SHOWN_ELSEWHERE and not key.startswith(("per_class_", "per_joint_"))
    }


def figure_words(key: str, value: float) -> str:
    """A figure of a run for a tile."""
    if key == "abs_rel":
        return error_words(value)
    if is_share(key):
        return percent_text(value)
    return f"{value:.3g} m" if key == "rmse" else f"{value:.3g}"
