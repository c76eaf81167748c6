"""The semantic head of a feature pyramid against its written form: every map up to the finest grid, then added."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.heads import SemanticFPNHead
from srattn.heads.parts import PixelClassifier, enlarged
from srattn.models.memory import saved_bytes
from tests.heads.definitions import CHANNELS, assert_same_with_gradients, block, plain, random_maps, shuffled, up


def definition(head: SemanticFPNHead, features: list[Tensor]) -> Tensor:
    inner = [plain(head, f"fpn.laterals.{n}", x) for n, x in enumerate(features)]
    for n in (2, 1, 0):
        inner[n] = inner[n] + F.interpolate(inner[n + 1], size=inner[n].shape[2:], mode="nearest")
    pyramid = [plain(head, f"fpn.outputs.{n}", x) for n, x in enumerate(inner)]
    total = block(head, "levels.0.0", pyramid[0])
    for n in (1, 2, 3):
        x = pyramid[n]
        for k in range(n):
            x = up(block(head, f"levels.{n}.{k}", x), features[n - 1 - k])
        total = total + x
    return plain(head, "classifier", F.dropout2d(total, head.classifier.drop.p, head.training))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_classes", [3, 20])  # below and above the channels: classified before and after enlarging
def test_the_head_is_its_definition(norm: str, training: bool, num_classes: int) -> None:
    head = SemanticFPNHead(CHANNELS, num_classes, width=8, hidden=16, norm=norm, drop_rate=0.4)
    assert_same_with_gradients(shuffled(head).train(training), definition, random_maps())


def test_fewer_classes_than_channels_keep_no_sum() -> None:
    fine, coarse = torch.randn(2, 16, 20, 20, requires_grad=True), torch.randn(2, 16, 10, 10, requires_grad=True)
    classifier = PixelClassifier(16, 3, 0.1)
    kept = saved_bytes(classifier, lambda: classifier.of_sum(F.relu(fine), F.relu(coarse)))
    plainly = saved_bytes(classifier, lambda: classifier(F.relu(fine) + enlarged(F.relu(coarse), (20, 20))))
    assert plainly - kept > 0.9 * fine.numel() * 4


def test_the_published_head_is_counted() -> None:
    head = SemanticFPNHead([64, 128, 320, 512], 150, device="meta")
    pyramid = 256 * (64 + 128 + 320 + 512 + 4) + 4 * 256 * (9 * 256 + 1)
    steps = 4 * 9 * 256 * 128 + 3 * 9 * 128 * 128 + 7 * 2 * 128
    assert sum(p.numel() for p in head.parameters()) == pyramid + steps + 129 * 150


def test_group_norm_never_normalises_a_single_channel() -> None:
    groups = {}
    for width in (1, 4, 10, 12, 64, 128, 512):
        norm = SemanticFPNHead([4], 2, width=4, hidden=width, norm="group").levels[0][0].norm  # type: ignore[index]
        assert isinstance(norm, nn.GroupNorm)
        groups[width] = norm.num_groups
    assert groups == {1: 1, 4: 1, 10: 2, 12: 1, 64: 16, 128: 32, 512: 32}
