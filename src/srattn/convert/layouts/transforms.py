"""How tensors change between layouts. Numbers are moved and never computed, so round trips are bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from srattn.errors import SrattnError

Tensors = Sequence[torch.Tensor | None]
Grid = tuple[int, int]


@dataclass(frozen=True)
class Context:
    """What shapes alone do not tell.

    ratios: (height, width) of each stage's reduction (with the depth before them, in volumes), needed where one is not
        square.
    grids: (height, width) of each stage's position embedding, where the source itself states its image size.
    model_grids: the same of the model at hand, taken where the first stage's number of tokens is no square.
    """

    ratios: tuple[tuple[int, ...], ...] = ()
    grids: tuple[Grid, ...] = ()
    model_grids: tuple[Grid, ...] = ()


class Transform(Protocol):
    """`read` makes ours of theirs, `write` theirs of ours; None stands for an optional tensor that is absent."""

    def read(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors: ...

    def write(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors: ...


class _Same:
    def read(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        return tensors

    write = read


@dataclass(frozen=True)
class Stacked:
    """`parts` tensors of ours, one after another in the first dimension of one of theirs (kv, in_proj)."""

    parts: int

    def read(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (whole,) = _present(tensors)
        if whole.ndim == 0 or whole.shape[0] % self.parts:
            raise SrattnError(f"its shape {tuple(whole.shape)} does not divide into {self.parts} equal parts")
        return whole.chunk(self.parts)

    def write(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        return [torch.cat(_present(tensors))]


class _Reduction:
    """A convolution of kernel = stride = ratio against the W^S of the paper: (C, C, Rh, Rw) and (C, Rh * Rw * C)."""

    def read(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (weight,) = _present(tensors)
        if weight.ndim != 4:
            raise SrattnError(f"its shape {tuple(weight.shape)} is not that of a 2-D convolution")
        return [weight.permute(0, 2, 3, 1).flatten(1)]

    def write(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (weight,) = _present(tensors)
        out_channels, columns = weight.shape
        channels = out_channels  # the reduction keeps the width
        area, rest = divmod(columns, channels)
        side = math.isqrt(area)
        height, width = side, side
        stage = int(places.get("i", 0))
        if context.ratios and math.prod(context.ratios[stage]) == area:
            height, width = context.ratios[stage]
        if rest or height * width != area or area == 0:
            raise SrattnError(f"its shape {tuple(weight.shape)} fits no square reduction of {channels} channels")
        return [weight.reshape(out_channels, height, width, channels).permute(0, 3, 1, 2)]


class _Pointwise:
    """A 1x1 convolution against a linear layer; vectors (the bias) stay as they are."""

    def read(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (weight,) = _present(tensors)
        if weight.ndim == 1:
            return [weight]
        if weight.ndim != 4 or weight.shape[2:] != (1, 1):
            raise SrattnError(f"its shape {tuple(weight.shape)} is not that of a 1x1 convolution")
        return [weight.flatten(1)]

    def write(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (weight,) = _present(tensors)
        return [weight if weight.ndim == 1 else weight[:, :, None, None]]


class _PointwiseReversed(_Pointwise):
    """As `_Pointwise`, over concatenated maps of the output's width, which they have in the other order."""

    def read(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (weight,) = _present(super().read(tensors, places, context))
        return [weight.unflatten(1, (-1, weight.shape[0])).flip(1).flatten(1)]

    def write(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (weight,) = _present(tensors)
        return super().write([weight.unflatten(1, (-1, weight.shape[0])).flip(1).flatten(1)], places, context)


@dataclass(frozen=True)
class Positions:
    """Position embeddings: our grid (1, H, W, C) against their tokens (1, H * W, C).

    With `stage` set there are two of ours, the grid and the class token's own (1, 1, C), which their tokens begin with.
    """

    stage: int | None = None

    def read(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (tokens,) = _present(tensors)
        if tokens.ndim != 3 or tokens.shape[0] != 1:
            raise SrattnError(f"its shape {tuple(tokens.shape)} is not (1, tokens, channels)")
        stage = int(places["i"]) if self.stage is None else self.stage
        count = tokens.shape[1]
        extra = 0
        grid = _grid(count, stage, context)
        if grid is None and self.stage is not None:
            extra, grid = 1, _grid(count - 1, stage, context)
        if grid is None:
            known = (
                f"not the {context.grids[stage]} of its image size" if stage < len(context.grids) else "no square grid"
            )
            raise SrattnError(f"its {count} tokens are {known}, and nothing else says which height and width they have")
        positions = tokens[:, extra:].unflatten(1, grid)
        if self.stage is None:
            return [positions]
        return [positions, tokens[:, :1] if extra else None]

    def write(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        grid, *first = tensors
        assert grid is not None  # the rule marks it as required
        tokens = grid.flatten(1, 2)
        return [torch.cat([token for token in first if token is not None] + [tokens], dim=1)]


class _Pairs:
    """Biases of query cells by key cells: our grids (heads, H, W, M_h, M_w) against their counts (heads, N, M)."""

    def read(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (bias,) = _present(tensors)
        stage = int(places["i"])
        if bias.ndim != 3:
            raise SrattnError(f"its shape {tuple(bias.shape)} is not (heads, queries, keys)")
        grid = _grid(bias.shape[1], stage, context)
        keys = None if grid is None else _key_grid(bias.shape[2], grid, stage, context)
        if grid is None or keys is None:
            raise SrattnError(
                f"its {bias.shape[1]} queries and {bias.shape[2]} keys are no square grids, and nothing else says "
                "which height and width they have"
            )
        return [bias.unflatten(2, keys).unflatten(1, grid)]

    def write(self, tensors: Tensors, places: Mapping[str, str], context: Context) -> Tensors:
        (bias,) = _present(tensors)
        return [bias.flatten(3).flatten(1, 2)]


def _key_grid(count: int, grid: Grid, stage: int, context: Context) -> Grid | None:
    """Height and width of `count` keys: as the stage's ratio makes them of the queries' grid, else square."""
    if stage < len(context.ratios):
        (height, width), (rh, rw) = grid, context.ratios[stage]
        for keys in ((height // rh, width // rw), (-(-height // rh), -(-width // rw))):
            if math.prod(keys) == count:
                return keys
    side = math.isqrt(max(count, 0))
    return (side, side) if side and side * side == count else None


def _grid(count: int, stage: int, context: Context) -> Grid | None:
    """Height and width of `count` tokens: as the context says, else square."""
    if stage < len(context.grids):
        return context.grids[stage] if math.prod(context.grids[stage]) == count else None
    side = math.isqrt(max(count, 0))
    return (side, side) if side and side * side == count else None


def _present(tensors: Tensors) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


SAME: Transform = _Same()
KEY_VALUE: Transform = Stacked(2)
QUERY_KEY_VALUE: Transform = Stacked(3)
REDUCTION: Transform = _Reduction()
POINTWISE: Transform = _Pointwise()
POINTWISE_REVERSED: Transform = _PointwiseReversed()
POSITIONS: Transform = Positions()
LAST_POSITIONS: Transform = Positions(stage=3)
PAIRS: Transform = _Pairs()
