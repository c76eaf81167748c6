"""Kernels for training on a GPU, where there is one: alone against float64, and inside a compiled model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import srattn
from srattn.engine.compiled import compile_parts
from srattn.ops.batch_norm import plain
from srattn.ops.triton import attention, batch_norm, depthwise, layer_norm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPES = [(8, 16, 16, 384), (3, 7, 5, 46), (1, 1, 1, 8)]


def far(found: Tensor, truth: Tensor) -> float:
    """Relative to the truth."""
    return float((found.double() - truth).norm() / truth.norm().clamp(min=1e-12))


def compare(kernel: Callable[..., Tensor], exact: Callable[..., Tensor], *leaves: Tensor, allowed: float) -> None:
    """Outputs and gradients of both, which are given what they are to compute in."""
    found = [t.detach().cuda().requires_grad_() for t in leaves]
    truth = [t.detach().double().requires_grad_() for t in leaves]
    y, expected = kernel(*found), exact(*truth)
    slope = torch.randn(expected.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(y, found, slope.to(y))
    others = torch.autograd.grad(expected, truth, slope.to(y.dtype).double())
    for a, b in zip((y, *gradients), (expected, *others), strict=True):
        assert far(a.detach().cpu(), b.detach()) < allowed


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm(shape: tuple[int, ...], gelu: bool, dtype: torch.dtype) -> None:
    x, w, b = torch.randn(shape).to(dtype), torch.rand(shape[-1]), torch.randn(shape[-1])
    compare(
        lambda x, w, b: batch_norm.batch_norm(x, w, b, 1e-5, gelu)[0],
        lambda x, w, b: plain(x, w, b, 1e-5, gelu)[0],
        x, w, b,
        allowed=1e-4 if dtype == torch.float32 else 1e-2,
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w, b = torch.randn(shape).to(dtype), torch.rand(shape[-1]), torch.randn(shape[-1])
    compare(
        lambda x, w, b: layer_norm.layer_norm(x, w, b, 1e-5)[0],
        lambda x, w, b: F.layer_norm(x, shape[-1:], w, b, 1e-5),
        x, w, b,
        allowed=1e-4 if dtype == torch.float32 else 1e-2,
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", [depthwise.Form(residual=True, gelu=False), depthwise.Form()])
def test_depthwise(shape: tuple[int, ...], form: depthwise.Form) -> None:
    x, w, b = torch.randn(shape).bfloat16(), torch.randn(shape[-1], 1, 3, 3) / 3, torch.randn(shape[-1])
    compare(
        lambda x, w, b: depthwise.depthwise(x, w, b, form),
        lambda x, w, b: depthwise.definition(x, w, b, form),
        x, w, b,
        allowed=1e-2,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which the compiler looks at
@pytest.mark.parametrize("operators", ["open", "opaque"])
@pytest.mark.parametrize("name", ["cmt_ti", "pvt_v2_b0"])
def test_a_compiled_model_trains_through_them(name: str, operators: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast; its gradients are as far from float32 as those of torch's own operators, or twice as far."""
    for module in (attention, batch_norm, depthwise, layer_norm):
        monkeypatch.setattr(module, "WHILE_COMPILING", operators)
    stages = {"embed_dims": (32, 64), "depths": (1, 2), "num_heads": (1, 2), "mlp_ratios": (2, 2), "sr_ratios": (2, 1)}
    four: dict[str, Any] = {key: (*value, *value) for key, value in stages.items()}
    cmt: dict[str, Any] = {**stages, "stem_channels": 16, "img_size": 64, "fc_dim": 32}
    torch.manual_seed(0)
    model = srattn.create_model(name, num_classes=10, **(cmt if name == "cmt_ti" else four)).cuda().train()
    x, parameters = torch.randn(16, 3, 64, 64, device="cuda"), list(model.parameters())
    with srattn.force_path("sdpa"):
        truth = torch.autograd.grad(model(x).square().sum(), parameters)
        with torch.autocast("cuda", torch.bfloat16):
            usual = torch.autograd.grad(model(x).float().square().sum(), parameters)
    torch._dynamo.reset()  # pyright: ignore[reportPrivateImportUsage]
    compile_parts(model)
    with torch.autocast("cuda", torch.bfloat16):
        found = torch.autograd.grad(model(x).float().square().sum(), parameters)
    off, may = (sum(float((a - b).square().sum()) for a, b in zip(ones, truth, strict=True)) for ones in (found, usual))
    assert off < 4 * may
