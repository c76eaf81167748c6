"""The parts of CMT: depthwise reduction, biases of position, local perception, inverted residual, stem."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import srattn
from srattn import SpatialReductionAttention, SrattnError
from srattn.layers.depthwise_reduction import DepthwiseReduction
from srattn.layers.inverted_residual import InvertedBottleneck, InvertedResidual
from srattn.layers.local_perception import LocalPerception
from srattn.layers.recompute import recomputed
from srattn.layers.relative_position import RelativePositionBias, resize_pairs
from srattn.layers.shared import Shared
from srattn.layers.stem import StemPatchEmbed
from srattn.ops import batch_norm, native, reduce, reference


def used(module: nn.Module) -> nn.Module:
    """In float64, with batch norms whose statistics are not those they begin with."""
    module.double()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.weight)
    return module.eval()


@pytest.mark.parametrize("ratio", [(2, 2), (4, 3), (8, 8)])
@pytest.mark.parametrize("edge", ["pad", "floor"])
def test_depthwise_is_a_weighted_sum_of_each_block(ratio: tuple[int, int], edge: str) -> None:
    x = torch.randn(2, 9, 11, 5, dtype=torch.float64)
    weight, bias = torch.randn(5, 1, *ratio, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    blocks = reference.reshape(x, ratio, edge).unflatten(-1, (ratio[0] * ratio[1], 5))
    expected = (blocks * weight.flatten(1).T).sum(-2) + bias
    assert torch.allclose(reduce.depthwise(x, weight, bias, edge), expected, atol=1e-12)


def test_depthwise_reduction_tells_its_grid_and_refuses_what_it_cannot() -> None:
    reduction = used(DepthwiseReduction(6, 4))
    assert isinstance(reduction, DepthwiseReduction)
    assert reduction.size(9, 11) == (3, 3) and reduction(torch.randn(2, 9, 11, 6).double()).shape == (2, 3, 3, 6)
    assert reduction.macs(8, 8) == 4 * 6 * 16
    assert reduction(torch.randn(2, 0, 8, 6).double()).shape == (2, 0, 2, 6)
    with pytest.raises(SrattnError, match="no edge policy 'crop'"):
        DepthwiseReduction(6, 4, edge="crop")


@pytest.mark.parametrize("path", ["plain", "sdpa", "absorbed"])
def test_padding_that_is_masked_changes_nothing(path: str) -> None:
    attn = used(SpatialReductionAttention(8, 2, reduction=DepthwiseReduction(8, 4)))
    x = torch.randn(2, 8, 12, 8, dtype=torch.float64)
    padded, mask = F.pad(x, (0, 0, 0, 8, 0, 4), value=torch.nan), torch.zeros(2, 12, 20, dtype=torch.bool)
    mask[:, :8, :12] = True
    with srattn.force_path(path):  # type: ignore[arg-type]
        alone, together = attn(x), attn(x, key=padded, key_mask=mask)
    assert torch.allclose(alone, together, atol=1e-12)


def test_pairs_keep_their_bias_on_their_own_grids() -> None:
    bias = RelativePositionBias(3, (4, 6), (2, 3))
    assert torch.equal(bias((4, 6), (2, 3)), bias.weight.reshape(3, 24, 6))


@pytest.mark.parametrize(("grid", "keys"), [((8, 6), (2, 3)), ((4, 6), (1, 5)), ((3, 9), (4, 4)), ((1, 1), (1, 1))])
def test_pairs_are_resized_over_queries_and_over_keys(grid: tuple[int, int], keys: tuple[int, int]) -> None:
    weight = torch.randn(2, 4, 6, 2, 3, dtype=torch.float64)
    resized = resize_pairs(weight, grid, keys).view(2, *grid, *keys)

    def resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(x.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)

    for head in range(2):
        by_key = torch.stack([resize(weight[head, :, :, i, j][None], grid)[0] for i in range(2) for j in range(3)], -1)
        expected = resize(by_key.flatten(0, 1).unflatten(1, (2, 3)), keys).view(*grid, *keys)
        assert torch.allclose(resized[head], expected, atol=1e-13)


def test_a_bias_that_is_linear_in_place_stays_so() -> None:
    """What a resized bias means: a pair of places in the image keeps its bias, whatever the number of cells."""

    def places(count: int) -> torch.Tensor:
        return (torch.arange(count) + 0.5) / count

    def ramp(grid: tuple[int, int], keys: tuple[int, int]) -> torch.Tensor:
        y, x, ky, kx = (places(n) for n in (*grid, *keys))
        return (y.view(-1, 1, 1, 1) + 2 * x.view(-1, 1, 1) - 3 * ky.view(-1, 1) + 4 * kx).unsqueeze(0)

    resized = resize_pairs(ramp((8, 8), (4, 4)), (16, 24), (8, 8)).view(1, 16, 24, 8, 8)
    inner = (slice(None), slice(1, -1), slice(2, -2), slice(1, -1), slice(1, -1))  # the border has nothing beyond it
    assert torch.allclose(resized[inner], ramp((16, 24), (8, 8))[inner], atol=1e-5)


def test_half_precision_is_resized_in_float32() -> None:
    weight = torch.randn(2, 4, 4, 2, 2)
    assert torch.equal(
        resize_pairs(weight.half(), (7, 5), (3, 3)), resize_pairs(weight.half().float(), (7, 5), (3, 3)).half()
    )


def test_feed_forwards_by_hand() -> None:
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64)

    def depthwise(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return conv(x.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)

    def normed(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        assert norm.running_mean is not None and norm.running_var is not None
        return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias

    local = used(LocalPerception(4))
    assert torch.allclose(local(x), x + depthwise(local.dwconv, x))
    mlp = used(InvertedResidual(4, 12))
    hidden = normed(mlp.norm1, F.gelu(mlp.fc1(x)))
    hidden = normed(mlp.norm2, F.gelu(hidden + depthwise(mlp.local.dwconv, hidden)))
    assert torch.allclose(mlp(x), normed(mlp.norm3, mlp.fc2(hidden)))
    mlp = used(InvertedBottleneck(4, 12))
    assert torch.allclose(mlp(x), mlp.fc2(F.hardswish(depthwise(mlp.dwconv, F.hardswish(mlp.fc1(x))))))


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [(32, 48), (33, 50), (17, 9)])
def test_the_stem_tells_its_grid_and_covers_every_pixel(stride: int, size: tuple[int, int]) -> None:
    embed = StemPatchEmbed(3, 4, 8, stride).eval()
    image = torch.randn(1, 3, *size, requires_grad=True)
    tokens = embed(image)
    assert tokens.shape == (1, *embed.size(*size), 8)
    assert embed.size(*size) == tuple(-(-s // stride) for s in size)
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert image.grad is not None and (image.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(("size", "stride"), [((16, 20), 2), ((13, 9), 4)])
def test_the_stem_trains_as_its_parts_do(size: tuple[int, int], stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embed, image = StemPatchEmbed(3, 8, 12, stride).train(), torch.randn(4, 3, *size, requires_grad=True)
    truth, exact = copy.deepcopy(embed).double(), image.detach().double().requires_grad_()
    used: list[torch.Size] = []
    kernel = batch_norm.batch_norm
    monkeypatch.setattr(batch_norm, "batch_norm", lambda x, *rest: used.append(x.shape) or kernel(x, *rest))
    g = torch.randn(4, *embed.size(*size), 12)
    found = [embed(image), *torch.autograd.grad(embed(image), [image, *embed.parameters()], g)]
    wanted = [truth(exact), *torch.autograd.grad(truth(exact), [exact, *truth.parameters()], g.double())]
    assert len(used) == (0 if native.why_not() else 6)
    scale = max(float(t.detach().abs().max()) for t in wanted)  # a bias before a norm has a gradient of rounding alone
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6 * scale)
    for a, b in zip(embed.buffers(), truth.buffers(), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)


def test_a_listener_hears_the_norms_of_the_stem() -> None:
    embed, heard = StemPatchEmbed(3, 4, 8, 2).train(), []
    for layer in embed.stem:
        layer.norm.register_forward_hook(lambda *_: heard.append(1))
    embed(torch.randn(2, 3, 8, 8))
    assert len(heard) == 3


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(3, 3)
        self.users = nn.ModuleList(Shared(self.part) for _ in range(2))


def test_shared_parts_are_registered_once_and_copied_together() -> None:
    owner, x = Owner(), torch.randn(2, 3)
    assert list(owner.state_dict()) == ["part.weight", "part.bias"]
    other = copy.deepcopy(owner)
    with torch.no_grad():
        other.part.weight.zero_()
        other.part.bias.fill_(7)
    assert all(torch.equal(user(x), torch.full((2, 3), 7.0)) for user in other.users)
    assert all(torch.equal(user(x), owner.part(x)) for user in owner.users)
    sum(user(x).sum() for user in owner.users).backward()
    assert torch.allclose(owner.part.bias.grad, torch.full((3,), 4.0))


def test_recomputing_counts_a_batch_once() -> None:
    block = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.GELU())
    lean = copy.deepcopy(block)
    x = torch.randn(4, 2, 5, 5, requires_grad=True)
    for _ in range(2):
        block(x).square().sum().backward()
        recomputed(lean, x).square().sum().backward()
    assert lean[1].num_batches_tracked == 2 and lean[1].track_running_stats
    for key, value in block.state_dict().items():
        assert torch.equal(value, lean.state_dict()[key]), key
    for a, b in zip(block.parameters(), lean.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad)
    out = recomputed(lean, x).square().sum()
    for _ in range(2):  # twice through one graph
        out.backward(retain_graph=True)
    assert lean[1].num_batches_tracked == 3
