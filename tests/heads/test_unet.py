"""The U-Net decoder against its written form: the gate on the enlarged map, the concatenation, two convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srattn import SrattnError
from srattn.heads import UNetHead
from srattn.heads.unet import AttentionGate
from tests.heads.definitions import CHANNELS, assert_same_with_gradients, block, plain, random_maps, shuffled, up


def score(head: UNetHead, name: str, x: Tensor) -> Tensor:
    own = dict(head.named_parameters())
    return F.conv2d(x, own[f"{name}.weight"][:, :, None, None], own[f"{name}.bias"])


def definition(head: UNetHead, features: list[Tensor]) -> Tensor:
    x = features[3]
    for n in (2, 1, 0):
        skip, x, stage = features[n], up(x, features[n]), f"stages.{n}"
        query = F.relu(plain(head, f"{stage}.gate.skip", skip) + plain(head, f"{stage}.gate.gate", x))
        skip = skip * score(head, f"{stage}.gate.score", query).sigmoid()
        x = block(head, f"{stage}.conv2", block(head, f"{stage}.conv1", torch.cat([skip, x], 1)))
    return plain(head, "classifier", F.dropout2d(x, head.classifier.drop.p, head.training))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("training", [False, True])
def test_the_head_is_its_definition(norm: str, training: bool) -> None:
    head = UNetHead(CHANNELS, 5, widths=(6, 10, 14), norm=norm, drop_rate=0.4)
    assert_same_with_gradients(shuffled(head).train(training), definition, random_maps())


def test_a_gate_can_shut_and_open() -> None:
    gate, skip, coarse = AttentionGate(4, 6), torch.randn(1, 4, 5, 7), torch.randn(1, 6, 2, 3)
    assert gate.score.bias is not None
    with torch.no_grad():
        gate.score.weight.zero_()
        for bias, expected in ((50.0, skip), (-200.0, torch.zeros_like(skip))):
            gate.score.bias.fill_(bias)
            assert torch.allclose(gate(skip, coarse), expected)


def test_widths() -> None:
    assert UNetHead(CHANNELS, 2).config["widths"] == CHANNELS[:-1]
    with pytest.raises(SrattnError, match=r"widths are 3 numbers of at least 1, finest first, got \[8, 8\]"):
        UNetHead(CHANNELS, 2, widths=(8, 8))
