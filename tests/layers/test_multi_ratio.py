"""Attention over several ratios, and what surrounds it in the Shunted Transformer, against their plain forms."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import srattn
from srattn import SrattnError
from srattn.layers.convolutional_stem import ConvolutionalStem
from srattn.layers.detail_feed_forward import DetailFeedForward
from srattn.layers.multi_ratio import LocallyEnhancedAttention, MultiRatioAttention
from srattn.ops import attend
from srattn.ops.plan import PATHS
from srattn.ops.reference import attention
from srattn.ops.reference_shunted import local_enhancement, shunted_attention
from tests.truth import DOUBLE, error, spread_out

RATIOS = [((8, 8), (4, 4)), ((4, 4), (2, 2)), ((2, 2), (1, 1)), ((4, 2), (2, 1)), ((4, 4), (2, 2), (1, 1))]


def build(heads: int = 4, ratios: tuple = RATIOS[1], dim: int = 24, **options: object) -> MultiRatioAttention:
    return spread_out(MultiRatioAttention(dim, heads, ratios, **options)).to(DOUBLE)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE)


def truth(attn: MultiRatioAttention, x: torch.Tensor, **options: object) -> torch.Tensor:
    params, edge = dict(attn.named_parameters()), attn.reduction.edge
    return shunted_attention(x, params, num_heads=attn.num_heads, ratios=attn.ratios, edge=edge, **options)


@pytest.mark.parametrize("path", [None, *PATHS])
@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("size", [(16, 8), (13, 9), (3, 2)])
def test_every_path_is_the_definition(size: tuple[int, int], ratios: tuple, path: str | None) -> None:
    attn, x = build(len(ratios) * 2, ratios), rand(2, *size, 24)
    if path is None:
        result = attn(x)
    else:
        with srattn.force_path(path):
            result = attn(x)
    assert result.shape == x.shape and error(result, truth(attn, x)) < 1e-12


@pytest.mark.parametrize("path", PATHS)
def test_masked_tokens_are_no_keys_and_no_neighbours(path: str) -> None:
    attn, x = build(), rand(3, 9, 6, 24)
    mask = torch.rand(3, 9, 6) > 0.3
    mask[1, :, 4:] = False  # whole cells
    mask[2] = False  # an image without any key gets the output's bias
    with srattn.force_path(path):
        result = attn(x, key_mask=mask)
    assert error(result[:2], truth(attn, x[:2], key_mask=mask[:2])) < 1e-12
    assert torch.allclose(result[2], attn.proj.bias.expand_as(result[2]))


def test_padding_that_is_masked_changes_nothing() -> None:
    attn, x = build(ratios=RATIOS[0]), rand(2, 8, 16, 24)
    padded = F.pad(x, (0, 0, 0, 8, 0, 16), value=7.0)
    mask = torch.zeros(2, 24, 24, dtype=torch.bool)
    mask[:, :8, :16] = True
    assert error(attn(padded, key_mask=mask)[:, :8, :16], attn(x)) < 1e-12


def test_a_key_of_another_size_and_a_bias() -> None:
    attn, x, key = build(), rand(2, 3, 5, 24), rand(2, 8, 8, 24)
    assert attn(x, key=key).shape == x.shape
    constant = torch.full((2, 8, 8), 0.7, dtype=DOUBLE)
    assert error(attn(x, key=key, key_bias=constant), attn(x, key=key)) < 1e-12  # softmax does not see a constant
    queries = rand(2, 7, 24)
    assert torch.allclose(attn(queries, key=key), attn(queries.unsqueeze(1), key=key).squeeze(1))


def test_gradients_agree_between_paths() -> None:
    attn, x = build(), rand(2, 7, 6, 24)
    found = []
    for path in PATHS:
        attn.zero_grad()
        with srattn.force_path(path):
            attn(x).square().sum().backward()
        found.append([p.grad.clone() for p in attn.parameters()])
    for other in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found[0], other, strict=True))


def test_each_group_takes_its_planned_path() -> None:
    attn = MultiRatioAttention(64, 2, ((8, 8), (4, 4)))
    plans = attn.plan_heads(56, 56)
    assert [plan.keys for plan in plans] == [(7, 7), (14, 14)]
    assert [plan.choice.path for plan in plans] == ["absorbed", "sdpa"]
    ran: list[str] = []

    def spy(name: str):
        original = getattr(attend, name)
        return lambda *args: (ran.append(name), original(*args))[1]

    names = ("plain", "sdpa", "absorbed_grouped", "absorbed_streamed")
    with mock.patch.multiple(attend, **{name: spy(name) for name in names}), torch.no_grad():
        attn(torch.randn(1, 56, 56, 64))
    assert ran == ["absorbed_streamed", "sdpa"]
    whole = attn.plan_for(56, 56)
    assert whole.path == "sdpa" and whole.cost.macs == sum(plan.choice.cost.macs for plan in plans)


@pytest.mark.parametrize("size", [(16, 8), (13, 9)])
def test_maps_of_groups_and_of_all_heads_on_one_grid(size: tuple[int, int]) -> None:
    attn, x = build(), rand(2, *size, 24)
    coarse, fine = attn.attention_maps(x)
    whole = attn.attention_map(x)
    rows, columns = attn.reduced_size(*size)
    assert whole.shape == (2, 4, size[0] * size[1], rows * columns) and attn.ratio == (2, 2)
    assert torch.allclose(whole.sum(-1), torch.ones_like(whole[..., 0]))
    assert torch.allclose(whole[:, 2:], fine)
    # A coarse key's weight is the sum of the fine keys that lie in it.
    grid = F.pad(whole[:, :2].unflatten(-1, (rows, columns)), (0, columns % 2, 0, rows % 2))
    blocks = grid.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2)).sum((-3, -1)).flatten(-2)
    assert torch.allclose(blocks, coarse)


def test_in_the_coarse_map_tokens_share_alike() -> None:
    """On 5 tokens, ratio 4 has the keys 0-3 and 4; ratio 2 has 0-1, 2-3 and 4."""
    attn = build(2, ((4, 4), (2, 2)), 8)
    coarse, _ = attn.attention_maps(x := rand(1, 5, 1, 8))
    whole = attn.attention_map(x)[:, :1]
    assert torch.allclose(whole[..., 0], coarse[..., 0] / 2) and torch.allclose(whole[..., 1], coarse[..., 0] / 2)
    assert torch.allclose(whole[..., 2], coarse[..., 1])


@pytest.mark.parametrize("path", PATHS)
def test_where_nothing_is_reduced_the_local_part_skips_the_attention(path: str) -> None:
    attn, x = spread_out(LocallyEnhancedAttention(12, 3)).to(DOUBLE), rand(2, 4, 5, 12)
    q, k, v = (layer(x) for layer in (attn.q, attn.k, attn.v))
    heads = [
        attention(*(t.flatten(1, 2)[..., 4 * h : 4 * h + 4] for t in (q, k, v)), 4**-0.5)  # each head
        for h in range(3)
    ]
    local = local_enhancement(v, attn.local.weight, attn.local.bias)
    with srattn.force_path(path):
        assert error(attn(x), attn.proj(torch.cat(heads, -1).view(x.shape) + local)) < 1e-12
    assert attn.plan_heads(4, 5)[0].shared == 20 * (2 * 12 * 12) + 20 * (9 * 12 + 12 * 12)


def test_local_enhancement_is_the_depthwise_convolution() -> None:
    x, weight, bias = rand(2, 4, 5, 6), rand(6, 1, 3, 3), rand(6)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=6).permute(0, 2, 3, 1)
    assert error(local_enhancement(x, weight, bias), expected) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3, "ratios": (4, 2)}, r"multiple of the 2 ratios, got num_heads=3"),
        ({"num_heads": 10, "ratios": (4, 2)}, r"num_heads must divide dim, got dim=24"),
        ({"num_heads": 2, "ratios": ()}, r"multiple of the 0 ratios"),
        ({"num_heads": 2, "ratios": (4, 0)}, r"ratio is a positive int"),
        ({"num_heads": 2, "ratios": (4, 2), "edge": "crop"}, r"no edge policy 'crop'"),
    ],
)
def test_what_cannot_be_built(options: dict[str, object], message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        MultiRatioAttention(24, **options)
    with pytest.raises(SrattnError, match=r"queries are \(batch, height, width, 24\)"):
        build()(rand(1, 4, 4, 12))


def test_detail_feed_forward() -> None:
    mlp, x = spread_out(DetailFeedForward(6, 10)).to(DOUBLE), rand(2, 4, 3, 6)
    y = mlp.fc1(x)
    expected = mlp.fc2(F.gelu(y + local_enhancement(y, mlp.dwconv.weight, mlp.dwconv.bias)))
    assert error(mlp(x), expected) < 1e-12


@pytest.mark.parametrize("edge", ["pad", "floor"])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(32, 32), (33, 30), (35, 47)])
def test_the_stem_tells_its_grid(size: tuple[int, int], stride: int, edge: str) -> None:
    stem = ConvolutionalStem(2, 6, stride, num_conv=1, edge=edge).eval()
    x = stem(torch.randn(1, 2, *size))
    assert x.shape[1:3] == stem.size(*size)
    if edge == "pad":
        assert stem.size(*size) == tuple(-(-s // stride) for s in size)


def test_the_stem_has_num_conv_convolutions_of_3x3() -> None:
    for count in range(3):
        kernels = [
            m.kernel_size[0]
            for m in ConvolutionalStem(3, 6, num_conv=count).modules()
            if hasattr(m, "stride") and hasattr(m, "kernel_size")
        ]
        assert kernels == [7] + [3] * count + [2]
    with pytest.raises(SrattnError, match=r"got stride=3, num_conv=0"):
        ConvolutionalStem(3, 6, 3)
