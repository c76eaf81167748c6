"""Makes a model in the box from a run: half-precision weights, measured again as they are shipped, and their card.

    python benchmarks/box.py runs/cifar10_gpu/ours-seed0 --data FOLDER
    python benchmarks/box.py runs/cifar10/ours-seed0 --data FOLDER --name box-small

Writes cifar10.safetensors, cifar10.json and README.md (the card) into src/srattn/weights, where `srattn predict
photo.jpg` looks without --model; of the small one cifar10-small and README-small. The figures of the card are those of
the file itself, read back: what is measured is what is shipped; under corruptions on some of the images alone, since
that takes a minute for every thousand of them and more. A file above 8 MB, or one that lost more than 0.2 points by the
conversion, is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import describe

from srattn.data.samples import Samples
from srattn.engine import LoadedRun, load_run
from srattn.engine.corruptions import CORRUPTIONS
from srattn.engine.exam import open_exam
from srattn.engine.measure import Measurement, measure
from srattn.engine.open_model import BOX, BOXED
from srattn.engine.weights import save_weights
from srattn.files import atomic_path

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "src" / "srattn" / "weights"
MAX_BYTES, MAX_LOSS = 8_000_000, 0.002
_USES = {
    BOX: "It is what `srattn predict photo.jpg` answers with where no `--model` is given.",
    "box-small": "`--model box-small` and `--init box-small` take it: it is less exact than `box`, and far faster on a "
    "processor.",
}
SEVERITIES = [1, 3, 5]
CORRUPTED_IMAGES = 2000
_OF_THE_RECIPE = (
    "model", "model_options", "size", "augment", "epochs", "passes", "budget_minutes", "batch_size", "optimiser", "lr",
    "min_lr", "warmup_epochs", "weight_decay", "label_smoothing", "ema_decay", "clip_grad", "drop_rate",
    "drop_path_rate", "precision", "seed",
)  # fmt: skip


def make_box(
    run: Path,
    data: str,
    target: Path,
    *,
    name: str = BOX,
    corruptions: list[str],
    severities: list[int] = SEVERITIES,
    corrupted_images: int = CORRUPTED_IMAGES,
    batch_size: int = 250,
) -> dict[str, Any]:
    """Writes weights, facts and card into the folder `target`; returns the facts.

    Args:
        name: which of the models in the box it becomes.
        corrupted_images: how many of the test images are corrupted, evenly spaced among them.

    Raises:
        SystemExit: the file is too large, or the conversion costs accuracy.
    """
    trained = load_run(run)
    samples = open_exam(trained, data, "val").samples
    with atomic_path(target / BOXED[name], overwrite=True) as aside:
        save_weights(aside, trained.model, trained.classes, trained.preprocess, torch.float16)
        size = aside.stat().st_size
        if size > MAX_BYTES:
            raise SystemExit(f"{size:,} bytes are more than the {MAX_BYTES:,} of the box")
        before = _measure(trained, samples, batch_size, [], severities)
        found = _measure(load_run(aside), samples, batch_size, [], severities)
        if before.top1 - found.top1 > MAX_LOSS:
            raise SystemExit(f"half precision costs accuracy: {before.top1:.4f} became {found.top1:.4f}")
        some = evenly(samples, corrupted_images)
        rows = _measure(load_run(aside), some, batch_size, corruptions, severities).corruptions
    found = dataclasses.replace(found, corruptions=rows)
    facts = facts_of(run, trained, before, found, size, len(some))
    texts = {
        Path(BOXED[name]).with_suffix(".json").name: json.dumps(facts, indent=1) + "\n",
        f"README{name.removeprefix(BOX)}.md": card(facts, name),
    }
    for place, text in texts.items():
        with atomic_path(target / place, overwrite=True) as file:
            file.write_text(text, encoding="utf-8")
    return facts


def evenly(samples: Samples, count: int) -> Samples:
    """`count` of the samples, or all if there are fewer."""
    whole = len(samples)
    places = [number * whole // min(count, whole) for number in range(min(count, whole))]
    return dataclasses.replace(
        samples,
        names=[samples.names[place] for place in places],
        labels=samples.labels[places],
        sources=[samples.sources[place] for place in places],
    )


def _measure(
    run: LoadedRun, samples: Samples, batch_size: int, corruptions: list[str], severities: list[int]
) -> Measurement:
    return measure(
        run.model,
        samples,
        run.preprocess,
        run.classes,
        batch_size=batch_size,
        corruptions=corruptions,
        severities=severities,
    )


def facts_of(
    run: Path, trained: LoadedRun, before: Measurement, found: Measurement, size: int, corrupted_images: int
) -> dict[str, Any]:
    """What stands in cifar10.json, all of it from the run's own files and the measurement of the shipped one."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = found.to_dict()
    left_out = ("versions", "machine", "unreadable", "workers", "batch_size", "images_per_second")
    return {
        "name": "cifar10",
        "bytes": size,
        "dtype": "float16",
        "parameters": result["parameters"],
        "classes": trained.classes,
        "preprocess": trained.preprocess.to_dict(),
        "training": {
            "data": "CIFAR-10, its 50,000 training images",
            "images": result["train_images"],
            "recipe": {name: config[name] for name in _OF_THE_RECIPE},
            "minutes": round(result["seconds"] / 60, 1),
            "passes": round(config["passes"] * history[-1]["step"] / history[0]["step"], 1),  # the last may be cut
            "accuracy_of_the_run": result["accuracy"],
            "accuracy_in_float32": before.top1,
            "machine": result["machine"],
            "versions": result["versions"],
        },
        "measured": {name: value for name, value in measured.items() if name not in left_out},
        "corrupted_images": corrupted_images,
        "machine": describe(torch.get_num_threads()),
    }


