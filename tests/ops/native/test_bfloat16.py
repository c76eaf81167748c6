"""Products of bfloat16, in units for matrices and in vectors: exact but for the order of their sums, at every size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from srattn.ops import native
from srattn.ops.native import FeedForwardKernel, Linear, NormWeights, PatchKernel
from srattn.ops.native.library import panels

pytestmark = pytest.mark.usefixtures("products")
several = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def near(result: Tensor, truth: Tensor, sizes: Tensor) -> None:
    """Within float32 sums of what is added, `sizes` in all; products of two bfloat16 are exact in float32."""
    assert ((result - truth).abs() <= 2**-21 * sizes + 1e-30).all()


def short(*shape: int) -> Tensor:
    """Random numbers that bfloat16 holds, in float32."""
    return torch.randn(shape).bfloat16().float()


@several
@given(rows=st.integers(1, 70), columns=st.integers(1, 70), pairs=st.integers(1, 90))
def test_products(rows: int, columns: int, pairs: int) -> None:
    """A convolution of one pixel is a product of matrices: whole tiles, the rest of each side, and both."""
    depth = 2 * pairs
    a, b, bias = short(rows, depth), short(columns, depth), torch.randn(columns)
    kernel = PatchKernel(b[:, :, None, None], bias, (1, 1), (0, 0), None, operand="bfloat16")
    result = kernel(a.T[None, :, None], (1, rows))[0, 0]
    near(result, (a.double() @ b.double().T + bias), a.abs() @ b.abs().T + bias.abs())


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33, 48])
@pytest.mark.parametrize("depth", [1300, 1312, 1346])
def test_depths_of_several_blocks(rows: int, depth: int) -> None:
    a, b = short(rows, depth), short(40, depth)
    kernel = PatchKernel(b[:, :, None, None], None, (1, 1), (0, 0), None, operand="bfloat16")
    near(kernel(a.T[None, :, None], (1, rows))[0, 0], a.double() @ b.double().T, a.abs() @ b.abs().T)


@several
@given(columns=st.integers(1, 70), depth=st.integers(1, 40))
def test_panels_hold_pairs_of_rows(columns: int, depth: int) -> None:
    weight = short(columns, depth)
    flat, at, whole = panels(weight, "bfloat16").float(), 0, depth + depth % 2
    padded = F.pad(weight, (0, whole - depth))
    for first in range(0, columns, 32):
        width = 32 if columns - first > 16 else 16
        panel = flat[at : at + whole * width].view(whole // 2, width, 2).transpose(1, 2).reshape(whole, width)
        part = padded[first : first + width]
        assert torch.equal(panel[:, : len(part)].T, part) and not panel[:, len(part) :].any()
        at += whole * width
    assert at == flat.numel()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 40), (2, 16, 14), (3, 31, 9), (1, 40, 60), (7, 7, 7)])
@pytest.mark.parametrize("convolution", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_maps_of_bfloat16_go_in_and_out(shape: tuple[int, int, int], convolution: bool, threads: int) -> None:
    """As in float32, and rounded once; against float64 with weights that bfloat16 holds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        dim, hidden = 32, 80
        norm = NormWeights(torch.randn(dim), torch.randn(dim), 1e-5)
        fc1, fc2 = Linear(short(hidden, dim) / 4, torch.randn(hidden)), Linear(short(dim, hidden) / 4, torch.randn(dim))
        taps = Linear(torch.randn(hidden, 1, 3, 3) / 3, torch.randn(hidden)) if convolution else None
        x = short(*shape, dim)
        kernel = FeedForwardKernel(norm, fc1, fc2, taps, operand="bfloat16")
        result = kernel(x)
        assert torch.equal(kernel(x.bfloat16()), result.bfloat16())
        truth, coarse = (feed_forward(x.double(), norm, fc1, fc2, taps, kind) for kind in (None, torch.bfloat16))
        assert (result - truth).abs().max() <= 2 * (coarse - truth).abs().max()
    finally:
        torch.set_num_threads(before)


def feed_forward(
    x: Tensor, norm: NormWeights, fc1: Linear, fc2: Linear, taps: Linear | None, rounds: torch.dtype | None
) -> Tensor:
    """In float64; with what the products read rounded to `rounds`."""

    def read(t: Tensor) -> Tensor:
        return t if rounds is None else t.to(rounds).to(t)

    w = {name: None if m is None else (m.weight.double(), m.bias.double()) for name, m in  # type: ignore[union-attr]
         (("fc1", fc1), ("fc2", fc2), ("taps", taps))}  # fmt: skip
    h = F.layer_norm(x, x.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps)
    h = F.linear(read(h), *w["fc1"])  # type: ignore[misc]
    if w["taps"] is not None:
        h = F.conv2d(h.movedim(-1, 1), *w["taps"], padding=1, groups=h.shape[-1]).movedim(1, -1)
    return x + F.linear(read(F.gelu(h)), *w["fc2"])  # type: ignore[misc]


def test_gelu_is_as_exact_as_bfloat16_asks() -> None:
    """Through a feed-forward that is nothing but GELU, rounded to bfloat16 before the last product."""
    values = torch.cat([torch.linspace(-12, 12, 3001), torch.tensor([0.0, 1e-3, -1e-3, 4.1, -4.1, 300.0, -300.0])])
    dim = values.numel() // 32 * 32
    values = values.bfloat16().float().flip(0)[:dim]
    norm = NormWeights(torch.zeros(dim), values, 1e-5)  # norm(x) is `values` whatever x is
    eye = Linear(torch.eye(dim), torch.zeros(dim))
    result = FeedForwardKernel(norm, eye, eye, operand="bfloat16")(torch.zeros(1, 1, 1, dim)).flatten()
    truth = F.gelu(values.double())
    assert ((result - truth).abs() <= 2**-8 * truth.abs() + 1e-4 + 5e-7 * values.abs()).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_where_it_is(value: float) -> None:
    a, b = short(40, 96), short(24, 96)
    a[7, 50] = value
    kernel = PatchKernel(b[:, :, None, None], None, (1, 1), (0, 0), None, operand="bfloat16")
    result = kernel(a.T[None, :, None], (1, 40))[0, 0]
    assert not result[7].isfinite().any() and result[torch.arange(40) != 7].isfinite().all()


def test_in_turn_with_products_of_torch() -> None:
    """Which use the same registers in other shapes."""
    x, w = torch.randn(48, 96).bfloat16(), torch.randn(64, 96).bfloat16()
    kernel = PatchKernel(short(64, 96)[:, :, None, None], None, (1, 1), (0, 0), None, operand="bfloat16")
    image = short(1, 96, 5, 9)
    own, first = F.linear(x, w), kernel(image, (5, 9))
    for rows in (48, 17, 3, 33):
        assert torch.equal(kernel(image, (5, 9)), first)
        assert torch.equal(F.linear(x, w)[:rows], own[:rows])
        assert torch.allclose(F.linear(x[:rows], w).float(), own[:rows].float(), rtol=2**-7, atol=1e-2)


def test_it_says_what_multiplies(products: str) -> None:
    assert native.has_matrix_units() is (products == "matrix units")
