"""Blocks and embeddings through the compiled kernels: right at every size, never with stale weights, never unasked."""

from __future__ import annotations

import copy
import gc
import weakref
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import srattn
from srattn.layers import native
from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.block import Block, lay_out_blocks
from srattn.layers.block_kernels import lay_out_block
from srattn.layers.feed_forward import ConvMlp, Mlp
from srattn.layers.window import LocallyGroupedAttention
from srattn.models import build_model
from srattn.ops import native as kernels
from tests.truth import spread_out

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no compiled kernels here: {kernels.why_not()}")


def block_of(dim: int = 32, heads: int = 2, mlp: nn.Module | None = None, **options: object) -> Block:
    attn = SpatialReductionAttention(dim, heads, **options)  # type: ignore[arg-type]
    block = Block(dim, attn, ConvMlp(dim, 4 * dim) if mlp is None else mlp)
    return spread_out(block).eval()  # type: ignore[return-value]


def used(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether a call of `module` takes the kernels."""
    found: list[object] = []
    original = native.layout_of

    def spy(*args: object) -> object:
        found.append(original(*args))  # type: ignore[arg-type]
        return found[-1]

    with mock.patch.object(native, "layout_of", spy):
        module(x)
    return any(layout is not None for layout in found)


def check(block: nn.Module, x: torch.Tensor) -> None:
    """The kernels are as near to float64 as twice torch's own float32, and were used."""
    with torch.no_grad():
        assert used(block, x)
        result = block(x)
        with srattn.force_path("plain"):
            own = block(x)
            truth = copy.deepcopy(block).double()(x.double())
    scale = truth.abs().max().item()
    assert (result - truth).abs().max() <= 2 * (own - truth).abs().max() + 1e-6 * scale
    assert (result - own).abs().max() <= 1e-5 * scale


FORMS: list[dict[str, object]] = [
    {}, {"ratio": 2}, {"ratio": (2, 3), "edge": "pad"}, {"linear": True, "pool_size": 3}, {"qk_dim": 16, "ratio": 2},
    {"qkv_bias": False, "ratio": 4}, {"heads": 1, "ratio": 2}, {"heads": 8}, {"dim": 40, "heads": 5, "ratio": 2},
]  # fmt: skip


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (14, 14), (8, 40)])
@pytest.mark.parametrize("options", FORMS)
def test_blocks(size: tuple[int, int], options: dict[str, object]) -> None:
    block = block_of(**options)  # type: ignore[arg-type]
    check(block, torch.randn(2, *size, block.attn.dim))


@pytest.mark.parametrize("absorbed", [True, False])
def test_both_forms_of_the_attention(absorbed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.calls, "absorbs", lambda *sizes: absorbed)
    for heads in (1, 4):
        check(block_of(heads=heads, ratio=2), torch.randn(2, 12, 10, 32))


# Keys of two blocks or of eight (`at_a_time`): as many, one more, a rest of 74; and 1,023, which come at once.
MANY = [(32, 32), (25, 41), (35, 46), (31, 33)]


def with_many_keys(**options: object) -> Block:
    """As many keys as tokens; sharp softmaxes, so that the largest score moves on from block to block."""
    block = block_of(**options)  # type: ignore[arg-type]
    block.attn.scale *= 4  # type: ignore[operator]
    return block


@pytest.mark.parametrize("size", MANY)
@pytest.mark.parametrize("absorbed", [True, False])
def test_many_keys_come_in_blocks(
    size: tuple[int, int], absorbed: bool, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.calls, "absorbs", lambda *sizes: absorbed)
    for heads, qk_dim in [(1, 32), (4, 16)]:
        check(with_many_keys(heads=heads, qk_dim=qk_dim), torch.randn(2, *size, 32))


