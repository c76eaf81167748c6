"""What whole numbers and halves cost: accuracy before and after on real images, noise, size and time, format by format.

    python benchmarks/quantise.py --data shared/data/cifar10            # writes benchmarks/results/quantise.{json,md}
    python benchmarks/quantise.py --data FOLDER --only onnx --add       # the rows of one runtime anew
    python benchmarks/quantise.py --data FOLDER --model runs/photos-1 --images 5000

Files are calibrated on images of the training split and measured on the test split, where there are two. A file whose
accuracy is more than half a point below that of the model itself misses the bar. Beside each difference stands what
chance makes of it: the square root of the number of images whose answer became right or wrong.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor

from srattn.bench.machine import versions
from srattn.bench.timing import summarise
from srattn.engine.open_model import open_model
from srattn.engine.rows import open_rows
from srattn.engine.rows.answer import pixels_of
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.export import Options, export_model, open_export
from srattn.export.options import PRECISIONS, SUFFIXES

RESULTS = Path(__file__).parent / "results"
BAR = 0.5
BATCH, ROUNDS = 50, 15
AUTO = "int8, auto"
SPLITS = (("test", "train"), ("val", "train"), (None, None))
CALIBRATE = 320


def labelled(run: LoadedRun, data: str, split: str | None, most: int) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) as the model takes them and their classes (N,)."""
    rows = open_rows([data], split)
    pixels, labels = [], []
    for source in rows.read(0, min(len(rows), most)):
        found = pixels_of(run, source)
        if isinstance(found, Tensor) and source.label in run.classes:
            pixels.append(found)
            labels.append(run.classes.index(source.label))
    if not pixels:
        raise SrattnError(f"{data} has no images of the classes {', '.join(run.classes[:5])}, ...")
    return run.preprocess.normalise(torch.stack(pixels).float() / 255), torch.tensor(labels)


def split_of(data: str) -> tuple[str | None, str | None]:
    """The splits to measure and to calibrate on."""
    for pair in SPLITS:
        try:
            for name in pair:
                open_rows([data], name)
            return pair
        except SrattnError:
            continue
    raise SrattnError(f"{data} cannot be read")


@torch.inference_mode()
def answers(run: Any, images: Tensor) -> Tensor:
    return torch.cat([run.model(batch) for batch in images.split(BATCH)])


@torch.inference_mode()
def seconds(run: Any, images: Tensor) -> list[float]:
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run.model(images)
        found.append(time.perf_counter() - start)
    return found


def kinds(only: Iterable[str]) -> list[tuple[str, str]]:
    """Formats and precisions that are measured."""
    found = []
    for name in ("onnx", "openvino", "torch"):
        if name in only:
            found += [(name, precision) for precision in PRECISIONS[name]]
            found += [(name, AUTO)] if "int8" in PRECISIONS[name] else []
    return found


