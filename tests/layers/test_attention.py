"""The operator as a user meets it: self- and cross-attention, edges, masks, biases, errors, call forms."""

from __future__ import annotations

import pytest
import torch

import srattn
from srattn import SpatialReductionAttention, SrattnError, TokenAttention
from srattn.layers.reduction import StridedReduction
from tests.truth import DOUBLE, definition, error, spread_out


def build(*args: object, **options: object) -> SpatialReductionAttention:
    return spread_out(SpatialReductionAttention(*args, **options)).to(DOUBLE)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE)


class TestCrossAttention:
    def test_key_of_another_size_serves_as_value(self) -> None:
        attn, x, key = build(8, 2, 2), rand(2, 3, 5, 8), rand(2, 7, 4, 8)
        assert attn(x, key=key).shape == x.shape
        assert error(attn(x, key=key), definition(attn, x, key)) < 1e-12

    def test_key_and_value_are_reduced_each_on_its_own_source(self) -> None:
        attn, x, key, value = build(8, 2, 2), rand(2, 3, 5, 8), rand(2, 7, 4, 8), rand(2, 7, 4, 8)
        result = attn(x, key=key, value=value)
        assert error(result, definition(attn, x, key, value)) < 1e-12
        assert error(result, attn(x, key=key)) > 1e-3

    def test_widths_of_key_and_value_may_differ(self) -> None:
        attn = build(8, 2, (2, 3), key_dim=6, value_dim=10)
        x, key, value = rand(2, 3, 5, 8), rand(2, 7, 4, 6), rand(2, 7, 4, 10)
        assert error(attn(x, key=key, value=value), definition(attn, x, key, value)) < 1e-12
        with pytest.raises(SrattnError, match=r"give the value as well"):
            attn(x, key=key)

    def test_a_learned_set_of_queries(self) -> None:
        attn, queries, key = build(8, 2, 2), rand(2, 5, 8), rand(2, 6, 6, 8)
        assert torch.allclose(attn(queries, key=key), attn(queries.unsqueeze(1), key=key).squeeze(1))

    @pytest.mark.parametrize("give_value", [False, True])
    def test_one_source_is_reduced_once(self, give_value: bool) -> None:
        attn, x, key, calls = build(8, 2, 2), rand(1, 4, 4, 8), rand(1, 4, 4, 8), []
        attn.reduction.register_forward_hook(lambda *_: calls.append(1))
        attn(x, key=key, value=key if give_value else None)
        assert len(calls) == 1


class TestEdges:
    """A 9 x 11 grid under ratio 4: what each policy does, as the README's table says."""

    def reached(self, edge: str) -> tuple[tuple[int, int], torch.Tensor]:
        """Grid of the keys, and which tokens any key depends on."""
        attn = build(4, 1, 4, edge=edge)
        source = rand(1, 9, 11, 4).requires_grad_()
        attn(rand(1, 1, 1, 4), key=source).sum().backward()
        assert source.grad is not None
        return attn.reduced_size(9, 11), source.grad[0].abs().sum(-1) > 0

    def test_pad_reaches_every_token(self) -> None:
        grid, reached = self.reached("pad")
        assert grid == (3, 3) and reached.all()

    def test_floor_loses_the_trailing_strip_as_published(self) -> None:
        grid, reached = self.reached("floor")
        assert grid == (2, 2)
        assert reached[:8, :8].all() and not reached[8:].any() and not reached[:, 8:].any()

    def test_error_names_the_sizes(self) -> None:
        with pytest.raises(SrattnError, match=r"ratio 4x4 does not divide the grid 9x11.*edge='pad'"):
            build(4, 1, 4, edge="error")(rand(1, 9, 11, 4))
        assert build(4, 1, 4, edge="error")(rand(1, 8, 12, 4)).shape == (1, 8, 12, 4)

    def test_a_grid_smaller_than_the_ratio(self) -> None:
        attn, x = build(4, 1, 8), rand(2, 3, 5, 4)
        assert error(attn(x), definition(attn, x)) < 1e-12
        with pytest.raises(SrattnError, match=r"grid 3x5 is smaller than the ratio 8x8"):
            build(4, 1, 8, edge="floor")(x)

    def test_a_divisible_grid_is_the_same_under_all(self) -> None:
        attn, x = build(8, 2, 2), rand(1, 4, 6, 8)
        results = []
        for edge in ("pad", "floor", "error"):
            attn.reduction.edge = edge
            results.append(attn(x))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


