"""UPerNet against its written form, with the concatenation and torch's own adaptive pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srattn import SrattnError
from srattn.heads import UPerNetHead
from tests.heads.definitions import CHANNELS, assert_same_with_gradients, block, plain, random_maps, shuffled, up


def definition(head: UPerNetHead, features: list[Tensor]) -> Tensor:
    last = features[3]
    pooled = [
        up(block(head, f"context.projections.{i}", F.adaptive_avg_pool2d(last, scale)), last)
        for i, scale in enumerate((1, 2, 3, 6))
    ]
    inner = [block(head, f"laterals.{n}", features[n]) for n in range(3)]
    inner.append(block(head, "context.fuse", torch.cat([last, *pooled], 1)))
    for n in (2, 1, 0):
        inner[n] = inner[n] + up(inner[n + 1], inner[n])
    outputs = [*(block(head, f"outputs.{n}", inner[n]) for n in range(3)), inner[3]]
    fused = block(head, "fuse", torch.cat([up(x, features[0]) for x in outputs], 1))
    return plain(head, "classifier", F.dropout2d(fused, head.classifier.drop.p, head.training))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("training", [False, True])
def test_the_head_is_its_definition(norm: str, training: bool) -> None:
    head = UPerNetHead(CHANNELS, 5, width=16, norm=norm, drop_rate=0.4)
    assert_same_with_gradients(shuffled(head).train(training), definition, random_maps())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_an_auxiliary_head_answers_in_training_alone(norm: str) -> None:
    numbers = {"width": 16, "norm": norm, "drop_rate": 0.0}
    head = shuffled(UPerNetHead(CHANNELS, 5, auxiliary=0.4, auxiliary_width=8, **numbers))
    assert head.config["auxiliary"] == 0.4 and "auxiliary" not in UPerNetHead(CHANNELS, 5, **numbers).config

    def both(head: UPerNetHead, features: list[Tensor]) -> Tensor:
        beside = plain(head, "auxiliary.classifier", block(head, "auxiliary.conv", features[2]))
        return torch.cat([definition(head, features), up(beside, features[0])], 1)

    assert_same_with_gradients(head.train(), both, random_maps())
    assert head.eval()(random_maps()).shape[1] == 5
    for wrong in ({"auxiliary": -1.0}, {"auxiliary": float("inf")}):
        with pytest.raises(SrattnError, match="auxiliary is a weight from 0 up"):
            UPerNetHead(CHANNELS, 5, **wrong)
    with pytest.raises(SrattnError, match=r"got 0\.4 for 1 map"):
        UPerNetHead(CHANNELS[:1], 5, auxiliary=0.4)


def test_maps_above_and_below_the_scales() -> None:
    head = shuffled(UPerNetHead(CHANNELS, 5, width=8)).eval()
    for grids in ([(40, 33), (20, 17), (10, 9), (7, 8)], [(2, 3), (1, 2), (1, 1), (1, 1)]):
        assert_same_with_gradients(head, definition, random_maps(grids))


def test_scales_are_an_option() -> None:
    head = UPerNetHead(CHANNELS, 5, width=8, scales=(1, 4))
    assert head.config["scales"] == [1, 4] and len(head.context.projections) == 2
    with pytest.raises(SrattnError, match=r"scales are numbers of parts of at least 1, got \[0\]"):
        UPerNetHead(CHANNELS, 5, scales=(0,))


def test_a_single_image_trains_by_the_running_statistics_of_its_mean() -> None:
    features = [x[:1].float() for x in random_maps()]
    head = shuffled(UPerNetHead(CHANNELS, 5, width=8, drop_rate=0.0)).float().train()
    state = {name: value.clone() for name, value in head.state_dict().items()}
    logits = head(features)
    logits.square().mean().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in head.parameters())
    changed = {name for name, value in head.state_dict().items() if not torch.equal(value, state[name])}
    assert "context.fuse.norm.running_mean" in changed
    assert not any(name.startswith("context.projections.0.") for name in changed)  # of 1 x 1; 2 x 2 has four values
    assert "context.projections.1.norm.running_mean" in changed
    assert UPerNetHead(CHANNELS, 5, width=8, norm="group")(features).shape == (1, 5, 13, 18)
    assert UPerNetHead(CHANNELS, 5, width=8).eval()(features).shape == (1, 5, 13, 18)