@pytest.mark.parametrize("size", MANY)
@pytest.mark.parametrize("absorbed", [True, False])
def test_many_keys_in_bfloat16(
    size: tuple[int, int], absorbed: bool, at_a_time: int, products: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags(monkeypatch, "avx512_bf16")
    monkeypatch.setattr(kernels.calls, "absorbs", lambda *sizes: absorbed)
    for heads in (1, 4):
        half_precision(with_many_keys(heads=heads).bfloat16(), torch.randn(2, *size, 32).bfloat16())


@pytest.mark.parametrize("absorbed", [True, False])
def test_a_largest_score_in_the_last_block(absorbed: bool, at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every query finds the last key alone, by scores far beyond what the blocks before have."""
    monkeypatch.setattr(kernels.calls, "absorbs", lambda *sizes: absorbed)
    block, x = block_of(heads=1), torch.randn(1, 32, 48, 32)
    with torch.no_grad():
        block.attn.k.weight.zero_()  # type: ignore[union-attr, operator]
        block.attn.k.weight[0, 0] = 200.0  # type: ignore[index]
        block.attn.q.weight.zero_()  # type: ignore[union-attr, operator]
        block.attn.q.bias.fill_(1.0)  # type: ignore[union-attr, operator]
        x[0, -1, -1] = 0.0
        x[0, -1, -1, 0] = 50.0
    check(block, x)


def test_the_plan_tells_blocks_of_keys(at_a_time: int) -> None:
    for name in ("mit_b0", "pvt_v2_b2"):  # absorbed and projected stages
        few = [stage.reason for stage in srattn.plan(build_model(name).eval(), 512)]
        many = [stage.reason for stage in srattn.plan(build_model(name).eval(), 1024)]
        assert not any("at a time" in reason for reason in few)
        assert all(f", {at_a_time} of 1024 keys at a time; " in reason for reason in many)


def test_the_floor_policy_loses_what_it_loses() -> None:
    check(block_of(ratio=4, edge="floor"), torch.randn(1, 9, 11, 32))


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_inputs_that_are_not_contiguous(layout: str) -> None:
    x = torch.randn(2, 6, 8, 32)
    views = {"transposed": x.transpose(1, 2), "strided": x[:, ::2], "expanded": x[:1].expand(3, -1, -1, -1)}
    check(block_of(ratio=2), views[layout])


def test_another_feed_forward_or_attention_stays_with_torch() -> None:
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0.5

    check(block_of(mlp=Own()), torch.randn(1, 5, 5, 32))
    block = block_of()
    block.attn = Own().eval()
    check(block, torch.randn(1, 5, 5, 32))
    block.mlp = Own().eval()
    assert not used(block, torch.randn(1, 5, 5, 32))


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (9, 12), (3, 5)])
@pytest.mark.parametrize("pointwise", [True, False])
@pytest.mark.parametrize("mask_padding", [True, False])
def test_attention_within_windows(size: tuple[int, int], pointwise: bool, mask_padding: bool) -> None:
    """Windows that divide the map are maps of their own, unless the feed-forward looks over their edges."""
    attn = LocallyGroupedAttention(32, 2, (4, 6), mask_padding=mask_padding)
    block = spread_out(Block(32, attn, Mlp(32, 112) if pointwise else ConvMlp(32, 64))).eval()
    check(block, torch.randn(2, *size, 32))
    divided = size[0] % 4 == 0 and size[1] % 6 == 0
    with torch.no_grad(), mock.patch.object(type(attn), "forward", side_effect=AssertionError):
        if divided and pointwise:
            block(torch.randn(2, *size, 32))
        else:
            with pytest.raises(AssertionError):
                block(torch.randn(2, *size, 32))


def test_windows_in_bfloat16(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "avx512_bf16")
    block = spread_out(Block(64, LocallyGroupedAttention(64, 2, 7), Mlp(64, 256))).eval().bfloat16()
    for size in [(7, 7), (14, 21), (8, 7)]:
        half_precision(block, torch.randn(3, *size, 64).bfloat16())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cvt_13", {"depths": [1, 1, 2]}),
        ("mvitv2_tiny", {"depths": [1, 1, 2, 1]}),
        ("twins_svt_small", {"depths": [2, 2, 2, 2], "window_sizes": [(4, 6), (8, 4), (2, 2), (2, 3)]}),
    ],
)
def test_halves_of_other_blocks(name: str, options: dict[str, object]) -> None:
    """Feed-forwards behind attention of another form, beside a class token or pooled queries; and windows."""
    model = spread_out(build_model(name, num_classes=10, **options)).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        result = model(x)
        laid_out = [native._prepared[block].layouts for stage in model.iter_stages() for block in stage.blocks]
        assert all(list(layouts) == ["float32"] and layouts["float32"] is not None for layouts in laid_out)
        with srattn.force_path("plain"):
            assert (result - model(x)).abs().max() <= 1e-5 * result.abs().max()


@pytest.mark.parametrize(
    "name", ["pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li", "mit_b0", "twins_svt_small", "twins_pcpvt_small"]
)
def test_models_within_1e_5(name: str) -> None:
    model = build_model(name, depths=[1, 1, 1, 1] if "twins_svt" not in name else [2, 2, 2, 2], num_classes=10).eval()
    spread_out(model)
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        result = model(x)
        with srattn.force_path("plain"):
            assert (result - model(x)).abs().max() <= 1e-5 * result.abs().max()


def test_weights_are_never_stale() -> None:
    block, x = block_of(ratio=2), torch.randn(1, 6, 6, 32)

    def same() -> bool:
        with torch.no_grad():
            result = block(x)
            with srattn.force_path("plain"):
                return torch.allclose(result, block(x), rtol=1e-4, atol=1e-4 * result.abs().max().item())

    assert same()
    for p in block.parameters():  # an optimiser step
        p.grad = torch.randn_like(p)
    torch.optim.AdamW(block.parameters(), lr=0.1).step()
    assert same()
    state = {name: torch.randn_like(p) for name, p in block.state_dict().items()}
    block.load_state_dict(state)
    assert same()
    block.load_state_dict(state, assign=True)
    assert same()
    block.mlp.fc1 = spread_out(nn.Linear(32, 128))  # type: ignore[assignment]
    assert same()
    with torch.no_grad():
        block.attn.k.bias.zero_()  # type: ignore[union-attr]
        block.norm1.weight[3] = 7.0
    assert same()
    block.double().float()
    assert same()
    block.norm2.eps = 0.5  # a number, which has no version
    assert same()
    for p in block.parameters():
        p.data.mul_(1.5)  # torch counts no version of this
    native.forget(block)
    assert same()


def test_models_that_ran_are_freed() -> None:
    model = build_model("pvt_v2_b0", depths=[1, 1, 1, 1], num_classes=0).eval()
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
        model.stages[0].blocks[0](torch.randn(1, 4, 4, 32))
    parts = [weakref.ref(m) for m in model.modules()]
    assert any(part() in native._prepared for part in parts)
    del model
    gc.collect()
    assert not any(part() is not None for part in parts)


def test_a_stage_is_its_blocks() -> None:
    """In one call, with the same numbers; block by block where somebody listens to one, or one is of another form."""
    stage = build_model("pvt_v2_b0", depths=[3, 1, 1, 1], num_classes=0).eval().stages[0]
    heard: list[int] = []

    def together() -> bool:
        return native.layout_of(stage.blocks, x, lay_out_blocks) is not None

    for size in [(7, 9), (16, 8)]:
        x = torch.randn(2, *size, 32)
        with torch.no_grad():
            assert together()
            alone = x
            for block in stage.blocks:
                alone = block(alone)
            assert torch.equal(stage.run(x), stage.norm(alone))
            handle = stage.blocks[1].register_forward_hook(lambda *args: heard.append(1))
            assert not together() and torch.allclose(stage.run(x), stage.norm(alone), atol=1e-5)
            handle.remove()
            assert together()
            stage.blocks[2].mlp.fc1.weight.mul_(2)
            assert not torch.equal(stage.run(x), stage.norm(alone))
            stage.blocks[2].mlp.fc1.weight.div_(2)
    assert len(heard) == 2
    with torch.no_grad():
        one = native.layout_of(stage.blocks[0], x, lay_out_block)
        assert native.layout_of(stage.blocks, x, lay_out_blocks).kernel.parts[0] == one.kernel.parts[0], "laid out once"
    stage.blocks[1] = nn.Identity()
    with torch.no_grad():
        assert not together() and torch.equal(stage.run(x), stage.norm(stage.blocks[2](stage.blocks[0](x))))


def test_when_torch_computes() -> None:
    block, x = block_of(ratio=2), torch.randn(1, 6, 6, 32)
    assert not used(block, x), "gradients are recorded"
    with torch.no_grad():
        assert used(block, x)
        assert not used(block.train(), x), "training mode"
        block.eval()
        block.mlp.drop.train()  # Monte Carlo dropout
        assert not used(block, x)
        block.eval()
        handle = block.attn.q.register_forward_hook(lambda *args: None)  # type: ignore[union-attr]
        assert not used(block, x), "a hook listens"
        handle.remove()
        assert used(block, x)
        with srattn.force_path("sdpa"):
            assert not used(block, x)
        assert not used(copy.deepcopy(block).double(), x.double())
        with FlopCounterMode(display=False):
            assert not used(block, x)
        assert block(x[:0]).shape == (0, 6, 6, 32)
    y = block(x.clone().requires_grad_())
    assert y.requires_grad


def test_vmap_and_functional_call_are_right() -> None:
    block, x = block_of(ratio=2), torch.randn(3, 1, 6, 6, 32)
    with torch.no_grad():
        alone = torch.stack([block(each) for each in x])
        assert torch.allclose(torch.func.vmap(block)(x), alone, atol=1e-5)
        other = {name: p * 0.5 for name, p in block.named_parameters()}
        with srattn.force_path("plain"):
            truth = torch.func.functional_call(block, other, (x[0],))
        assert torch.allclose(torch.func.functional_call(block, other, (x[0],)), truth, atol=1e-5)
        assert torch.allclose(block(x[0]), alone[0])


def flags(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A processor of which Linux says these `names` alone."""
    if "avx512_bf16" in names and not kernels.available("bfloat16"):
        pytest.skip(f"no products of bfloat16 here: {kernels.why_not('bfloat16')}")
    monkeypatch.setattr(kernels, "processor_flags", lambda: frozenset(names))


def half_precision(block: nn.Module, x: torch.Tensor) -> None:
    """At most twice as far from float64 as torch's own operators in the same precision."""
    with torch.no_grad():
        assert used(block, x)
        result = block(x)
        with srattn.force_path("plain"):
            own, truth = block(x), copy.deepcopy(block).double()(x.double())
    assert result.dtype == x.dtype
    assert (result - truth).abs().max() <= 2 * (own - truth).abs().max()


@pytest.mark.parametrize(
    ("dtype", "names"),
    [
        (torch.bfloat16, []),
        (torch.bfloat16, ["avx512_bf16"]),
        (torch.float16, ["avx512_bf16"]),
        (torch.float16, ["avx512_fp16"]),
    ],
)
def test_half_precision(dtype: torch.dtype, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, *names)
    half_precision(block_of(ratio=2).to(dtype), torch.randn(2, 6, 6, 32).to(dtype))


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 40)])
@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("absorbed", [True, False])
def test_products_of_bfloat16(
    products: str, options: dict[str, object], size: tuple[int, int], absorbed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags(monkeypatch, "avx512_bf16")
    monkeypatch.setattr(kernels.calls, "absorbs", lambda *sizes: absorbed)
    block = block_of(**options).bfloat16()  # type: ignore[arg-type]
    half_precision(block, torch.randn(2, *size, block.attn.dim).bfloat16())  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [4, 9])
