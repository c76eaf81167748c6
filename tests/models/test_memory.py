"""The setting `memory` of whole models: the same numbers, less kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import srattn
from srattn.errors import SrattnError
from srattn.layers.feed_forward import FeedForward
from srattn.models.memory import describe_training, saved_bytes
from srattn.ops import feed_forward as ops


def numbers(depths: tuple, heads: tuple = (1, 2), ratios: tuple = (4, 2)) -> dict[str, Any]:
    return {"embed_dims": (8, 16), "mlp_ratios": (4, 4), "depths": depths, "num_heads": heads, "sr_ratios": ratios}


FAMILIES = {
    "pvt_v2_b0": numbers((1, 2)),
    "pvt_v2_b2_li": numbers((1, 1), ratios=(1, 1)),
    "twins_svt_small": numbers((2, 1)) | {"window_sizes": (5, 5)},
    "shunted_tiny": numbers((1, 1), heads=(2, 4)),
}


def small(name: str) -> torch.nn.Module:
    return srattn.create_model(name, num_classes=5, **FAMILIES[name]).double().train()


def gradients(model: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    out = model(images)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_numbers_are_the_same_and_less_is_kept(name: str) -> None:
    model, images = small(name), torch.randn(2, 3, 38, 45, dtype=torch.float64)
    assert model.memory == "fast"
    truth = gradients(model, images)
    before = saved_bytes(model, lambda: model(images))
    model.set_memory("lean")
    assert model.memory == "lean"
    for got, expected in zip(gradients(model, images), truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    assert saved_bytes(model, lambda: model(images)) < 0.75 * before
    model.set_memory("fast")
    assert saved_bytes(model, lambda: model(images)) == before


@pytest.mark.parametrize("memory", ops.MEMORIES)
def test_in_single_precision_by_the_kernel_too(memory: str) -> None:
    model = srattn.create_model("pvt_v2_b0", num_classes=5, **FAMILIES["pvt_v2_b0"]).train()
    images = torch.randn(2, 3, 38, 45)
    exact = gradients(copy.deepcopy(model).double(), images.double())
    parts = [m for m in model.modules() if isinstance(m, FeedForward)]
    model.set_memory(memory)
    ours = gradients(model, images)
    for part in parts:
        part._is_plain = lambda: False  # type: ignore[method-assign]
    torchs = gradients(model, images)
    for got, theirs, truth in zip(ours, torchs, exact, strict=True):
        rounding = truth.abs().max().item() * torch.finfo(torch.float32).eps
        assert (got - truth).abs().max() <= 2 * (theirs - truth).abs().max() + 8 * rounding + 1e-7


@pytest.mark.parametrize("memory", ops.MEMORIES)
def test_with_gradient_checkpointing(memory: str) -> None:
    model, images = small("pvt_v2_b0").float(), torch.randn(2, 3, 32, 32)
    model.set_memory(memory)
    truth = gradients(model, images)
    model.set_grad_checkpointing()
    for got, expected in zip(gradients(model, images), truth, strict=True):
        torch.testing.assert_close(got, expected)


def test_an_average_of_weights_takes_the_setting_along() -> None:
    model = small("pvt_v2_b0")
    model.set_memory("lean")
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    average.update_parameters(model)
    assert average.module.memory == "lean"
    assert all(m.memory == "lean" for m in average.module.modules() if isinstance(m, FeedForward))


def test_eval_mode_and_export_do_not_notice() -> None:
    model, images = small("pvt_v2_b0").eval(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    programs = []
    for memory in ops.MEMORIES:
        model.set_memory(memory)
        programs.append(torch.export.export(model, (images,)).graph_module.code)
        assert torch.equal(model(images).detach(), model.eval()(images.requires_grad_()).detach())
    assert programs[0] == programs[1]


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(SrattnError, match="'lean' or 'fast', got 'slim'"):
        small("pvt_v2_b0").set_memory("slim")


def test_every_stage_is_described() -> None:
    model = srattn.create_model("pvt_v2_b0")
    model.set_memory("lean")
    lines = describe_training(model, 224, 8)
    assert len(lines) == 4
    assert lines[0].startswith("stage 1, 56x56: ") and " at a time: " in lines[0]
    other = small("shunted_tiny")
    assert "of another kind" in describe_training(other, (38, 45))[0]
    other.set_memory("lean")
    assert "every block is computed again" in describe_training(other, (38, 45))[0]
