"""Masks and boxes from scratch on a CPU: CamVid, blood cells, and polyps in five folds.

    python benchmarks/scenes.py camvid --data FOLDER            # trains the recipe (or goes on) and writes the result
    python benchmarks/scenes.py blood_cells --data FOLDER
    python benchmarks/scenes.py polyps --data FOLDER
    python benchmarks/scenes.py camvid --report                 # the result again, from the run that is there

A run that was stopped goes on from its last checkpoint; one that is finished is left alone. The weights of the last
epoch count, whatever validation said on the way. Writes benchmarks/results/NAME.json, .md, .png (the curve) and
NAME_cases.jpg (the worst and the best cases).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml
from machine import describe

from srattn import recipes
from srattn.engine import TrainConfig, train
from srattn.engine.progress import Lines
from srattn.engine.scene_exam import measure_scenes
from srattn.engine.weights import load_run
from srattn.explain.scene_sheet import draw_cases

RESULTS = Path(__file__).parent / "results"
TITLES = {
    "camvid": "CamVid: a class for each pixel of street scenes",
    "blood_cells": "Blood cells (BCCD): boxes",
    "polyps": "Polyps: five folds of 20 frames",
}
FOLDS = 5
POLYPS: dict[str, Any] = {
    "task": "segment",
    "model": "mit_b0",
    "head": "unet",
    "loss": "structure",
    "size": 192,
    "channels": 3,
    "augment": "scale=0.8-1.5,flip,flipv,rotate=30,jitter=0.3",
    "epochs": 8,
    "passes": 5,
    "batch_size": 4,
    "eval_batch_size": 4,
    "lr": 1e-3,
    "min_lr": 0.0,
    "warmup_epochs": 1,
    "drop_path_rate": 0.0,
    "precision": "bf16",
    "val_fraction": 1 / FOLDS,
}
"""The polyp line's loss and a decoder with attention gates; every fold holds out four other frames."""


def configs(name: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The runs of a result: their folders' names and options."""
    given = {"data": args.data, "threads": args.threads, **(yaml.safe_load(args.override) or {})}
    if name != "polyps":
        return {name: recipes.load(name) | given | {"seed": args.seed}}
    return {f"polyps-{fold}": POLYPS | given | {"split_seed": fold, "seed": fold} for fold in range(FOLDS)}


def run_all(name: str, args: argparse.Namespace) -> None:
    for folder_name, values in configs(name, args).items():
        folder = args.runs / folder_name
        if (folder / "result.json").is_file():
            print(f"{folder} is finished")
            continue
        if not folder.exists():
            args.runs.mkdir(parents=True, exist_ok=True)
            facts = {"note": args.note, **describe(args.threads)}
            _facts(folder).write_text(json.dumps(facts, indent=1) + "\n")
        config = TrainConfig(resume=str(folder)) if folder.exists() else TrainConfig(**values, out=str(folder))
        train(config, Lines())


def _facts(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def read_run(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "result.json").read_text())
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    facts = _facts(folder)
    headline = result["headline"]
    dropped = {"precision_recall", "curves", "confusion", "per_image", "skipped", "data"}
    return {
        "result": {name: value for name, value in result.items() if name not in dropped},
        "minutes": round(result["seconds"] / 60, 2),
        "curve": [round(record[f"val_{headline}"], 4) for record in history],
        "images_per_second": round(statistics.median(record["images_per_second"] for record in history), 1),
        "config": {name: value for name, value in config.items() if name != "data"},
        "machine": json.loads(facts.read_text()) if facts.is_file() else {},
    }


def report(name: str, args: argparse.Namespace) -> None:
    folders = [args.runs / folder for folder in configs(name, args)]
    missing = [str(folder) for folder in folders if not (folder / "result.json").is_file()]
    if missing:
        raise SystemExit(f"not finished: {', '.join(missing)}")
    runs = [read_run(folder) for folder in folders]
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"{name}.json").write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    (args.results / f"{name}.md").write_text(page(name, runs))
    draw(name, runs, args.results / f"{name}.png")
    cases(folders[0], args.data, args.results / f"{name}_cases.jpg")


def page(name: str, runs: list[dict[str, Any]]) -> str:
    """Markdown: a line a run, then the classes."""
    first, machine = runs[0]["result"], runs[0]["machine"]
    keys = [key for key in ("miou", "dice", "pixel_accuracy", "boundary_f", "map50", "map", "map75") if key in first]
    lines = [f"# {TITLES[name]}", "", f"`python benchmarks/scenes.py {name}`; the weights of the last epoch.", ""]
    lines.append(f"| run | {' | '.join(keys)} | minutes | passes | parameters | images/s | train | val |")
    lines.append("|---|" + "--:|" * (len(keys) + 6))
    for number, run in enumerate(runs):
        result = run["result"]
        figures = " | ".join(f"{100 * result[key]:.2f} %" for key in keys)
        passes = result["epochs"] * run["config"].get("passes", 1)
        label = f"fold {number}" if len(runs) > 1 else f"seed {result['seed']}"
        lines.append(
            f"| {label} | {figures} | {run['minutes']:.1f} | {passes} | {result['parameters'] / 1e6:.2f} M | "
            f"{run['images_per_second']:.1f} | {result['train_images']} | {result['val_images']} |"
        )
    if len(runs) > 1:
        means = " | ".join(f"{100 * statistics.fmean(run['result'][key] for run in runs):.2f} %" for key in keys)
        lines.append(f"| mean | {means} | | | | | | |")
    columns = [key for key in ("per_class_iou", "per_class_dice", "per_class_map50", "per_class_map") if key in first]
    lines += ["", f"| class | {' | '.join(key.removeprefix('per_class_') for key in columns)} |"]
    lines.append("|---|" + "--:|" * len(columns))
    for label in first["classes"]:
        cells = [[run["result"][key][label] for run in runs] for key in columns]
        means = [statistics.fmean(value for value in cell if value is not None) if any(cell) else 0.0 for cell in cells]
        lines.append(f"| {label} | {' | '.join(f'{100 * value:.1f} %' for value in means)} |")
    lines += ["", f"![the worst and the best cases]({name}_cases.jpg)", ""]
    if machine:
        told = ", ".join(f"{key} {machine[key]}" for key in ("torch", "srattn", "python", "commit") if key in machine)
        lines += [
            f"{machine.get('cpu', '')}, {machine.get('threads', '?')} thread(s); {told}. {machine.get('note', '')}"
        ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def draw(name: str, runs: list[dict[str, Any]], path: Path) -> None:
    """The headline after each epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for run in runs:
        passes = run["config"].get("passes", 1)
        axes.plot([passes * (n + 1) for n in range(len(run["curve"]))], [100 * value for value in run["curve"]], lw=1.4)
    axes.set(xlabel="passes over the training images", ylabel=f"validation {runs[0]['result']['headline']}, %")
    axes.grid(alpha=0.3)
    figure.savefig(path)


def cases(folder: Path, data: str, path: Path) -> None:
    """The worst and the best validation images of a run."""
    run = load_run(folder)
    found = measure_scenes(run, data)
    draw_cases(path, run, found.data, found.details.get("per_image"), cases=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(TITLES))
    parser.add_argument("--data", required=True, help="the folder of the images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--override", default="{}", help="further options of srattn train, as YAML")
    parser.add_argument("--note", default="", help="what else to say of the machine")
    parser.add_argument("--runs", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args()
    if not args.report:
        run_all(args.name, args)
    report(args.name, args)


if __name__ == "__main__":
    main()
