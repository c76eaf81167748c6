"""Randomness without state: every number is a hash of its keys (a seed, an epoch, an index).

A run that starts again at any step draws what it would have drawn, in any process and in any order.
The hash is the finaliser of SplitMix64, applied once per key (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
Generators, OOPSLA 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    # int64 shifts carry the sign; a 64-bit hash wants zeros
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MULTIPLY_1)
    x = (x ^ _shift(x, 27)) * _signed(_MULTIPLY_2)
    return x ^ _shift(x, 31)


def hashed(*keys: int | Tensor) -> Tensor:
    """64-bit hashes as int64, in the common shape of the `keys` (integers or int64 tensors that broadcast)."""
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        value = torch.tensor(_signed(key)) if isinstance(key, int) else key
        state = _mix((state ^ value) + _signed(_GAMMA))
    return state


def uniform(count: int, *keys: int | Tensor) -> Tensor:
    """float64 numbers in [0, 1), shape (*common shape of the keys, count)."""
    columns = [key.unsqueeze(-1) if isinstance(key, Tensor) else key for key in keys]
    return _shift(hashed(*columns, torch.arange(count)), 11).double() / (1 << 53)


def permutation(count: int, *keys: int) -> Tensor:
    """The integers below `count` in an order that the keys choose, int64."""
    return torch.argsort(hashed(*keys, torch.arange(count)), stable=True)


def seed_of(*keys: int) -> int:
    """A seed for `torch.manual_seed` below 2**63."""
    return int(hashed(*keys)) & (_MASK >> 1)
