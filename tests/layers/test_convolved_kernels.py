"""Attention over convolved queries, keys and values (CvT, MViTv2) by the kernels: right at every size, never stale."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

import srattn
from srattn.errors import SrattnError
from srattn.layers import native
from srattn.layers.batch_norm import TokenBatchNorm, convert_sync_batchnorm
from srattn.layers.block import Block, Blocks, ClassTokenBlock
from srattn.layers.convolutional_projection import ConvolutionalAttention
from srattn.layers.convolved_kernels import Halves, knows_convolved, lay_out_convolved, lay_out_halves
from srattn.layers.feed_forward import Mlp
from srattn.layers.pooling_attention import PoolingAttention
from srattn.models import build_model
from srattn.models.mvitv2 import PoolingBlock
from srattn.ops import native as kernels
from srattn.ops.native import BlocksKernel
from tests.layers.test_native import check, flags, half_precision, used
from tests.truth import spread_out

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no compiled kernels here: {kernels.why_not()}")
Grid = tuple[int, int]


def convolving(dim: int = 32, heads: int = 2, ratio: int | Grid = 2, kind: type[Block] = Block, **options: Any) -> Any:
    """A block of CvT whose batch norms have seen something."""
    attn = ConvolutionalAttention(dim, heads, ratio, class_token=kind is ClassTokenBlock, **options)
    block = spread_out(kind(dim, attn, Mlp(dim, 2 * dim), eps=1e-5)).eval()
    for module in block.modules():
        if isinstance(module, TokenBatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3)
    return block


class OfTokens(nn.Module):
    """A block with a class token as a module of one tensor: the token and the map, one below the other."""

    def __init__(self, block: nn.Module, grid: Grid) -> None:
        super().__init__()
        self.block, self.grid = block, grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x, self.grid)


def pooling(
    dim: int = 32,
    out: int = 32,
    heads: int = 2,
    q: int | Grid = 1,
    kv: int | Grid = 2,
    grid: Grid = (8, 8),
    mlp_out: int | None = None,
    **options: Any,
) -> Any:
    attn = PoolingAttention(dim, out, heads, grid, q_stride=q, kv_stride=kv, **options)
    return spread_out(PoolingBlock(attn, Mlp(out, 2 * out, out_dim=mlp_out), drop_path=0.0)).eval()


CONVOLVING: list[dict[str, Any]] = [
    {}, {"ratio": 1}, {"ratio": (1, 2)}, {"heads": 1}, {"heads": 8}, {"qkv_bias": False}, {"dim": 40, "heads": 5},
    {"dim": 96, "heads": 2},
]  # fmt: skip
POOLING: list[dict[str, Any]] = [
    {}, {"kv": 1}, {"q": 2, "kv": 1}, {"q": 2, "out": 64, "heads": 4}, {"out": 48, "heads": 3}, {"kv": 4, "heads": 1},
    {"q": (1, 2), "kv": (2, 1), "dim": 24}, {"qkv_bias": False, "mlp_out": 64}, {"q": 3, "kv": 2}, {"heads": 8},
]  # fmt: skip
SIZES = [(1, 1), (7, 9), (14, 14), (3, 40)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", CONVOLVING)
def test_convolved_then_projected(size: Grid, options: dict[str, Any]) -> None:
    block = convolving(**options)
    assert knows_convolved(block)
    for batch in (1, 3):
        check(block, torch.randn(batch, *size, block.attn.dim))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", CONVOLVING)
def test_beside_a_class_token(size: Grid, options: dict[str, Any]) -> None:
    block = convolving(kind=ClassTokenBlock, **options)
    assert knows_convolved(block)
    for batch in (1, 3):
        check(OfTokens(block, size).eval(), torch.randn(batch, 1 + size[0] * size[1], block.attn.dim))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", POOLING)
def test_projected_then_pooled(size: Grid, options: dict[str, Any]) -> None:
    block = pooling(**options)
    assert knows_convolved(block)
    for batch in (1, 3):
        check(block, torch.randn(batch, *size, block.attn.dim))


# Of two blocks of 512 keys, or eight of 128: one less, as many, one more; of three, likewise; and a rest of 74.
MANY = [(31, 33), (32, 32), (25, 41), (5, 307), (32, 48), (29, 53), (35, 46)]


def at_many_keys(size: Grid) -> Iterator[tuple[nn.Module, torch.Tensor]]:
    """Blocks with `size` keys, and one more for a class token; sharp softmaxes, so that the largest score moves on."""
    pooled = pooling(q=(3, 4), kv=1, grid=size, heads=1)
    for block in (convolving(ratio=1), convolving(ratio=1, kind=ClassTokenBlock), pooled):
        block.attn.scale *= 4
        token = isinstance(block, ClassTokenBlock)
        x = torch.randn(2, 1 + size[0] * size[1], 32) if token else torch.randn(2, *size, 32)
        yield (OfTokens(block, size).eval() if token else block), x


@pytest.mark.parametrize("size", MANY)
def test_many_keys_come_in_blocks(size: Grid, at_a_time: int) -> None:
    for block, x in at_many_keys(size):
        check(block, x)


@pytest.mark.parametrize("size", MANY)
def test_many_keys_in_bfloat16(size: Grid, at_a_time: int, products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "avx512_bf16")
    for block, x in at_many_keys(size):
        half_precision(block.bfloat16(), x.bfloat16())


def test_a_largest_score_in_the_last_block(at_a_time: int) -> None:
    """Every query finds the last key alone, by scores far beyond what the blocks before have."""
    block, x = convolving(ratio=1, heads=1), torch.randn(1, 32, 48, 32)
    with torch.no_grad():
        block.attn.k.weight.zero_()
        block.attn.k.weight[0, 0] = 200.0
        block.attn.q.weight.zero_()
        block.attn.q.bias.fill_(1.0)
        x[0, -1, -1, 0] = 50.0
    check(block, x)


def test_the_plan_tells_blocks_of_keys(at_a_time: int) -> None:
    model = build_model("cvt_13").eval()
    many, few = (next(iter(srattn.plan(model, size))).reason for size in (512, 224))
    assert f"1 heads x 4096 keys in one call, {at_a_time} keys at a time" in many and "at a time" not in few


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_among_many_keys(value: float) -> None:
    """A key that is no number is no number to every query, in whichever block it comes."""
    block = convolving(ratio=1)
    for column in (0, 20, 47):
        x = torch.randn(1, 32, 48, 32)
        x[0, 16, column] = value
        with torch.no_grad():
            assert used(block, x) and block(x).isnan().all()


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_any_number_of_threads(threads: int, batch: int) -> None:
    """Whether each has images of its own or all share one."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in [(30, 5), (3, 2)]:
            check(convolving(), torch.randn(batch, *size, 32))
            check(pooling(q=2, kv=1), torch.randn(batch, *size, 32))
    finally:
        torch.set_num_threads(before)


