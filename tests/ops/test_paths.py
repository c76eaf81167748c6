"""Every path against the definition in float64: forward and all gradients, in every precision and layout of memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import srattn
from srattn import SpatialReductionAttention
from srattn.ops import attend
from srattn.ops.plan import PATHS
from tests.truth import DOUBLE, definition, error, spread_out

CASES = {
    "one head": {"dim": 8, "num_heads": 1, "ratio": 2},
    "heads": {"dim": 12, "num_heads": 3, "ratio": 2},
    "pair": {"dim": 12, "num_heads": 2, "ratio": (3, 2)},
    "no reduction": {"dim": 8, "num_heads": 2, "ratio": 1},
    "linear": {"dim": 12, "num_heads": 2, "linear": True, "pool_size": 3},
    "no bias": {"dim": 8, "num_heads": 1, "ratio": 2, "qkv_bias": False},
}


def build(case: str, dtype: torch.dtype = DOUBLE) -> SpatialReductionAttention:
    attn = SpatialReductionAttention(**CASES[case])
    spread_out(attn)
    return attn.to(dtype).eval()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(6, 4), (5, 7), (1, 1)])
def test_forward_and_gradients_equal_the_definition(path: str, case: str, size: tuple[int, int]) -> None:
    attn = build(case)
    x = torch.randn(2, *size, attn.dim, dtype=DOUBLE, requires_grad=True)
    weights = torch.randn(x.shape, dtype=DOUBLE)
    names, params = zip(*attn.named_parameters(), strict=True)

    truth = definition(attn, x)
    expected = torch.autograd.grad((truth * weights).sum(), [x, *params], allow_unused=True)
    with srattn.force_path(path):
        result = attn(x)
    found = torch.autograd.grad((result * weights).sum(), [x, *params], allow_unused=True)

    assert error(result, truth) < 1e-12
    for name, a, b in zip(["x", *names], found, expected, strict=True):
        assert a is not None, f"{name} got no gradient"
        assert error(a, torch.zeros_like(a) if b is None else b) < 1e-11, name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", ["one head", "heads", "linear"])
def test_gradcheck(path: str, case: str) -> None:
    attn = build(case)
    x = torch.randn(1, 3, 4, attn.dim, dtype=DOUBLE, requires_grad=True)
    names, params = zip(*attn.named_parameters(), strict=True)

    def run(x: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(attn, dict(zip(names, params, strict=True)), (x,))

    with srattn.force_path(path):
        assert torch.autograd.gradcheck(run, (x, *params), fast_mode=True)


def test_the_definition_itself_passes_gradcheck() -> None:
    attn = build("heads")
    names, params = zip(*attn.named_parameters(), strict=True)
    x = torch.randn(1, 3, 5, attn.dim, dtype=DOUBLE, requires_grad=True)
    bias = torch.randn(1, 3, 5, dtype=DOUBLE, requires_grad=True)

    def run(x: torch.Tensor, bias: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:
        return definition(attn, x, key_bias=bias, params=dict(zip(names, params, strict=True)))

    assert torch.autograd.gradcheck(run, (x, bias, *params), fast_mode=True)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", ["one head", "heads", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_reduced_precision_is_within_twice_the_error_of_the_plain_path(
    path: str, case: str, dtype: torch.dtype
) -> None:
    attn = build(case).to(dtype)
    x = torch.randn(2, 9, 11, attn.dim).to(dtype)
    truth = definition(attn, x)
    with torch.inference_mode():
        with srattn.force_path("plain"):
            plain = error(attn(x), truth)
        with srattn.force_path(path):
            result = attn(x)
    # One unit in the last place of the result is free: the plain error can be zero by luck.
    assert result.dtype == dtype
    assert error(result, truth) <= 2 * plain + torch.finfo(dtype).eps * truth.abs().max().item()


@pytest.mark.parametrize("path", PATHS)
def test_memory_layout_does_not_matter(path: str) -> None:
    attn = build("heads")
    image = torch.randn(2, attn.dim, 6, 5, dtype=DOUBLE)
    maps = {
        "transposed NCHW": image.permute(0, 2, 3, 1),
        "channels last": image.to(memory_format=torch.channels_last).permute(0, 2, 3, 1),
        "strided": torch.randn(2, 12, 10, attn.dim, dtype=DOUBLE)[:, ::2, ::2],
        "width before height": torch.randn(2, 5, 6, attn.dim, dtype=DOUBLE).transpose(1, 2),
        "expanded": torch.randn(1, 6, 5, attn.dim, dtype=DOUBLE).expand(2, -1, -1, -1),
    }
    for name, x in maps.items():
        with srattn.force_path(path):
            assert error(attn(x), definition(attn, x)) < 1e-12, name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES)
def test_batch_of_zero_and_empty_maps(path: str, case: str) -> None:
    attn = build(case)
    with srattn.force_path(path):
        for shape in [(0, 6, 4), (2, 0, 4)]:
            x = torch.randn(*shape, attn.dim, dtype=DOUBLE, requires_grad=True)
            if case == "linear" and shape[0]:
                continue  # pooling nothing has no mean
            out = attn(x)
            assert out.shape == x.shape
            out.sum().backward()
            assert x.grad is not None and x.grad.shape == x.shape


@pytest.mark.parametrize("path", PATHS)
def test_no_keys_at_all_leave_the_output_bias(path: str) -> None:
    attn = build("heads")
    x, key = torch.randn(2, 3, 4, attn.dim, dtype=DOUBLE), torch.zeros(2, 0, 4, attn.dim, dtype=DOUBLE)
    with srattn.force_path(path):
        assert torch.equal(attn(x, key=key), attn.proj.bias.expand_as(x))


@settings(max_examples=60)
@given(
    path=st.sampled_from(PATHS),
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    key_size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 5),
    ratio=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    edge=st.sampled_from(["pad", "floor"]),
    cross=st.booleans(),
    masked=st.booleans(),
    biased=st.booleans(),
)
def test_any_shape(path, batch, size, key_size, heads, head_dim, ratio, edge, cross, masked, biased) -> None:
    attn = spread_out(SpatialReductionAttention(heads * head_dim, heads, ratio, edge=edge)).to(DOUBLE)
    grid = key_size if cross else size
    if edge == "floor" and (grid[0] < ratio[0] or grid[1] < ratio[1]):
        return
    x = torch.randn(batch, *size, attn.dim, dtype=DOUBLE)
    key = torch.randn(batch, *key_size, attn.dim, dtype=DOUBLE) if cross else None
    mask = torch.rand(batch, *grid) < 0.6 if masked else None
    bias = torch.randn(batch, *grid, dtype=DOUBLE) if biased else None
    with srattn.force_path(path):
        result = attn(x, key=key, key_mask=mask, key_bias=bias)
    assert error(result, definition(attn, x, key, key_mask=mask, key_bias=bias)) < 1e-11


@pytest.mark.parametrize("case", ["one head", "heads"])
def test_gradients_reach_the_key_bias_on_every_path(case: str) -> None:
    attn = build(case)
    x = torch.randn(2, 5, 4, attn.dim, dtype=DOUBLE)
    mask = torch.rand(2, 5, 4) < 0.8
    bias = torch.randn(2, 5, 4, dtype=DOUBLE, requires_grad=True)
    weights = torch.randn(x.shape, dtype=DOUBLE)
    (truth,) = torch.autograd.grad((definition(attn, x, key_mask=mask, key_bias=bias) * weights).sum(), bias)
    for path in PATHS:
        with srattn.force_path(path):
            (found,) = torch.autograd.grad((attn(x, key_mask=mask, key_bias=bias) * weights).sum(), bias)
        assert error(found, truth) < 1e-12, path


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("heads", [1, 3])
def test_attention_dropout_keeps_the_mean_and_drops_something(path: str, heads: int) -> None:
    attn = spread_out(SpatialReductionAttention(12, heads, 2, attn_drop=0.3)).to(DOUBLE)
    x = torch.randn(1, 6, 6, 12, dtype=DOUBLE)
    with torch.no_grad(), srattn.force_path(path):
        truth = attn.eval()(x)
        draws = torch.stack([attn.train()(x) for _ in range(600)])
    assert draws.std(0).min() > 0
    # The mean of n draws lies within 5 standard errors of the truth.
    assert ((draws.mean(0) - truth).abs() / (draws.std(0) / 600**0.5)).max() < 5


def test_streamed_and_grouped_absorption_agree() -> None:
    attn = build("one head")
    x, z = torch.randn(2, 20, 8, dtype=DOUBLE), torch.randn(2, 5, 8, dtype=DOUBLE)
    w = attend.Projections(attn.q.weight, attn.q.bias, attn.proj.weight, attn.proj.bias)
    bias = torch.randn(2, 1, 1, 5, dtype=DOUBLE)
    streamed = attend.absorbed_streamed(x, attn.k(z), attn.v(z), w, 1, attn.scale, bias, 0.0)
    grouped = attend.absorbed_grouped(x, attn.k(z), attn.v(z), w, 1, attn.scale, bias, 0.0)
    assert error(streamed, grouped) < 1e-12


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("shape", [(2, 1, 1, 5), (1, "h", 20, 5), (2, "h", 20, 5), (1, "h", 1, 5)])
def test_a_bias_of_any_broadcast_shape_is_the_same_on_every_path(heads: int, shape: tuple[int | str, ...]) -> None:
    attn = spread_out(SpatialReductionAttention(6, heads)).to(DOUBLE)
    x, z = torch.randn(2, 20, 6, dtype=DOUBLE), torch.randn(2, 5, 6, dtype=DOUBLE)
    bias = torch.randn([heads if s == "h" else int(s) for s in shape], dtype=DOUBLE, requires_grad=True)
    w = attend.Projections(attn.q.weight, attn.q.bias, attn.proj.weight, attn.proj.bias)
    arguments = (x, attn.k(z), attn.v(z), w, heads, attn.scale, bias, 0.0)
    truth = attend.plain(*arguments)
    weights = torch.randn_like(truth)
    (expected,) = torch.autograd.grad((truth * weights).sum(), bias, retain_graph=True)
    for path in PATHS:
        with srattn.force_path(path):
            result = attend.attention(*arguments)
            assert error(result, truth) < 1e-12, path
            (found,) = torch.autograd.grad((result * weights).sum(), bias, retain_graph=True)
            assert error(found, expected) < 1e-12, path


@pytest.mark.parametrize("path", PATHS)
def test_autocast(path: str) -> None:
    attn = build("heads", torch.float32)
    x = torch.randn(2, 8, 8, attn.dim)
    truth = definition(attn, x)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        with srattn.force_path("plain"):
            plain = error(attn(x), truth)
        with srattn.force_path(path):
            assert error(attn(x), truth) <= 2 * plain + 2**-8 * truth.abs().max().item()
