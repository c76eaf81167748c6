"""Whole models: any size, their configuration, export, and that they train."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch

from srattn import SrattnError
from srattn.tasks.dense import DenseModel, build_dense, glpn, segformer

SMALL: dict[str, Any] = {"embed_dims": (8, 16, 20, 32), "num_heads": (1, 2, 2, 4), "depths": (1, 1, 2, 1)}


def small(kind: str, backbone: str = "mit_b0", **options: Any) -> DenseModel:
    if kind == "segformer":
        return segformer(backbone, 5, hidden=16, **{**SMALL, **options}).eval()
    return glpn(backbone, hidden=8, **{**SMALL, **options}).eval()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (33, 50), (47, 131)])
@pytest.mark.parametrize("backbone", ["mit_b0", "pvt_v2_b2_li", "pvt_tiny"])
def test_any_size_and_any_backbone(backbone: str, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    for edge in ("pad", "floor"):
        if edge == "floor" and min(size) < 64:
            continue
        extra = {"edge": edge, "img_size": 64} if backbone == "pvt_tiny" else {}
        logits = small("segformer", backbone, **extra)(images)
        grid = tuple((s if edge == "floor" and extra else s + 3) // 4 for s in size)
        assert logits.shape == (2, 5, *grid)
        assert small("glpn", backbone, **extra)(images).shape == (2, *size)


@pytest.mark.parametrize("kind", ["segformer", "glpn"])
def test_a_config_survives_json_and_rebuilds_the_model(kind: str) -> None:
    model = small(kind, in_chans=1, edge="floor")
    again = build_dense(**json.loads(json.dumps(model.config)))
    assert type(again) is type(model) and again.config == model.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert all(name.startswith(("backbone.stages.", "head.")) for name in model.state_dict())


@pytest.mark.parametrize("kind", ["segformer", "glpn"])
def test_compiles_and_exports_with_dynamic_sizes(kind: str) -> None:
    model = small(kind)
    sizes = {
        0: torch.export.Dim("b", min=1, max=64),
        2: torch.export.Dim("h", min=33),
        3: torch.export.Dim("w", min=33),
    }
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(sizes,))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in [(1, 3, 33, 64), (3, 3, 50, 70)]:
        images = torch.randn(*size)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            expected = model(images)
            assert torch.allclose(exported.module()(images), expected, atol=1e-5)
            assert torch.allclose(compiled(images), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["segformer", "glpn"])
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    model, images = small(kind).train(), torch.randn(2, 3, 64, 64)
    if kind == "segformer":
        model.head.drop.p = 0.0
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        assert all(stage.grad_checkpointing == enable for stage in model.backbone.iter_stages())
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_a_few_steps_of_training_lower_the_loss() -> None:
    model = small("segformer").train()
    images = torch.randn(2, 3, 32, 32)
    targets = (images.mean(1)[:, ::4, ::4] > 0).long()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(images), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_device_and_dtype_reach_the_head() -> None:
    model = segformer("mit_b0", 5, hidden=16, device="meta", dtype=torch.bfloat16, **SMALL)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


def test_what_cannot_be_built() -> None:
    with pytest.raises(SrattnError, match="stride 2: use stride 4"):
        glpn("mit_b0", stem_stride=2, **SMALL)
    with pytest.raises(SrattnError, match="no model 'mit_b9'"):
        segformer("mit_b9")
