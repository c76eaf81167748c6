"""CvT: its sizes, its attention against the plain formula, the class token, edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import srattn
from srattn import SrattnError
from srattn.explain.attention import attention_maps, received_attention
from srattn.layers.convolutional_embed import ConvolutionalEmbed
from srattn.layers.convolutional_projection import ConvolutionalAttention, ConvolutionalProjection
from srattn.models import build_model
from srattn.models.registry import count_parameters
from srattn.ops.plan import PATHS
from srattn.ops.reference import attention
from tests.truth import DOUBLE, error, spread_out


def small(**options: Any) -> Any:
    numbers = {"embed_dims": (8, 12, 24), "num_heads": (1, 3, 6), "depths": (1, 1, 2), "num_classes": 5}
    return build_model("cvt_13", **{**numbers, **options}).eval()


def build(**options: Any) -> ConvolutionalAttention:
    attn = spread_out(ConvolutionalAttention(12, 3, **options)).to(DOUBLE).eval()
    for name, buffer in attn.named_buffers():
        if "running" in name:
            buffer.add_(torch.rand_like(buffer))
    return attn


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE)


def convolved(projection: ConvolutionalProjection, x: torch.Tensor) -> torch.Tensor:
    """The published formula: convolution, batch norm, tokens in raster order."""
    norm = projection.norm
    maps = F.conv2d(x.permute(0, 3, 1, 2), projection.proj.weight, stride=projection.ratio, padding=1, groups=12)
    centred = (maps.permute(0, 2, 3, 1) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    return (centred * norm.weight + norm.bias).flatten(1, 2)


def definition(attn: ConvolutionalAttention, x: torch.Tensor, token: torch.Tensor | None) -> torch.Tensor:
    inputs = [convolved(p, x) for p in (attn.query_reduction, attn.reduction, attn.value_reduction)]
    if token is not None:
        inputs = [torch.cat([token, z], 1) for z in inputs]
    q, k, v = (layer(z).chunk(3, -1) for layer, z in zip((attn.q, attn.k, attn.v), inputs, strict=True))
    heads = [attention(*parts, 12**-0.5) for parts in zip(q, k, v, strict=True)]  # scaled by dim, not by a head's width
    return attn.proj(torch.cat(heads, -1))


@pytest.mark.parametrize(("name", "parameters"), [("cvt_13", 19_997_480), ("cvt_21", 31_622_696)])
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    assert count_parameters(build_model(name, device="meta")) == parameters


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("with_token", [False, True])
@pytest.mark.parametrize("size", [(6, 8), (5, 3), (1, 1)])
def test_every_path_is_the_definition(size: tuple[int, int], with_token: bool, path: str) -> None:
    attn, x = build(), rand(2, *size, 12)
    token = rand(2, 1, 12) if with_token else None
    with srattn.force_path(path):
        result = attn(x, class_token=token)
    assert result.shape == ((2, 1 + size[0] * size[1], 12) if with_token else x.shape)
    assert error(result.view(2, -1, 12), definition(attn, x, token)) < 1e-12


def test_masks_and_the_class_token_which_is_always_a_key() -> None:
    attn, x, token = build(), rand(2, 6, 6, 12), rand(2, 1, 12)
    mask = torch.ones(2, 6, 6, dtype=torch.bool)
    mask[0, :, 3:] = False
    mask[1] = False
    weights = attn.attention_map(x, key_mask=mask, class_token=token)
    assert weights.shape == (2, 3, 37, 10) and torch.allclose(weights.sum(-1), torch.ones_like(weights[..., 0]))
    grid = weights[0, ..., 1:].unflatten(-1, (3, 3))
    assert (grid[..., 2] == 0).all() and (grid[..., :2] > 0).all()  # the last column sees tokens 3 to 5 alone
    assert (weights[1, ..., 0] == 1).all()
    only = attn.proj(attn.v(token[1:]))
    assert torch.allclose(attn(x, key_mask=mask, class_token=token)[1:], only.expand(1, 37, -1))
    lost = attn(x, key_mask=mask)[1]
    assert torch.allclose(lost, attn.proj.bias.expand_as(lost))
    with pytest.raises(SrattnError, match=r"queries pass a convolution"):
        attn(rand(2, 5, 12), key=x)


def test_the_plan_counts_the_class_token() -> None:
    rows = list(srattn.plan(build_model("cvt_13", device="meta"), training=True))
    assert [(row.tokens, row.keys, row.blocks) for row in rows] == [
        ((56, 56), (28, 28), 1),
        ((28, 28), (14, 14), 2),
        ((14, 14), (7, 7), 10),
    ]
    assert "6 heads x 50 keys" in rows[-1].reason
    assert build(class_token=True).plan_for(4, 4).cost.macs > build().plan_for(4, 4).cost.macs


def test_the_class_token_is_classified_but_is_in_no_map() -> None:
    model, images = small(), torch.randn(2, 3, 50, 64)
    tokens, maps = model.forward_intermediates(images)
    assert tokens.shape == (2, 1 + 4 * 4, 24) and [m.shape[1:] for m in maps][-1] == (24, 4, 4)
    assert torch.equal(model(images), model.head(tokens[:, 0]))
    assert torch.allclose(model.norm(maps[-1].flatten(2).transpose(1, 2)), tokens[:, 1:], atol=1e-6)
    pyramid = small(features_only=True)
    pyramid.model.load_state_dict(model.state_dict(), strict=False)
    assert all(torch.equal(a, b) for a, b in zip(pyramid(images), maps, strict=True))
    assert "class_token" not in small(features_only=True, out_indices=(0, 1)).state_dict()


def test_without_a_class_token_the_mean_is_classified() -> None:
    model, images = small(class_token=False), torch.randn(2, 3, 48, 64)
    final = model.forward_features(images)
    assert final.shape == (2, 24, 3, 4) and model.no_weight_decay() == set()
    assert torch.allclose(model(images), model.head(final.mean((2, 3))))


@pytest.mark.parametrize("size", [(16, 16), (32, 47), (33, 50)])
def test_three_stages_take_any_size(size: tuple[int, int]) -> None:
    model = small()
    assert model.min_size == 16 and model(torch.randn(1, 3, *size)).isfinite().all()


@pytest.mark.parametrize("size", [32, 33, 34, 35])
def test_no_pixel_is_lost(size: int) -> None:
    """Published padding is 2 on both sides of a 7x7 kernel: at a remainder of 2 the last row is in no patch."""
    reached = {}
    for edge in ("pad", "floor"):
        embed = ConvolutionalEmbed(1, 4, 4, edge=edge)
        image = torch.randn(1, 1, size, 32, requires_grad=True)
        tokens = embed(image)
        assert tokens.shape[1:3] == embed.size(size, 32)
        (tokens * torch.randn_like(tokens)).sum().backward()
        assert image.grad is not None
        reached[edge] = bool(image.grad[0, 0, -1].abs().sum() > 0)
    assert reached == {"pad": True, "floor": size != 34}


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("edge", ["pad", "floor"])
def test_the_kernels_embed_what_torch_does(stride: int, edge: str) -> None:
    """Under "floor" a grid is not the image divided by the stride."""
    embed = ConvolutionalEmbed(3, 32, stride, edge=edge).eval()
    for size in range(8, 20):
        image = torch.randn(1, 3, size, size + 3)
        with torch.no_grad():
            tokens = embed(image)
            with srattn.force_path("plain"):
                assert torch.allclose(tokens, embed(image), atol=1e-5)
        assert tokens.shape[1:3] == embed.size(size, size + 3)


def test_attention_is_explained_with_the_class_token() -> None:
    maps = attention_maps(small(), torch.randn(2, 3, 64, 96))
    assert [(m.grid, m.key_grid, m.class_token) for m in maps] == [
        ((16, 24), (8, 12), False),
        ((8, 12), (4, 6), False),
        ((4, 6), (2, 3), True),
    ]
    assert maps[0].ratio == (2, 2) and maps[2].probabilities.shape == (2, 6, 25, 7)
    assert torch.allclose(received_attention(maps[0], (64, 96)).sum((1, 2)), torch.ones(2), atol=1e-4)


def test_computing_again_counts_a_batch_once() -> None:
    plain, lean = small().train(), small().train()
    lean.load_state_dict(plain.state_dict())
    lean.set_grad_checkpointing()
    images = torch.randn(2, 3, 64, 64)
    for model in (plain, lean):
        model(images).square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_buffers(), lean.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_exports_with_dynamic_sizes() -> None:
    model = small()
    sizes = {
        0: torch.export.Dim("b", min=1, max=64),
        2: torch.export.Dim("h", min=33),
        3: torch.export.Dim("w", min=33),
    }
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(sizes,))
    images = torch.randn(1, 3, 50, 37)
    assert torch.allclose(exported.module()(images), model(images), atol=1e-5)
