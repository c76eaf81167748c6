"""The multiply-adds that a plan states of a reduction are those that torch counts while it runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from srattn.layers.convolutional_projection import ConvolutionalProjection
from srattn.layers.depthwise_reduction import DepthwiseReduction
from srattn.layers.multi_ratio import ActivatedReduction, HeadGroup
from srattn.layers.pooling_attention import HeadPooling
from srattn.layers.pyramid_pooling import PyramidReduction
from srattn.layers.reduction import PooledReduction, Reduction, StridedReduction

REDUCTIONS: dict[str, Reduction] = {
    "none": Reduction(),
    "strided": StridedReduction(6, (3, 2)),
    "pooled": PooledReduction(6, (4, 3)),
    "depthwise": DepthwiseReduction(6, (3, 2)),
    "convolved": ConvolutionalProjection(6, (3, 2)),
    "pyramid": PyramidReduction(6, (1, 2.5, 4)),
    "of a head": HeadPooling(6, (3, 2)),
}


def counted(run: torch.nn.Module, *args: object) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(*args)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("size", [(12, 8), (11, 9), (5, 16)])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, size: tuple[int, int]) -> None:
    part = REDUCTIONS[name].to("meta").eval()
    assert part.macs(*size) == counted(part, torch.empty(1, *size, 6, device="meta"))


@pytest.mark.parametrize("size", [(12, 8), (11, 9)])
def test_keys_and_values_of_a_group_of_heads(size: tuple[int, int]) -> None:
    group = HeadGroup(6, 4, 2, ActivatedReduction(6, 3, device="meta"), qkv_bias=True, device="meta", dtype=None)
    assert group.macs(*size) == counted(group.eval(), torch.empty(1, *size, 6, device="meta"), None, None)
