"""Does the planner choose the faster path? Times every path at every attention of the published models, in turn.

    python benchmarks/planner.py                # writes benchmarks/results/planner.json

A shape counts as well chosen when the planned path takes at most 10 % longer than the fastest one.
Results are checked against the definition in float64 before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from machine import describe

import srattn
from srattn import SpatialReductionAttention
from srattn.ops.plan import PATHS
from srattn.ops.reference import spatial_reduction_attention

RESULTS = Path(__file__).parent / "results"
# (name, dims, heads, ratios): b0 is the narrowest published model, b2 has the widths of all others.
STAGES = {
    "b0": ((32, 64, 160, 256), (1, 2, 5, 8), (8, 4, 2, 1)),
    "b2": ((64, 128, 320, 512), (1, 2, 5, 8), (8, 4, 2, 1)),
}
SIZES = ((224, 1), (224, 8), (512, 1), (1024, 1))


def shapes() -> list[tuple[str, int, int, int, int, dict[str, object]]]:
    """(label, batch, grid, dim, heads, reduction) of every stage, strided and pooled, at every size."""
    rows = []
    for model, (dims, heads, ratios) in STAGES.items():
        for size, batch in SIZES:
            for stage, (dim, head, ratio) in enumerate(zip(dims, heads, ratios, strict=True)):
                grid = size // (4 << stage)
                label = f"{model} {size}x{size} batch {batch} stage {stage + 1}"
                rows.append((label, batch, grid, dim, head, {"ratio": ratio}))
                if model == "b2":
                    rows.append((label + " linear", batch, grid, dim, head, {"linear": True}))
    return rows


def milliseconds(attn: SpatialReductionAttention, x: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median time of each path, the paths in turn."""
    times: dict[str, list[float]] = {path: [] for path in PATHS}
    for i in range(rounds + 2):
        for path in PATHS:
            with srattn.force_path(path):
                start = time.perf_counter()
                attn(x)
                if i >= 2:
                    times[path].append(1e3 * (time.perf_counter() - start))
    return {path: statistics.median(t) for path, t in times.items()}


def check(attn: SpatialReductionAttention, dim: int) -> None:
    """Every path within 1e-5 of the definition in float64, on a small map."""
    x = torch.randn(1, 9, 16, dim)
    params = {name: p.double() for name, p in attn.named_parameters()}
    y = x.double()
    cells, ratio = attn.reduction.cells, attn.reduction.ratio
    truth = spatial_reduction_attention(y, y, y, params, num_heads=attn.num_heads, ratio=ratio, cells=cells)
    for path in PATHS:
        with srattn.force_path(path):
            error = (attn(x).double() - truth).abs().max() / truth.abs().max()
        assert error < 1e-5, f"{path} is {error:.1e} from the definition: nothing is timed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    with torch.inference_mode():
        for label, batch, grid, dim, heads, reduction in shapes():
            attn = SpatialReductionAttention(dim, heads, **reduction).eval()
            check(attn, dim)
            choice = attn.plan_for(grid, grid, batch)
            times = milliseconds(attn, torch.randn(batch, grid, grid, dim), args.rounds)
            ratio = times[choice.path] / min(times.values())
            rows.append({"shape": label, "planned": choice.path, "ms": times, "planned_over_best": ratio})
            print(f"{label:<42} {choice.path:<9} {ratio:5.2f}  " + "  ".join(f"{p} {t:.2f}" for p, t in times.items()))
    ratios = [row["planned_over_best"] for row in rows]
    summary = {
        "shapes": len(rows),
        "well_chosen": sum(r <= 1.1 for r in ratios),
        "median_planned_over_best": statistics.median(ratios),
        "worst_planned_over_best": max(ratios),
    }
    result = {"summary": summary, "machine": describe(args.threads), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "planner.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
