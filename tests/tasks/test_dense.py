"""Whole models: any size, their configuration, export, and that they train."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch

from srattn import SrattnError, load_checkpoint
from srattn.tasks.dense import DenseModel, build_dense, glpn, segformer, segmentation_model

SMALL: dict[str, Any] = {"embed_dims": (8, 16, 20, 32), "num_heads": (1, 2, 2, 4), "depths": (1, 1, 2, 1)}
HEADS: dict[str, dict[str, Any]] = {
    "semantic_fpn": {"width": 8, "hidden": 8},
    "upernet": {"width": 8, "scales": (1, 3)},
    "unet": {"widths": (8, 8, 12)},
}
KINDS = ["segformer", "glpn", *HEADS]


def small(kind: str, backbone: str = "mit_b0", **options: Any) -> DenseModel:
    if kind == "segformer":
        return segformer(backbone, 5, hidden=16, **{**SMALL, **options}).eval()
    if kind in HEADS:
        return segmentation_model(backbone, 5, kind, HEADS[kind], **{**SMALL, **options}).eval()
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_survives_json_and_rebuilds_the_model(kind: str) -> None:
    model = small(kind, in_chans=1, edge="floor")
    again = build_dense(**json.loads(json.dumps(model.config)))
    assert type(again) is type(model) and again.config == model.config
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes
    again = build_dense(**json.loads(json.dumps(model.config)), device="meta")
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes
    assert {p.device.type for p in again.parameters()} == {"meta"}
    again.load_state_dict(model.state_dict(), assign=True)
    images = torch.randn(1, 1, 64, 64)
    assert torch.equal(again.eval()(images), model(images))
    assert all(name.startswith(("backbone.stages.", "head.")) for name in model.state_dict())


@pytest.mark.parametrize("kind", ["segformer", "glpn"])
def test_compiles_and_exports_with_dynamic_sizes(kind: str) -> None:
    two = {"embed_dims": (8, 16), "num_heads": (1, 2), "depths": (1, 1), "mlp_ratios": (2, 2), "sr_ratios": (4, 1)}
    model = small(kind, **two)
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


@pytest.mark.parametrize("kind", HEADS)
def test_other_heads_give_logits_at_the_finest_grid(kind: str) -> None:
    for size in [(32, 32), (47, 131)]:
        assert small(kind, "pvt_v2_b0")(torch.randn(2, 3, *size)).shape == (2, 5, *((s + 3) // 4 for s in size))


@pytest.mark.parametrize("kind", HEADS)
def test_other_heads_export_with_dynamic_sizes(kind: str) -> None:
    two = {"embed_dims": (8, 16), "num_heads": (1, 2), "depths": (1, 1), "mlp_ratios": (2, 2), "sr_ratios": (4, 2)}
    options = {**HEADS[kind], **({"widths": [8]} if kind == "unet" else {})}
    model = segmentation_model("pvt_v2_b0", 5, kind, options, **two).eval()
    sizes = {
        0: torch.export.Dim("b", min=1, max=64),
        2: torch.export.Dim("h", min=17),
        3: torch.export.Dim("w", min=17),
    }
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(sizes,)).module()
    for size in [(1, 3, 33, 64), (3, 3, 50, 70)]:
        images = torch.randn(*size)
        with torch.no_grad():
            assert torch.allclose(exported(images), model(images), atol=1e-5)


def test_the_published_size_of_pvt_with_semantic_fpn() -> None:
    # arXiv:2102.12122, table 5: 17.0, 28.2, 48.0 and 65.1 M parameters with 150 classes.
    for name, published in (("pvt_tiny", 17.0), ("pvt_small", 28.2), ("pvt_medium", 48.0), ("pvt_large", 65.1)):
        model = segmentation_model(name, 150, "semantic_fpn", device="meta")
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(published, abs=0.1), name


def test_a_dense_model_answers_for_its_backbone() -> None:
    model = segmentation_model("pvt_tiny", 7, "unet", img_size=64, in_chans=2, edge="floor", **SMALL)
    assert (model.num_classes, model.in_chans, model.img_size, model.min_size) == (7, 2, 64, 32)
    assert (model.edge, model.memory, model.dimensions) == ("floor", "fast", 2)
    model.set_edge("pad")
    model.set_norm_eps(block=1e-3, patch=1e-4)
    model.set_memory("lean")
    assert model.edge == model.backbone.edge == model.config["backbone"]["edge"] == "pad"
    assert model.memory == model.backbone.memory == "lean"
    assert model.norm_eps == model.backbone.norm_eps == {"block": 1e-3, "reduction": 1e-5, "patch": 1e-4}
    names = {name for name, _ in model.named_parameters()}
    exempt = model.no_weight_decay()
    assert exempt and exempt <= names and len(exempt) == len(model.backbone.no_weight_decay())


def test_fresh_weights_follow_the_seed() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(small("upernet").state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_what_a_config_must_say() -> None:
    backbone = small("unet").config["backbone"]
    for head, message in (
        ({"num_classes": 5}, "the kind of its head, got 'mit_b0' and None"),
        ({"kind": "unet"}, "the config of a unet head states its num_classes, got nothing"),
        ({"kind": "segformr", "num_classes": 5}, "no head 'segformr'; did you mean 'segformer'"),
        ({"kind": "unet", "num_classes": 5, "hidden": 8}, "a unet head has no option 'hidden'"),
    ):
        with pytest.raises(SrattnError, match=message):
            build_dense(backbone, head)


def test_what_cannot_be_built() -> None:
    with pytest.raises(SrattnError, match="no head 'fcn'"):
        segmentation_model("mit_b0", 5, "fcn", **SMALL)
    with pytest.raises(SrattnError, match="stride 2: use stride 4"):
        glpn("mit_b0", stem_stride=2, **SMALL)
    with pytest.raises(SrattnError, match="no model 'mit_b9'"):
        segformer("mit_b9")


def test_a_backbone_moves_from_head_to_head() -> None:
    trained, model = small("segformer"), small("upernet")
    before = {name: p.clone() for name, p in model.head.state_dict().items()}
    load_checkpoint(model, trained.state_dict(), head="keep")
    assert all(torch.equal(p, trained.backbone.state_dict()[name]) for name, p in model.backbone.state_dict().items())
    assert all(torch.equal(p, before[name]) for name, p in model.head.state_dict().items())
