"""The measurement refuses wrong results, and counts what it says that it counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from srattn.explain.memory import peak_bytes
from srattn.explain.scaling import DENSE, KEPT, SRA, MeasurementError, exponent, measure_scaling
from srattn.layers.attention import SpatialReductionAttention

TINY: dict[str, Any] = {"sides": (4, 8, 16), "dim": 8, "heads": 2, "ratio": 2, "budget": 60.0, "most_rounds": 3}


def test_a_tiny_measurement():
    state = torch.get_rng_state()
    result = measure_scaling(**TINY)
    assert torch.equal(torch.get_rng_state(), state)
    assert [(p.tokens, p.keys) for p in result.points] == [(16, 4), (64, 16), (256, 64)]
    assert result.dense_candidates == ["sdpa", "absorbed"]
    assert 0 <= result.worst_error < 1e-4
    assert result.rounds == 3
    for point in result.points:
        times = [point.seconds[name] or 0.0 for name in (DENSE, KEPT, SRA)]
        assert min(times) > 0
        assert times[0] <= times[1]
    # Two heads of 256 x 256 scores in float32 have to show, and softmax needs them twice.
    assert (result.points[-1].bytes[KEPT] or 0) >= 2 * 256 * 256 * 4
    assert (result.byte_exponents[KEPT] or 0) > 1


def test_without_budget_the_smallest_map_is_measured_alone():
    result = measure_scaling((4, 8), dim=8, heads=2, ratio=2, budget=0.0)
    assert [point.side for point in result.points] == [4]
    assert result.time_exponents == {DENSE: None, KEPT: None, SRA: None}


class Wrong(SpatialReductionAttention):
    def forward(self, x, *args, **kwargs):
        out = super().forward(x, *args, **kwargs)
        return out * 1.01 if self.ratio != (1, 1) else out


class WrongDense(SpatialReductionAttention):
    def forward(self, x, *args, **kwargs):
        out = super().forward(x, *args, **kwargs)
        return out + 0.01 if self.ratio == (1, 1) else out


class NotFinite(SpatialReductionAttention):
    def forward(self, x, *args, **kwargs):
        out = super().forward(x, *args, **kwargs).clone()
        out[0, 0, 0, 0] = float("nan")
        return out


@pytest.mark.parametrize(
    ("broken", "words"), [(Wrong, "SRA is .* off"), (WrongDense, "dense attention"), (NotFinite, "not finite")]
)
def test_wrong_results_are_not_timed(broken, words):
    with pytest.raises(MeasurementError, match=words):
        measure_scaling(**TINY, make=broken)


def test_peak_counts_what_lives_at_once():
    device = torch.device("cpu")
    one = 4 * 1000 * 1000

    def chain():
        a = torch.zeros(1000, 1000)
        b = a + 1
        del a
        return b * 2

    assert peak_bytes(chain, device) == pytest.approx(2 * one, abs=100)
    assert peak_bytes(lambda: None, device) in (None, 0)


def test_exponent_is_that_of_the_largest_sizes():
    sizes = [2, 4, 8, 16, 32]
    assert exponent(sizes, [100.0] + [n**2 for n in sizes[1:]]) == pytest.approx(2)
    assert exponent(sizes, [None, None, 8, 16, None]) == pytest.approx(1)
    assert exponent(sizes, [None, 1, None, None, None]) is None
