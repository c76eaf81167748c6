"""Parts that users change or put in the place of ours are computed as they are: by kernels, in training, compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

import srattn
from srattn import SpatialReductionAttention
from srattn.layers.attention import MapAttention
from srattn.layers.block import Block
from srattn.layers.feed_forward import ConvMlp, Mlp
from srattn.layers.multi_ratio import ActivatedReduction, LocallyEnhancedAttention, MultiRatioAttention
from srattn.layers.patch_embed import OverlapPatchEmbed, PatchEmbed
from srattn.layers.reduction import StridedReduction
from srattn.layers.relative_position import RelativePositionBias
from srattn.layers.volume import VolumeAttention
from srattn.layers.window import LocallyGroupedAttention
from srattn.models import build_model
from tests.truth import spread_out


class Scale(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x


class LowRank(nn.Module):
    """An adapter around a linear map, as libraries of adapters have them: its weight is not all that it computes."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.a = base, nn.Parameter(torch.randn(2, base.in_features))
        self.b = nn.Parameter(torch.randn(base.out_features, 2))

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


def block_of(**options: object) -> Block:
    attn = SpatialReductionAttention(32, 2, 2, **options)  # type: ignore[arg-type]
    return spread_out(Block(32, attn, ConvMlp(32, 64))).eval()  # type: ignore[return-value]


def by_hand(block: Block, x: torch.Tensor) -> torch.Tensor:
    """The block from torch's modules alone, each of them called, in the precision of x."""
    attn, mlp = block.attn, block.mlp
    z = block.norm1(x)
    keys = z.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)
    keys = attn.reduction.norm(attn.reduction.proj(keys))
    if isinstance(attn.reduction, ActivatedReduction):
        keys = F.gelu(keys)
    q, k, v = (t.flatten(1, 2).unflatten(2, (2, -1)).transpose(1, 2) for t in (attn.q(z), attn.k(keys), attn.v(keys)))
    logits = q @ k.transpose(2, 3) * attn.scale
    if attn.position_bias is not None:
        logits = logits + attn.position_bias(tuple(x.shape[1:3]), tuple(keys.shape[1:3]))
    heads = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2).view(x.shape)
    x = x + block.drop_path(attn.proj_drop(attn.proj(heads)))
    hidden = mlp.fc1(block.norm2(x)).permute(0, 3, 1, 2)
    hidden = mlp.drop(F.gelu(mlp.dwconv(hidden).permute(0, 2, 3, 1)))
    return x + block.drop_path(mlp.drop(mlp.fc2(hidden)))


def dilated(block: Block) -> None:
    block.mlp.dwconv = nn.Conv2d(64, 64, 3, padding=2, dilation=2, groups=64)


def wide(block: Block) -> None:
    block.mlp.dwconv = nn.Conv2d(64, 64, 5, padding=2, groups=64)


def full(block: Block) -> None:
    block.mlp.dwconv = nn.Conv2d(64, 64, 3, padding=1)


def reflecting(block: Block) -> None:
    block.mlp.dwconv.padding_mode = "reflect"
    block.mlp.dwconv = nn.Conv2d(64, 64, 3, padding=1, groups=64, padding_mode="reflect")


def activated(block: Block) -> None:
    block.attn.reduction = ActivatedReduction(32, 2)


def adapters(block: Block) -> None:
    attn = block.attn
    attn.q, attn.v, attn.proj = LowRank(attn.q), LowRank(attn.v), LowRank(attn.proj)
    attn.reduction.proj = LowRank(attn.reduction.proj)


def scales(block: Block) -> None:
    block.drop_path, block.attn.proj_drop, block.mlp.drop = Scale(), Scale(), Scale()  # type: ignore[assignment]


def own_forward(block: Block) -> None:
    linear = copy.copy(block.mlp.fc2)
    block.mlp.fc2.forward = lambda x: 0.5 * linear(x)  # as libraries that move weights about put it in
    q = copy.copy(block.attn.q)
    block.attn.q.forward = lambda x: 0.5 * q(x)


def pruned(block: Block) -> None:
    for linear in (block.attn.q, block.attn.proj, block.attn.reduction.proj, block.mlp.fc1):
        prune.l1_unstructured(linear, "weight", 0.5)


def positions(block: Block) -> None:
    block.attn.position_bias = RelativePositionBias(2, (8, 8), (4, 4))


def numbers(block: Block) -> None:
    block.norm1.eps, block.attn.scale = 0.5, 4 * block.attn.scale


