"""The compiled kernels against torch's operators in float64: every form, odd sizes, several threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from srattn.ops import native
from srattn.ops.native import FeedForwardKernel, Linear, NormWeights, PatchKernel, calls
from srattn.ops.native.library import panels

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no compiled kernels here: {native.why_not()}")


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def agree(result: Tensor, truth: Tensor, operator: Tensor) -> None:
    """As near to the float64 truth as torch's float32 operators are, within a factor for another order of sums."""
    distance, own = (result - truth).abs().max().item(), (operator - truth).abs().max().item()
    assert distance <= 4 * own + 2e-6 * truth.abs().max().item()


def norm_of(dim: int) -> NormWeights:
    return NormWeights(torch.randn(dim), torch.randn(dim), 1e-5)


def normed(x: Tensor, norm: NormWeights) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight.to(x), norm.bias.to(x), norm.eps)


def random_linear(out: int, depth: int, bias: bool = True) -> Linear:
    return Linear(torch.randn(out, depth) / depth**0.5, torch.randn(out) if bias else None)


def apply(x: Tensor, m: Linear) -> Tensor:
    return F.linear(x, m.weight.to(x), None if m.bias is None else m.bias.to(x))


@given(columns=st.integers(1, 70), depth=st.integers(1, 20))
def test_panels_hold_the_matrix(columns: int, depth: int) -> None:
    weight, lanes = torch.randn(columns, depth), native.lanes()
    flat, at = panels(weight), 0
    for first in range(0, columns, 2 * lanes):
        width = 2 * lanes if columns - first > lanes else lanes
        panel = flat[at : at + depth * width].view(depth, width)
        part = weight[first : first + width]
        assert torch.equal(panel[:, : len(part)].T, part) and not panel[:, len(part) :].any()
        at += depth * width
    assert at == flat.numel()


def feed_forward(x: Tensor, norm: NormWeights, fc1: Linear, fc2: Linear, taps: Linear | None, relu: bool) -> Tensor:
    h = apply(normed(x, norm), fc1)
    h = F.relu(h) if relu else h
    if taps is not None:
        assert taps.bias is not None
        weight, bias = taps.weight.to(h), taps.bias.to(h)
        h = F.conv2d(h.movedim(-1, 1), weight, bias, padding=1, groups=h.shape[-1]).movedim(1, -1)
    return x + apply(F.gelu(h), fc2)


@pytest.mark.parametrize("convolution", [True, False])
@pytest.mark.parametrize(
    ("batch", "height", "width", "dim", "hidden"),
    [
        (1, 1, 1, 8, 16),
        (1, 7, 5, 20, 64),
        (2, 9, 3, 33, 48),
        (3, 1, 50, 16, 64),
        (5, 14, 14, 16, 400),
        (1, 33, 40, 8, 32),
    ],
)
def test_feed_forward(
    threads: int, convolution: bool, batch: int, height: int, width: int, dim: int, hidden: int
) -> None:
    norm, fc1, fc2 = norm_of(dim), random_linear(hidden, dim), random_linear(dim, hidden, bias=height % 2 == 1)
    taps = Linear(torch.randn(hidden, 1, 3, 3), torch.randn(hidden)) if convolution else None
    relu = convolution and width == 5
    x = torch.randn(batch, height, width, dim)
    parts = (norm, fc1, fc2, taps, relu)
    result = FeedForwardKernel(*parts)(x)
    agree(result, feed_forward(x.double(), *parts), feed_forward(x, *parts))


@pytest.mark.parametrize("cache", [1 << 12, 1 << 16, 1 << 24])
@pytest.mark.parametrize("convolution", [True, False])
def test_feed_forward_by_bands_and_by_chunks(
    threads: int, cache: int, convolution: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "cache_bytes", lambda: cache)
    norm, fc1, fc2 = norm_of(32), random_linear(256, 32), random_linear(32, 256)
    taps = Linear(torch.randn(256, 1, 3, 3), torch.randn(256)) if convolution else None
    # The larger map has more than a million numbers, so that it is shared by bands of rows.
    for height, width in ((20, 31), (185, 180)):
        x = torch.randn(1, height, width, 32)
        result = FeedForwardKernel(norm, fc1, fc2, taps)(x)
        parts = (norm, fc1, fc2, taps, False)
        agree(result, feed_forward(x.double(), *parts), feed_forward(x, *parts))


def test_gelu_is_exact_everywhere() -> None:
    """Through a feed-forward that is nothing but GELU: x + gelu(norm(x)) with unit matrices."""
    values = torch.cat([torch.linspace(-40, 40, 4001), torch.tensor([0.0, 1e-30, -1e-30, 5.5, -5.5])])
    dim = values.numel() // native.lanes() * native.lanes()
    values = values[:dim]
    one = NormWeights(torch.zeros(dim), values, 1e-5)  # norm(x) is `values` whatever x is
    eye = Linear(torch.eye(dim), torch.zeros(dim))
    result = FeedForwardKernel(one, eye, eye)(torch.zeros(1, 1, 1, dim)).flatten()
    truth = F.gelu(values.double())
    assert (result - truth).abs().max() <= 1e-6 * 5.5 and ((result - truth).abs() / values.abs().clamp(1)).max() < 4e-7


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_hidden(value: float) -> None:
    norm, fc1, fc2 = norm_of(8), random_linear(16, 8), random_linear(8, 16)
    taps = Linear(torch.randn(16, 1, 3, 3), torch.randn(16))
    x = torch.randn(1, 4, 4, 8)
    x[0, 1, 1, 3] = value
    result = FeedForwardKernel(norm, fc1, fc2, taps, True)(x)
    assert result[0, :3, :3].isnan().all() and result[0, 3, 3].isfinite().all()


@pytest.mark.parametrize("layout", ["planes", "channels_last", "view"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [((7, 7), (4, 4), (3, 3), (33, 45)), ((3, 3), (2, 2), (1, 1), (7, 8)), ((2, 4), (2, 4), (0, 0), (8, 12)),
     ((3, 3), (1, 1), (1, 1), (1, 1))],
)  # fmt: skip
def test_patches(
    threads: int, layout: str, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    size: tuple[int, int],
) -> None:  # fmt: skip
    channels, out = 5, 24
    x = torch.randn(2, channels, *size)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "view":
        x = torch.randn(2, 2 * channels, size[0] + 3, size[1] + 2)[:, ::2, 3:, :-2]
    weight, bias, norm = torch.randn(out, channels, *kernel), torch.randn(out), norm_of(out)

    def embed(x: Tensor) -> Tensor:
        y = F.conv2d(x, weight.to(x), bias.to(x), stride, padding).movedim(1, -1)
        return normed(y, norm)

    grid = embed(x).shape[1:3]
    result = PatchKernel(weight, bias, stride, padding, norm)(x, (grid[0], grid[1]))
    agree(result, embed(x.double()), embed(x))
