"""CMT's own: parameters, any image size, queries and keys narrower than values, and what it reads and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import srattn
from srattn import SrattnError
from srattn.convert import convert_state_dict, save_checkpoint
from srattn.convert.layouts.transforms import Context
from srattn.convert.variants import infer
from srattn.layers.stem import ResidualConvolutions, StemPatchEmbed
from srattn.models import build_model
from srattn.models.registry import count_parameters
from tests.models.small import small_numbers

# Of the authors' class, built at the image size of each variant (9.5, 15.2, 25.1 and 45.7 million in their paper, whose
# third figure their code does not give).
PARAMETERS = {"cmt_ti": 9_492_426, "cmt_xs": 15_247_208, "cmt_s": 26_256_160, "cmt_b": 45_715_076}


def small(**options: Any) -> Any:
    model = build_model("cmt_ti", **{**small_numbers("cmt_ti"), "img_size": 64, **options}).eval()
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    assert count_parameters(build_model(name, device="meta")) == PARAMETERS[name]


def test_any_size_where_the_published_code_asserts_one() -> None:
    """Each stage adds its own bias, resized by its own grids of queries and keys, to the logits of each block."""
    model = small()
    for size in [(64, 64), (96, 160), (50, 33)]:
        x = torch.randn(2, 3, *size)
        for stage in model.stages:
            tokens = stage.patch_embed(x)
            block = stage.blocks[-1]
            normed = block.norm1(block.local(tokens))
            attn = block.attn
            grid, keys = tokens.shape[1:3], attn.reduced_size(*tokens.shape[1:3])
            bias = stage.position_bias(grid, keys)
            assert bias.shape == (attn.num_heads, grid.numel(), keys[0] * keys[1])
            q, k = attn.q(normed), attn.k(attn.reduction(normed))
            q, k = (t.flatten(1, 2).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k))
            expected = (q @ k.transpose(2, 3) * attn.scale + bias).softmax(-1)
            assert torch.allclose(attn.attention_map(normed), expected, atol=1e-6)
            x = stage(x)
    assert model(torch.randn(1, 3, 224, 96)).shape == (1, 5)


def test_the_blocks_of_a_stage_share_one_bias() -> None:
    model = small()
    assert [n for n in model.state_dict() if "position_bias" in n] == [
        f"stages.{i}.position_bias.weight" for i in range(4)
    ]
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    with torch.no_grad():
        model.stages[2].position_bias.weight.normal_()
    assert not torch.equal(before, model(x))


def test_queries_and_keys_may_be_narrower_than_values() -> None:
    model = small(qk_ratio=2)
    attn = model.stages[1].blocks[0].attn
    assert attn.q.weight.shape == attn.k.weight.shape == (8, 16) and attn.v.weight.shape == (16, 16)
    assert attn.scale == (16 // 2) ** -0.5  # of the values' heads, as published
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    with pytest.raises(SrattnError, match="qk_ratio and num_heads must divide dim, got dim=8, qk_ratio=3"):
        small(qk_ratio=3)


def test_what_the_head_reads() -> None:
    model, x = small(), torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape == (2, 32, 2, 2) and model.num_features == 32 and model.head_hidden_size == 48
    fc = model.fc
    hidden = fc.norm(fc.proj(features.permute(0, 2, 3, 1)))
    assert torch.allclose(model.forward_head(features, pre_logits=True), F.silu(hidden).mean((1, 2)))
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.head.in_features == 48  # the published code has no such attribute


def test_training_with_checkpointing_counts_every_batch_once() -> None:
    models = [small().train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].set_grad_checkpointing()
    x = torch.randn(4, 3, 64, 64)
    for model in models:
        model(x).square().sum().backward()
    a, b = (dict(model.named_buffers()) for model in models)
    assert a and all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)


@pytest.mark.parametrize("size", [64, (64, 96)])
def test_official_layout_round_trips(size: int | tuple[int, int], tmp_path: Any) -> None:
    model, x = small(img_size=size), torch.randn(1, 3, 64, 96)
    path = srattn.save_checkpoint(with_edge(model, "floor"), tmp_path / "cmt.pth", layout="official")
    again = small(img_size=size)
    report = srattn.load_checkpoint(again, path)
    assert (report.layout, report.family, report.resized) == ("official", "cmt", {})
    assert torch.equal(again(x), model(x))


def test_biases_of_another_image_size_are_resized_on_load() -> None:
    source, target = small(img_size=64), small(img_size=(96, 128))
    report = srattn.load_checkpoint(target, convert_state_dict(source.state_dict(), "official"))
    assert report.resized["stages.0.position_bias.weight"] == "16x16 -> 24x32"
    own = source.stages[0].position_bias
    assert torch.allclose(target.stages[0].position_bias((24, 32), (3, 4)), own((24, 32), (3, 4)))


def test_channels_are_adapted_where_the_stem_begins() -> None:
    target = small(in_chans=1)
    state = small().state_dict()
    report = srattn.load_checkpoint(target, state)
    key = "stages.0.patch_embed.stem.0.conv.weight"
    assert list(report.adapted) == [key]
    assert torch.allclose(target.state_dict()[key], state[key].sum(1, keepdim=True))


def test_grids_that_shapes_do_not_tell_are_refused() -> None:
    state = convert_state_dict(small(img_size=(64, 96)).state_dict(), "official")
    with pytest.raises(SrattnError, match=r"relative_pos_a.*384 queries and 6 keys are no square grids"):
        convert_state_dict(state, "srattn")
    context = Context(grids=((16, 24), (8, 12), (4, 6), (2, 3)), ratios=((8, 8), (4, 4), (2, 2), (1, 1)))
    back = convert_state_dict(state, "srattn", context=context)
    assert back["stages.0.position_bias.weight"].shape == (1, 16, 24, 2, 3)


@pytest.mark.parametrize("name", PARAMETERS)
def test_weights_tell_which_model_they_fit(name: str) -> None:
    model = build_model(name, device="meta", num_classes=7)
    found, inferred = infer(model.state_dict(), "cmt")
    assert found == name
    assert inferred.config == {key: model.config[key] for key in inferred.config}


def with_edge(model: Any, edge: str) -> Any:
    model.set_edge(edge)
    return model


def test_pairs_of_convolutions_ahead_of_attention() -> None:
    """Each adds what it makes to what it is given; without any, the model and its weights' names are the published."""
    options: dict[str, Any] = {"stem_depth": 2, "conv_depth": 1}
    model, published = small(**options), small()
    names = {name for name in model.state_dict() if not name.startswith("stages.0.patch_embed.")}
    assert names == {name for name in published.state_dict() if not name.startswith("stages.0.patch_embed.")}
    assert model.config | options == model.config
    embed, x = model.stages[0].patch_embed, torch.randn(2, 3, 64, 48)
    pairs = [*embed.stem[3:], *embed.convs]
    assert [len(embed.stem), len(embed.convs)] == [5, 1]

    def pair(module: Any, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in (module.first, module.second):
            assert layer.conv.bias is None
            y = layer.norm(F.gelu(F.conv2d(y, layer.conv.weight, padding=1)))
        return x + y

    expected = pair(pairs[1], pair(pairs[0], embed.stem[:3](x)))
    tokens = embed.norm(embed.proj(expected).permute(0, 2, 3, 1))
    expected = pair(pairs[2], tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(embed(x), expected)
    assert model(x).shape == (2, 5)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in embed.parameters())


def test_stochastic_depth_grows_over_pairs_and_blocks() -> None:
    model = small(stem_depth=2, conv_depth=1, drop_path_rate=0.5)
    embed = model.stages[0].patch_embed
    pairs = [*embed.stem[3:], *embed.convs]
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = [unit.drop_path.p for unit in [*pairs, *blocks]]
    assert rates == pytest.approx([0.5 * i / (len(rates) - 1) for i in range(len(rates))])
    assert small(drop_path_rate=0.5).stages[0].blocks[0].drop_path.p == 0.0
    x = torch.randn(2, 4, 6, 6)
    pair = ResidualConvolutions(4, drop_path=1.0)
    assert torch.equal(pair(x), x) and not torch.equal(pair.eval()(x), x)
    with pytest.raises(SrattnError, match="a rate for each of 3 pairs, got 2"):
        StemPatchEmbed(3, 4, 8, 2, stem_depth=2, conv_depth=1, drop_paths=[0.0, 0.1])


def test_pairs_of_convolutions_are_kept_in_our_layout_alone(tmp_path: Path) -> None:
    model = small(stem_depth=2, conv_depth=1)
    path = save_checkpoint(model, tmp_path / "own.safetensors")
    again, x = small(stem_depth=2, conv_depth=1), torch.randn(1, 3, 64, 64)
    srattn.load_checkpoint(again, path)
    assert torch.equal(again(x), model(x))
    found = infer(model.state_dict(), "cmt")[1].config
    assert (found["stem_depth"], found["conv_depth"]) == (2, 1)
    with pytest.raises(SrattnError, match="official layout of cmt has no rule for"):
        save_checkpoint(model, tmp_path / "theirs.safetensors", "official")
    assert not (tmp_path / "theirs.safetensors").exists()


def test_a_negative_number_of_convolutions_is_refused() -> None:
    with pytest.raises(SrattnError, match="conv_depth is a number of pairs"):
        small(conv_depth=-1)
