"""What every head for segmentation does, by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from srattn import SrattnError
from srattn.heads import head_options, list_heads, make_head

SMALL: dict[str, dict[str, Any]] = {
    "segformer": {"hidden": 8},
    "semantic_fpn": {"width": 8, "hidden": 8},
    "upernet": {"width": 8},
    "unet": {"widths": (8, 8, 8)},
}
CHANNELS = [4, 6, 8, 10]
kinds = pytest.mark.parametrize("kind", list(SMALL))


def maps(batch: int, *grids: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randn(batch, c, *grid) for c, grid in zip(CHANNELS, grids, strict=True)]


def test_the_names() -> None:
    assert list_heads() == list(SMALL)
    assert head_options("unet") == {"widths": None, "norm": "batch", "drop_rate": 0.0}


@kinds
@pytest.mark.parametrize(
    "grids",
    [
        [(16, 24), (8, 12), (4, 6), (2, 3)],
        [(13, 19), (7, 10), (4, 5), (2, 3)],
        [(13, 19), (6, 9), (3, 4), (1, 2)],
        [(1, 1), (1, 1), (1, 1), (1, 1)],
    ],
)
def test_any_grids(kind: str, grids: list[tuple[int, int]]) -> None:
    head = make_head(kind, CHANNELS, 3, **SMALL[kind])
    features = maps(2, *grids)
    assert head(features).shape == (2, 3, *grids[0])
    one = head.eval()(features)
    assert torch.isfinite(one).all()
    channels_last = [x.contiguous(memory_format=torch.channels_last) for x in features]
    assert torch.allclose(head(channels_last), one, atol=1e-5)


@kinds
def test_any_number_of_maps(kind: str) -> None:
    for count in (1, 2, 3):
        options = {**SMALL[kind], **({"widths": (count - 1) * [8]} if kind == "unet" else {})}
        head = make_head(kind, CHANNELS[:count], 3, **options).eval()
        assert head(maps(1, (9, 7), (5, 4), (3, 2), (2, 1))[:count]).shape == (1, 3, 9, 7)


@kinds
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    head = make_head(kind, CHANNELS, 3, **SMALL[kind]).eval()
    head(maps(2, (9, 7), (5, 4), (3, 2), (2, 1))).square().sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@kinds
def test_a_config_survives_json_and_rebuilds_the_head(kind: str) -> None:
    head: Any = make_head(kind, CHANNELS, 3, **SMALL[kind])
    config = json.loads(json.dumps(head.config))
    again: Any = make_head(config.pop("kind"), CHANNELS, **config, device="meta", dtype=torch.bfloat16)
    without = {"auxiliary", "auxiliary_width"} if kind == "upernet" else set()  # told only where there is one
    assert again.config == head.config
    assert {"kind", "num_classes", *head_options(kind)} - without == set(head.config)
    shapes = {k: v.shape for k, v in head.state_dict().items()}
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes
    assert {(p.device.type, p.dtype) for p in again.parameters()} == {("meta", torch.bfloat16)}


@kinds
def test_fresh_weights(kind: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(make_head(kind, CHANNELS, 200, **SMALL[kind]).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    weight = states[0]["classifier.weight"]  # its 1600 values estimate their deviation to 2 %
    assert 0.009 < weight.std() < 0.011 and not states[0]["classifier.bias"].any()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("uppernet", {}, "no head 'uppernet'; did you mean 'upernet'.* segformer, semantic_fpn, upernet, unet"),
        ("unet", {"width": 8}, "a unet head has no option 'width'; did you mean 'widths'.* widths, norm, drop_rate"),
        ("upernet", {"width": 0}, "a upernet head .* width=0"),
        ("semantic_fpn", {"drop_rate": 1.0}, "drop_rate=1.0"),
        ("semantic_fpn", {"norm": "layer"}, "norm is one of batch, group, got 'layer'"),
    ],
)
def test_what_makes_no_head(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        make_head(kind, CHANNELS, 3, **options)


@kinds
def test_what_is_no_pyramid(kind: str) -> None:
    head = make_head(kind, CHANNELS, 3, **SMALL[kind])
    with pytest.raises(SrattnError, match="this head takes 4 maps"):
        head(maps(1, (4, 4), (2, 2), (1, 1), (1, 1))[:3])
    with pytest.raises(SrattnError, match="num_classes=0"):
        make_head(kind, CHANNELS, 0)