class TestMasks:
    @pytest.mark.parametrize("path", ["plain", "sdpa", "absorbed"])
    @pytest.mark.parametrize("heads", [1, 2])
    def test_a_padded_batch_gives_each_image_what_it_gets_alone(self, path: str, heads: int) -> None:
        attn = build(8, heads, (2, 4))
        alone = [rand(1, 6, 8, 8), rand(1, 4, 12, 8), rand(1, 2, 4, 8)]
        batch, mask = torch.full((3, 6, 12, 8), 7.0, dtype=DOUBLE), torch.zeros(3, 6, 12, dtype=torch.bool)
        for i, image in enumerate(alone):
            batch[i, : image.shape[1], : image.shape[2]] = image[0]
            mask[i, : image.shape[1], : image.shape[2]] = True
        with srattn.force_path(path):
            together = attn(batch, key_mask=mask)
            for i, image in enumerate(alone):
                assert error(together[i : i + 1, : image.shape[1], : image.shape[2]], attn(image)) < 1e-12

    def test_invalid_tokens_contribute_nothing_not_even_nan(self) -> None:
        attn, x, mask = build(8, 2, 2), rand(2, 5, 6, 8), torch.rand(2, 5, 6) < 0.5
        key = torch.where(mask.unsqueeze(-1), x, torch.nan)
        truth = definition(attn, x, key, key_mask=mask)
        assert error(attn(x, key=key, key_mask=mask), truth) < 1e-12
        assert truth.isfinite().all()

    def test_a_reduced_token_counts_if_any_source_is_valid(self) -> None:
        attn, x = build(8, 1, 2), rand(1, 4, 4, 8)
        mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        mask[0, 1, 3] = True
        weights = attn.attention_map(x, key_mask=mask)
        assert torch.equal(weights[0, 0, 0], torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=DOUBLE))

    @pytest.mark.parametrize("path", ["plain", "sdpa", "absorbed"])
    @pytest.mark.parametrize("heads", [1, 2])
    def test_an_image_without_any_valid_key_gets_the_output_bias(self, path: str, heads: int) -> None:
        attn, x, mask = build(8, heads, 2), rand(2, 4, 4, 8).requires_grad_(), torch.ones(2, 4, 4, dtype=torch.bool)
        mask[0] = False
        with srattn.force_path(path):
            out = attn(x, key_mask=mask)
        assert torch.allclose(out[0], attn.proj.bias.expand(4, 4, 8))
        assert error(out[1], attn(x)[1]) < 1e-12
        out.sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()

    @pytest.mark.parametrize("linear", [False, True])
    def test_key_bias_is_averaged_over_valid_sources(self, linear: bool) -> None:
        attn = build(8, 2, linear=True, pool_size=2) if linear else build(8, 2, 2)
        x, bias, mask = rand(2, 5, 4, 8), rand(2, 5, 4), torch.rand(2, 5, 4) < 0.7
        for m in (None, mask):
            assert error(attn(x, key_mask=m, key_bias=bias), definition(attn, x, key_mask=m, key_bias=bias)) < 1e-12
        # By hand: a block of one valid source has exactly that source's bias.
        single = torch.zeros(1, 2, 2, dtype=torch.bool)
        single[0, 1, 0] = True
        if not linear:
            scores = attn.reduction.reduce_scores(single, bias[:1, :2, :2])
            assert scores.item() == pytest.approx(bias[0, 1, 0].item())

    def test_constant_bias_changes_nothing(self) -> None:
        attn, x = build(8, 2, 3), rand(1, 7, 8, 8)
        assert error(attn(x, key_bias=torch.full((1, 7, 8), 2.5, dtype=DOUBLE)), attn(x)) < 1e-12


class TestAttentionMap:
    @pytest.mark.parametrize("linear", [False, True])
    def test_rows_sum_to_one_and_reproduce_the_output(self, linear: bool) -> None:
        attn = build(8, 2, linear=True, pool_size=3) if linear else build(8, 2, 2)
        x = rand(2, 6, 4, 8)
        weights = attn.attention_map(x)
        grid = attn.reduced_size(6, 4)
        assert weights.shape == (2, 2, 24, grid[0] * grid[1])
        assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 24, dtype=DOUBLE))
        values = attn.v(attn.reduction(x)).flatten(1, 2).unflatten(-1, (2, 4)).transpose(1, 2)
        out = attn.proj((weights @ values).transpose(1, 2).flatten(2)).view(x.shape)
        assert error(out, attn(x)) < 1e-12


