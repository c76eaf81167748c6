"""Writes docs/finetuning.md: the small model in the box fine-tuned on a few photos, beside training from scratch.

    python docs/finetuning.py --cells BCCD      # cuts the photos, trains, draws, writes the page
    python docs/finetuning.py                   # writes the page again from the committed figures

BCCD is a folder with JPEGImages, Annotations and ImageSets (the Blood Cell Count and Detection set, MIT licence): its
cells are cut out into one folder a class. --photos FOLDER takes any other folder of class folders.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from PIL import Image

from srattn.bench.machine import describe
from srattn.engine import TrainConfig, train
from srattn.engine.progress import Lines

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).with_suffix(".md")
FIGURES = ROOT / "benchmarks" / "results" / "finetuning.json"
PICTURE = Path(__file__).parent / "pictures" / "finetuning.png"
WAYS: dict[str, dict[str, Any]] = {
    "from box-small": {"init": "box-small", "lr": 5e-4},
    "from box-small, head alone": {"init": "box-small", "freeze": ["backbone"], "lr": 5e-3},
    "from scratch": {"lr": 2e-3},
}
COMMON: dict[str, Any] = {"augment": "shift=3,flip", "batch_size": 16, "warmup_epochs": 1, "on_bad_image": "error"}
MARGIN = 8  # pixels around a cell


def cut_cells(source: Path, target: Path, per_class: int) -> None:
    """The first `per_class` cells of each class from each of BCCD's parts, as target/PART/CLASS/IMAGE-NUMBER.png."""
    for part in ("train", "val"):
        names = (source / "ImageSets" / "Main" / f"{part}.txt").read_text().split()
        counts: dict[str, int] = {}
        for name in names:
            boxes = ElementTree.parse(source / "Annotations" / f"{name}.xml").getroot().iter("object")
            with Image.open(source / "JPEGImages" / f"{name}.jpg") as image:
                for number, found in enumerate(boxes):
                    kind, sides = found.findtext("name"), found.find("bndbox")
                    if not kind or sides is None or counts.get(kind, 0) >= per_class:
                        continue
                    left, top, right, bottom = (int(sides.findtext(k) or 0) for k in ("xmin", "ymin", "xmax", "ymax"))
                    if right - left < 8 or bottom - top < 8:
                        continue
                    counts[kind] = counts.get(kind, 0) + 1
                    box = (left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN)
                    path = target / part / kind / f"{name}-{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image.convert("RGB").crop(_inside(box, image.size)).save(path)


