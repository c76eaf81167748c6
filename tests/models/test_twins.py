"""Twins' own: which attention stands where, positions after the first block, and published defects not shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import srattn
from srattn import SpatialReductionAttention, SrattnError
from srattn.explain.attention import attention_maps
from srattn.layers.window import LocallyGroupedAttention
from srattn.models import build_model, list_models
from srattn.models.registry import count_parameters
from tests.models.small import SMALL

# As published, to the last one.
PARAMETERS = {
    "twins_pcpvt_small": 24_106_216,
    "twins_pcpvt_base": 43_828_456,
    "twins_pcpvt_large": 60_989_672,
    "twins_svt_small": 24_060_776,
    "twins_svt_base": 56_070_952,
    "twins_svt_large": 99_271_400,
}
both = pytest.mark.parametrize("name", ["twins_pcpvt_small", "twins_svt_small"])


def small(name: str = "twins_svt_small", **options: Any) -> Any:
    return build_model(name, **{**SMALL, "depths": (2, 1, 3, 1), "img_size": 64, **options}).eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert count_parameters(build_model(name, device="meta")) == PARAMETERS[name]


def test_every_published_size_is_registered() -> None:
    assert list_models("twins*") == list(PARAMETERS)


def test_local_and_global_attention_take_turns() -> None:
    kinds = [[type(block.attn) for block in stage.blocks] for stage in small().stages]
    local, reduced = LocallyGroupedAttention, SpatialReductionAttention
    assert kinds == [[local, reduced], [local], [local, reduced, local], [local]]
    assert {type(attn) for _, attn in small("twins_pcpvt_small").attentions()} == {reduced}
    names = [name for name, _ in small().attentions()]
    assert names == [f"stages.{i}.blocks.{j}.attn" for i, d in enumerate((2, 1, 3, 1)) for j in range(d)]


@both
def test_positions_come_after_the_first_block(name: str) -> None:
    model, images = small(name), torch.randn(1, 3, 64, 64)
    stage = model.stages[0]
    tokens = stage.blocks[0](stage.patch_embed(images))
    expected = stage.blocks[1](stage.position(tokens))
    assert torch.equal(stage(images).permute(0, 2, 3, 1), expected)
    with torch.no_grad():
        stage.position.dwconv.weight.zero_()
        stage.position.dwconv.bias.zero_()
    assert torch.equal(stage(images).permute(0, 2, 3, 1), stage.blocks[1](tokens))


@both
def test_weight_decay_leaves_the_positions_alone(name: str) -> None:
    parts = {f"stages.{i}.position.dwconv.{p}" for i in range(4) for p in ("weight", "bias")}
    assert small(name).no_weight_decay() == parts


def test_masking_the_padding_changes_what_windows_do_not_divide() -> None:
    open_, masked = small(), small(mask_padding=True)
    masked.load_state_dict(open_.state_dict())
    whole = torch.randn(1, 3, 28, 56).repeat_interleave(8, 2).repeat_interleave(8, 3)  # 224x448: windows of 7 divide
    odd = torch.randn(1, 3, 96, 64)
    assert torch.equal(open_(whole), masked(whole))
    assert not torch.allclose(open_(odd), masked(odd), atol=1e-6)
    assert masked.config["mask_padding"] is True and srattn.create_model(**masked.config)(odd).shape == (1, 5)


@both
@pytest.mark.parametrize("size", [(64, 64), (33, 90), (130, 47)])
def test_any_size_is_taken(name: str, size: tuple[int, int]) -> None:
    """The published code asserts multiples of the patches, timm calls the input size fixed."""
    assert small(name)(torch.randn(1, 3, *size)).isfinite().all()


@both
def test_gradient_checkpointing_is_not_refused(name: str) -> None:
    model, images = small(name).train(), torch.randn(2, 3, 64, 64)
    model(images).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing(True)
    runs: list[int] = []
    model.stages[0].blocks[0].register_forward_pre_hook(lambda *_: runs.append(0))
    model.stages[0].position.register_forward_pre_hook(lambda *_: runs.append(1))
    model(images).sum().backward()
    assert sorted(runs) == [0, 0, 1]
    assert all(torch.allclose(p.grad, expected[n], atol=1e-5) for n, p in model.named_parameters())


@both
def test_the_classifier_can_be_reset(name: str) -> None:
    """The published method reads an attribute that does not exist."""
    model = small(name)
    model.reset_classifier(11)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 11)


@both
def test_a_norm_after_every_stage(name: str) -> None:
    model, images = small(name, norm_after_stage=True), torch.randn(1, 3, 64, 64)
    maps = model.forward_intermediates(images, intermediates_only=True)
    for feature in maps:
        assert torch.allclose(feature.mean(1), torch.zeros(()), atol=1e-5)
    assert count_parameters(model) - count_parameters(small(name)) == 2 * sum(SMALL["embed_dims"])  # type: ignore[arg-type]


def test_the_plan_has_a_row_for_windows_and_one_for_the_whole_map() -> None:
    rows = list(srattn.plan(build_model("twins_svt_small", device="meta"), (200, 224)))
    assert [(r.stage, r.blocks, r.tokens, r.windows, r.keys) for r in rows] == [
        ("1", 1, (7, 7), 64, (7, 7)),
        ("1", 1, (50, 56), 1, (7, 7)),
        ("2", 1, (7, 7), 16, (7, 7)),
        ("2", 1, (25, 28), 1, (7, 7)),
        ("3", 5, (7, 7), 4, (7, 7)),
        ("3", 5, (13, 14), 1, (7, 7)),
        ("4", 4, (7, 7), 1, (7, 7)),  # one window is the whole map
    ]
    # q, k, v and the output for every token of every window, and the logits and their use within windows.
    assert rows[0].macs == 64 * 49 * (4 * 64 * 64 + 2 * 49 * 64)
    assert "7x7 x 64" in str(srattn.plan(build_model("twins_svt_small", device="meta"), (200, 224)))


def test_attention_of_windows_can_be_explained() -> None:
    maps = attention_maps(small(), torch.randn(1, 3, 64, 64), blocks="first")
    assert [m.probabilities.shape for m in maps] == [
        (1, h, s * s, s * s) for h, s in zip((1, 2, 2, 4), (16, 8, 4, 2), strict=True)
    ]
    assert all(m.key_grid == m.grid and not m.pooled for m in maps)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("twins_svt_small", {"window_sizes": (7, 7, 7)}, "window_sizes has 3"),
        ("twins_svt_small", {"window_sizes": (7, 7, 0, 7)}, "size is a positive int"),
        ("twins_pcpvt_small", {"mask_padding": True}, "give window_sizes as well"),
        ("twins_svt_small", {"window_size": 7}, "did you mean 'window_sizes'"),
    ],
)
def test_what_cannot_be_built_says_why(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        build_model(name, device="meta", **options)
