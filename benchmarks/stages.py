"""Where the time of a model goes on a CPU: the compiled kernels of each stage, one by one, and the rate each reaches.

    python benchmarks/stages.py       # writes benchmarks/results/stages.json

Rates are of the multiply-adds that the kernels do (absorbed or not), two FLOP each, beside the machine's own rate of
matrix products. What is no matrix product (GELU, the depthwise convolution, softmax, norms) counts as none, so that a
part below the machine's rate shows what those cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from srattn.bench.machine import describe, matrix_rate
from srattn.layers import native
from srattn.layers.block_kernels import lay_out_block
from srattn.models.registry import build_model
from srattn.ops.native import attention_macs

RESULTS = Path(__file__).parent / "results" / "stages.json"
MODELS = ("pvt_v2_b0", "pvt_v2_b2", "pvt_v2_b2_li", "pvt_small", "mit_b0")


def seconds(call: Callable[[], object], runs: int = 9) -> float:
    """The median of `runs` calls after two that do not count."""
    found = []
    for index in range(runs + 2):
        begin = time.perf_counter()
        call()
        if index >= 2:
            found.append(time.perf_counter() - begin)
    return statistics.median(found)


@torch.no_grad()
def measure(name: str, batch: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """A row for the patch embedding, the attention and the feed-forward of each stage; blocks of a stage are alike."""
    model: Any = build_model(name).eval().to(dtype)
    images = torch.randn(batch, 3, 224, 224).to(dtype)
    rows, x = [], images
    for index, stage in enumerate(model.stages):
        tokens = stage.embed(x)
        block = stage.blocks[0]
        kernels = native.layout_of(block, tokens, lay_out_block)
        if kernels is None:
            raise SystemExit(f"{name} does not run in the compiled kernels here: {native.reason_against(tokens)}")
        wide, attn = tokens.float().contiguous(), block.attn
        keys = attn.reduced_size(*tokens.shape[1:3])
        n, m, c = tokens.shape[1] * tokens.shape[2], keys[0] * keys[1], tokens.shape[3]
        embedding = batch * n * stage.patch_embed.proj.weight.numel()
        attention = batch * (min(attention_macs(n, m, c, attn.num_heads, attn.q.out_features)) + 2 * m * c * c)
        attention += batch * attn.reduction.macs(*tokens.shape[1:3])
        hidden = batch * 2 * n * c * block.mlp.fc1.out_features
        mlp = kernels.mlp
        parts: list[tuple[str, int, float, int]] = [
            ("patch embedding", 1, seconds(lambda stage=stage, x=x: stage.patch_embed(x)), embedding),
            ("attention", len(stage.blocks), seconds(lambda k=kernels, w=wide, s=keys: k.attention(w, s)), attention),
            ("feed-forward", len(stage.blocks), seconds(lambda mlp=mlp, w=wide: mlp(w)), hidden),
        ]
        for part, count, time_of_one, macs in parts:
            rows.append(
                {
                    "model": name,
                    "batch": batch,
                    "dtype": str(dtype).removeprefix("torch."),
                    "stage": index + 1,
                    "part": part,
                    "count": count,
                    "seconds": time_of_one,
                    "macs": macs,
                }
            )
        x = stage(x)
    whole = seconds(lambda: model(images))
    rows.append({**rows[-1], "stage": None, "part": "whole model", "count": 1, "seconds": whole, "macs": None})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows, rates = [], {}
    for dtype in (torch.float32, torch.bfloat16):
        rates[str(dtype).removeprefix("torch.")] = matrix_rate(dtype)
        for name in args.models:
            rows += measure(name, args.batch, dtype)
    result = {"machine": describe(args.threads), "matrix_rates": rates, "rows": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
