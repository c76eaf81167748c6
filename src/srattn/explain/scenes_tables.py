"""The table of a run's classes, joints or distances: how much there is of each, and its figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from srattn.data.dense.joints import SIDES, sides_of
from srattn.data.palette import Palette
from srattn.explain.compare_sections import number
from srattn.explain.scene_words import WORDS
from srattn.explain.words import percent_text

_OPEN_ROWS = 40
_NONE = "–"

CLASS_FIGURES = {
    "segmentation": {
        "IoU": "per_class_iou", "Dice": "per_class_dice", "found": "per_class_accuracy",
        "boundary F": "per_class_boundary_f",
    },
    "detection": {"AP at IoU 0.5": "per_class_map50", "AP, IoU 0.5 to 0.95": "per_class_map"},
    "pose": {"PCK": "per_joint_pck", "OKS": "per_joint_oks"},
}  # fmt: skip
"""Columns of the table and where result.json has them; the first one is drawn as a bar."""
_OF_DISTANCE = {"within 25 %": "delta1", "AbsRel": "abs_rel", "RMSE": "rmse"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One class, joint or step of distance.

    Attributes:
        colour: as CSS has it, None without one.
        amount: how much there is of it, in words.
        figures: in words.
        bar: the first of them, from 0 to 1.
    """

    name: str
    colour: str | None
    amount: str
    figures: list[str]
    bar: float


def table_of(task: str, classes: Sequence[str], result: Mapping[str, object], palette: Palette) -> dict[str, Any]:
    """Columns, the first rows and the rest."""
    rows = _distances(result) if task == "depth" else _classes(task, classes, result, palette)
    columns = _OF_DISTANCE if task == "depth" else CLASS_FIGURES[task]
    words = WORDS[task]
    return {
        "heads": [words.rows[1], words.amount, *columns],
        "rows": rows[:_OPEN_ROWS],
        "more": rows[_OPEN_ROWS:],
    }


def of(result: Mapping[str, object], key: str) -> Mapping[Any, Any]:
    """What result.json has under `key`, if that is something by name."""
    found = result.get(key)
    return found if isinstance(found, Mapping) else {}


def steps(result: Mapping[str, object]) -> tuple[list[float], dict[str, list[float | None]]]:
    """The edges of the steps of distance, and their pixels and figures; nothing where they are not recorded."""
    found = of(result, "by_distance")
    lists = {str(key): [number(value) for value in values] for key, values in found.items() if isinstance(values, list)}
    edges = [edge for edge in lists.pop("edges", []) if edge is not None]
    whole = all(len(lists.get(key, [])) == len(edges) - 1 for key in ("pixels", *_OF_DISTANCE.values()))
    return (edges, lists) if len(edges) > 1 and whole else ([], {})


def _classes(task: str, classes: Sequence[str], result: Mapping[str, object], palette: Palette) -> list[Row]:
    support = [number(of(result, "support").get(name)) for name in classes]
    total = sum(count for count in support if count) or 1
    sides = sides_of(classes)
    rows = []
    for place, (name, count) in enumerate(zip(classes, support, strict=True)):
        values = [number(of(result, key).get(name)) for key in CLASS_FIGURES[task].values()]
        colour = palette.colours[place] if place < len(palette) else None
        colour = SIDES[sides[place]] if task == "pose" else colour
        amount = None if count is None else count / total if task == "segmentation" else count
        words = _NONE if amount is None else _share(amount) if task == "segmentation" else f"{amount:,.0f}"
        rows.append(Row(name, hexadecimal(colour), words, [_share(value) for value in values], _bar(values[0])))
    return rows


def _distances(result: Mapping[str, object]) -> list[Row]:
    edges, found = steps(result)
    pixels = [count or 0 for count in found.get("pixels", [])]
    rows = []
    for place, count in enumerate(pixels):
        near, relative, root = (found[key][place] for key in _OF_DISTANCE.values())
        figures = [_share(near), error_words(relative), _NONE if root is None else f"{root:.3g} m"]
        name = f"{edges[place]:g} to {edges[place + 1]:g} m"
        rows.append(Row(name, None, _share(count / max(1, sum(pixels))), figures, _bar(near)))
    return rows


def hexadecimal(colour: Sequence[int] | None) -> str | None:
    """A colour as CSS has it."""
    return None if colour is None else "#{:02x}{:02x}{:02x}".format(*colour)


def error_words(value: float | None) -> str:
    """A relative error in per cent, rounded and not cut off as shares of what is right are."""
    return _NONE if value is None else f"{100 * value:.1f} %"


def _share(value: float | None) -> str:
    return _NONE if value is None else percent_text(value)


def _bar(value: float | None) -> float:
    return 0.0 if value is None or not math.isfinite(value) else min(1.0, max(0.0, value))
