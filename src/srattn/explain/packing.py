"""Attention of every query as a few bytes: what a page embeds so that a click can be answered without a model."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.explain.attention import AttentionMap
from srattn.explain.capture import Captured
from srattn.explain.support import rectangles, windows_of


@dataclass
class Kept:
    """What is embedded of one block.

    Attributes:
        heads: how many maps there are, the mean of all heads if it is 1 and `mean` is true.
        step: queries are kept at this distance, in rows and in columns.
        left_out: the block is not embedded at all.
    """

    stage: int
    block: int
    heads: int
    grid: tuple[int, int]
    keys: int
    step: int = 1
    mean: bool = False
    left_out: bool = False

    def size(self) -> int:
        """Bytes before they are written as text."""
        if self.left_out:
            return 0
        rows, columns = (math.ceil(side / self.step) for side in self.grid)
        return (1 if self.mean else self.heads) * (rows * columns + 1) * self.keys


def choose_kept(captured: Sequence[Captured], budget: int) -> list[Kept]:
    """What to embed of all blocks so that it takes at most `budget` bytes for an image.

    The block that costs most gives way first: every second query in both directions, down to 14 a side; then the mean
    of the heads instead of each; then every second query again; then blocks before the last of their stage. Blocks of
    one stage that cost the same give way together.
    """
    kept = [_whole(each) for each in captured]
    last = {each.stage: each.block for each in kept}
    while sum(each.size() for each in kept) > budget:
        able = [each for each in kept if _can_give(each, last)]
        if not able:
            raise SrattnError(f"{budget} bytes are too few to hold the attention of an image")
        dearest = max(each.size() for each in able)
        for each in able:
            if each.size() == dearest:
                _give(each)
    return kept


def _can_give(each: Kept, last: Mapping[int, int]) -> bool:
    if each.left_out:
        return False
    return max(each.grid) > each.step or (each.heads > 1 and not each.mean) or each.block != last[each.stage]


def _give(each: Kept) -> None:
    if min(each.grid) > 14 * each.step:
        each.step *= 2
    elif each.heads > 1 and not each.mean:
        each.mean = True
    elif max(each.grid) > each.step:
        each.step *= 2
    else:
        each.left_out = True


def _whole(captured: Captured) -> Kept:
    attn = captured.attn
    tokens = captured.args[0] if captured.args else captured.kwargs["x"]
    seen = captured.grid if tokens.shape[1] == 1 else (tokens.shape[1], tokens.shape[2])
    return Kept(
        captured.stage, captured.block, attn.num_heads, attn.query_size(*seen), math.prod(attn.reduced_size(*seen))
    )


def words_of(kept: Sequence[Kept]) -> list[str]:
    """What is left out, in words, a line for each stage and kind; empty if nothing is."""
    lines: dict[str, list[int]] = {}
    for each in kept:
        what = []
        if each.left_out:
            what = ["left out; the function attention_map has it"]
        else:
            if each.step > 1:
                what.append(f"the queries of every {ordinal(each.step)} row and column")
            if each.mean:
                what.append(f"the mean of the {each.heads} heads")
        if what:
            lines.setdefault(f"Stage {each.stage + 1}, block {{}}: {' and '.join(what)}.", []).append(each.block + 1)
    return [line.format(_ranges(blocks)) for line, blocks in lines.items()]


def ordinal(number: int) -> str:
    """2 as "2nd"; of the powers of two that a step may be."""
    return f"{number}nd" if number % 10 == 2 and number % 100 != 12 else f"{number}th"


def _ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 5] as "1 to 3, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)


def key_boxes(attention: AttentionMap, size: tuple[int, int]) -> Tensor:
    """(M, 4) float64: where the weight of each key, but that of a class token, is spread evenly, in pixels.

    [top, left, bottom, right], the ends not included; pooled cells may end within a pixel.
    """
    a = attention
    ends = [min(a.grid[i] * a.stride, size[i]) for i in (0, 1)]
    if a.levels is not None:
        tokens = torch.cat([rectangles(windows_of(a.grid[0], h), windows_of(a.grid[1], w)) for h, w in a.levels])
        boxes = tokens.double() * a.stride
    elif a.spread is not None:
        raise SrattnError("the keys lie on no grid and in no rectangles, and cannot be drawn on a page")
    elif a.pooled:
        edges = [torch.arange(a.key_grid[i] + 1, dtype=torch.float64) * ends[i] / a.key_grid[i] for i in (0, 1)]
        boxes = rectangles((edges[0][:-1], edges[0][1:]), (edges[1][:-1], edges[1][1:]))
    else:
        starts = [torch.arange(a.key_grid[i], dtype=torch.float64) * a.ratio[i] * a.stride for i in (0, 1)]
        boxes = rectangles(*((start, start + a.ratio[i] * a.stride) for i, start in enumerate(starts)))
    limit = torch.tensor([ends[0], ends[1]] * 2, dtype=torch.float64)
    return torch.minimum(boxes, limit)


def pack(attention: AttentionMap, kept: Kept) -> dict[str, Any]:
    """The attention of one image in one block as plain values for JSON.

    Each row (a query of a head) is scaled to its own largest weight and rounded to 8 bits. A class token's row comes
    first where there is one; the weight of a class token as a key is left out of all rows.
    """
    weights = attention.probabilities[0].float().cpu()  # (heads, N, M)
    if kept.mean:
        weights = weights.mean(0, keepdim=True)
    token = int(attention.class_token)
    rows = weights[:, token:].unflatten(1, attention.grid)[:, :: kept.step, :: kept.step].flatten(1, 2)
    levels = quantised(torch.cat([weights[:, :token], rows], 1)[:, :, token:])
    return {
        "stage": kept.stage,
        "block": kept.block,
        "heads": len(weights),
        "of": kept.heads,
        "grid": list(attention.grid),
        "stride": attention.stride,
        "step": kept.step,
        "token": bool(token),
        "keys": levels.shape[2],
        "path": attention.path,
        "data": as_text(levels),
    }


def quantised(values: Tensor) -> Tensor:
    """uint8 of the same shape: values from 0 on, each row (the last axis) scaled to its largest."""
    top = values.amax(-1, keepdim=True)
    return (values / torch.where(top > 0, top, 1) * 255).round().to(torch.uint8)


def as_text(levels: Tensor) -> str:
    """uint8 as base64."""
    return base64.b64encode(levels.contiguous().numpy().tobytes()).decode("ascii")