def test_sizes_one_after_the_other() -> None:
    """Positions are laid out for one size at a time."""
    block = pooling(grid=(8, 12), kv=2)
    for size in [(8, 12), (5, 7), (8, 12), (12, 8), (7, 5)]:
        check(block, torch.randn(2, *size, 32))


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_inputs_that_are_not_contiguous(layout: str) -> None:
    x = torch.randn(2, 6, 8, 32)
    views = {"transposed": x.transpose(1, 2), "strided": x[:, ::2], "expanded": x[:1].expand(3, -1, -1, -1)}
    check(convolving(), views[layout])
    check(pooling(), views[layout])
    tokens = torch.randn(49, 3, 32).transpose(0, 1)
    check(OfTokens(convolving(kind=ClassTokenBlock), (6, 8)).eval(), tokens)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (14, 14), (3, 11), (4, 52)])  # 33 keys, and 208, are no whole tiles
def test_products_of_bfloat16(products: str, size: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "avx512_bf16")
    for options in CONVOLVING:
        block = convolving(**options).bfloat16()
        half_precision(block, torch.randn(2, *size, block.attn.dim).bfloat16())
        block = convolving(kind=ClassTokenBlock, **options).bfloat16()
        x = torch.randn(3, 1 + size[0] * size[1], block.attn.dim).bfloat16()
        half_precision(OfTokens(block, size).eval(), x)
    for options in POOLING:
        block = pooling(**options).bfloat16()
        half_precision(block, torch.randn(3, *size, block.attn.dim).bfloat16())


