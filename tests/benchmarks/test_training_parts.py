"""benchmarks/training_parts.py: it finds the parts of a step, and switches off what it says."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from srattn import recipes
from srattn.engine import TrainConfig
from srattn.engine.defaults import resolve
from srattn.ops import depthwise, native

TINY = {
    "stem_stride": 2,
    "stem_channels": 4,
    "embed_dims": [8, 16],
    "num_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "depths": [1, 2],
    "sr_ratios": [2, 1],
    "fc_dim": 16,
}


@pytest.fixture
def module(script: Callable[[str], ModuleType]) -> Any:
    if native.why_not():
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    return script("training_parts")


@pytest.fixture
def config() -> Any:
    changed = {"model_options": TINY, "batch_size": 4, "threads": 1, "precision": "fp32"}
    return resolve(TrainConfig(**{**recipes.load("cifar10"), **changed}))


def test_the_parts_of_a_step_are_measured(module: Any, config: Any) -> None:
    found = module.measure(config, seconds=1e-3, rounds=1)
    counts = {row["part"]: row["count"] for row in found["parts"]}
    assert counts["x + depthwise 3x3, 4x16x16x8, float32"] == 1  # of the block; that of its feed-forward is wider
    assert counts["x + depthwise 3x3, 4x8x8x32, float32"] == 2
    assert counts["GELU, batch norm, 4x8x8x32, float32"] == 4
    assert counts["Muon, all matrices"] == 1
    assert not any(name.startswith("depthwise reduction") for name in counts)  # which is torch's in float32
    assert [row["setting"] for row in found["steps"]] == ["ours", "without our kernels", "the heap given back"]
    assert all(row["step"]["median"] > 0 and row["step"]["rounds"] == 1 for row in found["steps"])
    text = module.table("cifar10", found)
    assert all(row["part"] in text for row in found["parts"])


def test_ours_and_torchs_compute_the_same(module: Any, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = module.Bench(config)
    made: list[list[torch.Tensor]] = []

    def compute(self: Any, form: Callable[[], torch.Tensor], leaves: tuple[torch.Tensor, ...]) -> Callable[[], None]:
        y = form()
        gradient = torch.linspace(0, 99, y.numel()).cos().view(y.shape)
        made.append([y.detach(), *torch.autograd.grad(y, leaves, gradient)])
        return lambda: None

    monkeypatch.setattr(module.Bench, "_both_ways", compute)
    parts = bench.parts()
    for part in parts:
        bench.candidates(part)
    assert len(made) == 2 * sum(part.kind not in ("depthwise reduction", "layer norm") for part in parts)
    for ours, theirs in zip(made[::2], made[1::2], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_without_kernels_is_without_kernels(module: Any, config: Any) -> None:
    x, weight = torch.randn(1, 4, 4, 8), torch.randn(8, 1, 3, 3)
    bench = module.Bench(config)
    against = {}
    for name, (setting, _) in bench.settings().items():
        with setting():
            against[name] = depthwise.reason_against(x, weight, None)
    assert against == {"ours": None, "without our kernels": "switched off", "the heap given back": None}


def test_whole_steps_alone(module: Any, config: Any) -> None:
    found = module.measure(config, seconds=0.0, rounds=1, alone=True)
    assert found["parts"] == [] and [row["setting"] for row in found["steps"]] == ["ours"]


def test_a_number_of_a_kernel_is_set_by_its_name(script: Callable[[str], ModuleType]) -> None:
    parts = script("training_parts")
    assert parts._setting("batch_norm.TILE=4096") == ("batch_norm", "TILE", 4096)
    for text in ("batch_norm.WHILE_COMPILING=1", "batch_norm.TILE=many", "conv.TILE=1", "TILE"):
        with pytest.raises(SystemExit, match=r"one of batch_norm\.PROGRAMS, .*, got"):
            parts._setting(text)
