"""MViTv2 against a plain reading of its paper and against timm, at sizes that it was not built for."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import srattn
from srattn.convert import convert_state_dict, detect_layout
from srattn.explain.attention import attention_maps, received_attention
from srattn.layers.decomposed_position import DecomposedPosition
from srattn.layers.pooling_attention import HeadPooling, PoolingAttention
from srattn.models import build_model
from srattn.models.registry import count_parameters
from srattn.ops.decomposed import distances, stretched

PARAMETERS = {
    "mvitv2_tiny": 24_173_320,
    "mvitv2_small": 34_870_216,
    "mvitv2_base": 51_472_744,
    "mvitv2_large": 217_992_952,
}
SMALL = {
    "embed_dims": (16, 32, 48, 64),
    "num_heads": (1, 2, 3, 4),
    "depths": (2, 2, 3, 2),
    "img_size": 64,
    "num_classes": 10,
}
KINDS = [{}, {"expand_attn": False, "num_heads": (2, 2, 3, 4)}, {"qkv_bias": False}]


def small(**options: Any) -> Any:
    """A model whose every parameter tells, so that one that is left out or misplaced is seen."""
    model = build_model("mvitv2_tiny", **{**SMALL, **options}).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 1.2 / math.sqrt(p.shape[1]) if p.ndim == 2 and ".position." not in name else 0.4)
            p.add_(float(name.endswith("weight") and "norm" in name))
    return model


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert count_parameters(build_model(name, device="meta")) == PARAMETERS[name]


# -- the definition, step by step ------------------------------------------------------------------------------------


def pooled(x: Tensor, heads: int, params: Mapping[str, Tensor], stride: int) -> Tensor:
    """x (H, W, heads d): every head by itself, every window by itself. Returns (heads, H', W', d)."""
    kernel, weight, bias = params["proj.weight"][:, 0], params["norm.weight"], params["norm.bias"]
    height, width, _ = x.shape
    out = []
    for head in x.chunk(heads, -1):
        rows = []
        for top in range(-1, height - 1, stride):
            row = []
            for left in range(-1, width - 1, stride):
                total = torch.zeros_like(head[0, 0])
                for i in range(3):
                    for j in range(3):
                        if 0 <= top + i < height and 0 <= left + j < width:
                            total = total + head[top + i, left + j] * kernel[:, i, j]
                row.append(F.layer_norm(total, total.shape, weight, bias, 1e-6))
            rows.append(torch.stack(row))
        out.append(torch.stack(rows))
    return torch.stack(out)


def entry(query: int, key: int, queries: int, keys: int) -> int:
    """Where in a table of 2 max(queries, keys) - 1 entries the distance of two cells stands, counted from its end."""
    step = max(queries, keys)
    return math.floor(query * step / queries + 1e-9) + math.floor((keys - 1 - key) * step / keys + 1e-9)


def definition(attn: PoolingAttention, x: Tensor) -> Tensor:
    """PoolingAttention on one map (H, W, dim)."""
    heads, state = attn.num_heads, attn.state_dict()

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name + "."): value for key, value in state.items() if key.startswith(name + ".")}

    strides = {"q": attn.query_reduction.ratio[0], "k": attn.reduction.ratio[0], "v": attn.reduction.ratio[0]}
    names = {"q": "query_reduction", "k": "reduction", "v": "value_reduction"}
    q, k, v = (
        pooled(F.linear(x, state[f"{n}.weight"], state.get(f"{n}.bias")), heads, part(names[n]), strides[n])
        for n in "qkv"
    )
    (_, height, width, d), (_, key_height, key_width, _) = q.shape, k.shape
    rows = stretched(attn.position.rows, 2 * max(height, key_height) - 1)
    columns = stretched(attn.position.columns, 2 * max(width, key_width) - 1)
    out = torch.zeros_like(q)
    for h in range(heads):
        for y in range(height):
            for x_ in range(width):
                logits = []
                for key_y in range(key_height):
                    for key_x in range(key_width):
                        position = rows[entry(y, key_y, height, key_height)]
                        position = position + columns[entry(x_, key_x, width, key_width)]
                        logits.append(q[h, y, x_] @ k[h, key_y, key_x] / math.sqrt(d) + q[h, y, x_] @ position)
                weights = torch.stack(logits).softmax(0)
                out[h, y, x_] = weights @ v[h].flatten(0, 1) + q[h, y, x_]
    return F.linear(out.permute(1, 2, 0, 3).flatten(2), state["proj.weight"], state["proj.bias"])


@pytest.mark.parametrize(("q_stride", "kv_stride"), [(1, 4), (2, 2), (1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 3)])
def test_attention_is_the_published_formula(size: tuple[int, int], q_stride: int, kv_stride: int) -> None:
    attn = PoolingAttention(6, 8, 2, (8, 8), q_stride=q_stride, kv_stride=kv_stride).double()
    with torch.no_grad():
        for p in attn.parameters():
            p.normal_()
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    expected = torch.stack([definition(attn, each) for each in x])
    for path in ("plain", "sdpa", "absorbed"):
        with srattn.force_path(path):
            torch.testing.assert_close(attn(x), expected, atol=1e-12, rtol=1e-10)
    assert expected.shape[1:3] == attn.query_size(*size)


def test_blocks_shrink_and_widen_as_published() -> None:
    """Stages by hand from their own attentions: the shortcuts, which the definition above does not hold."""
    for options in KINDS:
        model, images = small(**options).double(), torch.randn(1, 3, 50, 64, dtype=torch.float64)
        x = model.stages[0].patch_embed.proj(images).permute(0, 2, 3, 1)
        maps = []
        for i, stage in enumerate(model.stages):
            for j, block in enumerate(stage.blocks):
                y = F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias, 1e-6)
                shortcut = x if block.attn_shortcut is None else block.attn_shortcut(y)
                assert (block.attn_shortcut is not None) == (options.get("expand_attn", True) and i > 0 and j == 0)
                if i > 0 and j == 0:
                    shortcut = F.max_pool2d(shortcut.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
                x = shortcut + block.attn(y)
                y = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, 1e-6)
                shortcut = x if block.mlp_shortcut is None else block.mlp_shortcut(y)
                x = shortcut + block.mlp(y)
            maps.append(x.permute(0, 3, 1, 2))
        final, ours = model.forward_intermediates(images)
        for a, b in zip(ours, maps, strict=True):
            torch.testing.assert_close(a, b)
        mean = F.layer_norm(x, x.shape[-1:], model.norm.weight, model.norm.bias, 1e-6).mean((1, 2))
        torch.testing.assert_close(model.forward_head(final, pre_logits=True), mean)


# -- positions -------------------------------------------------------------------------------------------------------


def test_distances_are_exact_at_every_size() -> None:
    """In float32, as elsewhere, 39 queries over 10 keys read the wrong entry for a tenth of all pairs."""
    wrong = 0
    for queries, keys in [(39, 10), (57, 29), (14, 28), (7, 13), (56, 14), (9, 5), (1, 1)]:
        exact = [[entry(q, k, queries, keys) for k in range(keys)] for q in range(queries)]
        found = distances(queries, keys, torch.device("cpu"))
        assert found.tolist() == exact
        assert found.min() == 0 and found.max() <= 2 * max(queries, keys) - 2
        scale_q, scale_k = max(keys / queries, 1.0), max(queries / keys, 1.0)
        rounded = torch.arange(queries)[:, None] * scale_q - torch.arange(keys) * scale_k + (keys - 1) * scale_k
        wrong += int((rounded.long() != found).sum())
    assert wrong > 0, "the quotients that this guards against do not occur here"


def test_tables_are_stretched_linearly() -> None:
    position = DecomposedPosition(4, (8, 6), (2, 12))
    assert position.rows.shape == (15, 4) and position.columns.shape == (23, 4)
    assert stretched(position.rows, 15) is position.rows
    line = torch.linspace(0, 1, 15).unsqueeze(1)
    longer = stretched(line, 45)
    assert torch.allclose(longer[1::3], line, atol=1e-6) and (longer.diff(dim=0) >= 0).all()
    half = stretched(line.bfloat16(), 31)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), stretched(line, 31), atol=1e-2)


def test_another_image_size_is_the_model_built_for_it() -> None:
    """A model of 64 run at 96 x 160 is the model built for that size and filled with the stretched tables."""
    model = small()
    other = build_model("mvitv2_tiny", **{**SMALL, "img_size": (96, 160)}).eval()
    report = srattn.load_checkpoint(other, model.state_dict())
    assert report.resized["stages.0.blocks.0.attn.position.columns"] == "31 -> 79"
    images = torch.randn(1, 3, 96, 160)
    torch.testing.assert_close(model(images), other(images))


# -- masks, plans and explanations -----------------------------------------------------------------------------------


def test_masked_tokens_contribute_nothing() -> None:
    attn = PoolingAttention(6, 8, 2, (8, 8), kv_stride=2).eval()
    x = torch.randn(2, 8, 8, 6)
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[0, :, 4:] = False
    spoiled = torch.where(mask.unsqueeze(-1), x, torch.tensor(float("inf"))).nan_to_num(posinf=1e4)
    with torch.no_grad():
        kept, other = attn(x, key_mask=mask), attn(spoiled, key_mask=mask)
        weights = attn.attention_map(x, key_mask=mask)
        assert torch.equal(attn(x, key_mask=torch.ones_like(mask)), attn(x))
        nothing = attn(x, key_mask=torch.zeros_like(mask))
        biased = attn.attention_map(x, key_bias=torch.arange(64.0).view(1, 8, 8).expand(2, -1, -1))
    # Queries are pooled, too: those out of reach of what is masked are the same.
    assert torch.allclose(kept[0, :, :3], other[0, :, :3], atol=1e-5) and torch.allclose(kept[1], other[1], atol=1e-5)
    # The window of the third column of keys reaches one valid column of tokens; that of the last none.
    assert (weights[0].unflatten(-1, (4, 4))[..., 3] == 0).all() and (
        weights[0].unflatten(-1, (4, 4))[..., 2] > 0
    ).all()
    assert nothing.isfinite().all()
    assert biased[0, 0, 0].argmax() == 15


def test_pooling_covers_any_size() -> None:
    for stride in (1, 2, 4):
        pooling = HeadPooling(4, stride)
        for size in [(1, 1), (5, 9), (8, 12)]:
            assert pooling(torch.randn(2, *size, 8)).shape == (2, *pooling.size(*size), 8)
            assert pooling.sum(torch.ones(2, *size)).shape == (2, *pooling.size(*size))


def test_the_plan_follows_the_pooled_grids() -> None:
    plan = srattn.plan(build_model("mvitv2_tiny", device="meta"), (224, 224))
    assert [(row.stage, row.blocks, row.tokens, row.keys) for row in plan] == [
        ("1", 1, (56, 56), (14, 14)),
        ("2", 1, (56, 56), (28, 28)),
        ("2", 1, (28, 28), (14, 14)),
        ("3", 1, (28, 28), (28, 28)),
        ("3", 4, (14, 14), (14, 14)),
        ("4", 1, (14, 14), (14, 14)),
        ("4", 1, (7, 7), (7, 7)),
    ]
    trained = srattn.plan(build_model("mvitv2_tiny", device="meta"), training=True)
    assert {row.path for row in trained} == {"sdpa"} and "cannot be absorbed" in str(trained)
    with srattn.force_path("plain"):
        forced = srattn.plan(build_model("mvitv2_tiny", device="meta"))
    assert {row.path for row in forced} == {"plain"} and forced.rows[0].bytes > plan.rows[0].bytes


def test_multiply_adds_are_those_of_the_published_table() -> None:
    """4.7 G for tiny (arXiv:2112.01526, table 5), within 2 %: what the plan counts and the rest by hand."""
    model: Any = build_model("mvitv2_tiny", device="meta")
    with srattn.force_path("plain"):  # the formula, without the further channels of the fused path
        macs = sum(row.blocks * row.macs for row in srattn.plan(model, 224))
    grid = (56, 56)
    macs += 56 * 56 * model.stages[0].patch_embed.proj.weight.numel()
    for stage in model.iter_stages():
        for block in stage.blocks:
            if block.attn_shortcut is not None:
                macs += math.prod(grid) * block.attn_shortcut.weight.numel()
            grid = block.attn.query_size(*grid)
            macs += math.prod(grid) * (block.mlp.fc1.weight.numel() + block.mlp.fc2.weight.numel())
    assert macs / 1e9 == pytest.approx(4.7, rel=0.02)


def test_attention_can_be_explained() -> None:
    model, images = small(), torch.randn(2, 3, 64, 80)
    for each in attention_maps(model, images, "all"):
        side = 2 ** (4 - each.stage)
        assert each.grid == (side, -(-5 * side // 4))
        assert each.probabilities.shape[-2:] == (math.prod(each.grid), math.prod(each.key_grid))
        torch.testing.assert_close(each.probabilities.sum(-1), torch.ones_like(each.probabilities[..., 0]))
        shown = received_attention(each, (64, 80))
        assert shown.shape == (2, 64, 80)
        torch.testing.assert_close(shown.sum((1, 2)), torch.ones(2), atol=1e-4, rtol=0)


# -- timm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS)
def test_timm_layout_round_trips_bit_for_bit(options: dict[str, Any]) -> None:
    ours = small(**options).state_dict()
    theirs = convert_state_dict(ours, "timm")
    assert detect_layout(theirs) == ("timm", "mvitv2") and detect_layout(ours) == ("srattn", "mvitv2")
    assert theirs["stages.1.blocks.0.attn.qkv.weight"].shape[0] == 3 * 32
    back = convert_state_dict(theirs, "srattn")
    assert set(back) == set(ours) and all(torch.equal(back[key], value) for key, value in ours.items())


def test_a_checkpoint_sets_its_epsilons_and_names_the_model_that_it_fits() -> None:
    theirs = convert_state_dict(build_model("mvitv2_tiny", num_classes=3).state_dict(), "timm")
    model = build_model("mvitv2_tiny", num_classes=3)
    model.set_norm_eps(1e-3, 1e-3, 1e-3)
    assert srattn.load_checkpoint(model, theirs).norm_eps == {"block": 1e-6, "reduction": 1e-6, "patch": 1e-6}
    with pytest.raises(srattn.SrattnError, match=r"these weights fit mvitv2_tiny with num_classes=3"):
        srattn.load_checkpoint(build_model("mvitv2_small"), theirs)
    with pytest.raises(srattn.SrattnError, match=r"is of mvitv2, the model is pvt_v2_b0.*fit mvitv2_tiny"):
        srattn.load_checkpoint(build_model("pvt_v2_b0"), theirs)


def test_written_in_the_timm_layout_without_a_warning(tmp_path) -> None:
    model = small()
    path = srattn.save_checkpoint(model, tmp_path / "weights.safetensors", layout="timm")
    again = build_model("mvitv2_tiny", **SMALL).eval()
    srattn.load_checkpoint(again, path)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(images), model(images))


@pytest.fixture(scope="module")
def timm_mvitv2() -> Any:
    """timm's module, where timm is installed and imports."""
    try:
        return importlib.import_module("timm.models.mvitv2")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs timm: {error}")


