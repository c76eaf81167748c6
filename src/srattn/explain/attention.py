"""Attention maps of a model on real images, and their way back to pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.explain.capture import Captured, capture, eval_mode

LARGEST = 2 << 30
"""Bytes that one block's attention on one image may take."""


@dataclass
class AttentionMap:
    """The attention of one block on one batch.

    Query and key tokens stand in raster order. With `class_token`, token 0 of the queries and of the keys is the class
    token, which lies on no grid: N = 1 + H * W and M = 1 + Mh * Mw.
    """

    stage: int
    block: int
    probabilities: Tensor
    """(B, heads, N, M), each row sums to one."""
    grid: tuple[int, int]
    """(H, W) of the query tokens."""
    key_grid: tuple[int, int]
    """(Mh, Mw) of the reduced tokens."""
    path: str
    """The path that the block takes for this input when it is not asked for maps."""
    ratio: tuple[int, int]
    """(Rh, Rw): each key sees a block of so many tokens. (1, 1) where `pooled`."""
    pooled: bool
    """Whether the keys are even shares of the map: pooled to a fixed grid of cells, or finer than the queries."""
    class_token: bool
    stride: int
    """Pixels from one query token to the next."""
    seen: tuple[int, int]
    """(H, W) of the tokens that enter the attention: `grid`, unless it pools its queries."""
    query_stride: tuple[int, int]
    """Tokens that enter from one query to the next."""
    spread: Callable[[Tensor], Tensor] | None = None
    """Where the keys lie on no single grid (a pyramid): their weights (B, M) over the query grid, (B, H, W)."""
    levels: tuple[tuple[int, int], ...] | None = None
    """And the grids that they lie on, one after the other."""


def attention_maps(
    model: nn.Module, images: Tensor, blocks: str | Iterable[tuple[int, int]] = "last"
) -> list[AttentionMap]:
    """The attention probabilities of chosen blocks, in order of depth.

    One forward pass in eval mode records what enters each block's attention; the maps are then computed from it by the
    definition, whatever path the block itself takes. Afterwards the model has the hooks and the training flags that it
    had before, also after an error.

    Args:
        images: (B, C, H, W), normalised as the model expects.
        blocks: `"last"` or `"first"` of every stage, `"all"`, or pairs of (stage, block) counted from zero.

    Raises:
        SrattnError: an unknown choice of blocks, or one that the model does not have; or a map too large to hold.
    """
    return [map_of(captured) for captured in capture(model, images, blocks)]


def map_of(captured: Captured) -> AttentionMap:
    """The attention of one block, from what was captured of it.

    Raises:
        SrattnError: it would take more than `LARGEST` bytes for an image.
    """
    attn, args = captured.attn, captured.args
    arguments = {name: value for name, value in captured.kwargs.items() if name != "value"}  # not in the map
    tokens = args[0] if args else arguments["x"]
    count = math.prod(tokens.shape[1:-1])
    # Beside a class token the attention may see one row, or get the token apart; else what it sees is the map, which
    # it may pool itself.
    class_token = arguments.get("class_token") is not None or count == math.prod(captured.grid) + 1
    seen = captured.grid if class_token else (tokens.shape[1], tokens.shape[2])
    grid, key_grid = attn.query_size(*seen), attn.reduced_size(*seen)
    needed = attn.num_heads * math.prod(grid) * math.prod(key_grid) * tokens.element_size()
    if needed > LARGEST:
        raise SrattnError(
            f"the attention of block {captured.block} in stage {captured.stage} takes {needed / 2**30:.1f} GiB at this "
            f"size ({math.prod(grid)} queries, {math.prod(key_grid)} keys), and {LARGEST / 2**30:g} GiB are accepted: "
            "use a smaller image"
        )
    with eval_mode(attn), torch.no_grad():  # of a batch norm in a reduction, too
        probabilities = attn.attention_map(*args, **arguments)
    # Keys finer than the queries are drawn as even shares, too.
    pooled = attn.reduction.cells is not None or key_grid[0] > grid[0] or key_grid[1] > grid[1]
    return AttentionMap(
        stage=captured.stage,
        block=captured.block,
        probabilities=probabilities,
        grid=grid,
        key_grid=(int(key_grid[0]), int(key_grid[1])),
        path=attn.plan_for(tokens.shape[1], tokens.shape[2], tokens.shape[0]).path,
        ratio=(1, 1) if pooled else (int(attn.ratio[0]), int(attn.ratio[1])),
        pooled=pooled,
        class_token=class_token,
        stride=captured.stride,
        seen=(int(seen[0]), int(seen[1])),
        query_stride=attn.query_reduction.ratio if hasattr(attn, "query_reduction") else (1, 1),
        spread=None if attn.reduction.on_grid else partial(attn.reduction.spread, height=grid[0], width=grid[1]),
        levels=tuple(attn.reduction.grids(*grid)) if hasattr(attn.reduction, "grids") else None,
    )


