"""Attention maps against the definition, and their way back to pixels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from srattn.errors import SrattnError
from srattn.explain.attention import attention_maps, query_overlay, query_token, received_attention
from srattn.models import build_model
from srattn.ops.reference import strided_reduction


def definition(attn, x, heads):
    """softmax(q k^T / sqrt(d)) with the keys of the definition's reduction."""
    parameters = dict(attn.named_parameters())
    z = strided_reduction(x, parameters, "reduction", attn.ratio, 1e-5, "pad", None).flatten(1, 2)
    q, k = attn.q(x.flatten(1, 2)), attn.k(z)
    rows = [
        torch.softmax(a @ b.transpose(1, 2) / math.sqrt(a.shape[-1]), -1)
        for a, b in zip(q.chunk(heads, -1), k.chunk(heads, -1), strict=True)
    ]
    return torch.stack(rows, 1)


@pytest.mark.parametrize("size", [(16, 16), (19, 24)])
def test_maps_equal_the_definition(make_model, size):
    model = make_model()
    images = torch.randn(2, 1, *size)
    attn, seen = model.stages[0].blocks[1].attn, []
    hook = attn.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    model(images)
    hook.remove()
    maps = attention_maps(model, images)
    assert [(each.stage, each.block) for each in maps] == [(0, 1), (1, 0), (2, 0), (3, 0)]
    for each in maps:
        assert each.probabilities.shape[-2:] == (math.prod(each.grid), math.prod(each.key_grid))
        torch.testing.assert_close(each.probabilities.sum(-1), torch.ones_like(each.probabilities[..., 0]))
    assert maps[0].grid == size
    assert maps[0].key_grid == (-(-size[0] // 8), -(-size[1] // 8))
    assert [each.stride for each in maps] == [1, 2, 4, 8]
    assert maps[0].path == attn.plan_for(*size, 2).path
    with torch.no_grad():
        torch.testing.assert_close(maps[0].probabilities, definition(attn, seen[0], 1))


def test_choice_of_blocks(make_model):
    model, images = make_model(), torch.randn(1, 1, 16, 16)

    def chosen(blocks):
        return [(each.stage, each.block) for each in attention_maps(model, images, blocks)]

    assert chosen("first") == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert chosen("all") == [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)]
    assert chosen([(2, 0), (0, 1)]) == [(0, 1), (2, 0)]
    with pytest.raises(SrattnError, match="'last', 'first', 'all'"):
        attention_maps(model, images, "middle")
    with pytest.raises(SrattnError, match="no block 5 in stage 1"):
        attention_maps(model, images, [(1, 5)])
    with pytest.raises(SrattnError, match="Linear"):
        attention_maps(torch.nn.Linear(1, 1), images)


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_model_is_left_as_it_was(make_model):
    model, images = make_model(drop_path_rate=0.5, attn_drop_rate=0.5), torch.randn(2, 1, 16, 16)
    before = model(images)
    model.train()
    model.stages[1].eval()  # a frozen part
    flags = [module.training for module in model.modules()]
    first = attention_maps(model, images)
    assert [module.training for module in model.modules()] == flags
    assert hooks(model) == 0
    again = attention_maps(model, images)
    assert all(torch.equal(a.probabilities, b.probabilities) for a, b in zip(first, again, strict=True))
    assert torch.equal(model.eval()(images), before)


def test_hooks_are_removed_after_an_error(make_model):
    model = make_model().train()

    def fail(*_):
        raise RuntimeError("broken on purpose")

    broken = model.stages[2].blocks[0].attn.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        attention_maps(model, torch.randn(1, 1, 16, 16))
    broken.remove()
    assert hooks(model) == 0
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b2_li", "pvt_tiny"])
@pytest.mark.parametrize("size", [(32, 32), (45, 67)])
def test_overlays_hold_all_of_the_attention(name, size):
    small: dict[str, Any] = {"embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2), "depths": (1, 1, 1, 1)}
    model = build_model(name, num_classes=2, in_chans=1, img_size=32, **small).eval()
    maps = attention_maps(model, torch.randn(2, 1, *size))
    for each in maps:
        heat = query_overlay(each, (size[0] - 1, size[1] // 2), size)
        assert heat.shape == (2, *size)
        assert bool((heat >= 0).all())
        row, column = query_token(each, (size[0] - 1, size[1] // 2))
        rows = each.probabilities.mean(1)
        offset = int(each.class_token)
        lost = rows[:, offset + row * each.grid[1] + column, :offset].sum(-1)
        torch.testing.assert_close(heat.sum((1, 2)), 1 - lost)
        mean_lost = rows[:, offset:, :offset].sum(-1).mean(-1)
        torch.testing.assert_close(received_attention(each, size).sum((1, 2)), 1 - mean_lost)
    assert maps[-1].class_token == (name == "pvt_tiny")
    assert maps[-1].pooled == (name == "pvt_v2_b2_li")


def test_a_key_covers_its_block_and_the_padded_edge_ends_with_the_image(make_model):
    each = attention_maps(make_model(), torch.randn(1, 1, 16, 20), [(0, 0)])[0]
    assert (each.ratio, each.key_grid) == ((8, 8), (2, 3))
    each.probabilities = torch.zeros_like(each.probabilities)
    each.probabilities[..., 2] = 1  # the last key of the first row: 8 rows, and 4 of its 8 columns hold tokens
    heat = query_overlay(each, (3, 3), (16, 20))[0]
    expected = torch.zeros(16, 20)
    expected[:8, 16:] = 1 / 32
    torch.testing.assert_close(heat, expected)


def test_pooled_cells_where_keys_divide_the_tokens(make_model):
    each = attention_maps(make_model("pvt_v2_b2_li"), torch.randn(1, 1, 14, 21), [(0, 0)])[0]
    assert each.key_grid == (7, 7)
    heat = received_attention(each, (14, 21))[0]
    weights = each.probabilities.mean((0, 1, 2)).reshape(1, 1, 7, 7)
    source = torch.zeros(1, 1, 14, 21, requires_grad=True)
    torch.nn.functional.adaptive_avg_pool2d(source, 7).backward(weights)
    assert source.grad is not None
    torch.testing.assert_close(heat, source.grad[0, 0])


def test_pooled_cells_share_the_axis_evenly_elsewhere(make_model):
    each = attention_maps(make_model("pvt_v2_b2_li"), torch.randn(1, 1, 16, 16), [(0, 0)])[0]
    each.probabilities = torch.full_like(each.probabilities, 1 / 49)
    torch.testing.assert_close(received_attention(each, (16, 16))[0], torch.full((16, 16), 1 / 256))


def test_points_outside_are_refused(make_model):
    each = attention_maps(make_model(), torch.randn(1, 1, 16, 16), [(0, 0)])[0]
    for point in ((-1, 0), (16, 0), (0, 16)):
        with pytest.raises(SrattnError, match="outside"):
            query_overlay(each, point, (16, 16))
    with pytest.raises(SrattnError, match="head 1"):
        query_overlay(each, (0, 0), (16, 16), head=1)