def parametrised(block: Block) -> None:
    class Half(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 0.5 * weight

    parametrize.register_parametrization(block.attn.q, "weight", Half())
    parametrize.register_parametrization(block.mlp.fc1, "weight", Half())


CHANGES = [
    dilated,
    wide,
    full,
    reflecting,
    activated,
    adapters,
    scales,
    own_forward,
    pruned,
    positions,
    numbers,
    parametrised,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("compiled", [False, True])
def test_changes_after_a_call(change: Callable[[Block], None], compiled: bool) -> None:
    """In inference, and gradients of every parameter, as torch's modules give them one by one."""
    torch.compiler.reset()
    block, x = block_of(), torch.randn(2, 8, 8, 32)
    run = torch.compile(block, backend="eager") if compiled else block
    with torch.no_grad():
        run(x)
    change(block)
    block.eval()
    truth = by_hand(block, x)
    scale = truth.abs().max().item()
    with torch.no_grad():
        assert (run(x) - truth).abs().max() <= 1e-5 * scale
    given = torch.randn_like(x)
    wanted = torch.autograd.grad(truth, list(block.parameters()), given)
    result = run(x)
    assert (result - truth).abs().max() <= 1e-5 * scale
    most = max(exact.abs().max().item() for exact in wanted)  # that of the keys' bias is nothing but rounding
    for found, exact in zip(torch.autograd.grad(result, list(block.parameters()), given), wanted, strict=True):
        assert (found - exact).abs().max() <= 1e-4 * exact.abs().max() + 1e-6 * most


@pytest.mark.parametrize("training", [False, True])
def test_pruning_and_hooks_train_for_several_steps(training: bool) -> None:
    block, x = block_of(), torch.randn(2, 8, 8, 32)
    pruned(block)
    heard: list[str] = []
    block.attn.proj.register_forward_hook(lambda *args: heard.append("proj"))
    block.train(training)
    for _ in range(3):
        block(x).square().sum().backward()
    assert heard == ["proj"] * 3
    assert block.attn.q.weight_orig.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "attn",
    [MultiRatioAttention(32, 4, (2, 1)), LocallyEnhancedAttention(32, 4), VolumeAttention(32, 4, 2)],
    ids=lambda attn: type(attn).__name__,
)
def test_adapters_on_attention_of_other_forms(attn: nn.Module) -> None:
    """An adapter of a linear map is that of its merged weight."""
    attn = spread_out(attn).eval()
    shape = (2, 4, 4, 4, 32) if isinstance(attn, VolumeAttention) else (2, 6, 8, 32)
    x, merged = torch.randn(shape), copy.deepcopy(attn)
    linears = [name for name, m in attn.named_modules() if type(m) is nn.Linear]
    assert "q" in linears and "proj" in linears
    for name in linears:
        adapted = LowRank(attn.get_submodule(name))  # type: ignore[arg-type]
        attn.set_submodule(name, adapted)
        with torch.no_grad():
            merged.get_submodule(name).weight += adapted.b @ adapted.a  # type: ignore[operator]
    expected = merged(x)
    assert torch.allclose(attn(x), expected, atol=1e-4 * expected.abs().max().item())
    assert torch.allclose(attn.attention_map(x), merged.attention_map(x), atol=1e-4)  # type: ignore[operator]
    attn(x).square().sum().backward()
    assert all(p.grad is not None for p in attn.parameters())
    if isinstance(attn, MapAttention) and hasattr(attn, "_is_plain"):
        assert attn.plan_for(6, 8).path == "sdpa"


def test_an_adapter_takes_the_plain_path_where_it_is_forced() -> None:
    block, x = block_of(), torch.randn(2, 8, 8, 32)
    adapters(block)
    assert block.attn.plan_for(8, 8).reason == "a projection is more than its weight and bias: it is called"
    with srattn.force_path("plain"):
        assert block.attn.plan_for(8, 8).path == "plain"
        result = block(x)
    assert torch.allclose(result, by_hand(block, x), atol=1e-4 * result.abs().max().item())


@pytest.mark.parametrize(
    "change",
    [
        {"stride": (1, 1)},
        {"dilation": (2, 2)},
        {"padding_mode": "circular", "_reversed_padding_repeated_twice": [1, 1, 1, 1]},
        {"padding": "valid"},
    ],
)
@pytest.mark.parametrize("kind", [PatchEmbed, OverlapPatchEmbed])
def test_embeddings_of_another_form(kind: type[PatchEmbed | OverlapPatchEmbed], change: dict[str, object]) -> None:
    embed, x = spread_out(kind(3, 16, 2)).eval(), torch.randn(2, 3, 12, 16)
    with torch.no_grad():
        embed(x)
        for name, value in change.items():
            setattr(embed.proj, name, value)
        expected = embed.norm(embed.proj(x).permute(0, 2, 3, 1))  # type: ignore[operator]
        assert torch.allclose(embed(x), expected, atol=1e-5)  # type: ignore[operator]


def test_norms_without_a_bias_and_views_with_another_sign() -> None:
    embed = OverlapPatchEmbed(3, 16, 2).eval()
    x = torch.randn(2, 3, 12, 16, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    with torch.no_grad():
        expected = embed(x.resolve_neg())
        assert torch.allclose(embed(x), expected, atol=1e-5)
        embed.norm = nn.LayerNorm(16, bias=False)
        assert embed(x).shape == expected.shape


def test_wrong_channels_are_refused_and_devices_left_to_torch() -> None:
    block, x = block_of(), torch.randn(1, 8, 8, 32)
    with torch.no_grad():
        block(x)
        with pytest.raises((srattn.SrattnError, RuntimeError)):
            block(x[..., :16].contiguous())
        with pytest.raises((srattn.SrattnError, RuntimeError)):
            OverlapPatchEmbed(64, 16, 2).eval()(torch.randn(1, 3, 8, 8))
        elsewhere = copy.deepcopy(block).to("meta")
        with pytest.raises((RuntimeError, NotImplementedError)):
            elsewhere(x)
        with torch.device("meta"):
            assert torch.equal(block_of_cpu(block)(x), block(x))


def block_of_cpu(block: Block) -> Block:
    """A copy that has laid out no weights yet."""
    return copy.deepcopy(block)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "twins_svt_small", "cmt_ti"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_type_is_no_ones_business(name: str, dtype: torch.dtype) -> None:
    depths = [2, 2, 2, 2] if "twins" in name else [1, 1, 1, 1]
    model = spread_out(build_model(name, depths=depths, num_classes=3)).eval()
    other, x = copy.deepcopy(model), torch.randn(2, 3, 64, 64)

    def answers(model: nn.Module) -> list[torch.Tensor]:
        with torch.no_grad():
            found = [model.eval()(x)]
        loss = model.train()(x).square().sum()
        return [*found, *torch.autograd.grad(loss, list(model.parameters()))]

    expected = answers(model)
    torch.set_default_dtype(dtype)
    try:
        result = answers(other)
    finally:
        torch.set_default_dtype(torch.float32)
    for found, exact in zip(result, expected, strict=True):
        assert (found - exact).abs().max() <= 1e-3 * exact.abs().max() + 1e-6


def test_weights_of_a_moment_are_never_taken_for_others() -> None:
    """Memory that was given back may be given out again, at the same address and with the same count of changes."""
    block, x = block_of(), torch.randn(2, 8, 8, 32)
    weight = block.mlp.fc1.weight.detach().clone()
    for factor in torch.linspace(-2, 2, 30):
        with torch.no_grad():
            result = torch.func.functional_call(block, {"mlp.fc1.weight": weight * factor}, (x,))
            with srattn.force_path("sdpa"):
                truth = torch.func.functional_call(block, {"mlp.fc1.weight": weight * factor}, (x,))
        assert torch.allclose(result, truth, atol=1e-5 * truth.abs().max().item())


@pytest.mark.parametrize("how", ["data", "fused"])
def test_changes_that_torch_does_not_count(how: str) -> None:
    block, x = block_of(), torch.randn(2, 8, 8, 32)
    optimiser = torch.optim.AdamW(block.parameters(), lr=0.05, fused=True)
    for _ in range(3):
        with torch.no_grad():
            result = block(x)
            with srattn.force_path("sdpa"):
                truth = block(x)
        assert torch.allclose(result, truth, atol=1e-5 * truth.abs().max().item())
        if how == "data":
            for p in block.parameters():
                p.data.mul_(1.2)
        else:
            block(x).square().sum().backward()
            optimiser.step()


def test_autocast_gives_the_types_that_torch_gives() -> None:
    model = build_model("pvt_v2_b0", depths=[1, 1, 1, 1], features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            result = [out.dtype for out in model(x)]
        assert result == [out.dtype for out in model(x)]


def test_one_column_of_keys_in_bfloat16() -> None:
    """Torch's own convolution of this form is wrong at some widths."""
    for dim, ratio in [(16, 8), (24, 4), (8, 8), (28, 8)]:
        reduction = StridedReduction(dim, ratio)
        x = torch.randn(2, 4 * ratio, ratio, dim)
        exact = reduction(x)
        rounded = copy.deepcopy(reduction).bfloat16()(x.bfloat16())
        assert (rounded.float() - exact).abs().max() <= 0.1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, at its first jvp
@pytest.mark.parametrize("name", ["cmt_ti", "twins_svt_small", "pvt_v2_b0"])
def test_training_maps_are_differentiated_forwards(name: str) -> None:
    """By torch's operators: along a direction, as far as the difference of two points says."""
    depths = [2, 2, 2, 2] if "twins" in name else [1, 1, 1, 1]
    model = spread_out(build_model(name, depths=depths, num_classes=3)).eval()
    x, direction = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    with srattn.force_path("plain"):
        _, slope = torch.func.jvp(model, (x,), (direction,))
        model, x, direction = model.double(), x.double(), direction.double()
        step = 1e-5
        truth = (model(x + step * direction) - model(x - step * direction)) / (2 * step)
    assert torch.allclose(slope.double(), truth, rtol=1e-3, atol=1e-4 * truth.abs().max().item())


def test_a_map_that_is_not_contiguous_is_differentiated_twice() -> None:
    from srattn.layers.local_perception import LocalPerception

    layer = spread_out(LocalPerception(8))
    x, v = torch.randn(2, 6, 5, 8).transpose(1, 2).requires_grad_(), torch.randn(2, 5, 6, 8)
    (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    (result,) = torch.autograd.grad((g * v).sum(), x)
    exact = copy.deepcopy(layer).double()
    z = x.detach().double().requires_grad_()
    (g,) = torch.autograd.grad(exact(z).square().sum(), z, create_graph=True)
    (truth,) = torch.autograd.grad((g * v.double()).sum(), z)
    assert torch.allclose(result.double(), truth, atol=1e-4 * truth.abs().max().item())


def test_gelu_far_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is minus ten thousand comes to nothing, and what is no number stays none."""
    block = block_of()
    with torch.no_grad():
        block.mlp.fc1.weight.zero_()
        block.mlp.dwconv.weight.zero_()
        block.mlp.dwconv.bias.fill_(-1e4)
        block.mlp.fc2.bias.zero_()
        x = torch.randn(1, 4, 4, 32)
        block.attn.proj.weight.zero_()
        block.attn.proj.bias.zero_()
        assert (block(x) - x).abs().max() <= 1e-4
        block.mlp.dwconv.bias[3] = float("nan")
        assert block(x).isnan().any()


def test_ratios_of_numpy_and_what_is_none() -> None:
    attn = SpatialReductionAttention(8, 2, np.int64(2))  # type: ignore[arg-type]
    assert attn.ratio == (2, 2) and type(attn.ratio[0]) is int
    assert VolumeAttention(8, 2, (np.int32(1), 2, 3)).ratio == (1, 2, 3)
    for ratio in (True, 2.0, "2", 0, (1, 2, 3)):
        with pytest.raises(srattn.SrattnError, match="ratio is a positive int or a pair of them, got"):
            SpatialReductionAttention(8, 2, ratio)  # type: ignore[arg-type]


def test_biases_of_keys_are_averaged_without_overflow() -> None:
    attn = SpatialReductionAttention(8, 2, linear=True, pool_size=1).half()
    x, bias = torch.randn(1, 128, 128, 8).half(), torch.full((1, 128, 128), 20.0).half()
    scores = attn.reduction.reduce_scores(None, bias)
    assert scores.dtype == torch.float16 and torch.allclose(scores, torch.full_like(scores, 20.0))
    assert attn(x, key_bias=bias).isfinite().all()


def test_a_position_bias_within_windows() -> None:
    attn = LocallyGroupedAttention(32, 2, 4)
    block, x = spread_out(Block(32, attn, Mlp(32, 64))).eval(), torch.randn(1, 8, 8, 32)
    with torch.no_grad():
        before = block(x)
        attn.window.position_bias = RelativePositionBias(2, (4, 4), (4, 4)).eval()
        spread_out(attn.window.position_bias)
        with srattn.force_path("plain"):
            truth = block(x)
        assert torch.allclose(block(x), truth, atol=1e-5) and not torch.allclose(before, truth, atol=1e-3)


def test_tensors_in_the_place_of_parameters() -> None:
    block, x = block_of(), torch.randn(1, 8, 8, 32)
    weight = block.mlp.fc1.weight.detach().clone()
    del block.mlp.fc1.weight
    for factor in (1.0, 2.0):
        block.mlp.fc1.weight = factor * weight  # type: ignore[assignment]
        with torch.no_grad():
            truth = by_hand(block, x)
            assert torch.allclose(block(x), truth, atol=1e-5 * truth.abs().max().item())