def resized(state: dict[str, Tensor], config: Any, size: tuple[int, int]) -> dict[str, Tensor]:
    """timm's weights for images of `size`: its tables stretched as the authors' code does while it runs."""
    state = dict(state)
    grid = (-(-size[0] // 4), -(-size[1] // 4))
    for i, depth in enumerate(config.depths):
        for j in range(depth):
            q_stride, kv_stride = config.stride_q[i][0] if j == 0 else 1, config.stride_kv[i][0]
            for axis, side in zip("hw", grid, strict=True):
                key = f"stages.{i}.blocks.{j}.attn.rel_pos_{axis}"
                length = 2 * max(-(-side // q_stride), -(-side // kv_stride)) - 1
                state[key] = F.interpolate(state[key].T[None], size=length, mode="linear")[0].T
            grid = (-(-grid[0] // q_stride), -(-grid[1] // q_stride))
    return state


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (45, 83)])
def test_features_and_logits_are_those_of_timm(
    timm_mvitv2: Any, options: dict[str, Any], size: tuple[int, int]
) -> None:
    numbers = {**SMALL, **options}
    config = timm_mvitv2.MultiScaleVitCfg(
        depths=numbers["depths"],
        embed_dim=numbers["embed_dims"],
        num_heads=numbers["num_heads"],
        expand_attn=numbers.get("expand_attn", True),
        qkv_bias=numbers.get("qkv_bias", True),
    )
    theirs = timm_mvitv2.MultiScaleVit(config, img_size=(64, 64), num_classes=10).eval()
    assert set(theirs.state_dict()) == set(convert_state_dict(small(**options).state_dict(), "timm"))
    state = convert_state_dict(small(**options).state_dict(), "timm")
    model = build_model("mvitv2_tiny", **numbers).eval()
    srattn.load_checkpoint(model, state)
    for name, table in resized(state, config, size).items():
        owner, _, last = name.rpartition(".")
        setattr(theirs.get_submodule(owner), last, torch.nn.Parameter(table))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        final, maps = theirs.forward_intermediates(images)
        ours_final, ours_maps = model.forward_intermediates(images)
        pairs = [(ours_final.flatten(2).transpose(1, 2), final), (model(images), theirs(images))]
    for ours, expected in [*zip(ours_maps, maps, strict=True), *pairs]:
        assert ((ours - expected).abs().max() / expected.abs().max()) < 1e-5
