"""The pose heads against their written forms, their configuration, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srattn import SrattnError
from srattn.heads import HeatmapHead, SimCCHead
from tests.heads.definitions import CHANNELS, ODD, assert_same_with_gradients, block, plain, random_maps, shuffled, up


def definition(head: HeatmapHead, features: list[Tensor]) -> Tensor:
    x = features[3]
    for n in (2, 1, 0):
        if head.config["up"] == "bilinear":
            x = block(head, f"steps.{n}.block", up(x, features[n]))
        else:
            step: Any = head.steps[n]
            x = F.conv_transpose2d(x, step.conv.weight, stride=2, padding=1)
            x = F.relu(step.norm(x[:, :, : features[n].shape[2], : features[n].shape[3]]))
        if head.config["fuse"]:
            x = x + plain(head, f"laterals.{n}", features[n])
    return plain(head, "classifier", x)


@pytest.mark.parametrize("up", ["deconv", "bilinear"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_heatmaps_are_their_definition(up: str, training: bool, norm: str) -> None:
    head = HeatmapHead(CHANNELS, 5, width=16, up=up, norm=norm)
    assert head([x.float() for x in random_maps()]).shape == (2, 5, *ODD[0])
    assert_same_with_gradients(shuffled(head).train(training), definition, random_maps())


def test_simple_baselines_are_the_steps_alone() -> None:
    head = shuffled(HeatmapHead(CHANNELS, 5, width=16, fuse=False)).eval()
    assert not [name for name in head.state_dict() if name.startswith("laterals")]
    features = random_maps()
    logits = head(features)
    assert torch.allclose(logits, definition(head, features), atol=1e-12)
    other = [torch.zeros_like(x) for x in features[:3]] + features[3:]
    assert torch.equal(head(other), logits)


def test_one_map_and_maps_of_one_pixel() -> None:
    assert HeatmapHead([6], 3)([torch.randn(1, 6, 4, 5)]).shape == (1, 3, 4, 5)
    head = HeatmapHead(CHANNELS, 3, width=4)
    assert head([torch.randn(2, c, 1, 1) for c in CHANNELS]).shape == (2, 3, 1, 1)


def test_simcc_is_its_definition() -> None:
    head = SimCCHead(CHANNELS, 5, size=(64, 96), grid=(2, 3), split=2.0).double()
    features = [x.requires_grad_() for x in random_maps()]
    columns, rows = head(features)
    assert columns.shape == (2, 5, 192) and rows.shape == (2, 5, 128)
    own = dict(head.named_parameters())
    read = torch.einsum("bchw,kc->bkhw", features[3], own["joints.weight"][:, :, 0, 0])
    read = (read + own["joints.bias"][:, None, None]).reshape(2, 5, 6)
    assert torch.allclose(columns, read @ own["columns.weight"].T + own["columns.bias"], atol=1e-12)
    assert torch.allclose(rows, read @ own["rows.weight"].T + own["rows.bias"], atol=1e-12)
    (columns.square().sum() + rows.square().sum()).backward()
    assert [name for name, p in own.items() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (HeatmapHead, {"width": 8, "up": "bilinear", "fuse": False, "norm": "group"}),
        (SimCCHead, {"size": (64, 96), "grid": (2, 3), "split": 1.5}),
    ],
)
def test_a_config_survives_json_and_rebuilds_the_head(cls: type[Any], options: dict[str, Any]) -> None:
    head = cls(CHANNELS, 4, **options)
    config = json.loads(json.dumps(head.config))
    assert config.pop("kind") == cls.kind and config.keys() == {"num_joints", *options}
    again = cls(CHANNELS, **config, device="meta")
    assert again.config == head.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in head.state_dict().items()}


def test_what_is_refused() -> None:
    with pytest.raises(SrattnError, match="up is one of deconv, bilinear, got 'nearest'"):
        HeatmapHead(CHANNELS, 4, up="nearest")
    with pytest.raises(SrattnError, match=r"a heatmap head .* num_joints=0"):
        HeatmapHead(CHANNELS, 0)
    with pytest.raises(SrattnError, match=r"64 times it a whole number, got 0\.3"):
        SimCCHead(CHANNELS, 4, size=(64, 100), grid=(2, 3), split=0.3)
    head = SimCCHead(CHANNELS, 4, size=(64, 96), grid=(2, 3))
    with pytest.raises(SrattnError, match="coarsest map of 2x3, got 1x1: give images of 64x96"):
        head([torch.randn(1, c, 1, 1) for c in CHANNELS])
    with pytest.raises(SrattnError, match="takes 4 maps"):
        head([torch.randn(1, 4, 1, 1)])
