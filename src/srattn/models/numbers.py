"""Checks and schedules over the numbers of a variant."""

import operator
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

from srattn.errors import SrattnError


def plain(value: Any) -> Any:
    """Numbers of numpy and the like as Python's, tuples as lists: what JSON and YAML give back as it was."""
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool | str):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return float(value) if isinstance(value, Real) else value


def whole(value: Any, name: str) -> int:
    """A count as Python's int, from whatever stands for a whole number; True and 5.0 do not."""
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, int):
        raise SrattnError(f"{name} is a whole number, got {value!r}: give an int")
    return found


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