def test_several_images_at_once(products: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed-forward lays small maps one below the other; none may see its neighbour."""
    flags(monkeypatch, "avx512_bf16")
    block, x = block_of(ratio=2).bfloat16(), torch.randn(batch, 7, 5, 32).bfloat16()
    with torch.no_grad():
        assert used(block, x)
        together, alone = block(x), torch.cat([block(each[None]) for each in x])
        spread = (alone.float() - together.float()).abs().max()
        assert spread <= 2**-7 * alone.float().abs().max(), "another order of sums, and one rounding"
        assert torch.equal(block(x.flip(0)).flip(0), together)


def test_units_for_matrices_are_taken(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "amx_bf16", "avx512_bf16")
    with torch.no_grad():
        assert used(block_of().bfloat16(), torch.randn(1, 4, 4, 32).bfloat16()) is (products == "matrix units")


def test_a_feed_forward_without_convolution_in_bfloat16(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "avx512_bf16")
    half_precision(block_of(mlp=Mlp(32, 112)).bfloat16(), torch.randn(2, 9, 7, 32).bfloat16())


def test_odd_depths_do_not_come_in_pairs(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "avx512_bf16")
    block = block_of(dim=33, heads=3).bfloat16()
    with torch.no_grad():
        assert not used(block, torch.randn(1, 4, 4, 33).bfloat16())
        half_precision(block_of(dim=36, heads=4, mlp=ConvMlp(36, 48)).bfloat16(), torch.randn(1, 4, 4, 36).bfloat16())


@pytest.mark.parametrize(
    ("names", "dtype"), [(["amx_bf16", "avx512_bf16"], torch.bfloat16), (["amx_fp16"], torch.float16)]
)
def test_units_that_the_kernels_do_not_know_are_left_to_torch(
    names: list[str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags(monkeypatch, *names)
    monkeypatch.setattr(kernels, "has_matrix_units", lambda: False)
    block, x = block_of(ratio=2), torch.randn(1, 6, 6, 32)
    with torch.no_grad():
        assert not used(copy.deepcopy(block).to(dtype), x.to(dtype))
        assert native.reason_against(x.to(dtype)) == f"{dtype} is computed by torch, in units of this processor"
        assert used(block, x)


def test_images_become_patches_in_bfloat16(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the first kernel has 7 x 3 numbers, which are no whole pairs."""
    flags(monkeypatch, "avx512_bf16")
    model = build_model("pvt_v2_b0", depths=[1, 1, 1, 1], num_classes=10).eval()
    half_precision(model.stages[0].patch_embed.bfloat16(), torch.randn(2, 3, 37, 50).bfloat16())  # type: ignore[arg-type]
    half_precision(model.stages[1].patch_embed.bfloat16(), torch.randn(2, 32, 13, 8).bfloat16())  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [[], ["avx512_bf16"]])
