"""The model card of a run: what it was trained on and how, what came out, what it computes, and where it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from srattn.engine import run_folder
from srattn.engine.weights import LoadedRun
from srattn.models.plan import plan
from srattn.version import __version__

LIBRARY, PIPELINE = "srattn", "image-classification"
_PATHS = ("data", "val", "out", "resume", "init", "teacher")
"""Options that may name a place on somebody's machine: the card has the last part alone."""
_MOST_CLASSES = 50


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
        if isinstance(config.get(key), str):
            config[key] = Path(config[key]).name
    return config


def make_card(run: LoadedRun) -> str:
    """README.md of the run on the hub: a YAML header, and text that the run's files give."""
    result, recipe = result_of(run), recipe_of(run)
    name = run.name
    header: dict[str, Any] = {
        "library_name": LIBRARY,
        "pipeline_tag": PIPELINE,
        "tags": ["srattn", "spatial-reduction-attention", name],
    }
    if isinstance(result.get("accuracy"), float):
        data = {"type": "image-folder", "name": Path(str(result.get("data", "data"))).name}
        metric = {"type": "accuracy", "value": result["accuracy"]}
        task = {"type": PIPELINE}
        header["model-index"] = [
            {"name": name, "results": [{"task": task, "dataset": data, "metrics": [metric]}]},
        ]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"An image classifier of {len(run.classes)} classes, written by srattn {__version__}.",
        _use(),
        _section("Data", _data(run, result)),
        _section("Result", _figures(result)),
        _section("Recipe", _block("yaml", yaml.safe_dump(recipe, sort_keys=False)) if recipe else "Not known."),
        _section("Plan", _block("", str(plan(run.model, run.preprocess.size)))),
        _section("Limits", _limits(run, result)),
    ]
    return "\n\n".join(parts) + "\n"


def _use() -> str:
    code = 'import srattn\n\nmodel = srattn.from_pretrained("REPO")  # images (B, C, H, W), normalised, to logits'
    return _block("python", code)


def _data(run: LoadedRun, result: dict[str, Any]) -> str:
    lines = []
    if "data" in result:
        lines.append(f"- source: `{_plain(Path(str(result['data'])).name)}`")
    counts = [("train_images", "for training"), ("val_images", "for validation"), ("skipped_images", "left out")]
    lines += [f"- images {words}: {result[key]}" for key, words in counts if isinstance(result.get(key), int)]
    shown = ", ".join(f"`{_plain(name)}`" for name in run.classes[:_MOST_CLASSES])
    more = len(run.classes) - _MOST_CLASSES
    lines.append(f"- classes: {shown}{f' and {more} more' if more > 0 else ''}")
    return "\n".join(lines)


def _figures(result: dict[str, Any]) -> str:
    keys = ("accuracy", "loss", "epochs", "best_epoch", "parameters", "seconds", "seed", "precision")
    rows = [f"| {key} | {result[key]} |" for key in keys if isinstance(result.get(key), int | float | str)]
    if not rows:
        return "Not measured."
    return "\n".join(["Of the last evaluation, on the validation images.", "", "| | |", "|---|---|", *rows])


def _limits(run: LoadedRun, result: dict[str, Any]) -> str:
    model, preprocess = run.model, run.preprocess
    height, width = preprocess.size
    lines = [
        f"- It was measured at {height}x{width} pixels; it takes any size from {model.min_size} up, unmeasured.",
        f"- Pictures become {'grey' if preprocess.channels == 1 else 'RGB'}; fit `{preprocess.fit}`, "
        f"{preprocess.interpolation}, mean {list(preprocess.mean)}, std {list(preprocess.std)}.",
        f"- Edge policy `{model.edge}`: where a ratio does not divide a grid, "
        + ("zeros fill the last blocks." if model.edge == "pad" else "the trailing strip reaches no key."),
        "- Every picture gets one of its classes, also one that shows none of them; the probabilities are those of a "
        "softmax, and no check was made that they are frequencies.",
    ]
    if result.get("val_images"):
        lines.append("- Validation images come from the same source as those for training: of others nothing is known.")
    return "\n".join(lines)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _block(kind: str, text: str) -> str:
    return f"```{kind}\n{text.rstrip()}\n```"


def _plain(text: str) -> str:
    """A name from a file, which must not end the code that it stands in."""
    return " ".join(text.replace("`", "'").split())
