"""How the depthwise kernels are launched: what was tuned on this device, else a rule of thumb; as `choices`."""

from typing import NamedTuple

import torch

from srattn.ops.triton import cache


class Strips(NamedTuple):
    """How a depthwise kernel is launched: columns and channels of a tile, rows that a program walks down."""

    block_w: int
    block_c: int
    rows: int
    warps: int
    stages: int


STRIPS = (
    Strips(8, 64, 16, 4, 2), Strips(16, 64, 16, 4, 2), Strips(8, 128, 16, 4, 2), Strips(16, 128, 16, 8, 2),
    Strips(16, 64, 32, 4, 2), Strips(8, 64, 8, 4, 1), Strips(8, 64, 56, 4, 3), Strips(4, 128, 16, 4, 2),
    Strips(16, 32, 16, 4, 2), Strips(8, 64, 16, 2, 1), Strips(32, 64, 16, 8, 1), Strips(8, 32, 16, 2, 2),
)  # fmt: skip
"""What tuning tries, the rule of thumb first."""


def strips_for(kind: str, x: torch.Tensor) -> Strips:
    """Tuned ("depthwise" or "depthwise_backward") for these channels and the nearest size of map, or the rule."""
    count = int(x.shape[0]) * int(x.shape[1]) * int(x.shape[2])
    found = [(abs(e[0] - count), s) for e in cache.entries(x.device, _strips_key(kind, x)) if (s := _read_strips(e))]
    return min(found)[1] if found else STRIPS[0]


def keep_strips(kind: str, x: torch.Tensor, strips: Strips) -> None:
    cache.keep(x.device, _strips_key(kind, x), [x.shape[0] * x.shape[1] * x.shape[2], list(strips)])


def _strips_key(kind: str, x: torch.Tensor) -> str:
    return f"{kind}/channels{int(x.shape[3])}/bytes{x.itemsize}"


def _read_strips(entry: list[object]) -> Strips | None:
    """An entry of the cache, unless it is none of ours."""
    try:
        block_w, block_c, rows, warps, stages = (int(n) for n in entry[1])  # type: ignore[union-attr, attr-defined]
    except (TypeError, ValueError, IndexError):
        return None
    powers = (1, 2, 4, 8, 16, 32, 64, 128)
    sound = block_w in powers and block_c in powers and warps in powers[:5] and 1 <= rows <= 4096 and 1 <= stages <= 6
    return Strips(block_w, block_c, rows, warps, stages) if sound else None
