"""The model card of a run: what it was trained on and how, what came out, what it computes, and where it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from srattn.convert.variants import backbone_of
from srattn.engine import run_folder
from srattn.engine.card_words import METRICS, use_of, words_of
from srattn.engine.weights import LoadedRun
from srattn.models.plan import plan
from srattn.version import __version__

LIBRARY = "srattn"
_PATHS = ("data", "val", "classes", "init", "distill", "out", "resume")
"""Options that may name a place on somebody's machine: the card has the last part alone."""
_MOST_CLASSES = 50
_NO_FIGURES = ("seconds", "loader_share")
_BY_CLASS = {
    "segmentation": ("per_class_iou", "class", "IoU"),
    "detection": ("per_class_map50", "class", "AP50"),
    "pose": ("per_joint_pck", "joint", "PCK"),
}


def result_of(run: LoadedRun) -> dict[str, Any]:
    """What result.json of a run says; empty where there is none."""
    file = run.path / run_folder.RESULT if run.path.is_dir() else run.path.with_name(run_folder.RESULT)
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def recipe_of(run: LoadedRun) -> dict[str, Any]:
    """The configuration of a run, without places on the machine that it ran on."""
    config = dict(run.config)
    for key in _PATHS:
        value = config.get(key)
        # Classes are a file, made absolute by the run, or the names themselves.
        if isinstance(value, str) and (key != "classes" or os.path.isabs(value)):
            config[key] = Path(value).name
    return config


def make_card(run: LoadedRun) -> str:
    """README.md of the run on the hub: a YAML header, and text that the run's files give."""
    result, recipe, words = result_of(run), recipe_of(run), words_of(run.task)
    name = run.name
    header: dict[str, Any] = {
        "library_name": LIBRARY,
        **({} if words.pipeline is None else {"pipeline_tag": words.pipeline}),
        "tags": ["srattn", "spatial-reduction-attention", name],
    }
    headline = _headline(result)
    if words.pipeline is not None and isinstance(result.get(headline), float):
        data = {"type": words.data, "name": Path(str(result.get("data", "data"))).name}
        kind, called = METRICS.get(headline, (headline, headline))
        metric = {"type": kind, "name": called, "value": result[headline]}
        task = {"type": words.pipeline}
        header["model-index"] = [
            {"name": name, "results": [{"task": task, "dataset": data, "metrics": [metric]}]},
        ]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"{words.is_a.format(count=len(run.classes))}{_head(run)}, written by srattn {__version__}.",
        _block("python", use_of(run)),
        _section("Data", _data(run, result)),
        _section("Result", _figures(run, result)),
        _section("Recipe", _block("yaml", yaml.safe_dump(recipe, sort_keys=False)) if recipe else "Not known."),
        _section("Plan", _plan(run)),
        _section("Limits", _limits(run, result)),
    ]
    return "\n\n".join(parts) + "\n"


def _headline(result: dict[str, Any]) -> str:
    """The figure that counts; runs of long ago do not say it, and are classifiers."""
    return str(result.get("headline", "accuracy"))


def _head(run: LoadedRun) -> str:
    """What stands on the backbone, where that is not a classifier."""
    head = run.model.config.get("head")
    return f": {run.name} with a {head['kind']} head" if isinstance(head, dict) and "kind" in head else ""


def _plan(run: LoadedRun) -> str:
    body = backbone_of(run.model)
    table = _block("", str(plan(body, run.preprocess.size)))
    return table if body is run.model else f"Of the backbone:\n\n{table}"


def _data(run: LoadedRun, result: dict[str, Any]) -> str:
    lines = []
    if "data" in result:
        lines.append(f"- source: `{_plain(Path(str(result['data'])).name)}`")
    counts = [("train_images", "for training"), ("val_images", "for validation"), ("skipped_images", "left out")]
    lines += [f"- images {words}: {result[key]}" for key, words in counts if isinstance(result.get(key), int)]
    shown = ", ".join(f"`{_plain(name)}`" for name in run.classes[:_MOST_CLASSES])
    more = len(run.classes) - _MOST_CLASSES
    called = words_of(run.task).classes
    if run.classes and called:
        lines.append(f"- {called}: {shown}{f' and {more} more' if more > 0 else ''}")
    return "\n".join(lines) or "Not known."


def _figures(run: LoadedRun, result: dict[str, Any]) -> str:
    headline = _headline(result)
    found = [key for key, value in result.items() if isinstance(value, float) and key not in _NO_FIGURES]
    keys = [key for key in (headline, *found) if key in found]
    keys += ["epochs", "best_epoch", "parameters", "seconds", "seed", "precision"]
    rows = [
        f"| {key} | {result[key]} |" for key in dict.fromkeys(keys) if isinstance(result.get(key), int | float | str)
    ]
    if not rows:
        return "Not measured."
    return "\n".join(
        ["Of the last evaluation, on the validation images.", "", "| | |", "|---|---|", *rows, *_by_class(run, result)]
    )


def _by_class(run: LoadedRun, result: dict[str, Any]) -> list[str]:
    """A table of what is known by class; nothing where there is none."""
    key, kind, called = _BY_CLASS.get(run.task, ("", "", ""))
    values = result.get(key)
    if not isinstance(values, dict) or not values:
        return []
    shown = [(name, values.get(name)) for name in run.classes[:_MOST_CLASSES]]
    rows = [
        f"| {_plain(name)} | {value:.4f} |" if isinstance(value, float) else f"| {_plain(name)} | - |"
        for name, value in shown
    ]
    return ["", f"| {kind} | {called} |", "|---|---|", *rows]


def _limits(run: LoadedRun, result: dict[str, Any]) -> str:
    model, preprocess = run.model, run.preprocess
    height, width = preprocess.size
    looked = {
        "shorter": f"with the shorter side at {min(height, width)} pixels",
        "inside": f"with all of each image within {height}x{width} pixels",
    }.get(preprocess.fit, f"at {height}x{width} pixels")
    lines = [
        f"- It was {'measured' if result else 'set up'} {looked}; it takes any size from {model.min_size} up, "
        "unmeasured.",
        f"- Pictures become {'grey' if preprocess.channels == 1 else 'RGB'}; fit `{preprocess.fit}`, "
        f"{preprocess.interpolation}, mean {list(preprocess.mean)}, std {list(preprocess.std)}.",
        f"- Edge policy `{model.edge}`: where a ratio does not divide a grid, "
        + ("zeros fill the last blocks." if model.edge == "pad" else "the trailing strip reaches no key."),
        *(f"- {line}" for line in words_of(run.task).limits),
    ]
    if result.get("val_images"):
        lines.append("- Validation images come from the same source as those for training: of others nothing is known.")
    return "\n".join(lines)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _block(kind: str, text: str) -> str:
    return f"```{kind}\n{text.rstrip()}\n```"


def _plain(text: str) -> str:
    """A name from a file, which must not end the code or the cell that it stands in."""
    return " ".join(text.replace("`", "'").replace("|", "/").split())
