"""Writes docs/speed.md, and the table of speeds in the README, from benchmarks/results; `--check` only says whether
they are up to date.

python docs/speed.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_suffix(".md")
README = PAGE.parent.parent / "README.md"
RESULTS = README.parent / "benchmarks" / "results"
BEGIN, END = "<!-- docs/speed.py writes this table -->\n", "<!-- to here -->"
Row = dict[str, Any]

INTRODUCTION = """# Speed and memory

<!-- Written by docs/speed.py from benchmarks/results; change those. -->

Everything here is of one machine and says which. How it was measured, and with which command it is measured again,
is in [benchmarks/README.md](../benchmarks/README.md): the same weights for all, outputs compared first, all candidates
in turn in one process. "matrix" is the part of the machine's own rate of matrix products that the model's published
multiply-adds were done at.

## How a model comes to its speed on a CPU

In eval mode, without gradients, the blocks and patch embeddings of PVT, PVT v2, MiT, Twins, CvT and MViTv2 run in
kernels that are compiled for the machine at first use (a C++ compiler is all they need; without one torch does the
work, and `srattn info` says why). There is nothing to switch on, and the parameters stay where they are.
`torch.compile` leaves these modules whole and compiles what is between them; but for bfloat16 with AMX and for
training, the rows of `srattn compile` below are from before that was so.

- Attention and feed-forward are computed a few rows of the map at a time: what is hidden, queries, scores and heads
  never leave the private cache. Memory grows with the map alone.
- Query and output projections are absorbed into the few keys and values where that needs fewer multiply-adds.
- Reductions and patch embeddings are matrix products over rows that are gathered on the way.
- Queries, keys and values that are convolved (CvT, MViTv2) are so in the same call as their projections and heads: the
  batch norm is part of the convolution, and relative positions are further channels of the products.
- From 1,024 keys on (PVT v2 and SegFormer at 1,024 pixels; CvT at 512 has 4,096) they come in blocks, by a running
  softmax: the cache holds the scores of one block.
- The blocks of a stage are one call, and its map stays float32 from one to the next (in MViTv2 a block is two calls).
- In bfloat16 (`model.to(torch.bfloat16)` or autocast) the products read bfloat16 where the processor has AVX-512
  instructions for it, in its matrix units (AMX) where it has those.
- In training the feed-forward computes what is hidden twice, in the cache, instead of keeping it; it and the other
  kernels for training stay under `torch.compile` too.

`srattn plan MODEL --size N` names the path, the rows in hand and the reason for each stage.
"""

FILES = [
    (
        "inference_float32.json",
        "Inference in float32",
        "Peers are eager and under `torch.compile`; ONNX Runtime and OpenVINO run the export of the peer in brackets.",
    ),
    (
        "inference_avx2.json",
        "On a processor without AVX-512",
        "The same kernels with vectors of eight numbers, as most laptops have them, on a virtual machine whose "
        "neighbours make the spread. There are no instructions for bfloat16 there: models in bfloat16 and under "
        "autocast go through the products of float32, and `--precision auto` trains in float32.",
    ),
    ("inference_bfloat16.json", "Inference in bfloat16", ""),
    (
        "inference_amx.json",
        "In bfloat16 on a processor with AMX",
        "Products are done in the processor's units for matrices, 16 x 16 sums at a time, by the same kernels: maps "
        "stay in the cache between them. GELU and softmax are as precise as bfloat16 asks and no more. Whole models "
        "come to a tenth to some two fifths of the machine's rate of products: with one image the weights come from "
        "memory, and what is no product weighs the more, the faster products are.",
    ),
    (
        "inference_large.json",
        "Large images",
        "Memory is the peak of a fresh process above what it held with the model.",
    ),
    (
        "training_step.json",
        "A step of training",
        "Forward, cross-entropy, backward and AdamW. Under `torch.compile` a step keeps the kernels and is no faster "
        "on a CPU. "
        "[training_memory.json](../benchmarks/results/training_memory.json) has what autograd keeps for backward.",
    ),
]


def render() -> str:
    """The page."""
    parts = [INTRODUCTION, "## In short\n", summary()]
    for name, title, words in FILES:
        result = read(name)
        parts += [f"## {title}\n", *([f"{words}\n"] if words else []), _where(result, name)]
        for case, rows in _cases(result):
            parts.append(f"### {case}\n\n{_table(rows)}")
    parts += ["## Attention as the map grows\n", _attention(), LIMITS, _stages()]
    return "\n".join(parts)


LIMITS = """## What stands in the way of more

