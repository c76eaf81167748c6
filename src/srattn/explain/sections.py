"""What each section of the report shows, computed: plain values, texts and pictures for the template."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from markupsafe import Markup
from torch import Tensor, nn

from srattn.explain import figures, pictures
from srattn.explain import scaling as measure
from srattn.explain.attention import AttentionMap, attention_maps, query_overlay, received_attention
from srattn.explain.canvas import shorten
from srattn.models.backbone import Backbone
from srattn.models.plan import plan

_CARDS = 40
_WRONG_CARDS = 28
_ATTENTION_IMAGES = 6
_HISTORY_ROWS = 60
_PAIRS = 8


def summary(
    labels: Tensor,
    predicted: Tensor,
    classes: Sequence[str],
    model: nn.Module,
    history: Sequence[Mapping[str, Any]],
    result: Mapping[str, object],
) -> dict[str, Any]:
    """The figures at the top."""
    right, total, shown = int((labels == predicted).sum()), len(labels), len(labels)
    images, accuracy = result.get("val_images"), result.get("accuracy")
    if isinstance(images, int) and images > shown and _is_number(accuracy):
        # The page was given a selection of the images; the figure at its head is that of all.
        right, total = round(cast(float, accuracy) * images), images
    seconds: list[float] = [record["seconds"] for record in history if _is_number(record.get("seconds"))]
    speed: list[float] = [r["images_per_second"] for r in history if _is_number(r.get("images_per_second"))]
    return {
        "right": right,
        "total": total,
        "shown": shown,
        "accuracy": right / total,
        "interval": wilson_interval(right, total),
        "classes": len(classes),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model": str(getattr(model, "config", {}).get("name", type(model).__name__)),
        "epochs": len(history),
        "seconds": sum(seconds) if seconds else None,
        "speed": statistics.median(speed) if speed else None,
        "machine": _machine(result),
    }


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): how far `total` images can tell."""
    z, share = 1.959964, right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _machine(result: Mapping[str, object]) -> str:
    machine = result.get("machine")
    if not isinstance(machine, Mapping):
        return str(machine) if machine else ""
    words = [str(machine[key]) for key in ("gpu", "processor") if machine.get(key)]
    for key in ("core", "thread"):
        if count := machine.get(f"{key}s"):
            words.append(f"{count} {key}" if count == 1 else f"{count} {key}s")
    words += [f"on {machine['device']}"] if machine.get("device") else []
    words += [str(machine["system"])] if machine.get("system") else []
    return ", ".join(words)


_SHOWN_ELSEWHERE = {"classes", "skipped", "lost", "confusion", "support", "per_class_accuracy"}


