"""A small case, and peers that are ours in disguise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from srattn.bench import peers
from srattn.bench.case import Case

SMALL = {"embed_dims": (8, 16, 16, 32), "num_heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1), "num_classes": 10}


@pytest.fixture
def case() -> Case:
    return Case("pvt_v2_b0", (64, 64), batch=2, options=SMALL)


class ScaledGradient(nn.Module):
    """The right output, with the gradient of it in another size."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        right = self.model(images)
        return 0.5 * right + 0.5 * right.detach()


def twin(ours: Any, case: Case) -> nn.Module:
    return copy.deepcopy(ours)


def wrong_bias(ours: Any, case: Case) -> nn.Module:
    other = copy.deepcopy(ours)
    with torch.no_grad():
        other.head.bias += 0.01
    return other


def other_eps(ours: Any, case: Case) -> nn.Module:
    other = copy.deepcopy(ours)
    other.set_norm_eps(block=1e-3)
    return other


def wrong_gradient(ours: Any, case: Case) -> nn.Module:
    return ScaledGradient(copy.deepcopy(ours))


def broken(ours: Any, case: Case) -> nn.Module:
    raise RuntimeError("no such thing")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers in the registry of the real ones, in place of them."""
    builders: dict[str, Callable[[Any, Case], nn.Module]] = {
        "twin": twin,
        "wrong": wrong_bias,
        "eps": other_eps,
        "gradient": wrong_gradient,
        "broken": broken,
    }
    for name in list(peers.PEERS):
        monkeypatch.delitem(peers.PEERS, name)
    for name, build in builders.items():
        monkeypatch.setitem(peers.PEERS, name, peers.Peer("srattn", build))
    monkeypatch.setitem(peers.PEERS, "absent", peers.Peer("srattn", twin, "no_such_package_anywhere"))
