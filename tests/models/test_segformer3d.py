"""SegFormer3D's encoder on volumes of any size and aspect: their contract, and a plain reading of the paper."""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import srattn
from srattn import SrattnError
from srattn.convert import convert_state_dict, detect_layout
from srattn.explain.attention import attention_maps
from srattn.layers.volume import VolumeAttention, VolumeReduction
from srattn.models import build_model, list_models
from srattn.models.registry import count_parameters
from srattn.ops.plan import PATHS
from srattn.ops.volume import block_sum

SMALL = {"embed_dims": (8, 16, 20, 32), "num_heads": (1, 2, 2, 4), "depths": (1, 1, 2, 1), "in_chans": 2}
SIZES = [(32, 32, 32), (64, 32, 48), (33, 20, 47), (5, 64, 40), (1, 1, 1)]


def small(**options: Any) -> Any:
    """A model whose every parameter and statistic tells."""
    model = build_model("segformer3d", **{**SMALL, "num_classes": 5, **options}).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.3 if p.ndim == 1 else 1 / math.sqrt(p[0].numel()))
            p.add_(float(name.endswith("norm.weight") or re.search(r"norm\d?\.weight$", name) is not None))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.normal_()
            elif name.endswith("running_var"):
                b.uniform_(0.5, 2)
    return model


# -- the definition --------------------------------------------------------------------------------------------------