def _inside(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    return max(0, box[0]), max(0, box[1]), min(size[0], box[2]), min(size[1], box[3])


def run_all(photos: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Trains in each way with each seed; the curves and times."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as runs:
        for seed in args.seeds:
            for way, options in WAYS.items():
                values = {**COMMON, **_like_the_box(), **options, "seed": seed, "epochs": args.epochs}
                out = Path(runs, f"{len(rows)}")
                began = time.perf_counter()
                found = train(TrainConfig(data=str(photos), threads=args.threads, out=str(out), **values), Lines())
                rows.append(
                    {
                        "way": way,
                        "seed": seed,
                        "accuracy": [record["val_accuracy"] for record in found.history],
                        "seconds": round(time.perf_counter() - began, 1),
                        "train_images": found.result["train_images"],
                        "val_images": found.result["val_images"],
                        "classes": found.result["classes"],
                        "options": {**COMMON, **options},
                    }
                )
    return {
        "photos": args.title,
        "epochs": args.epochs,
        "runs": rows,
        "note": args.note,
        "machine": describe(args.threads),
    }


def _like_the_box() -> dict[str, Any]:
    """The model of the box, so that training from scratch has the same."""
    from srattn.engine.defaults import resolve

    config = resolve(TrainConfig(data="digits", init="box-small"))
    names = ("model", "model_options", "size", "channels")
    return {name: getattr(config, name) for name in names}


def draw(figures: dict[str, Any], path: Path) -> None:
    """Validation accuracy by epoch; a colour a way, a line a seed."""
    from srattn.explain.paper import sheet

    colours = dict(zip(WAYS, ("#0d7a70", "#86bfba", "#b8431f"), strict=True))
    with sheet(path, (6.0, 3.4)) as figure:
        axes = figure.subplots()
        for row in figures["runs"]:
            label = row["way"] if row["seed"] == figures["runs"][0]["seed"] else None
            values = [100 * value for value in row["accuracy"]]
            axes.plot(range(1, len(values) + 1), values, color=colours[row["way"]], label=label, lw=1.4)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel("held-out accuracy in %")
        axes.legend(loc="lower right")


def render(figures: dict[str, Any] | None) -> str:
    """The page."""
    text = INTRODUCTION
    if figures is None:
        return text + "\nNot measured yet: `python docs/finetuning.py --cells BCCD` does.\n"
    runs, machine = figures["runs"], figures["machine"]
    first = runs[0]
    lines = [
        "",
        "## Measured",
        "",
        f"{figures['photos']}: {first['train_images']} photos for training and {first['val_images']} held out, "
        f"{len(first['classes'])} classes ({', '.join(first['classes'])}); {figures['epochs']} epochs each.",
        "",
        "![Held-out accuracy by epoch](pictures/finetuning.png)",
        "",
        "| | seeds | after 1 epoch | after the last | seconds |",
        "|---|--:|--:|--:|--:|",
    ]
    for way in WAYS:
        rows = [row for row in runs if row["way"] == way]
        early, late = (" / ".join(f"{100 * row['accuracy'][place]:.1f}" for row in rows) + " %" for place in (0, -1))
        seconds = statistics.median(row["seconds"] for row in rows)
        lines.append(f"| {way} | {len(rows)} | {early} | {late} | {seconds:.0f} |")
    versions = ", ".join(f"{key} {machine[key]}" for key in ("torch", "srattn", "commit"))
    note = f" {figures['note']}" if figures.get("note") else ""
    lines += ["", f"{machine['cpu']}, {machine['threads']} threads; {versions}.{note}", ""]
    return text + "\n".join(lines)


INTRODUCTION = """# Fine-tuning

<!-- Written by docs/finetuning.py; change that. -->

A few dozen photos of each class are enough where the model has seen other images before. The package brings two,
trained on CIFAR-10: `box`, which answers best, and `box-small`, which has a third of its parameters.

```sh
photos/train/RBC/*.png  photos/train/WBC/*.png ...      # one folder for each class
photos/val/RBC/*.png ...                                # or leave val/ away: a part is held out
```

```sh
srattn data check photos                                # reads every photo once
srattn train --data photos --init box-small --augment shift=3,flip --batch_size 16 --lr 5e-4 --epochs 20
srattn train --data photos --init box-small --freeze '[backbone]' --lr 5e-3      # its classifier alone: faster
srattn report runs/photos-1 runs/photos-2               # both over each other
srattn predict new.png --model runs/photos-1
```

`--init` takes any run or checkpoint and brings the model and the size of its images with it; the classifier is new
where the classes are others. `--lora_rank 4` trains adapters on the attention projections in place of all weights, and
`--layer_decay 0.8` lets the first layers learn more slowly than the last. Beside the whole model a run with adapters
has `lora.safetensors`: what it trained, which `srattn.engine.lora_file.read_lora` puts into the model it began with.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--cells", type=Path, help="the BCCD set, to cut cells out of")
    source.add_argument("--photos", type=Path, help="any folder of class folders")
    parser.add_argument("--title", default="Blood cells, cut out of the photos of BCCD")
    parser.add_argument("--per_class", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--note", default="", help="a sentence for the page, such as what else the machine did")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    if args.cells or args.photos:
        with tempfile.TemporaryDirectory() as folder:
            photos = args.photos or Path(folder)
            if args.cells:
                cut_cells(args.cells, photos, args.per_class)
            figures = run_all(photos, args)
        args.figures.write_text(json.dumps(figures, indent=1) + "\n")
        draw(figures, args.picture)
    found = json.loads(args.figures.read_text()) if args.figures.is_file() else None
    args.page.write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    main()
