"""The fast reductions against their plain forms, and against torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from srattn import SpatialReductionAttention
from srattn.ops import plan, reduce, reference


@pytest.mark.parametrize("ratio", [(1, 1), (2, 2), (4, 3)])
@pytest.mark.parametrize("edge", ["pad", "floor"])
def test_strided_is_reshape_times_w(ratio: tuple[int, int], edge: str) -> None:
    x = torch.randn(2, 9, 11, 5, dtype=torch.float64)
    weight, bias = torch.randn(7, ratio[0] * ratio[1] * 5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    expected = reference.reshape(x, ratio, edge) @ weight.T + bias
    assert torch.allclose(reduce.strided(x, weight, bias, ratio, edge), expected, atol=1e-12)


def test_strided_is_the_published_convolution() -> None:
    conv = torch.nn.Conv2d(6, 6, 4, 4).double()
    x = torch.randn(2, 8, 12, 6, dtype=torch.float64)
    weight = conv.weight.permute(0, 2, 3, 1).reshape(6, -1)
    published = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.allclose(reduce.strided(x, weight, conv.bias, (4, 4), "pad"), published, atol=1e-12)


@pytest.mark.parametrize("size", [(56, 56), (13, 29), (7, 7), (5, 4), (1, 1)])
def test_pooling_is_adaptive_average_pooling(size: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 3, dtype=torch.float64, requires_grad=True)
    expected = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 7).permute(0, 2, 3, 1)
    found = reduce.pooled(x, (7, 7))
    assert torch.allclose(found, expected, atol=1e-14)
    weights = torch.randn_like(expected)
    (a,) = torch.autograd.grad((found * weights).sum(), x)
    (b,) = torch.autograd.grad((expected * weights).sum(), x)
    assert torch.allclose(a, b, atol=1e-14)


def test_pooling_of_a_large_half_precision_map_does_not_overflow() -> None:
    x = torch.full((1, 448, 448, 2), 100.0, dtype=torch.float16)
    assert torch.equal(reduce.pooled(x, (7, 7)), torch.full((1, 7, 7, 2), 100.0, dtype=torch.float16))


def test_masked_pooling_averages_valid_tokens_alone() -> None:
    x = torch.randn(2, 9, 8, 3, dtype=torch.float64)
    mask = torch.rand(2, 9, 8) < 0.5
    x[~mask] = float("nan")
    pooled = reduce.pooled(x, (3, 2), mask)
    window = (slice(3, 6), slice(4, 8))
    expected = torch.stack([x[b][window][mask[b][window]].mean(0) for b in range(2)])
    assert torch.allclose(pooled[:, 1, 1], expected)
    assert reduce.pooled(x, (3, 2), torch.zeros_like(mask)).eq(0).all()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.001])
def test_masked_pooling_of_a_large_half_precision_map(share: float, autocast: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(1, 448, 448, 2, generator=generator) + 20).half()
    mask = torch.rand(1, 448, 448, generator=generator) <= share
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        found = reduce.pooled(x.float() if autocast else x, (7, 7), mask)
    torch.testing.assert_close(found.double(), reduce.pooled(x.double(), (7, 7), mask), rtol=3e-3, atol=0)


def test_attention_with_a_mask_over_a_large_half_precision_map() -> None:
    attention = SpatialReductionAttention(64, 2, linear=True).half()
    x = torch.randn(1, 256, 256, 64).half() + 60
    everything = torch.ones(1, 256, 256, dtype=torch.bool)
    with torch.no_grad():
        masked, whole = attention(x, key_mask=everything), attention(x)
    torch.testing.assert_close(masked, whole, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("ratio", "size", "edge"), [((2, 2), (8, 6), "error"), ((4, 3), (7, 9), "pad"), ((2, 4), (5, 9), "floor")]
)
@pytest.mark.parametrize("form", [reduce._by_taps, reduce._by_products])
def test_depthwise_of_training_is_the_convolution(
    ratio: tuple[int, int], size: tuple[int, int], edge: str, form: Callable[..., torch.Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *size, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(5, 1, *ratio, dtype=torch.float64, generator=generator, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    with torch.no_grad():
        convolved = reduce.depthwise(x, weight, bias, edge)
    found = form(reduce.fit(x, ratio, edge), weight, bias)
    torch.testing.assert_close(found, convolved, rtol=1e-12, atol=1e-12)
    run = lambda x, *given: form(reduce.fit(x, ratio, edge), *given)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, weight, bias))
    assert torch.autograd.gradgradcheck(run, (x, weight, bias))


@pytest.mark.parametrize("gpu", [False, True])
def test_the_form_of_training_follows_device_and_type(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for name in ("_by_taps", "_by_products"):
        form = getattr(reduce, name)
        monkeypatch.setattr(reduce, name, lambda *given, name=name, form=form: taken.append(name) or form(*given))
    if gpu:
        monkeypatch.setattr(plan, "KERNEL_DEVICES", {"cpu"})
    x, weight = torch.randn(1, 4, 4, 8), torch.randn(8, 1, 2, 2)
    reduce.depthwise(x, weight, None, "pad")
    reduce.depthwise(x.bfloat16(), weight.bfloat16(), None, "pad")
    with torch.autocast("cpu", torch.bfloat16):
        reduce.depthwise(x, weight, None, "pad")
    with torch.no_grad():
        reduce.depthwise(x.bfloat16(), weight.bfloat16(), None, "pad")
    assert taken == (["_by_products"] * 3 if gpu else ["_by_taps"] * 2)


def test_depthwise_by_taps_under_autocast_is_as_near_as_the_convolution() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 8, 8, 16, generator=generator), torch.randn(16, 1, 4, 4, generator=generator)
    exact = reduce.depthwise(x.double(), weight.double(), None, "error")
    with torch.autocast("cpu", torch.bfloat16):
        by_taps = reduce.depthwise(x, weight, None, "error")
        with torch.no_grad():
            convolved = reduce.depthwise(x, weight, None, "error")
    assert by_taps.dtype == convolved.dtype == torch.bfloat16
    assert (by_taps - exact).abs().max() <= 2 * (convolved - exact).abs().max()
