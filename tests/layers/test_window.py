"""Attention within windows: its truth is the operator on every window alone; padding attended or masked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import srattn
from srattn import SpatialReductionAttention, SrattnError
from srattn.layers.local_perception import LocalPerception
from srattn.layers.window import LocallyGroupedAttention
from srattn.ops.plan import PATHS
from srattn.ops.windows import from_windows, to_windows

SIZES = [(4, 6), (5, 6), (4, 7), (5, 7), (1, 1), (3, 9), (2, 3)]


def window_by_window(attn: LocallyGroupedAttention, x: Tensor, mask_padding: bool) -> Tensor:
    """Each window cut out by hand: with a mask attended as the smaller map that it is, else with zeros appended."""
    (h, w), out = attn.size, torch.empty_like(x)
    for top in range(0, x.shape[1], h):
        for left in range(0, x.shape[2], w):
            window = x[:, top : top + h, left : left + w]
            rows, columns = window.shape[1:3]
            if not mask_padding:
                whole = x.new_zeros(x.shape[0], h, w, x.shape[3])
                whole[:, :rows, :columns] = window
                window = whole
            out[:, top : top + h, left : left + w] = attn.window(window)[:, :rows, :columns]
    return out


def published_mask(height: int, width: int, size: int) -> Tensor:
    """(n, l, l), true where the published segmentation code lets a token of a padded map attend."""
    bottom, right = -height % size, -width % size
    mask = torch.zeros(1, height + bottom, width + right)
    mask[:, -bottom:, :].fill_(1)
    mask[:, :, -right:].fill_(1)
    windows = to_windows(mask.unsqueeze(-1), (size, size)).flatten(1)
    return windows.unsqueeze(1) == windows.unsqueeze(2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [(2, 3), (3, 3), (7, 7)])
def test_windows_and_back(size: tuple[int, int], window: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 5)
    windows = to_windows(x, window)
    assert windows.shape == (2 * -(-size[0] // window[0]) * -(-size[1] // window[1]), *window, 5)
    assert torch.equal(windows[0, 0, 0], x[0, 0, 0]) and windows.sum().item() == pytest.approx(x.sum().item(), abs=1e-4)
    assert torch.equal(from_windows(windows, *size), x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_each_window_is_the_operator_alone(path: str, mask_padding: bool, size: tuple[int, int]) -> None:
    attn = LocallyGroupedAttention(8, 2, (2, 3), mask_padding=mask_padding).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with srattn.force_path(path):
        assert torch.allclose(attn(x), window_by_window(attn, x, mask_padding), atol=1e-12)


@pytest.mark.parametrize("size", [(7, 9), (9, 7), (9, 9)])
def test_padding_on_one_side_is_masked_too(size: tuple[int, int]) -> None:
    """The published mask takes `mask[:, -0:, :]` for the last 0 rows, which is all of them: where only one side is
    padded every token is of one kind, and the padding is attended."""
    allowed = published_mask(*size, 7)
    assert bool(allowed.all()) == (7 in size)
    x = torch.randn(1, *size, 8)
    masked = LocallyGroupedAttention(8, 2, 7, mask_padding=True)
    open_ = LocallyGroupedAttention(8, 2, 7)
    open_.load_state_dict(masked.state_dict())
    assert torch.allclose(masked(x), window_by_window(masked, x, mask_padding=True), atol=1e-6)
    difference = (masked(x) - open_(x)).abs().amax((0, 3))  # (H, W)
    padded = torch.zeros(size, dtype=torch.bool)
    padded[7:], padded[:, 7:] = True, True
    assert (difference[padded] > 1e-4).all() and (difference[~padded] < 1e-6).all()


def test_a_key_mask_of_the_caller() -> None:
    attn = LocallyGroupedAttention(8, 2, 3)
    x, mask = torch.randn(2, 6, 7, 8), torch.rand(2, 6, 7) > 0.3
    mask[:, :3, :3] = False  # a window without a valid token
    out = attn(x, key_mask=mask)
    noise = torch.where(mask.unsqueeze(-1), x, torch.full_like(x, float("nan")))
    windows = attn.window(
        to_windows(x, (3, 3)), key=to_windows(noise, (3, 3)).nan_to_num(), key_mask=attn._mask(x, mask)
    )
    assert torch.allclose(out, from_windows(windows, 6, 7), atol=1e-6) and out.isfinite().all()
    assert torch.allclose(out[:, :3, :3], attn.window.proj.bias.expand(2, 3, 3, 8), atol=1e-6)
    # An image padded to whole windows and masked gives what it gives alone.
    alone = torch.randn(1, 3, 6, 8)
    batch = torch.cat([alone, torch.full((1, 3, 6, 8), 9.0)], 1)
    valid = torch.arange(6).view(1, 6, 1).expand(1, 6, 6) < 3
    assert torch.allclose(attn(batch, key_mask=valid)[:, :3], attn(alone), atol=1e-6)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_the_map_of_the_weights_covers_the_whole_map(mask_padding: bool) -> None:
    attn = LocallyGroupedAttention(8, 2, (2, 3), mask_padding=mask_padding)
    x = torch.randn(2, 3, 7, 8)
    weights = attn.attention_map(x)  # (B, heads, 21, 21)
    assert weights.shape == (2, 2, 21, 21)
    y, z = torch.arange(21) // 7 // 2, torch.arange(21) % 7 // 3
    inside = (y.unsqueeze(1) == y) & (z.unsqueeze(1) == z)
    assert (weights[..., inside] > 0).all() and (weights[..., ~inside] == 0).all()
    sums = weights.sum(-1)
    whole = ((y == 0) & (z < 2)).expand_as(sums)
    assert torch.allclose(sums[whole], torch.ones(()), atol=1e-6)
    assert torch.allclose(sums[~whole], torch.ones(()), atol=1e-6) == mask_padding
    if mask_padding:
        values = attn.window.v(x).flatten(1, 2).unflatten(-1, (2, 4)).transpose(1, 2)
        out = attn.window.proj((weights @ values).transpose(1, 2).flatten(2)).view_as(x)
        assert torch.allclose(out, attn(x), atol=1e-6)


def test_the_plan_counts_every_window() -> None:
    attn = LocallyGroupedAttention(64, 2, 7)
    assert attn.count(50, 56) == 64 and attn.count(7, 7) == 1 and attn.count(8, 7) == 2
    one, many = attn.window.plan_for(7, 7), attn.plan_for(50, 56, 2)
    assert many.cost.macs == 128 * one.cost.macs and many.path == "sdpa"
    (part,) = attn.plan_heads(50, 56, 2)
    assert part.keys == (7, 7) and part.choice == many and part.shared == 128 * 49 * 2 * 64 * 64


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SrattnError, match=r"num_heads must divide dim"):
        LocallyGroupedAttention(8, 3, 7)
    with pytest.raises(SrattnError, match=r"size is a positive int or a pair"):
        LocallyGroupedAttention(8, 2, 0)
    attn = LocallyGroupedAttention(8, 2, 7)
    with pytest.raises(SrattnError, match=r"tokens are \(batch, height, width, 8\), got \(1, 7, 7, 9\)"):
        attn(torch.randn(1, 7, 7, 9))
    with pytest.raises(SrattnError, match=r"key_mask is boolean of shape \(1, 7, 7\), got torch.float32"):
        attn(torch.randn(1, 7, 7, 8), key_mask=torch.ones(1, 7, 7))


@pytest.mark.parametrize("mask_padding", [False, True])
def test_exports_at_every_size(mask_padding: bool) -> None:
    attn = LocallyGroupedAttention(8, 2, 3, mask_padding=mask_padding).eval()
    sizes = {i: torch.export.Dim(n, min=2) for i, n in enumerate("bhw")}
    exported = torch.export.export(attn, (torch.randn(2, 7, 8, 8),), dynamic_shapes={"x": sizes})
    for size in [(2, 7, 8), (3, 6, 6), (2, 2, 11)]:
        x = torch.randn(*size, 8)
        assert torch.allclose(exported.module()(x), attn(x), atol=1e-6)


def test_conditional_positions_are_a_depthwise_convolution_beside_the_tokens() -> None:
    position, x = LocalPerception(4), torch.randn(2, 3, 5, 4)
    out = position(x)
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    kernel = position.dwconv.weight[:, 0].permute(1, 2, 0)  # (3, 3, C)
    expected = x + position.dwconv.bias
    for i in range(3):
        for j in range(3):
            expected = expected + padded[:, i : i + 3, j : j + 5] * kernel[i, j]
    assert torch.allclose(out, expected, atol=1e-6)


def test_attention_within_windows_is_an_attention_without_reduction() -> None:
    attn = LocallyGroupedAttention(8, 2, 4)
    assert isinstance(attn.window, SpatialReductionAttention)
    assert attn.ratio == (1, 1) and attn.reduction.cells is None and attn.reduced_size(5, 6) == (5, 6)