class TestOwnParts:
    """A reduction, a width of queries and keys, and a position bias of one's own."""

    def test_a_reduction_of_ones_own(self) -> None:
        own = StridedReduction(8, 2)
        attn = build(8, 2, reduction=own)
        x = rand(2, 5, 6, 8)
        assert attn.reduction is own and error(attn(x), definition(attn, x)) < 1e-12
        with pytest.raises(SrattnError, match="stands for ratio and linear"):
            build(8, 2, 4, reduction=own)

    @pytest.mark.parametrize("path", ["plain", "sdpa", "absorbed"])
    def test_narrow_queries_and_keys(self, path: str) -> None:
        attn, x = build(8, 2, 2, qk_dim=4), rand(2, 5, 6, 8)
        assert attn.q.out_features == attn.k.out_features == 4 and attn.scale == 2**-0.5
        with srattn.force_path(path):
            out = attn(x)
        q, z = attn.q(x).flatten(1, 2), attn.reduction(x).flatten(1, 2)
        heads = zip(q.chunk(2, -1), attn.k(z).chunk(2, -1), attn.v(z).chunk(2, -1), strict=True)
        by_hand = torch.cat([(q @ k.transpose(1, 2) * 2**-0.5).softmax(-1) @ v for q, k, v in heads], -1)
        assert error(out, attn.proj(by_hand).view(x.shape)) < 1e-12
        with pytest.raises(SrattnError, match="num_heads must divide qk_dim"):
            build(8, 2, qk_dim=3)

    @pytest.mark.parametrize("path", ["plain", "sdpa", "absorbed"])
    @pytest.mark.parametrize("heads", [1, 2])
    def test_a_position_bias(self, path: str, heads: int) -> None:
        class Bias(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = torch.nn.Parameter(rand(heads, 30, 9))

            def forward(self, grid: tuple[int, int], keys: tuple[int, int]) -> torch.Tensor:
                assert tuple(grid) == (5, 6) and tuple(keys) == (3, 3)
                return self.table

        attn, x = build(8, heads, 2, position_bias=Bias()), rand(2, 5, 6, 8)
        with srattn.force_path(path):
            out = attn(x)
        weights = attn.attention_map(x)
        values = attn.v(attn.reduction(x)).flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)
        assert error(out, attn.proj((weights @ values).transpose(1, 2).flatten(2)).view(x.shape)) < 1e-12
        logits = attn.q(x).flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)
        keys = attn.k(attn.reduction(x)).flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)
        logits = logits @ keys.transpose(2, 3) * attn.scale + attn.position_bias.table
        assert error(weights, logits.softmax(-1)) < 1e-12


class TestCallForms:
    def test_tokens_with_height_and_width_or_a_pair(self) -> None:
        attn, x = build(8, 2, 2), rand(2, 24, 8)
        adapter, expected = TokenAttention(attn), attn(x.view(2, 6, 4, 8)).view(2, 24, 8)
        assert torch.equal(adapter(x, 6, 4), expected)
        assert torch.equal(adapter(x, (6, 4)), expected)

    def test_a_grid_that_does_not_fit(self) -> None:
        adapter = TokenAttention(build(8, 2, 2))
        with pytest.raises(SrattnError, match=r"5 \* 4 = 20"):
            adapter(rand(2, 24, 8), 5, 4)
        with pytest.raises(SrattnError, match=r"attn\(x, H, W\)"):
            adapter(rand(2, 24, 8), 6)


@pytest.mark.parametrize(
    ("build_options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "num_heads must divide dim, got dim=10, num_heads=3"),
        ({"dim": 8, "num_heads": 0}, "num_heads must divide dim"),
        ({"dim": 8, "num_heads": 2, "ratio": 0}, "ratio is a positive int or a pair"),
        ({"dim": 8, "num_heads": 2, "ratio": (2, 2, 2)}, "ratio is a positive int or a pair"),
        ({"dim": 8, "num_heads": 2, "edge": "flor"}, "did you mean 'floor'"),
        ({"dim": 8, "num_heads": 2, "ratio": 4, "linear": True}, "leave ratio at 1"),
    ],
)
def test_options_that_cannot_be(build_options: dict[str, object], message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        SpatialReductionAttention(**build_options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": (2, 4, 4, 6)}, "queries are"),
        ({"x": (2, 16, 8)}, "beside a key"),
        ({"x": (2, 4, 4, 8), "value": (2, 4, 4, 8)}, "a value needs its key"),
        ({"x": (2, 4, 4, 8), "key": (3, 4, 4, 8)}, r"key is \(batch 2"),
        ({"x": (2, 4, 4, 8), "key": (2, 16, 8)}, "key is"),
        ({"x": (2, 4, 4, 8), "key": (2, 4, 4, 8), "value": (2, 5, 4, 8)}, "one grid"),
        ({"x": (2, 4, 4, 8), "key_bias": (2, 16)}, "key_bias has the shape of the key map"),
        ({"x": (2, 4, 4, 8), "key_mask": (2, 4, 4)}, "key_mask is boolean"),
    ],
)
def test_inputs_that_cannot_be(inputs: dict[str, tuple[int, ...]], message: str) -> None:
    attn = SpatialReductionAttention(8, 2, 2)
    tensors = {name: torch.randn(shape) for name, shape in inputs.items()}
    with pytest.raises(SrattnError, match=message):
        attn(tensors.pop("x"), **tensors)


def test_dropout_after_the_projection() -> None:
    attn = SpatialReductionAttention(8, 2, 2, proj_drop=0.5).train()
    out = attn(torch.randn(4, 4, 4, 8))
    assert 0.2 < (out == 0).float().mean() < 0.8


def test_device_and_dtype_of_the_parameters() -> None:
    attn = SpatialReductionAttention(8, 2, 2, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in attn.parameters()} == {("meta", torch.bfloat16)}