def definition(model: Any, x: Tensor, edge: str = "pad") -> list[Tensor]:
    """The maps of every stage, each operation in the published order; the reduction as a convolution."""
    maps = []

    def norm(t: Tensor, layer: nn.LayerNorm) -> Tensor:
        return F.layer_norm(t, t.shape[-1:], layer.weight, layer.bias, 1e-5)

    for stage, ratio in zip(model.stages, model.config["sr_ratios"], strict=True):
        conv = stage.patch_embed.proj
        x = F.conv3d(x, conv.weight, conv.bias, conv.stride, conv.kernel_size[0] // 2)
        size = x.shape[2:]
        tokens = norm(x.flatten(2).transpose(1, 2), stage.patch_embed.norm)  # (B, N, C)
        for block in stage.blocks:
            y, attn = norm(tokens, block.norm1), block.attn
            keys = y
            if ratio != 1:
                r = (ratio,) * 3 if isinstance(ratio, int) else tuple(ratio)
                volume = y.transpose(1, 2).unflatten(2, size)
                if edge == "pad":
                    extra = [-n % k for n, k in zip(size, r, strict=True)]
                    volume = F.pad(volume, (0, extra[2], 0, extra[1], 0, extra[0]))
                weight = attn.reduction.proj.weight.unflatten(1, (*r, -1)).permute(0, 4, 1, 2, 3)
                keys = F.conv3d(volume, weight, attn.reduction.proj.bias, r).flatten(2).transpose(1, 2)
                keys = norm(keys, attn.reduction.norm)
            q, k, v = attn.q(y), attn.k(keys), attn.v(keys)
            heads = [
                (a @ b.transpose(1, 2) / math.sqrt(a.shape[-1])).softmax(-1) @ c
                for a, b, c in zip(*(t.chunk(attn.num_heads, -1) for t in (q, k, v)), strict=True)
            ]
            tokens = tokens + attn.proj(torch.cat(heads, -1))
            mlp = block.mlp
            y = mlp.fc1(norm(tokens, block.norm2)).transpose(1, 2).unflatten(2, size)
            y = F.conv3d(y, mlp.dwconv.weight, mlp.dwconv.bias, padding=1, groups=y.shape[1])
            statistics = (mlp.norm.running_mean, mlp.norm.running_var)
            y = F.batch_norm(y, *statistics, mlp.norm.weight, mlp.norm.bias).flatten(2).transpose(1, 2)
            tokens = tokens + mlp.fc2(F.gelu(y))
        x = norm(tokens, stage.norm).transpose(1, 2).unflatten(2, size)
        maps.append(x)
    return maps


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ratios", [(4, 2, 1, 1), ((1, 4, 2), (2, 1, 3), 2, 1)])
def test_maps_are_the_published_formula(size: tuple[int, int, int], ratios: Any) -> None:
    model, x = small(sr_ratios=ratios).double(), torch.randn(2, 2, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = definition(model, x)
        for path in PATHS:
            with srattn.force_path(path):
                maps = model.forward_intermediates(x, intermediates_only=True)
            for ours, theirs, info in zip(maps, expected, model.feature_info, strict=True):
                assert ours.shape[2:] == tuple(-(-s // info.reduction) for s in size)
                torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


def test_floor_is_the_published_edge() -> None:
    model, x = small().double(), torch.randn(1, 2, 44, 40, 56, dtype=torch.float64)
    padded = model(x)
    model.set_edge("floor")
    with torch.no_grad():
        for ours, theirs in zip(
            model.forward_intermediates(x, intermediates_only=True), definition(model, x, "floor"), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)
    assert not torch.allclose(model(x), padded)
    with pytest.raises(SrattnError, match=r"grid 2x8x8 is smaller than the ratio 4x4x4.*edge='pad'"):
        model(torch.randn(1, 2, 8, 32, 32, dtype=torch.float64))
    model.set_edge("error")
    with pytest.raises(SrattnError, match=r"ratio 4x4x4 does not divide the grid 11x10x14"):
        model(x)


def test_axes_are_not_confused() -> None:
    """A volume on its side through weights on their side is the map on its side: the cube root would not tell."""
    model, x = small(), torch.randn(1, 2, 64, 32, 32)
    turned = copy.deepcopy(model)
    with torch.no_grad():
        for module in turned.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.copy_(module.weight.movedim(2, 4).clone())
            elif isinstance(module, VolumeReduction):
                blocks = module.proj.weight.unflatten(1, (*module.ratio, -1)).movedim(1, 3)
                module.proj.weight.copy_(blocks.flatten(1).clone())
        # 16 x 8 x 8 tokens, and 8 x 8 x 16: no cubes; the last stages have 2 x 1 x 1.
        pairs = zip(
            model.forward_intermediates(x, intermediates_only=True),
            turned.forward_intermediates(x.movedim(2, 4), intermediates_only=True),
            strict=True,
        )
        for straight, side in pairs:
            torch.testing.assert_close(straight.movedim(2, 4), side, atol=1e-4, rtol=1e-4)


def test_a_mask_reaches_the_reduced_tokens() -> None:
    attn, x = VolumeAttention(8, 2, (2, 4, 1)), torch.randn(2, 3, 8, 5, 8)
    mask = torch.ones(2, 3, 8, 5, dtype=torch.bool)
    mask[0, :, 4:] = False
    spoiled = x.masked_fill(~mask.unsqueeze(-1), float("nan"))
    spoiled = torch.where(mask.unsqueeze(-1), x, spoiled)
    with torch.no_grad():
        assert torch.allclose(attn(x, key_mask=torch.ones_like(mask)), attn(x), atol=1e-6)
        part = attn(x[:1, :, :4])
        assert torch.allclose(attn(x, key_mask=mask)[0, :, :4], part[0], atol=1e-5)
        assert attn(spoiled, key_mask=mask)[0, :, :4].isfinite().all()
        weights = attn.attention_map(x, key_mask=mask)
        nothing = attn(x, key_mask=torch.zeros_like(mask))
    assert weights.shape == (2, 2, 120, 2 * 2 * 5)
    assert (weights[0].unflatten(-1, (2, 2, 5))[..., 1, :] == 0).all()
    assert torch.allclose(nothing, attn.proj.bias.expand_as(nothing))
    assert block_sum(torch.ones(1, 3, 8, 5), (2, 4, 1), "pad").sum() == 120
    with pytest.raises(SrattnError, match=r"boolean of shape \(2, 3, 8, 5\)"):
        attn(x, key_mask=mask.float())
    with pytest.raises(SrattnError, match=r"\(batch, depth, height, width, 8\)"):
        attn(x[0])
    with pytest.raises(SrattnError, match="three of them"):
        VolumeReduction(8, (2, 2))


# -- the contract of volumes -----------------------------------------------------------------------------------------


def test_registered_with_the_published_numbers() -> None:
    # Those of the published encoder; its decoder has 397,571 more.
    assert count_parameters(build_model("segformer3d", device="meta")) == 4_127_680
    assert "segformer3d" in list_models() and list_models(dimensions=3) == ["segformer3d"]
    assert "segformer3d" not in list_models(dimensions=2)


def test_options_features_and_head() -> None:
    model, x = small(), torch.randn(2, 2, 20, 40, 33)
    assert model.feature_info.channels() == [8, 16, 20, 32] and model.feature_info.reduction() == [4, 8, 16, 32]
    again = srattn.create_model(**json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    final, maps = model.forward_intermediates(x)
    assert torch.equal(again(x), model(x)) and torch.equal(final, model.forward_features(x))
    pooled = model.forward_head(final, pre_logits=True)
    assert torch.equal(pooled, final.mean((2, 3, 4))) and model(x).shape == (2, 5)
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)
    (last,) = model.forward_intermediates(x, [-1], output_fmt="NDHWC", intermediates_only=True, stop_early=True)
    assert torch.equal(last.movedim(-1, 1), maps[3])
    with pytest.raises(SrattnError, match="'NCDHW' or 'NDHWC', got 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")
    pyramid = build_model("segformer3d", **SMALL, features_only=True, out_indices=(0, 2)).eval()
    pyramid.model.load_state_dict(model.state_dict(), strict=False)
    for ours, theirs in zip(pyramid(x), (maps[0], maps[2]), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_no_volume_is_refused() -> None:
    model = small()
    for wrong in [(1, 2, 32, 32), (1, 3, 32, 32, 32), (1, 2, 0, 32, 32)]:
        with pytest.raises(SrattnError, match=r"volumes are \(batch, 2, depth, height, width\)"):
            model(torch.randn(*wrong))
    with pytest.raises(SrattnError, match=r"plans are of models of images, segformer3d takes volumes"):
        srattn.plan(model)
    with pytest.raises(SrattnError, match=r"segformer3d takes volumes"):
        attention_maps(model, torch.randn(1, 2, 32, 32, 32))


def test_training_checkpointing_and_dropout() -> None:
    model, x = small().train(), torch.randn(2, 2, 32, 16, 48)
    lean = copy.deepcopy(model)
    lean.set_grad_checkpointing()
    for each in (model, lean):
        logits = each(x)
        (logits * torch.arange(10.0).view(2, 5).sin()).sum().backward()
    for (name, a), b in zip(model.named_parameters(), lean.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
    for (name, a), b in zip(model.named_buffers(), lean.buffers(), strict=True):
        assert torch.allclose(a, b), name  # the statistics of a batch are counted once
    for rate in ("drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate"):
        noisy = small(**{rate: 0.5})
        for module in noisy.modules():  # batch norms would tell two passes apart by themselves
            module.training = not isinstance(module, nn.BatchNorm3d)
        assert not torch.equal(noisy(x), noisy(x)), rate


def test_epsilons_and_parameter_groups() -> None:
    model = small()
    assert model.norm_eps == {"block": 1e-5, "reduction": 1e-5, "patch": 1e-5}
    model.set_norm_eps(block=1e-3, reduction=1e-4, patch=1e-2)
    assert model.norm_eps == {"block": 1e-3, "reduction": 1e-4, "patch": 1e-2}
    model.set_norm_eps()
    assert model.norm_eps == {"block": 1e-5, "reduction": 1e-5, "patch": 1e-5}
    assert model.no_weight_decay() == set()
    patterns = [model.group_matcher()["stem"], *(p for p, _ in model.group_matcher()["blocks"])]
    unmatched = [n for n, _ in model.named_parameters() if not any(re.match(p, n) for p in patterns)]
    assert unmatched == ["head.weight", "head.bias"]


def test_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()
    model = small()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for size in [(2, 2, 32, 32, 32), (1, 2, 20, 33, 64)]:
        x = torch.randn(*size)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            assert torch.allclose(compiled(x), model(x), atol=1e-5)


@pytest.mark.slow
def test_exports_with_every_size_dynamic() -> None:
    model = small()
    sizes = {
        i: torch.export.Dim(name, min=2 if i == 0 else 33, max=512)
        for i, name in ((0, "b"), (2, "d"), (3, "h"), (4, "w"))
    }
    exported = torch.export.export(model, (torch.randn(2, 2, 48, 64, 40),), dynamic_shapes=(sizes,))
    for size in [(3, 33, 64, 47), (2, 64, 50, 36)]:
        x = torch.randn(size[0], 2, *size[1:])
        assert torch.allclose(exported.module()(x), model(x), atol=1e-5)


# -- conversion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratios", [(4, 2, 1, 1), ((1, 4, 2), (2, 1, 3), 2, 1)])
def test_official_layout_round_trips_bit_for_bit(ratios: Any, tmp_path) -> None:
    model = small(num_classes=0, sr_ratios=ratios, edge="floor")
    path = srattn.save_checkpoint(model, tmp_path / "weights.pth", layout="official")
    theirs = torch.load(path, weights_only=True)
    assert detect_layout(theirs) == ("official", "segformer3d")
    conv = theirs["tf_block1.0.attention.sr.weight"]
    assert conv.shape == (8, 8, *((4, 4, 4) if ratios[0] == 4 else ratios[0]))
    whole = {f"segformer_encoder.{key}": value for key, value in theirs.items()}
    whole |= {f"segformer_decoder.linear_c{i}.proj.weight": torch.randn(3, 8) for i in range(1, 5)}
    again = build_model("segformer3d", **SMALL, sr_ratios=ratios).eval()
    again.set_norm_eps(1e-3, 1e-3, 1e-3)
    report = srattn.load_checkpoint(again, whole)
    assert report.layout == "official" and len(report.unexpected) == 4 and report.edge == "floor"
    assert again.norm_eps == {"block": 1e-5, "reduction": 1e-5, "patch": 1e-5}
    ours = again.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in model.state_dict().items())
    if ratios[0] == 4:
        back = convert_state_dict(convert_state_dict(theirs, "srattn"), "official")
        assert all(torch.equal(back[key], value) for key, value in theirs.items())