Where a peer already runs at two thirds of the machine's rate of matrix products, no implementation of the same
multiply-adds can be twice as fast: that is so of `pvt_small`, `pvt_v2_b2` and `pvt_v2_b2_li` with several images. The
table below has the rate of each of our kernels in the multiply-adds that it does, beside the machine's own in the first
line. The feed-forwards of the later stages are at it. Below it are the first stages, where GELU and the depthwise
convolution weigh most on products of few channels; attention, where a softmax over 49 keys, which are no whole number
of vectors, stands between two small products; and patches of 3 channels, which are gathered from planes. In bfloat16
the products take half the time, and all that is none weighs twice as much. For one image, weights come from memory
for it alone, so each panel of them is fetched while the one before it is used.
"""


def _stages() -> str:
    """The rate of each kernel, in GFLOP/s."""
    result = read("stages.json")
    m, rates = result["machine"], result["matrix_rates"]
    kinds = [(model, dtype) for model in ("pvt_v2_b2", "pvt_small", "mit_b0") for dtype in rates]
    lines = ["| part | " + " | ".join(f"{model}, {dtype}" for model, dtype in kinds) + " |"]
    lines.append("|---" + "|---:" * len(kinds) + "|")
    lines.append("| machine | " + " | ".join(f"{rates[dtype] / 1e9:.0f}" for _, dtype in kinds) + " |")
    found = {(r["model"], r["dtype"], r["stage"], r["part"]): r for r in result["rows"]}
    for stage in (1, 2, 3, 4):
        for part in ("patch embedding", "attention", "feed-forward"):
            rows = [found[(*kind, stage, part)] for kind in kinds]
            cells = [f"{2 * row['macs'] / row['seconds'] / 1e9:.0f}" for row in rows]
            lines.append(f"| stage {stage}, {part} | {' | '.join(cells)} |")
    batch = result["rows"][0]["batch"]
    return "\n".join(lines) + (
        f"\n\nGFLOP/s with {batch} images; {m['cpu']}, {m['threads']} threads, commit {m['commit']}. "
        "[All figures](../benchmarks/results/stages.json), by `python benchmarks/stages.py`.\n"
    )


def summary() -> str:
    """Ours against the best of each kind of peer, a line a case."""
    lines = [
        "| model | images | precision | srattn | best of timm, transformers | OpenVINO | ONNX Runtime | matrix |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for name in ("inference_float32.json", "inference_bfloat16.json", "inference_large.json", "training_step.json"):
        for _, rows in _cases(read(name)):
            lines.append(_short(list(rows)))
    return "\n".join(lines) + "\n"


def _short(rows: list[Row]) -> str:
    timed = [row for row in rows if row["seconds"]]
    ours = timed[0]
    peers = [row for row in timed if row["candidate"].split()[0] in ("timm", "transformers")]
    best = min(peers, key=lambda row: row["seconds"]["median"])
    cells = [
        ours["model"] + ("" if ours["size"] == [224, 224] else f" at {ours['size'][0]}x{ours['size'][1]}"),
        str(ours["batch"]),
        ours["dtype"] + (", training" if ours["mode"] == "train" else ""),
        f"{_ms(ours)} ms",
        f"{_ratio(best)} ({best['candidate']})",
        *(_ratio(next((row for row in timed if row["candidate"].startswith(k)), None)) for k in ("openv", "onnx")),
        f"{ours['matrix_fraction']:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(row: Row | None) -> str:
    return "" if row is None else f"{row['ratio_to_ours']['median']:.2f}x"


def _ms(row: Row) -> str:
    milliseconds = 1e3 * row["seconds"]["median"]
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def _cases(result: Row) -> Iterator[tuple[str, list[Row]]]:
    def key(row: Row) -> tuple[Any, ...]:
        return row["model"], tuple(row["size"]), row["batch"], row["dtype"], row["mode"]

    for (model, size, batch, _, _), rows in groupby(result["rows"], key):
        images = "1 image" if batch == 1 else f"{batch} images"
        yield f"{model}, {images} of {size[0]}x{size[1]}", list(rows)


def _table(rows: list[Row]) -> str:
    memory = any(row["peak_bytes"] for row in rows)
    head = ["candidate", "ms", "spread", "images/s", "times ours", "matrix", *(["memory"] if memory else [])]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    absent = []
    for row in rows:
        if not row["seconds"]:
            absent.append(f"{row['candidate']}: {row['reason']}")
            continue
        seconds = row["seconds"]
        spread = (seconds["q3"] - seconds["q1"]) / (2 * seconds["median"])
        cells = [row["candidate"], _ms(row), f"±{spread:.1%}", f"{row['images_per_second']:.1f}", _ratio(row)]
        cells.append(f"{row['matrix_fraction']:.0%}")
        if memory:
            cells.append("" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB")
        lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    return text + (f"\nNot timed: {'; '.join(absent)}.\n" if absent else "")


def _where(result: Row, name: str) -> str:
    m, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{package} {version}" for package, version in versions.items() if package != "numpy")
    rates = [row["matrix_rate"] / 1e9 for row in result["rows"]]
    return (
        f"{m['cpu']} with {m['cores']} cores ({m['capability']}), {m['threads']} threads, matrix products at "
        f"{min(rates):.0f} to {max(rates):.0f} GFLOP/s; {packages}; commit {m['commit']}. "
        f"[All figures](../benchmarks/results/{name}).\n"
    )


def _attention() -> str:
    result = read("attention.json")
    m = result["machine"]
    lines = ["| mode | attention | time: power of the tokens | memory |", "|---|---|---:|---:|"]
    for fit in result["exponents"]:
        powers = ["" if fit[kind] is None else f"{fit[kind]:.2f}" for kind in ("seconds", "bytes")]
        lines.append(f"| {fit['mode']} | {fit['attention']} | {' | '.join(powers)} |")
    return (
        "Dense attention, SRA and linear SRA on one map, from 14x14 tokens up, and the exponents fitted to them.\n\n"
        "![Time and memory of dense attention, SRA and linear SRA against the number of tokens]"
        "(../benchmarks/results/attention.png)\n\n" + "\n".join(lines) + "\n\n"
        f"{m['cpu']}, {m['threads']} threads, commit {m['commit']}. "
        "[All figures](../benchmarks/results/attention.json).\n"
    )


def read(name: str) -> Row:
    """A result file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def with_table(readme: str) -> str:
    """The README with the table of today's results."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + summary() + END + rest.split(END, 1)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where something is out of date"
    )
    args = parser.parse_args()
    current = True
    for path, text in ((PAGE, render()), (README, with_table(README.read_text(encoding="utf-8")))):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            current = False
            if not args.check:
                path.write_text(text, encoding="utf-8")
    return int(args.check and not current)


if __name__ == "__main__":
    sys.exit(main())
