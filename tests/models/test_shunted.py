"""The Shunted Transformer: its sizes, and published defects that this one does not share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import srattn
from srattn import SrattnError
from srattn.convert import convert_state_dict
from srattn.explain.attention import attention_maps, received_attention
from srattn.layers.multi_ratio import LocallyEnhancedAttention, MultiRatioAttention
from srattn.models import build_model
from srattn.models.registry import count_parameters
from tests.models.small import small_numbers


def small(name: str = "shunted_small", **options: Any) -> Any:
    return build_model(name, **{**small_numbers(name), **options}).eval()


@pytest.mark.parametrize(
    ("name", "parameters", "millions"),
    [("tiny", 11_553_576, 11.5), ("small", 22_401_256, 22.4), ("base", 39_614_376, 39.6)],
)
def test_parameter_counts_are_the_published_ones(name: str, parameters: int, millions: float) -> None:
    assert count_parameters(build_model(f"shunted_{name}", device="meta")) == parameters
    assert abs(parameters / 1e6 - millions) < 0.06


def test_two_ratios_a_layer_but_for_the_last_stage() -> None:
    attentions = [attn for _, attn in build_model("shunted_tiny", device="meta").attentions()]
    assert [type(a) for a in attentions] == [MultiRatioAttention] * 7 + [LocallyEnhancedAttention]
    ratios = [a.ratios for a in attentions[:-1]]
    assert ratios == [[(8, 8), (4, 4)]] + [[(4, 4), (2, 2)]] * 2 + [[(2, 2), (1, 1)]] * 4


def test_the_plan_has_a_row_for_each_ratio() -> None:
    rows = list(srattn.plan(build_model("shunted_tiny", device="meta"), (224, 192)))
    assert [(row.stage, row.blocks, row.keys, row.heads) for row in rows] == [
        ("1", 1, (7, 6), 1),
        ("1", 1, (14, 12), 1),
        ("2", 2, (7, 6), 2),
        ("2", 2, (14, 12), 2),
        ("3", 4, (7, 6), 4),
        ("3", 4, (14, 12), 4),
        ("4", 1, (7, 6), 16),
    ]
    assert all(row.macs > 0 for row in rows)


def test_maps_smaller_than_the_ratio_have_keys() -> None:
    """Published code fails where a stage's grid is below R; here the first has 8 x 10 tokens and a ratio of 16."""
    assert small(sr_ratios=(16, 8, 4, 1))(torch.randn(1, 3, 32, 40)).isfinite().all()


@pytest.mark.parametrize("place", [(38, 0), (0, 46), (38, 46)])
def test_no_edge_is_lost(place: tuple[int, int]) -> None:
    """39 x 47 pixels: under "floor", as published, the first stage's keys do not see the last row and columns."""
    torch.manual_seed(1)
    reached = {}
    for edge in ("pad", "floor"):
        model = small(edge=edge)
        image = torch.randn(1, 3, 39, 47, requires_grad=True)
        keys, _, _ = model.stages[0].blocks[0].attn.groups[0](model.stages[0].patch_embed(image), None, None)
        (keys * torch.randn_like(keys)).sum().backward()
        assert image.grad is not None
        reached[edge] = bool(image.grad[0, :, place[0], place[1]].abs().sum() > 0)
    assert reached == {"pad": True, "floor": False}


def test_the_classifier_can_be_reset() -> None:
    """Published code reads a width there that the model does not have."""
    model = small()
    model.reset_classifier(3)
    assert isinstance(model.head, nn.Linear) and model(torch.randn(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sr_ratios": (8, 4, 3, 1)}, r"sr_ratios are 1 or even, got 3"),
        ({"num_heads": (1, 2, 2, 4)}, r"multiple of the 2 ratios, got num_heads=1"),
        ({"stem_stride": 8}, r"stride of 1, 2 or 4"),
        ({"num_conv": -1}, r"num_conv of 0 or more"),
    ],
)
def test_what_cannot_be_built_says_why(options: dict[str, object], message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        small(**options)


def test_ratios_of_a_pair_and_layers_without_reduction() -> None:
    model = small(sr_ratios=((8, 4), (2, 1), 1, 1))
    assert model.stages[0].blocks[0].attn.ratios == [(8, 4), (4, 2)]
    assert model.stages[1].blocks[0].attn.ratios == [(2, 1), (1, 1)]
    assert isinstance(model.stages[2].blocks[0].attn, LocallyEnhancedAttention)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_attention_is_explained_on_the_finest_grid() -> None:
    model, images = small(), torch.randn(2, 3, 64, 48)
    maps = attention_maps(model, images, "all")
    assert [m.key_grid for m in maps] == [(4, 3)] * 4 + [(2, 2)]  # 16 x 12 tokens over 4, 8 x 6 over 2, 4 x 3 over 1
    for each in maps:
        assert torch.allclose(each.probabilities.sum(-1), torch.ones(()))
        assert torch.allclose(received_attention(each, (64, 48)).sum((1, 2)), torch.ones(2), atol=1e-4)


def test_weights_of_another_size_are_refused_by_name() -> None:
    state = convert_state_dict(build_model("shunted_tiny").state_dict(), "official")
    assert "block1.0.attn.sr2.weight" in state and "patch_embed1.conv.3.weight" in state
    with pytest.raises(SrattnError, match=r"these weights fit shunted_tiny"):
        srattn.load_checkpoint(build_model("shunted_small"), state)
    other = build_model("shunted_tiny", in_chans=1)
    report = srattn.load_checkpoint(other, state)
    assert report.adapted == {"stages.0.patch_embed.conv.0.weight": "summed over 3 channels"}
