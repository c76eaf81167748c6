"""Masks as lengths of runs, the form of COCO's files: exact, and a few hundred numbers where pixels are a million.

Pixels are counted down the columns, from the left. The first run is outside, the second inside, and so on; a mask
that begins inside has a first run of 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.errors import SrattnError


def encode_runs(mask: Tensor) -> Tensor:
    """A mask (H, W), bool or 0 and not 0, to its lengths int64 (L,), whose sum is H * W."""
    if mask.ndim != 2:
        raise SrattnError(f"a mask is (H, W), got {tuple(mask.shape)}")
    pixels = mask.t().flatten() != 0
    before = torch.cat([pixels.new_zeros(1), pixels[:-1]])[: len(pixels)]
    ends = torch.cat([(pixels != before).nonzero().squeeze(1), torch.tensor([len(pixels)], device=mask.device)])
    return ends.diff(prepend=ends.new_zeros(1))


def decode_runs(runs: Tensor, size: tuple[int, int]) -> Tensor:
    """Lengths (L,), filled up with zeros or not, to a mask bool (H, W).

    Raises:
        SrattnError: lengths that are not those of `size` (height, width).
    """
    runs = runs.long()
    if runs.ndim != 1 or bool((runs < 0).any()) or int(runs.sum()) != size[0] * size[1]:
        raise SrattnError(
            f"runs of a mask of {size[1]}x{size[0]} are from 0 up and add up to {size[0] * size[1]}, got "
            f"{tuple(runs.shape)} with a sum of {int(runs.sum())}"
        )
    inside = torch.arange(len(runs), device=runs.device) % 2 == 1
    return inside.repeat_interleave(runs).view(size[1], size[0]).t()


def runs_at(runs: Tensor, places: Tensor) -> Tensor:
    """Whether pixels lie inside, without the masks being written out.

    Args:
        runs: (N, L), lengths of N masks, filled up with zeros.
        places: int64 (N, P), x * H + y of each pixel.

    Returns:
        bool (N, P).
    """
    ends = runs.long().cumsum(1)
    return torch.searchsorted(ends, places.contiguous(), right=True) % 2 == 1


def write_runs(runs: Sequence[int]) -> str:
    """Lengths as the text that COCO's tools keep them in: differences to the length two before, in digits of 5 bits,
    lowest first; a digit of 32 and more is not the last."""
    text = []
    for number, length in enumerate(runs):
        value = length - runs[number - 2] if number > 2 else length
        while True:
            digit, value = value & 31, value >> 5
            last = value == (-1 if digit & 16 else 0)  # the fifth bit of the last digit is the sign
            text.append(chr(48 + (digit if last else digit | 32)))
            if last:
                break
    return "".join(text)


def read_runs(text: str, pixels: int) -> list[int]:
    """The reverse of `write_runs`.

    Raises:
        SrattnError: text of another kind, or lengths that are not those of a mask of so many `pixels`.
    """
    found: list[int] = []
    value = place = 0
    for letter in text:
        digit = ord(letter) - 48
        if not 0 <= digit < 64 or place > 60:
            raise SrattnError(f"no text of run lengths: {letter!r} at length {len(found) + 1}")
        value |= (digit & 31) << place
        place += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << place
        found.append(value + found[-2] if len(found) > 2 else value)
        value = place = 0
        if not 0 <= found[-1] <= pixels:
            raise SrattnError(f"a run of {found[-1]} pixels in a mask of {pixels}")
    if place:
        raise SrattnError("text of run lengths that ends within a number")
    return check_runs(found, pixels)


def check_runs(runs: Sequence[int], pixels: int) -> list[int]:
    """Lengths that are those of a mask of so many `pixels`.

    Raises:
        SrattnError: they are not.
    """
    for length in runs:
        if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= pixels:
            got = str(length)[:60]
            raise SrattnError(f"a run of a mask is a whole number from 0 up to its {pixels} pixels, got {got}")
    if sum(runs) != pixels:
        raise SrattnError(f"the runs of a mask of {pixels} pixels add up to {sum(runs)}")
    return list(runs)