def measure(loaded: LoadedRun, name: str, precision: str, data: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    """A row: the file's size, its accuracy, and what of its answers is not the model's."""
    auto = precision == AUTO
    options = Options(
        name,  # type: ignore[arg-type]
        loaded.preprocess.size,
        precision="int8" if auto else precision,
        keep_float=("auto",) if auto else (),
        sensitivity=precision == "int8",
    )
    out = folder / f"{name}-{precision.replace(', ', '-')}{SUFFIXES[name]}"
    calibrate = list(data["calibrate"].split(1)) if "int8" in precision else []
    exported = export_model(
        loaded.model, out, options, labels=loaded.classes, preprocess=loaded.preprocess, calibrate=calibrate
    )
    run = open_export(out, threads=1)
    found, labels, truth = answers(run, data["images"]).argmax(1), data["labels"], data["truth"]
    right, before = found == labels, truth.argmax(1) == labels
    return {
        "format": name,
        "precision": precision,
        "bytes": exported.bytes,
        "accuracy": float(right.float().mean()),
        "before": float(before.float().mean()),
        "changed": int((right != before).sum()),
        "same": float((found == truth.argmax(1)).float().mean()),
        "images": len(labels),
        "seconds": {str(count): summarise(seconds(run, data["images"][:count]))._asdict() for count in (1, BATCH)},
        "verified": exported.facts.verified,
        "quantised": exported.facts.quantised,
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    machine, rows = result["machine"], result["rows"]
    packages = ", ".join(f"{key} {result['versions'].get(key)}" for key in ("onnxruntime", "openvino"))
    lines = [
        "# Whole numbers and halves",
        "",
        f"{result['model']} on {result['data']}; {machine['cpu']}, one thread, torch {machine['torch']}, {packages}, "
        f"srattn {machine['commit']}. Accuracy of the model itself and of the file, and the difference in points with "
        f"what chance makes of it; the bar is {BAR} points lost. Noise "
        f"is that of the logits, below their signal, on images that were not calibrated on.{_note(result)}",
        "",
        "| runtime | precision | MB | images | before | after | points | same answer | noise | ms, 1 | ms, 50 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        points = 100 * (row["accuracy"] - row["before"])
        chance = 100 * row["changed"] ** 0.5 / row["images"]
        noise = f"{row['quantised']['decibels']:.1f} dB" if row["quantised"] else ""
        times = " | ".join(f"{1e3 * row['seconds'][key]['median']:.2f}" for key in ("1", str(BATCH)))
        lines.append(
            f"| {row['format']} | {row['precision']} | {row['bytes'] / 1e6:.1f} | {row['images']:,} | "
            f"{100 * row['before']:.2f} | {100 * row['accuracy']:.2f} | {points:+.2f} ± {chance:.2f} | "
            f"{100 * row['same']:.1f}% | {noise} | {times} |"
        )
    missed = [f"{r['format']} {r['precision']}" for r in rows if 100 * (r["before"] - r["accuracy"]) > BAR]
    lines += ["", "Below the bar: " + ("; ".join(missed) if missed else "nothing") + "."]
    for row in rows:
        parts = row["quantised"].get("parts", {})
        if not parts:
            continue
        order = sorted(parts.items(), key=lambda entry: entry[1])[:5]
        told = ", ".join(f"{part} {value:.1f} dB" for part, value in order)
        kept = f" Kept in float: {', '.join(row['quantised']['kept'])}." if row["quantised"]["kept"] else ""
        lines += ["", f"{row['format']} {row['precision']}: most is lost by {told}.{kept}"]
    return "\n".join(lines) + "\n"


def _note(result: dict[str, Any]) -> str:
    return f" {result['note']}" if result.get("note") else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images with classes: what srattn eval takes")
    parser.add_argument("--model", default="box-small", help="a run, or a model in the box")
    parser.add_argument("--images", type=int, default=1000, help="of the test split")
    parser.add_argument("--only", nargs="+", default=["onnx", "openvino", "torch"])
    parser.add_argument("--precision", nargs="+", help="these alone")
    parser.add_argument("--add", action="store_true", help="keep the rows of --out that are not measured anew")
    parser.add_argument("--note", default="", help="a sentence for the table, such as what else the machine did")
    parser.add_argument("--out", type=Path, default=RESULTS / "quantise.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = open_model(args.model)
    test, train = split_of(args.data)
    images, labels = labelled(loaded, args.data, test, args.images)
    calibrate, _ = labelled(loaded, args.data, train, CALIBRATE)
    data = {"images": images, "labels": labels, "calibrate": calibrate, "truth": answers(loaded, images)}
    wanted = [pair for pair in kinds(args.only) if not args.precision or pair[1] in args.precision]
    rows: list[dict[str, Any]] = []
    if args.add and args.out.is_file():
        kept = json.loads(args.out.read_text())["rows"]
        rows = [row for row in kept if (row["format"], row["precision"]) not in wanted]
    order = kinds(("onnx", "openvino", "torch"))
    for name, precision in wanted:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(loaded, name, precision, data, Path(folder)))
        rows.sort(key=lambda row: order.index((row["format"], row["precision"])))
        result = {
            "machine": describe(1),
            "versions": versions(),
            "model": loaded.path.name,
            "data": Path(args.data).name,
            "note": args.note,
            "rows": rows,
        }
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(result))
        print(name, precision, flush=True)
    print(table(json.loads(args.out.read_text())))


if __name__ == "__main__":
    main()
