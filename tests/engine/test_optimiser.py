"""Which parameters decay, and the learning rate of every step."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from srattn.engine.optimiser import learning_rate, make_optimiser


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.position = nn.Parameter(torch.zeros(1, 2, 2, 4))
        self.frozen = nn.Parameter(torch.zeros(5, 5), requires_grad=False)

    def no_weight_decay(self) -> set[str]:
        return {"position"}


def test_groups() -> None:
    model = Small()
    decay, plain = make_optimiser(model, 1e-3, 0.05).param_groups
    assert decay["weight_decay"] == 0.05 and plain["weight_decay"] == 0.0
    assert [tuple(p.shape) for p in decay["params"]] == [(4, 3)]
    expected = {id(p) for p in (model.linear.bias, model.norm.weight, model.norm.bias, model.position)}
    assert {id(p) for p in plain["params"]} == expected


def test_warmup_then_cosine() -> None:
    rates = [learning_rate(step, 100, 10, 1.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[99] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert (rates[54] + rates[55]) / 2 == pytest.approx(0.55, abs=0.01)
    assert learning_rate(0, 1, 0, 1.0, 0.1) == 1.0
