"""Patch embeddings, feed-forwards, positions, stochastic depth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from srattn.layers.drop import DropPath
from srattn.layers.feed_forward import ConvMlp, Mlp
from srattn.layers.patch_embed import OverlapPatchEmbed, PatchEmbed
from srattn.layers.position import LearnedPosition, resize_grid


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(32, 48), (33, 50), (5, 3)])
def test_patches_tell_their_grid_and_cover_every_pixel(stride: int, size: tuple[int, int]) -> None:
    for embed in (PatchEmbed(3, 8, stride), OverlapPatchEmbed(3, 8, stride)):
        image = torch.randn(1, 3, *size, requires_grad=True)
        tokens = embed(image)
        assert tokens.shape == (1, *embed.size(*size), 8)
        # The norm's output sums to zero, so a sum would have no gradient.
        (tokens * torch.randn_like(tokens)).sum().backward()
        assert image.grad is not None and (image.grad.abs().sum(1) > 0).all()


def test_patches_under_floor_lose_the_edge_as_published() -> None:
    embed = PatchEmbed(3, 8, 4, edge="floor")
    assert embed.size(18, 23) == (4, 5)
    image = torch.randn(1, 3, 18, 23)
    published = embed.norm(F.conv2d(image, embed.proj.weight, embed.proj.bias, stride=4).permute(0, 2, 3, 1))
    assert torch.equal(embed(image), published)


def test_overlapping_patches_have_the_published_kernels() -> None:
    assert [OverlapPatchEmbed(3, 8, s).proj.kernel_size[0] for s in (4, 2, 1)] == [7, 3, 3]


def test_feed_forwards_by_hand() -> None:
    x = torch.randn(2, 5, 6, 4)
    mlp = Mlp(4, 12)
    assert torch.allclose(mlp(x), mlp.fc2(F.gelu(mlp.fc1(x))), atol=1e-6)
    for extra_relu in (False, True):
        conv = ConvMlp(4, 12, extra_relu=extra_relu)
        hidden = F.relu(conv.fc1(x)) if extra_relu else conv.fc1(x)
        hidden = conv.dwconv(hidden.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
        assert torch.allclose(conv(x), conv.fc2(F.gelu(hidden)), atol=1e-6)


def test_positions_are_added_and_resized_by_their_own_grid() -> None:
    position = LearnedPosition(4, 6, 3)
    x = torch.randn(2, 4, 6, 3)
    assert torch.equal(position(x), x + position.weight)
    # The same number of tokens in another raster is another grid.
    other = torch.zeros(1, 6, 4, 3)
    expected = F.interpolate(position.weight.permute(0, 3, 1, 2), (6, 4), mode="bilinear", align_corners=False)
    assert torch.allclose(position(other), expected.permute(0, 2, 3, 1))


def test_resizing_in_half_precision_is_done_in_float32() -> None:
    weight = torch.randn(1, 4, 4, 8)
    expected = resize_grid(weight.half().float(), 7, 9).half()
    assert torch.equal(resize_grid(weight.half(), 7, 9), expected)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    drop, x = DropPath(0.25).train(), torch.ones(4000, 2, 3)
    out = drop(x)
    kept = out[:, 0, 0] > 0
    assert torch.equal(out, torch.where(kept, 1 / 0.75, 0.0)[:, None, None].expand_as(x))
    assert abs(kept.float().mean().item() - 0.75) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    assert drop.eval()(x) is x
    assert torch.equal(DropPath(1.0).train()(x), torch.zeros_like(x))
