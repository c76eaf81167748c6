"""Checks and schedules over the numbers of a variant."""

from collections.abc import Sequence
from itertools import pairwise

from srattn.errors import SrattnError


def check_stages(**numbers: Sequence[object]) -> None:
    """Every option given per stage has one entry a stage."""
    lengths = {name: len(values) for name, values in numbers.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise SrattnError(f"options of the stages differ in length: {told}; give each one entry a stage")


def spread(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth growing linearly from 0 at the first block to `rate` at the last, as lists by stage."""
    total, starts = sum(depths), [sum(depths[:i]) for i in range(len(depths) + 1)]
    rates = [rate * i / max(total - 1, 1) for i in range(total)]
    return [rates[a:b] for a, b in pairwise(starts)]