def test_depths_that_are_no_pairs_stay_with_torch(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "avx512_bf16")
    for block in (convolving(dim=33, heads=3), pooling(dim=33, out=33, heads=3)):
        assert knows_convolved(block) and not knows_convolved(block, "bfloat16")
        check(block, torch.randn(1, 4, 5, 33))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_products_of_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch)
    for block in (convolving(), pooling(q=2, kv=1)):
        half_precision(block.to(dtype), torch.randn(2, 7, 6, 32).to(dtype))


@pytest.mark.parametrize("names", [[], ["avx512_bf16"]])
def test_autocast(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, *names)
    x = torch.randn(2, 6, 6, 32)
    for block in (convolving(), pooling()):
        with torch.no_grad():
            exact = block(x)
            with torch.autocast("cpu", torch.bfloat16):
                assert used(block, x)
                assert torch.allclose(block(x), exact, rtol=1e-2, atol=1e-2 * exact.abs().max().item())


def fresh(block: nn.Module, x: torch.Tensor) -> None:
    """The kernels were used, with the weights of now."""
    with torch.no_grad():
        assert used(block, x)
        result = block(x)
        with srattn.force_path("plain"):
            own = block(x)
    assert (result - own).abs().max() <= 1e-4 * own.abs().max()


def test_statistics_of_batch_norms_are_never_stale() -> None:
    block, x = convolving(), torch.randn(2, 6, 7, 32)
    fresh(block, x)
    for way in ("query_reduction", "reduction", "value_reduction"):
        norm = getattr(block.attn, way).norm
        norm.running_mean.add_(1.0)
        fresh(block, x)
        norm.running_var = torch.rand(32) + 0.2
        fresh(block, x)
        norm.running_var.data.mul_(3.0)
        fresh(block, x)
        norm.eps = 0.5
        fresh(block, x)
        norm.weight.data.mul_(-1.0)
        fresh(block, x)
        state = {name: torch.rand_like(value) + 0.1 for name, value in norm.state_dict().items() if value.ndim}
        norm.load_state_dict(state, strict=False)
        fresh(block, x)
    block.train()
    block(x).sum().backward()  # a step counts new statistics
    torch.optim.SGD(block.parameters(), lr=1e-3).step()
    fresh(block.eval(), x)
    assert block.double().float() is block
    fresh(block, x)


def test_weights_of_pooling_are_never_stale() -> None:
    block, x = pooling(q=2, kv=1, out=64), torch.randn(2, 6, 7, 32)
    fresh(block, x)
    for name, parameter in block.named_parameters():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        fresh(block, x)
        parameter.data = parameter.data * 1.2
        fresh(block, x)
        assert parameter.requires_grad, name
    block.attn.value_reduction.norm.eps = 0.3
    fresh(block, x)
    block.attn.scale = 0.7
    fresh(block, x)
    block.attn.reduction.ratio = block.attn.value_reduction.ratio = (2, 1)
    fresh(block, x)
    block.attn_shortcut = spread_out(nn.Linear(32, 64)).eval()
    fresh(block, x)


