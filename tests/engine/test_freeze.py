"""Freezing: by name, by pattern, with batch norms that keep their statistics, also in copies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from srattn.engine.freeze import freeze, unfreeze
from srattn.errors import SrattnError
from srattn.models import build_model
from srattn.tasks.dense import segformer

SMALL = {"num_classes": 3, "embed_dims": (8, 16, 16, 24), "num_heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1)}


def pvt() -> nn.Module:
    return build_model("pvt_v2_b0", **SMALL)


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_backbone_is_all_but_the_head() -> None:
    model = pvt()
    report = freeze(model, ["backbone"])
    assert trained(model) == {"head.weight", "head.bias"}
    assert report.trained_values == 24 * 3 + 3
    assert report.frozen_values + report.trained_values == sum(p.numel() for p in model.parameters())
    assert "75 of" in str(report)
    dense = segformer("mit_b0", 2, hidden=8, embed_dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    freeze(dense, ["backbone"])
    assert trained(dense) and all(name.startswith("head.") for name in trained(dense))


def test_prefixes_end_at_a_dot_and_patterns_are_globs() -> None:
    model = nn.ModuleDict({"stage1": nn.Linear(2, 2), "stage10": nn.Linear(2, 2)})
    assert freeze(model, ["stage1"]).frozen == ("stage1.weight", "stage1.bias")
    model = pvt()
    freeze(model, ["stages.0", "stages.*.norm"])
    rest = trained(model)
    assert not any(name.startswith("stages.0.") for name in rest)
    assert "stages.1.norm.weight" not in rest and "stages.1.blocks.0.norm1.weight" in rest
    unfreeze(model)
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_frozen_batch_norms_keep_their_statistics_in_copies_too() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    report = freeze(model, ["0", "1"])
    assert report.held == ("1",)
    for network in (model, copy.deepcopy(model)):
        before = [network[i].running_mean.clone() for i in (1, 3)]
        network.train()
        assert (network[1].training, network[3].training) == (False, True)
        network(torch.randn(4, 1, 3, 3) + 5)
        assert torch.equal(network[1].running_mean, before[0])
        assert not torch.equal(network[3].running_mean, before[1])
    unfreeze(model)
    assert model.train()[1].training


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("stages.9", r"nothing in the model is called 'stages.9'; did you mean 'stages.\d'.; stages has 0, 1, 2, 3"),
        ("stage.*", "nothing in the model is called 'stage..'.*the model has stages"),
        ("head_drop", "'head_drop' has no parameters"),
        ("*", "leaves no parameter to train"),
    ],
)
def test_unknown_pattern_is_refused_and_nothing_frozen(pattern: str, message: str) -> None:
    model = pvt()
    with pytest.raises(SrattnError, match=message):
        freeze(model, ["stages.0", pattern])
    assert len(trained(model)) == len(list(model.parameters()))