def query_token(attention: AttentionMap, query_yx: tuple[int, int]) -> tuple[int, int]:
    """The (row, column) of the query token whose patch holds the pixel (y, x); the last one beyond the grid's end."""
    y, x = query_yx
    if y < 0 or x < 0:
        raise SrattnError(f"the query point (y, x) = ({y}, {x}) lies outside the image; use pixels from 0")
    return min(y // attention.stride, attention.grid[0] - 1), min(x // attention.stride, attention.grid[1] - 1)


def query_overlay(
    attention: AttentionMap, query_yx: tuple[int, int], image_size: tuple[int, int], head: int | None = None
) -> Tensor:
    """What one point of the image attends to, in pixels.

    Args:
        query_yx: the pixel (y, x) of the image as the model saw it.
        image_size: (height, width) of that image.
        head: one head, or the mean of all.

    Returns:
        (B, height, width) float. The probability of each key is spread evenly over the pixels that the key was computed
        from, so that an image sums to one, less the share of the class token and of keys that see no pixel (padding).
    """
    row, column = query_token(attention, query_yx)
    if not (query_yx[0] < image_size[0] and query_yx[1] < image_size[1]):
        raise SrattnError(f"the query point (y, x) = {query_yx} lies outside the image of {image_size}")
    index = row * attention.grid[1] + column + int(attention.class_token)
    return weights_to_pixels(attention, _heads(attention, head)[:, index], image_size)


def point_weights(attention: AttentionMap, query_yx: tuple[int, int]) -> Tensor:
    """The weights of the keys (B, heads, M) for the query token whose patch holds the pixel (y, x)."""
    row, column = query_token(attention, query_yx)
    return attention.probabilities[:, :, row * attention.grid[1] + column + int(attention.class_token)]


def received_attention(attention: AttentionMap, image_size: tuple[int, int], head: int | None = None) -> Tensor:
    """(B, height, width): how much attention each place receives, as the mean over all queries on the grid."""
    weights = _heads(attention, head)[:, int(attention.class_token) :]
    return weights_to_pixels(attention, weights.mean(dim=1), image_size)


def _heads(attention: AttentionMap, head: int | None) -> Tensor:
    """(B, N, M) of one head, or of the mean of the heads."""
    probabilities = attention.probabilities.float()
    if head is None:
        return probabilities.mean(dim=1)
    if not 0 <= head < probabilities.shape[1]:
        raise SrattnError(f"head {head} does not exist; the block has {probabilities.shape[1]} heads, counted from 0")
    return probabilities[:, head]


def weights_to_pixels(attention: AttentionMap, weights: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Weights of the keys (B, M), a class token's among them, spread evenly over the pixels that each key was computed
    from: (B, height, width)."""
    a = attention
    if a.spread is None:
        keys, key_grid = weights[:, int(a.class_token) :].reshape(-1, *a.key_grid), a.key_grid
    else:
        keys, key_grid = a.spread(weights), a.grid
    rows, columns = (axis_spread(image_size[i], a.stride, a.grid[i], key_grid[i], a.ratio[i], a.pooled) for i in (0, 1))
    return rows.to(keys) @ keys @ columns.to(keys).T


def keys_to_tokens(attention: AttentionMap, weights: Tensor) -> Tensor:
    """Weights of the keys on the grid, (B, M) without a class token, spread evenly over the tokens that each is made
    from: (B, h, w) on the grid `seen`. The sum stays, unless a key is made from no token."""
    a = attention
    if a.spread is not None:
        return a.spread(weights)
    keys = weights.unflatten(1, a.key_grid)
    ratio = (a.ratio[0] * a.query_stride[0], a.ratio[1] * a.query_stride[1])
    rows, columns = (axis_spread(a.seen[i], 1, a.seen[i], a.key_grid[i], ratio[i], a.pooled) for i in (0, 1))
    return rows.to(keys) @ keys @ columns.to(keys).T


def axis_spread(pixels: int, stride: int, tokens: int, keys: int, ratio: int, pooled: bool) -> Tensor:
    """(pixels, keys), float64: column k is one key's weight spread evenly over the pixels that it sees on an axis."""
    if pooled:
        # Cells of adaptive pooling overlap by a token where the keys do not divide the tokens. Drawn so, the seams
        # would outshine the map; each cell is drawn as its even share of the axis, with a part of a pixel at its ends.
        edges = torch.arange(keys + 1, dtype=torch.float64) * min(tokens * stride, pixels) / keys
        start = torch.arange(pixels, dtype=torch.float64)[:, None]
        spread = (torch.minimum(start + 1, edges[1:]) - torch.maximum(start, edges[:-1])).clamp(min=0)
        return spread / spread.sum(dim=0, keepdim=True)
    spread = torch.zeros(pixels, keys, dtype=torch.float64)
    for key in range(keys):
        end = min((key + 1) * ratio, tokens)
        spread[key * ratio * stride : min(end * stride, pixels), key] = 1
    return spread / spread.sum(dim=0, keepdim=True).clamp(min=1)