def own_attention_is_called(block: Any, *inputs: Any) -> bool:
    """Whether the attention module itself computes, and rightly so."""
    kind = type(block.eval().attn)
    spy = mock.patch.object(kind, "forward", autospec=True, side_effect=kind.forward)
    with torch.no_grad(), spy as own:
        result = block(*inputs)
        called = own.call_count > 0
        with srattn.force_path("plain"):
            assert (result - block(*inputs)).abs().max() <= 1e-5 * result.abs().max()
    return called


def test_what_torch_computes() -> None:
    """Hooks, modes and replaced parts: the attention half goes back to its modules, and the other may stay."""

    class Own(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    x = torch.randn(2, 6, 7, 32)
    for make in (convolving, pooling):
        assert not own_attention_is_called(make(), x)
        block: Any = make()
        block.attn.k = spread_out(Own(32, 32))
        assert own_attention_is_called(block, x) and layout(block, x)
        block = make()
        block.norm1 = nn.LayerNorm(32, elementwise_affine=False)
        assert own_attention_is_called(block, x)
        block = make()
        block.attn.reduction.proj = nn.Conv2d(32, 32, 3, 2, 1, groups=32, bias=True)
        if make is convolving:
            assert own_attention_is_called(block, x)
        block = make()
        heard: list[int] = []
        block.attn.reduction.register_forward_hook(lambda *args, heard=heard: heard.append(1))
        assert own_attention_is_called(block, x) and heard
        block = make()
        block.attn.query_reduction.norm.train()
        with torch.no_grad():
            assert not used(block, x)
        block = make()
        assert not used(block, x), "gradients are recorded"
    block = convolving()
    block.attn.reduction.norm = nn.Identity()
    assert own_attention_is_called(block, x)
    block = convolving()
    for module in block.modules():
        if isinstance(module, TokenBatchNorm):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    assert own_attention_is_called(block, x)
    assert own_attention_is_called(convolving(ratio=3), x), "a kernel of 5"
    assert own_attention_is_called(convert_sync_batchnorm(convolving()), x)
    block = pooling()
    block.attn.position = nn.Module()
    assert not knows_convolved(block)


def stage(kind: type[Block] = Block, count: int = 3) -> Any:
    """The blocks of a stage; those with a class token as a module of one tensor."""
    blocks = Blocks([convolving(kind=kind, ratio=1 + i % 2) for i in range(count)]).eval()
    return blocks if kind is Block else OfTokens(blocks, (5, 6)).eval()


STAGES = (Block, (2, 5, 6, 32)), (ClassTokenBlock, (2, 31, 32))


@pytest.mark.parametrize(("kind", "size"), STAGES)
def test_a_stage_is_one_call(kind: type[Block], size: tuple[int, ...]) -> None:
    """In float32 from block to block, and of no size but its own."""
    blocks, x = stage(kind), torch.randn(size)
    with mock.patch.object(BlocksKernel, "__call__", autospec=True, side_effect=BlocksKernel.__call__) as one:
        check(blocks, x)
    assert one.call_count == 2, "once in each call of the stage"
    half = x.bfloat16()
    half_precision(blocks.bfloat16(), half)


@pytest.mark.parametrize(("kind", "size"), STAGES)
def test_a_stage_after_one_of_its_blocks_alone(kind: type[Block], size: tuple[int, ...]) -> None:
    """Blocks are laid out once, for calls of their own and for the stage's, whose sizes differ."""
    blocks, x = stage(kind), torch.randn(size)
    inner = blocks if kind is Block else blocks.block
    check(blocks, x)
    for _ in range(3):
        other = (4, 7)
        for block in inner:
            if kind is Block:
                check(block, torch.randn(1, *other, 32))
            else:
                check(OfTokens(block, other).eval(), torch.randn(1, 29, 32))
        check(blocks, x)


@pytest.mark.parametrize(("kind", "size"), STAGES)
def test_a_stage_with_a_block_of_another_form(kind: type[Block], size: tuple[int, ...]) -> None:
    blocks, x = stage(kind), torch.randn(size)
    inner = blocks if kind is Block else blocks.block
    inner[1].mlp.fc1 = nn.Sequential(inner[1].mlp.fc1).eval()
    check(blocks, x)
    heard: list[int] = []
    inner[2].attn.register_forward_hook(lambda *args: heard.append(1))
    check(blocks, x)
    assert len(heard) == 4, "in each call, and in that of the copy"


def layout(block: nn.Module, x: torch.Tensor) -> Any:
    with torch.no_grad():
        return native.layout_of(block, x, lay_out_halves)


def test_halves_are_laid_out_apart() -> None:
    x = torch.randn(1, 4, 4, 32)
    assert all(half is not None for half in layout(pooling(), x))
    wider = pooling(mlp_out=64)
    assert layout(wider, x)[0] is not None and layout(wider, x)[1] is None
    replaced: Any = pooling()
    replaced.mlp.fc1 = nn.Sequential(replaced.mlp.fc1).eval()
    assert isinstance(layout(replaced, x), Halves) and layout(replaced, x).mlp is None
    replaced.attn.q = nn.Sequential(replaced.attn.q).eval()
    assert layout(replaced, x) is None
    block: Any = convolving()
    block.mlp = nn.Sequential(block.mlp).eval()
    check(block, torch.randn(2, 5, 4, 32))
    block.attn.q = nn.Sequential(block.attn.q).eval()
    with torch.no_grad():
        assert not used(block, x)


def test_tokens_of_another_form_are_refused() -> None:
    kernel = lay_out_convolved(convolving(kind=ClassTokenBlock), "float32")
    assert kernel is not None
    with pytest.raises(SrattnError, match=r"tokens \(batch, 13, 32\) are expected, got \(1, 12, 32\)"):
        kernel(torch.randn(1, 12, 32), (3, 4))
    kernel = lay_out_convolved(pooling(), "float32")
    assert kernel is not None
    with pytest.raises(SrattnError, match=r"tokens \(batch, 3, 4, 32\) are expected, got \(1, 3, 4, 30\)"):
        kernel(torch.randn(1, 3, 4, 30))


@pytest.mark.parametrize("name", ["cvt_13", "mvitv2_tiny"])
@pytest.mark.parametrize("size", [(64, 96), (65, 71)])
def test_models_and_their_plan(name: str, size: Grid) -> None:
    """No attention is left to torch, and the plan says so; within what another order of sums makes of float32."""
    model = build_model(name, num_classes=10).eval()
    spread_out(model)
    x = torch.randn(2, 3, *size)
    kinds = ConvolutionalAttention, PoolingAttention
    with torch.inference_mode():
        with mock.patch.object(kinds[0], "forward") as one, mock.patch.object(kinds[1], "forward") as other:
            result = model(x)
        assert not one.called and not other.called
        with srattn.force_path("plain"):
            assert (result - model(x)).abs().max() <= 1e-5 * result.abs().max()
    rows = list(srattn.plan(model, size))
    assert all(row.path == "projected" and row.reason.startswith("kernel: ") for row in rows)
    assert all(row.macs > 0 and row.bytes > 0 and row.feed_forward.startswith("kernel") for row in rows)
    trained = list(srattn.plan(model, size, training=True))
    assert not any(row.reason.startswith("kernel: ") for row in trained)
    with srattn.force_path("sdpa"):
        assert not any(row.reason.startswith("kernel: ") for row in srattn.plan(model, size))


def test_copies_have_weights_of_their_own() -> None:
    x = torch.randn(1, 5, 6, 32)
    block = convolving()
    fresh(block, x)
    other = copy.deepcopy(block)
    with torch.no_grad():
        other.attn.reduction.norm.running_var.mul_(4.0)
    fresh(other, x)
    fresh(block, x)
    with torch.no_grad():
        assert not torch.allclose(other(x), block(x), rtol=1e-3)
