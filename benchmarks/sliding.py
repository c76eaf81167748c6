"""Peak memory and time of class maps of large images: windows beside the whole image at once.

    python benchmarks/sliding.py                # writes benchmarks/results/sliding.json and sliding.md

SegFormer on mit_b0 with 19 classes and fresh weights, float32 on the CPU. The image is random and lies in memory as a
uint8 tensor; the class map is kept as a whole. Each figure comes from a fresh process: the highest resident memory
during the prediction above what it held before, with model and image, and the seconds of the same prediction.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe

from srattn.bench.memory import METHOD, in_child, peak_above
from srattn.data.preprocess import Preprocess
from srattn.engine.sliding import slide
from srattn.tasks.dense import segformer

RESULTS = Path(__file__).parent / "results"
MODEL, CLASSES, WINDOW, OVERLAP = "mit_b0", 19, 512, 0.25
# (height, width): the same width at two heights shows that the height does not matter.
WINDOWED = ((1500, 2000), (1500, 8000), (6000, 8000))
WHOLE = ((512, 512), (1024, 1024), (1536, 2048))


def predict(height: int, width: int, window: int | None, threads: int) -> dict[str, Any]:
    """In a fresh process: one image in windows, or at once without `window`."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = segformer(MODEL, CLASSES, img_size=WINDOW).eval()
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    normalise = Preprocess().normalise
    counted = [1]

    def count(_done: int, total: int) -> None:
        counted[0] = total

    @torch.no_grad()
    def run() -> None:
        if window is not None:
            sides = (window, window)
            numbers = slide(model, image, normalise=normalise, window=sides, overlap=OVERLAP, progress=count).values
        else:
            logits = model(normalise(image[None].float() / 255))
            numbers = F.interpolate(logits, (height, width), mode="bilinear").argmax(1)[0].to(torch.uint8)
        assert numbers.shape == (height, width)

    started = time.perf_counter()
    peak = peak_above(run)
    return {
        "height": height,
        "width": width,
        "window": window,
        "windows": counted[0],
        "peak_bytes": peak,
        "seconds": time.perf_counter() - started,
        # Of it the scores of all classes, float32: those of the strip, or those of the whole image.
        "scores_bytes": 4 * CLASSES * min(height, window or height) * width,
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    machine, rows = result["machine"], result["rows"]
    cores = "one core and thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    lines = [
        "# Class maps of large images",
        "",
        f"{machine['cpu']}, {cores}, torch {machine['torch']}, srattn "
        f"{machine['commit']}. SegFormer on {MODEL}, {CLASSES} classes, float32, windows of {WINDOW} x {WINDOW} with "
        f"{OVERLAP:g} of overlap, one at a time. Memory is {METHOD}; model and image were held before. The seconds are "
        "of the same run, in which giving blocks back costs time. One run each.",
        "",
        "| image (width x height) | as | windows | peak memory, MB | of it scores of all classes, MB | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        peak = "unknown" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}"
        kind = "whole" if row["window"] is None else "windows"
        figures = (row["windows"], peak, f"{row['scores_bytes'] / 1e6:,.0f}", f"{row['seconds']:.1f}")
        lines.append(f"| {row['width']:,} x {row['height']:,} | {kind} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "sliding.json")
    args = parser.parse_args()
    rows = []
    for sizes, window in ((WINDOWED, WINDOW), (WHOLE, None)):
        for height, width in sizes:
            order = {"height": height, "width": width, "window": window, "threads": args.threads}
            rows.append(in_child("sliding", "predict", order, args.threads, timeout=1800))
            print(rows[-1], flush=True)
    result = {"machine": describe(args.threads), "method": METHOD, "rows": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