def test_autocast_takes_the_kernels(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, *names)
    block, x = block_of(ratio=2), torch.randn(1, 6, 6, 32)
    with torch.no_grad():
        exact = block(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert used(block, x)
            assert torch.equal(block(x), exact) is (not names)
            assert torch.allclose(block(x), exact, rtol=1e-2, atol=1e-2 * exact.abs().max().item())
            assert block(x.bfloat16()).dtype == torch.bfloat16


def test_an_mlp_of_another_width_stays_with_torch() -> None:
    block = block_of(mlp=Mlp(32, 37))
    check(block, torch.randn(1, 3, 3, 32))


def test_torch_compile_asks_no_questions_of_the_kernels() -> None:
    """What Dynamo sees must be torch's own operators at once; a look at the machine would be traced, with warnings."""
    torch.compiler.reset()
    block, x = block_of(ratio=2), torch.randn(1, 6, 6, 32)
    with torch.no_grad():
        compiled = torch.compile(block, fullgraph=True, backend="eager", dynamic=False)
        assert torch.allclose(compiled(x), block(x), atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_any_number_of_threads(threads: int, batch: int) -> None:
    """However the work is shared: by images, by rows (a tall map), or by hidden channels."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in [(40, 5), (7, 7), (3, 2)]:
            check(block_of(ratio=2), torch.randn(batch, *size, 32))
    finally:
        torch.set_num_threads(before)
