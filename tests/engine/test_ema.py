"""The moving average of weights: beside the recursion in float64, and where it is applied."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from srattn.engine.ema import WeightAverage


def _net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    net[1].weight.requires_grad_(False)
    return net.double()


@pytest.mark.parametrize("decay", [0.3, 0.75, 0.999])
def test_it_is_the_recursion(decay: float) -> None:
    net = _net()
    average = WeightAverage(net, decay)
    expected = net[0].weight.detach().tolist()
    for step in range(1, 60):
        with torch.no_grad():
            net[0].weight.normal_()
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        for row, values in zip(expected, net[0].weight.tolist(), strict=True):
            row[:] = [kept * mean + (1 - kept) * value for mean, value in zip(row, values, strict=True)]
    found = average.tensors["0.weight"]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def test_it_follows_what_is_trained_and_moves_nothing() -> None:
    net = _net()
    average = WeightAverage(net, 0.9)
    assert average.tensors.keys() == {"0.weight", "0.bias", "1.bias"}  # neither what is frozen nor buffers
    with torch.no_grad():
        net[0].weight.add_(1)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    average.update(1)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_it_is_applied_within_the_block_alone_also_where_that_fails() -> None:
    net = _net()
    average, first = WeightAverage(net, 0.9), net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.mul_(3)
    with pytest.raises(KeyError), average.applied():
        assert torch.equal(net[0].weight, first) and torch.equal(average.tensors["0.weight"], 3 * first)
        raise KeyError
    assert torch.equal(net[0].weight, 3 * first) and torch.equal(average.tensors["0.weight"], first)