def card(facts: dict[str, Any], name: str = BOX) -> str:
    """The model card in Markdown."""
    training, found = facts["training"], facts["measured"]
    recipe = training["recipe"]
    worst = sorted(found["per_class"].items(), key=lambda item: item[1])
    lines = [
        "# The model in the box" if name == BOX else "# The small model in the box",
        "",
        f"`{BOXED[name]}`: {recipe['model']} with {facts['parameters'] / 1e6:.2f} million parameters in float16, "
        f"{facts['bytes'] / 1e6:.1f} MB. {_USES[name]} Apache-2.0, as the package.",
        "",
        f"**Answers**: {', '.join(facts['classes'])}; nothing else. Whatever it is shown, it chooses among these.",
        "",
        "## Data and training",
        "",
        f"Trained by this project from scratch on {training['data']} (32x32 pixels), and on nothing else: "
        f"{training['passes']:g} passes in {training['minutes']:g} minutes on {_place(training['machine'])}, torch "
        f"{training['versions']['torch']}. The weights are those of the last epoch; the recipe was chosen by speed, "
        "and by a few shorter runs whose accuracy on the test images was looked at. The recipe:",
        "",
        "```yaml",
        yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip(),
        "```",
        "",
        "## Figures",
        "",
        f"Of the shipped file, on the {found['images']:,} test images of CIFAR-10; the same weights in float32 reach "
        f"{100 * training['accuracy_in_float32']:.2f} %.",
        "",
        "| | |",
        "|---|--:|",
        f"| top-1 | {100 * found['top1']:.2f} % |",
        *([f"| top-5 | {100 * found['top5']:.2f} % |"] if found["top5"] is not None else []),
        f"| negative log likelihood | {found['nll']:.4f} |",
        f"| calibration error, 15 bins | {100 * found['ece']:.2f} % |",
        f"| temperature that would suit these images best | {found['temperature']:.2f} |",
        *(
            [f"| under corruptions, mean of {facts['corrupted_images']:,} images | {100 * found['corrupted']:.2f} % |"]
            if found["corrupted"]
            else []
        ),
        "",
        "| class | accuracy |",
        "|---|--:|",
        *(f"| {name} | {100 * value:.1f} % |" for name, value in worst),
        "",
        *_corruptions(found["corruptions"]),
        "## Calibration",
        "",
        f"Its confidence is off by {100 * found['ece']:.2f} points on average on images like those of the test set. A "
        f"temperature {'above' if found['temperature'] > 1 else 'below'} 1 means that it claims too "
        f"{'much' if found['temperature'] > 1 else 'little'} there. On other images confidence says nothing.",
        "",
        "## Limits",
        "",
        "- Photos are brought to 32x32 pixels: what is small in the picture is lost.",
        "- It knows ten kinds of things as they look in CIFAR-10, one object in the middle. A picture of anything else "
        "gets one of these ten names, often with high confidence.",
        f"- It takes {found['confused'][0][0]} for {found['confused'][0][1]} most often."
        if found["confused"]
        else "- It made no mistake on the test images.",
        "- For demonstrations and as a start for fine-tuning; not for decisions about people.",
        "",
    ]
    return "\n".join(lines)


def _place(machine: dict[str, Any]) -> str:
    return machine.get("gpu") or f"{machine['threads']} threads of {machine['processor']}"


def _corruptions(rows: dict[str, dict[str, float]]) -> list[str]:
    if not rows:
        return []
    severities = sorted({severity for row in rows.values() for severity in row}, key=int)
    return [
        f"| corruption, severity | {' | '.join(severities)} |",
        f"|---|{'--:|' * len(severities)}",
        *(
            f"| {kind.replace('_', ' ')} | {' | '.join(f'{100 * row[s]:.1f} %' for s in severities)} |"
            for kind, row in rows.items()
        ),
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder of srattn train")
    parser.add_argument("--data", required=True, help="a folder with CIFAR-10 as the hub's Parquet files")
    parser.add_argument("--name", choices=list(BOXED), default=BOX, help="which of the models in the box it becomes")
    parser.add_argument("--target", type=Path, default=WEIGHTS)
    parser.add_argument("--severities", type=int, nargs="*", default=SEVERITIES, help="of the corruptions")
    parser.add_argument("--corrupted_images", type=int, default=CORRUPTED_IMAGES, help="so many of the test images")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts = make_box(
        args.run,
        args.data,
        args.target,
        corruptions=list(CORRUPTIONS),
        severities=args.severities,
        name=args.name,
        corrupted_images=args.corrupted_images,
    )
    print(f"{args.target}: {100 * facts['measured']['top1']:.2f} %, {facts['bytes']:,} bytes")


if __name__ == "__main__":
    main()
