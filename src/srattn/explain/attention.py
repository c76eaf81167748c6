"""Attention maps of a model on real images, and their way back to pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.models.backbone import Backbone
from srattn.models.features import PyramidFeatures


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
    spread: Callable[[Tensor], Tensor] | None = None
    """Where the keys lie on no single grid (a pyramid): their weights (B, M) over the query grid, (B, H, W)."""


def attention_maps(
    model: nn.Module, images: Tensor, blocks: str | Iterable[tuple[int, int]] = "last"
) -> list[AttentionMap]:
    """The attention probabilities of chosen blocks, in order of depth.

    One forward pass in eval mode records what enters each block's attention; the maps are then computed from it by the
    definition. Afterwards the model has the hooks and the training flags that it had before, also after an error.

    Args:
        images: (B, C, H, W), normalised as the model expects.
        blocks: `"last"` or `"first"` of every stage, `"all"`, or pairs of (stage, block) counted from zero.

    Raises:
        SrattnError: an unknown choice of blocks, or one that the model does not have.
    """
    backbone = model.model if isinstance(model, PyramidFeatures) else model
    if not isinstance(backbone, Backbone):
        raise SrattnError(f"attention maps need a model of srattn.create_model, got {type(model).__name__}")
    if backbone.dimensions != 2:
        raise SrattnError(f"attention maps are drawn on images, {backbone.config['name']} takes volumes")
    stages: Any = backbone.stages
    wanted = _choose(stages, blocks)
    inputs: dict[tuple[int, int], tuple[tuple[Any, ...], dict[str, Any]]] = {}
    grids: dict[int, tuple[int, int]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_eval_mode(backbone))
        stack.enter_context(torch.no_grad())
        for stage, block in wanted:
            hook = (
                stages[stage]
                .blocks[block]
                .attn.register_forward_pre_hook(_record(inputs, (stage, block)), with_kwargs=True)
            )
            stack.callback(hook.remove)
        for stage in {stage for stage, _ in wanted}:
            hook = stages[stage].patch_embed.register_forward_hook(_record_grid(grids, stage))
            stack.callback(hook.remove)
        backbone(images)
        strides = backbone.feature_info.reduction()
        return [_map_of(stages[s].blocks[b].attn, *inputs[s, b], s, b, grids[s], strides[s]) for s, b in wanted]


def _choose(stages: Any, blocks: str | Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    depths = [len(stage.blocks) for stage in stages]
    if blocks == "last":
        return [(s, depth - 1) for s, depth in enumerate(depths)]
    if blocks == "first":
        return [(s, 0) for s in range(len(depths))]
    if blocks == "all":
        return [(s, b) for s, depth in enumerate(depths) for b in range(depth)]
    if isinstance(blocks, str):
        raise SrattnError(f"blocks={blocks!r} is unknown; use 'last', 'first', 'all' or pairs of (stage, block)")
    pairs = sorted({(int(s), int(b)) for s, b in blocks})
    for s, b in pairs:
        if not (0 <= s < len(depths) and 0 <= b < depths[s]):
            raise SrattnError(
                f"the model has no block {b} in stage {s}; blocks in its stages, counted from 0: {depths}"
            )
    return pairs


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    # Flag by flag: a fine-tuned model may have frozen parts in eval mode inside a model in training mode.
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _record(store: dict[tuple[int, int], Any], place: tuple[int, int]) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        store[place] = (args, dict(kwargs))

    return hook


def _record_grid(store: dict[int, tuple[int, int]], stage: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        store[stage] = (output.shape[1], output.shape[2])  # (B, H, W, C)

    return hook


def _map_of(
    attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], stage: int, block: int, grid: tuple[int, int], stride: int
) -> AttentionMap:
    arguments = {name: value for name, value in kwargs.items() if name != "value"}  # the values are not in the map
    tokens = args[0] if args else arguments["x"]
    probabilities = attn.attention_map(*args, **arguments)
    class_token = probabilities.shape[-2] == grid[0] * grid[1] + 1
    # Beside a class token the attention may see one row; else what it sees is the map, which it may pool itself.
    seen = grid if class_token else (tokens.shape[1], tokens.shape[2])
    grid, key_grid = attn.query_size(*seen), attn.reduced_size(*seen)
    # Keys finer than the queries are drawn as even shares, too.
    pooled = attn.reduction.cells is not None or key_grid[0] > grid[0] or key_grid[1] > grid[1]
    return AttentionMap(
        stage=stage,
        block=block,
        probabilities=probabilities,
        grid=grid,
        key_grid=(int(key_grid[0]), int(key_grid[1])),
        path=attn.plan_for(tokens.shape[1], tokens.shape[2], tokens.shape[0]).path,
        ratio=(1, 1) if pooled else (int(attn.ratio[0]), int(attn.ratio[1])),
        pooled=pooled,
        class_token=class_token,
        stride=stride,
        spread=None if attn.reduction.on_grid else partial(attn.reduction.spread, height=grid[0], width=grid[1]),
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
    return _to_pixels(attention, _heads(attention, head)[:, index], image_size)


def received_attention(attention: AttentionMap, image_size: tuple[int, int], head: int | None = None) -> Tensor:
    """(B, height, width): how much attention each place receives, as the mean over all queries on the grid."""
    weights = _heads(attention, head)[:, int(attention.class_token) :]
    return _to_pixels(attention, weights.mean(dim=1), image_size)


def _heads(attention: AttentionMap, head: int | None) -> Tensor:
    """(B, N, M) of one head, or of the mean of the heads."""
    probabilities = attention.probabilities.float()
    if head is None:
        return probabilities.mean(dim=1)
    if not 0 <= head < probabilities.shape[1]:
        raise SrattnError(f"head {head} does not exist; the block has {probabilities.shape[1]} heads, counted from 0")
    return probabilities[:, head]


def _to_pixels(attention: AttentionMap, weights: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(B, M) -> (B, height, width)."""
    a = attention
    if a.spread is None:
        keys, key_grid = weights[:, int(a.class_token) :].reshape(-1, *a.key_grid), a.key_grid
    else:
        keys, key_grid = a.spread(weights), a.grid
    rows, columns = (_spread(image_size[i], a.stride, a.grid[i], key_grid[i], a.ratio[i], a.pooled) for i in (0, 1))
    return rows.to(keys) @ keys @ columns.to(keys).T


def _spread(pixels: int, stride: int, tokens: int, keys: int, ratio: int, pooled: bool) -> Tensor:
    """(pixels, keys): column k is one key's weight spread evenly along one axis over the pixels that it sees."""
    if pooled:
        # Cells of adaptive pooling overlap by a token where the keys do not divide the tokens. Drawn so, the seams
        # would outshine the map; each cell is drawn as its even share of the axis, with a part of a pixel at its ends.
        edges = torch.arange(keys + 1, dtype=torch.float64) * min(tokens * stride, pixels) / keys
        start = torch.arange(pixels, dtype=torch.float64)[:, None]
        spread = (torch.minimum(start + 1, edges[1:]) - torch.maximum(start, edges[:-1])).clamp(min=0)
        return (spread / spread.sum(dim=0, keepdim=True)).float()
    spread = torch.zeros(pixels, keys)
    for key in range(keys):
        end = min((key + 1) * ratio, tokens)
        spread[key * ratio * stride : min(end * stride, pixels), key] = 1
    return spread / spread.sum(dim=0, keepdim=True).clamp(min=1)
