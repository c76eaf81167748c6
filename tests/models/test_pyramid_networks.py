"""Pyramids go into feature pyramid networks as they are, by the two call forms in use.

Neither library is needed: the networks here are plain ones that take what theirs take. torchvision's
`FeaturePyramidNetwork(in_channels_list, out_channels)` maps an ordered dict of maps, finest first, to one of the same
names; mmdetection's `FPN(in_channels, out_channels, num_outs)` a sequence of maps to a tuple, with coarser levels added
by subsampling the last. Both halve each map into the next finer one, so the grids must be those of ceil(size / stride).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.test_contract import every_kind, small


class OrderedPyramidNetwork(nn.Module):
    """By torchvision's form."""

    def __init__(self, in_channels_list: list[int], out_channels: int) -> None:
        super().__init__()
        if any(type(channels) is not int or channels <= 0 for channels in in_channels_list):
            raise ValueError(f"channels are positive ints, got {in_channels_list}")
        self.inner = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels_list)
        self.outer = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels_list)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = list(x.values())
        last = self.inner[-1](maps[-1])
        results = [self.outer[-1](last)]
        for index in range(len(maps) - 2, -1, -1):
            lateral = self.inner[index](maps[index])
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.outer[index](last))
        return OrderedDict(zip(x, results, strict=True))


class SequencePyramidNetwork(OrderedPyramidNetwork):
    """By mmdetection's form."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int) -> None:
        if not isinstance(in_channels, list):
            raise TypeError(f"in_channels is a list, got {type(in_channels)}")
        super().__init__(in_channels, out_channels)
        self.in_channels, self.num_outs = in_channels, num_outs

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:  # type: ignore[override]
        assert len(inputs) == len(self.in_channels)
        outs = list(super().forward({str(level): x for level, x in enumerate(inputs)}).values())
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


@every_kind
@pytest.mark.parametrize("size", [(64, 96), (75, 50)])
def test_ordered_maps(name: str, size: tuple[int, int]) -> None:
    body = small(name, features_only=True).train()
    levels = [module.rpartition(".")[2] for module in body.feature_info.module_name()]
    network = OrderedPyramidNetwork(body.feature_info.channels(), 12)
    result = network(OrderedDict(zip(levels, body(torch.randn(2, 3, *size)), strict=True)))
    assert list(result) == levels == [str(i) for i in range(len(levels))]
    for level, stride in zip(result.values(), body.feature_info.reduction(), strict=True):
        assert level.shape == (2, 12, -(-size[0] // stride), -(-size[1] // stride))
    sum((level * torch.randn_like(level)).sum() for level in result.values()).backward()
    assert [n for n, p in body.named_parameters() if p.grad is None] == []


@every_kind
def test_sequences_of_maps(name: str) -> None:
    body = small(name, features_only=True, out_indices=(1, 2))
    network = SequencePyramidNetwork(in_channels=body.feature_info.channels(), out_channels=12, num_outs=4)
    outs = network(body(torch.randn(1, 3, 100, 64)))
    strides = body.feature_info.reduction()
    strides += [strides[-1] * 2, strides[-1] * 4]
    assert [out.shape[-2:] for out in outs] == [(-(-100 // s), -(-64 // s)) for s in strides]
    with pytest.raises(AssertionError):
        network(small(name, features_only=True)(torch.randn(1, 3, 64, 64)))
