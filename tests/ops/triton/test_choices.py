"""The choice of kernel and blocks: rules of thumb, what was tuned, the file that keeps it, the words of the plan."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from srattn.ops import plan
from srattn.ops.plan import Shape, cheapest, choose
from srattn.ops.triton import cache, choices, strips
from srattn.ops.triton.choices import Blocks, Few
from srattn.ops.triton.strips import Strips

CPU = torch.device("cpu")
FEW = Few(64, 3136, 49, 64, 64, 1, 2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRATTN_CACHE", str(tmp_path))
    cache._content.cache_clear()
    plan.forget()


def test_tuned_blocks_are_read_back_and_the_nearest_batch_serves() -> None:
    assert choices.forward_blocks(FEW, CPU) == choices.default_forward(FEW)
    tuned = [Blocks("whole", 128, 0, 8, 3), Blocks("blocked", 64, 32, 4, 2)]
    for batch, blocks in zip((64, 2), tuned, strict=True):
        choices.keep("forward", FEW._replace(batch=batch), CPU, blocks)
    cache._content.cache_clear()
    assert choices.forward_blocks(FEW, CPU) == choices.forward_blocks(FEW._replace(batch=40), CPU) == tuned[0]
    assert choices.forward_blocks(FEW._replace(batch=3), CPU) == tuned[1]
    assert choices.backward_blocks(FEW, CPU) == choices.default_backward(FEW)
    assert choices.forward_blocks(FEW._replace(keys=50), CPU).kind == "whole"  # nothing tuned for 50 keys


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2", '{"version": 1}', '{"version": 99, "machines": {}}', '{"version": 1, "machines": 3}', "null"],
)
def test_a_corrupt_file_counts_as_empty_and_is_replaced(content: str) -> None:
    cache.path().write_text(content)
    assert choices.forward_blocks(FEW, CPU) == choices.default_forward(FEW)
    choices.keep("forward", FEW, CPU, Blocks("whole", 32, 0, 4, 2))
    cache._content.cache_clear()
    assert choices.forward_blocks(FEW, CPU).block_n == 32
    assert [p.name for p in cache.path().parent.iterdir()] == ["kernels.json"]


@pytest.mark.parametrize("entry", [[5], [5, ["whole", 48, 0, 4, 2, 0]], [5, ["blocked", 64, 0, 4, 2, 0]], [5, "blocks"],
                                   [5, ["whole", 64, 0, 4, 2, 0, 1]], [5, ["whole", "x", 0, 4, 2, 0]]])  # fmt: skip
def test_entries_that_no_kernel_could_take_are_passed_over(entry: list[object]) -> None:
    cache.keep(CPU, choices._key("forward", FEW), entry)
    assert choices.forward_blocks(FEW, CPU) == choices.default_forward(FEW)


def test_strips_of_the_convolution() -> None:
    x = torch.empty(2, 7, 7, 64, device="meta")
    assert strips.strips_for("depthwise", x) == strips.STRIPS[0]
    strips.keep_strips(
        "depthwise", x.cpu() if x.device.type != "meta" else torch.empty(2, 7, 7, 64), Strips(4, 32, 8, 2, 1)
    )
    assert strips.strips_for("depthwise", torch.empty(9, 7, 7, 64)) == Strips(4, 32, 8, 2, 1)


def test_what_was_tuned_without_a_norm_serves_with_one() -> None:
    choices.keep("forward", FEW, CPU, Blocks("whole", 128, 0, 8, 3))
    assert choices.forward_blocks(FEW._replace(norm=True), CPU).block_n == 128
    choices.keep("forward", FEW._replace(norm=True), CPU, Blocks("whole", 32, 0, 4, 2))
    assert choices.forward_blocks(FEW._replace(norm=True), CPU).block_n == 32


def test_small_chips_get_small_blocks() -> None:
    wide = FEW._replace(dim=320, out_dim=320, heads=5)
    assert choices.default_forward(wide).block_n == 64 and choices.default_forward(wide, 99 << 10).block_n == 32
    assert choices.default_forward(FEW._replace(dim=128, out_dim=128, heads=2)).kind == "whole"
    assert choices.default_forward(FEW._replace(dim=128, out_dim=128, heads=2), 99 << 10).kind == "blocked"


def test_every_candidate_is_possible() -> None:
    for s in (
        FEW,
        FEW._replace(keys=196, dim=128, out_dim=128, heads=2),
        FEW._replace(itemsize=4),
        FEW._replace(keys=1024),
    ):
        for backward in (False, True):
            for blocks in choices.candidates(s, backward):
                assert choices._read([1, list(blocks)]) == blocks
                assert blocks.kind == "blocked" or choices._may_be_whole("backward" if backward else "forward", s)


@pytest.mark.parametrize(
    ("shape", "path", "words"),
    [
        (Shape(64, 3136, 49, 64, 1, 64, 2, "cuda"), "absorbed", "one kernel, x read and the output written once"),
        (Shape(64, 3136, 49, 64, 1, 64, 2, "cuda", keeps_scores=True), "absorbed", "all keys on chip"),
        (Shape(1, 196, 49, 64, 1, 64, 2, "cuda"), "sdpa", "a small map, 0.2 MB moved"),
        (Shape(64, 784, 784, 320, 5, 320, 2, "cuda"), "sdpa", "5 heads x 784 keys are too many to absorb"),
        (Shape(64, 3136, 1025, 64, 1, 64, 2, "cuda"), "absorbed", "no kernel (1025 keys are more than 1024)"),
        (Shape(64, 3136, 49, 64, 1, 64, 8, "cuda"), "absorbed", "no kernel (float64)"),
        (Shape(64, 3136, 49, 64, 1, 64, 2, "cuda", kernel=False), "absorbed", "attention dropout or an exported graph"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="what this machine's own GPU says is another matter")
def test_the_plan_on_a_gpu_says_why(shape: Shape, path: str, words: str) -> None:
    choice = choose(shape)
    assert choice.path == path and words in choice.reason


@pytest.mark.parametrize(
    ("most", "more"),
    [
        ({"keys": 1024}, {"keys": 1025}),
        ({"dim": 512}, {"dim": 513}),
        ({"heads": 16}, {"heads": 17}),
        ({"itemsize": 4}, {"itemsize": 8}),
        ({"batch": 65_535}, {"batch": 65_536}),
        ({"batch": 13_107, "heads": 5}, {"batch": 13_108, "heads": 5}),  # of CUDA's grid: images times heads
        ({"queries": 1, "keys": 1, "batch": 1}, {"queries": 0}),
        ({}, {"keys": 0}),
        ({}, {"batch": 0}),
        ({}, {"device": "cpu"}),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="what this machine's own GPU says is another matter")
def test_the_kernel_up_to_its_limits(most: dict[str, Any], more: dict[str, Any]) -> None:
    shape = Shape(64, 3136, 49, 64, 1, 64, 2, "cuda")
    assert plan.takes_kernel(shape._replace(**most)) and not plan.takes_kernel(shape._replace(**more))


def test_the_plan_on_a_cpu_knows_no_kernel() -> None:
    choice = choose(Shape(64, 3136, 49, 64, 1, 64))
    assert choice.path == "absorbed" and "kernel" not in choice.reason
    assert not plan.takes_kernel(Shape(64, 3136, 49, 64, 1, 64))


def test_what_was_measured_stands_above_the_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(64, 3136, 49, 64, 1, 64, 2, "cuda")
    monkeypatch.setattr(choices, "_here", lambda: CPU)
    choices.keep_faster(FEW, CPU, False, "sdpa")
    plan.forget()
    choice = choose(shape)
    assert choice.path == "sdpa" and choice.reason.startswith("measured faster on this device (the plain path)")
    assert choose(shape._replace(batch=16)).path == "absorbed"


def test_the_plan_picks_what_was_faster_on_an_h100(root: Path) -> None:
    rows = json.loads((root / "benchmarks/results/gpu_h100.json").read_text())["rows"]
    found = [row for row in rows if row["candidate"] == "kernel with absorption"]
    assert len(found) == 34
    for row in found:
        size = re.fullmatch(r"(\d+)x\d+ batch (\d+) C (\d+) heads (\d+) keys (\d+)", row["shape"])
        assert size is not None, row["shape"]
        side, batch, dim, heads, keys = map(int, size.groups())
        training = row["what"].endswith("backward")
        shape = Shape(batch, side * side, keys, dim, heads, dim, 2, "cuda", training=training)
        assert cheapest(shape) == ("absorbed" if row["speedup"] > 1 else "sdpa"), (row["shape"], training)