def facts(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """The figures of result.json that the page shows nowhere else, nested ones too, as rows of (name, text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if key in _SHOWN_ELSEWHERE:
            continue
        if isinstance(value, Mapping):
            rows += facts(value, f"{name}: ")
        elif isinstance(value, (list, tuple)):
            rows.append(
                (name, ", ".join(map(str, value[:12])) + (f" and {len(value) - 12} more" if value[12:] else ""))
            )
        elif isinstance(value, float):
            rows.append((name, f"{value:.6g}"))
        else:
            rows.append((name, "none" if value is None else str(value)))
    return rows


def curves(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Two drawings and the records behind them, thinned to a readable number of rows."""
    columns = [key for key in (*_CURVE_KEYS, "learning_rate") if any(_is_number(r.get(key)) for r in history)]
    step = max(1, math.ceil(len(history) / _HISTORY_ROWS))
    kept = [i for i in range(len(history)) if i % step == 0 or i == len(history) - 1]
    return {
        "loss": Markup(figures.loss_curve(history)),
        "accuracy": Markup(figures.accuracy_curve(history)),
        "columns": [column.replace("val_", "validation ").replace("_", " ") for column in columns],
        "rows": [(history[i].get("epoch", i + 1), [_cell(history[i].get(key)) for key in columns]) for i in kept],
        "step": step,
        "records": len(history),
    }


_CURVE_KEYS = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if _is_number(value) else "–"


def confusion(
    labels: Tensor, predicted: Tensor, classes: Sequence[str], result: Mapping[str, object]
) -> dict[str, Any]:
    """The matrix, the pairs most often confused, and each class's share found."""
    counts = figures.confusion_counts(labels.cpu().numpy(), predicted.cpu().numpy(), len(classes))
    whole = result.get("confusion")
    if result.get("val_images") != len(labels) and isinstance(whole, list):
        # The page was given a selection of the images; the run has counted all of them.
        counts = np.asarray(whole, dtype=np.int64).reshape(counts.shape)
    off = counts - np.diag(np.diag(counts))
    order = [index for index in np.argsort(-off, axis=None, kind="stable") if off.flat[index] > 0]
    pairs = [(classes[i // len(classes)], classes[i % len(classes)], int(off.flat[i])) for i in order[:_PAIRS]]
    rows = [
        {
            "name": name,
            "images": int(counts[k].sum()),
            "found": counts[k, k] / counts[k].sum() if counts[k].sum() else None,
            "right": counts[k, k] / counts[:, k].sum() if counts[:, k].sum() else None,
        }
        for k, name in enumerate(classes)
    ]
    return {
        "figure": Markup(figures.confusion_matrix(counts, classes)),
        "pairs": pairs,
        "more_pairs": max(0, len(order) - _PAIRS),
        "rows": rows,
    }


def predictions(images: Tensor, labels: Tensor, probabilities: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Cards of single images: the wrong ones first, the surest mistake at the head, then the least sure of the rest."""
    top, predicted = probabilities.max(dim=1)
    wrong = predicted != labels
    mistakes = sorted(torch.nonzero(wrong).flatten().tolist(), key=lambda i: -float(top[i]))
    others = sorted(torch.nonzero(~wrong).flatten().tolist(), key=lambda i: float(top[i]))
    shown = mistakes[:_WRONG_CARDS]
    shown = shown + others[: _CARDS - len(shown)]
    cards = [
        {
            "picture": Markup(pictures.thumbnail(images[i])),
            "true": shorten(classes[int(labels[i])], 28),
            "predicted": shorten(classes[int(predicted[i])], 28),
            "probability": float(top[i]),
            "wrong": bool(wrong[i]),
        }
        for i in shown
    ]
    return {
        "cards": cards,
        "wrong": len(mistakes),
        "wrong_shown": min(len(mistakes), _WRONG_CARDS),
        "right": len(others),
        "right_shown": len(shown) - min(len(mistakes), _WRONG_CARDS),
    }


def attention(
    model: nn.Module, images: Tensor, model_inputs: Tensor, labels: Tensor, classes: Sequence[str]
) -> dict[str, Any]:
    """Rows of pictures: an image with its query point, then what that point attends to in every stage."""
    chosen = _one_of_each(labels, _ATTENTION_IMAGES)
    device = next(model.parameters()).device
    maps = attention_maps(model, model_inputs[chosen].to(device))
    size = (images.shape[-2], images.shape[-1])
    everywhere = [received_attention(each, size).cpu() for each in maps]
    rows = []
    for row, index in enumerate(chosen):
        image, point = images[index].cpu(), salient_point(images[index].cpu())
        rows.append(
            {
                "name": shorten(classes[int(labels[index])], 40),
                "point": point,
                "marked": Markup(pictures.marked(image, point)),
                "plain": Markup(pictures.thumbnail(image, 128)),
                "stages": [
                    Markup(pictures.overlay(image, query_overlay(each, point, size)[row].cpu(), point)) for each in maps
                ],
                "received": [Markup(pictures.overlay(image, heat[row])) for heat in everywhere],
            }
        )
    return {"rows": rows, "stages": [_stage(each) for each in maps]}


def _stage(each: AttentionMap) -> dict[str, Any]:
    return {
        "number": each.stage + 1,
        "block": each.block + 1,
        "queries": f"{each.grid[0]} × {each.grid[1]}",
        "keys": f"{each.key_grid[0]} × {each.key_grid[1]}",
        "heads": each.probabilities.shape[1],
        "path": each.path,
        "class_token": each.class_token,
    }


def _one_of_each(labels: Tensor, count: int) -> list[int]:
    """The first image of each class in turn, spread over the classes; then second ones, until there are `count`."""
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        by_class.setdefault(label, []).append(index)
    present = sorted(by_class)
    spread = [present[i * len(present) // count] for i in range(count)] if len(present) > count else present
    queue = [by_class[label] for label in spread]
    turns = [group[turn] for turn in range(count) for group in queue if turn < len(group)]
    return turns[:count]


def salient_point(image: Tensor) -> tuple[int, int]:
    """A pixel (y, x) of `image` (C, H, W) worth asking about: where a patch differs most from the rest of the picture.

    Of equals the one nearest to the middle: what lies at the rim is seldom the subject.
    """
    grey = image.float().nan_to_num().mean(dim=0)
    height, width = grey.shape
    kernel = max(1, min(height, width) // 16) * 2 + 1
    smooth = F.avg_pool2d(grey[None], kernel, stride=1, padding=kernel // 2, count_include_pad=False)[0]
    y = torch.linspace(-1, 1, height, device=grey.device)[:, None] if height > 1 else torch.zeros(1, 1)
    x = torch.linspace(-1, 1, width, device=grey.device) if width > 1 else torch.zeros(1)
    score = ((smooth - grey.median()).abs() + 1e-6) * (1 - 0.4 * (y * y + x * x))
    index = int(score.argmax())
    return index // width, index % width


def plan_table(model: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """The rows of the plan for one image of `size`."""
    return {"rows": plan(cast(Backbone, model), size).to_rows(), "size": f"{size[0]} × {size[1]}"}


def scaling(model: nn.Module) -> dict[str, Any]:
    """The measurement of SRA against dense attention, or why there is none."""
    device = next(model.parameters()).device
    try:
        result = measure.measure_scaling(device=device)
    except measure.MeasurementError as error:
        # The run's other results stand; figures of wrong results do not.
        return {"error": str(error)}
    tokens = [point.tokens for point in result.points]
    names = (measure.DENSE, measure.KEPT, measure.SRA)
    last = result.points[-1]
    return {
        "error": None,
        "result": result,
        "names": names,
        "last": last,
        "time_share": _share(last.seconds),
        "memory_share": _share(last.bytes),
        "time": Markup(
            figures.scaling_figure(tokens, {n: [p.seconds[n] for p in result.points] for n in names}, "Time", "seconds")
        ),
        "memory": Markup(
            figures.scaling_figure(tokens, {n: [p.bytes[n] for p in result.points] for n in names}, "Memory", "bytes")
        ),
    }


def _share(values: Mapping[str, float | None]) -> float | None:
    """What SRA takes of what dense attention takes."""
    ours, dense = values[measure.SRA], values[measure.DENSE]
    return ours / dense if ours and dense else None
