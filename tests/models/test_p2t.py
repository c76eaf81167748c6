"""P2T's own: parameters, dropout that is applied, a pyramid that the blocks of a stage share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import srattn
from srattn import SrattnError
from srattn.convert import convert_state_dict
from srattn.convert.variants import infer
from srattn.explain.attention import attention_maps, query_overlay, received_attention
from srattn.models import build_model
from srattn.models.registry import count_parameters
from tests.models.small import small_numbers

# Of the authors' class (11.6, 24.1, 36.2 and 54.5 million in their table, which has no medium).
PARAMETERS = {
    "p2t_tiny": 11_590_840,
    "p2t_small": 24_079_848,
    "p2t_base": 36_066_408,
    "p2t_medium": 40_861_480,
    "p2t_large": 54_477_096,
}


def small(**options: Any) -> Any:
    return build_model("p2t_tiny", **{**small_numbers("p2t_tiny"), **options}).eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    assert count_parameters(build_model(name, device="meta")) == PARAMETERS[name]


@pytest.mark.parametrize("rate", ["attn_drop_rate", "proj_drop_rate"])
def test_dropout_is_applied_where_the_published_code_forgets_it(rate: str) -> None:
    torch.manual_seed(1)
    model, x = small(**{rate: 0.5}).train(), torch.randn(2, 3, 64, 64)
    attn = model.stages[0].blocks[0].attn
    tokens = torch.randn(2, 16, 16, 8)
    assert not torch.equal(attn(tokens), attn(tokens))
    mlp = model.stages[0].blocks[0].mlp
    assert torch.equal(mlp(tokens), mlp(tokens)) == (rate == "attn_drop_rate")
    model.eval()
    assert torch.equal(model(x), model(x))


def test_a_new_classifier() -> None:
    """The published code names an attribute that it has not."""
    model = small()
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_the_blocks_of_a_stage_share_one_pyramid() -> None:
    model, x = small(depths=(2, 1, 1, 1)), torch.randn(1, 3, 64, 64)
    keys = [key for key in model.state_dict() if "pyramid" in key and key.endswith("weight")]
    assert keys == [f"stages.{i}.pyramid.{n}.dwconv.weight" for i in range(4) for n in range(4)]
    reductions = [block.attn.reduction for block in model.stages[0].blocks]
    tokens = torch.randn(1, 16, 16, 8)
    before = [reduction(tokens) for reduction in reductions]
    with torch.no_grad():
        model.stages[0].pyramid[3].dwconv.bias.add_(1 + torch.arange(8.0))
    assert all(not torch.equal(reduction(tokens), b) for reduction, b in zip(reductions, before, strict=True))
    assert model(x).shape == (1, 5)


def test_maps_smaller_than_a_ratio_keep_a_cell_a_level() -> None:
    """round(8 / 24) is 0, and the published code then pools to nothing."""
    model = small()
    assert model.stages[0].blocks[0].attn.reduction.grids(8, 8) == [(1, 1)] * 4
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_pyramids_of_other_heights() -> None:
    model = small(pool_ratios=((8, 16), (4,), (2, 3, 4), (1, 2)))
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 5)
    assert [len(stage.pyramid) for stage in model.stages] == [2, 1, 3, 2]
    with pytest.raises(SrattnError, match="pool_ratios has 3"):
        small(pool_ratios=((8,), (4,), (2,)))


def test_the_plan_counts_the_keys_of_all_levels() -> None:
    rows = list(srattn.plan(small(), 224))
    assert [(row.tokens, row.keys) for row in rows] == [
        ((56, 56), (1, 25 + 16 + 9 + 4)),
        ((28, 28), (1, 25 + 16 + 9 + 4)),
        ((14, 14), (1, 25 + 16 + 9 + 4)),
        ((7, 7), (1, 49 + 16 + 4 + 4)),
    ]


def test_official_layout_round_trips_in_silence(tmp_path: Any) -> None:
    """Pooling reaches every token, so no edge policy is warned of."""
    model, x = small(), torch.randn(1, 3, 50, 70)
    path = srattn.save_checkpoint(model, tmp_path / "p2t.pth", layout="official")
    again = small()
    report = srattn.load_checkpoint(again, path)
    assert (report.layout, report.family) == ("official", "p2t")
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("name", PARAMETERS)
def test_weights_tell_which_model_they_fit(name: str) -> None:
    model = build_model(name, device="meta", in_chans=4)
    found, inferred = infer(model.state_dict(), "p2t")
    assert found == name
    assert inferred.config == {key: model.config[key] for key in inferred.config}


def test_weights_of_another_model_are_told() -> None:
    state = convert_state_dict(build_model("p2t_small", num_classes=3).state_dict(), "official")
    with pytest.raises(SrattnError, match="these weights fit p2t_small with num_classes=3"):
        srattn.load_checkpoint(small(), state)


def test_attention_over_the_pyramid_is_drawn_over_the_image() -> None:
    """Each key's weight falls on the pixels that it was averaged from: every row of the map sums to one."""
    model, images = small(), torch.randn(2, 3, 64, 96)
    for attention in attention_maps(model, images):
        assert attention.probabilities.shape[-1] == attention.key_grid[1]
        overlay = query_overlay(attention, (10, 80), (64, 96))
        assert overlay.shape == (2, 64, 96) and torch.allclose(overlay.sum((1, 2)), torch.ones(2), atol=1e-5)
        assert torch.allclose(received_attention(attention, (64, 96)).sum((1, 2)), torch.ones(2), atol=1e-5)
