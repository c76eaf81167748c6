"""Gradients of gradients while training, where batch norms of tokens go through a kernel, against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import srattn
from srattn.models import build_model
from srattn.ops import batch_norm as ops
from tests.models.small import short_numbers


def second(model: nn.Module, x: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Gradients of (gradient . v), by the images and by every parameter that it depends on."""
    x = x.clone().requires_grad_()
    wanted = {"x": x, **dict(model.named_parameters())}
    with srattn.force_path("plain"):
        (g,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
        found = torch.autograd.grad((g * v).sum(), list(wanted.values()), allow_unused=True)
    return {name: f for name, f in zip(wanted, found, strict=True) if f is not None}


@pytest.mark.parametrize("name", ["cvt_13", "cmt_ti"])
def test_second_derivatives_while_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_model(name, **short_numbers(name), img_size=64).train()
    with torch.no_grad():
        for p in model.parameters():  # far from the point where everything is alike, at which norms are ill-conditioned
            p.add_(torch.randn_like(p) * 0.2)
    x, v = torch.randn(4, 3, 64, 64), torch.randn(4, 3, 64, 64)
    truth = second(copy.deepcopy(model).double(), x.double(), v.double())
    found = second(copy.deepcopy(model), x, v)
    monkeypatch.setattr(ops, "has_kernel", lambda *_: False)
    plain = second(model, x, v)
    assert found.keys() == truth.keys()
    for key, exact in truth.items():  # norms are about 1 to 60; of some parameters they vanish
        error, allowed = ((f[key].double() - exact).norm() / exact.norm().clamp(min=1) for f in (found, plain))
        assert error <= 2 * allowed + 1e-5, f"{key}: {float(error)} against {float(allowed)}"
