"""Attention rollout over a pyramid whose keys are reduced in space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from srattn.explain.attention import AttentionMap, axis_spread, keys_to_tokens, map_of, query_token
from srattn.explain.capture import Captured, backbone_of, capture, check_point, one_image


def rollout(model: nn.Module, image: Tensor, point: tuple[int, int] | None = None) -> Tensor:
    """How much of the model's last tokens comes from each pixel, if attention and residuals alone moved it.

    Attention rollout (Abnar and Zuidema, arXiv:2005.00928, section 3) multiplies A = (W + I) / 2 over all blocks, W
    being the attention averaged over heads. Here W goes from N queries to M reduced keys, which are no tokens. The
    weight of each key is therefore spread evenly over the tokens of the stage that it was reduced from, W S of (N, N)
    with S of (M, N); its rows sum to one as those of W do. Between two stages a token is an even share of the tokens in
    its patch, and at last of the pixels. Where queries are pooled (MViTv2), so is I.

    The product is taken from the last block to the first, as a row vector: no matrix of N x N is formed. As in the
    paper, feed-forwards, convolutions and the values' sizes are left out, so this is a summary of where attention goes,
    not of what the answer depends on.

    Args:
        image: (C, H, W), normalised as the model expects.
        point: the pixel (x, y) whose token of the last block is asked; by default what the classifier reads: the class
            token where there is one, else the mean of all.

    Returns:
        (H, W), not negative. It sums to one less what stays in the class token, which comes from no pixel, and what
        goes to padding.
    """
    backbone = backbone_of(model)
    batch = one_image(backbone, image)
    size = (batch.shape[2], batch.shape[3])
    point = None if point is None else check_point(point, size)
    captured = capture(backbone, batch, "all")
    share: Tensor | None = None
    token = batch.new_zeros(1, 1)  # what lies in a class token
    for index in range(len(captured) - 1, -1, -1):
        attention = map_of(captured[index])
        if share is None:
            share, token = _start(attention, point)
        share, token = _back(attention, share, token)
        if index == 0 or captured[index - 1].stage != attention.stage:
            share = _to_stage_before(share, captured, index, size)
    assert share is not None
    return share[0]


def _start(attention: AttentionMap, point: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Where the row vector begins: on the grid of the last block (1, H, W), and in its class token (1, 1)."""
    share = attention.probabilities.new_zeros(1, *attention.grid)
    token = share.new_zeros(1, 1)
    if point is not None:
        row, column = query_token(attention, (point[1], point[0]))
        share[0, row, column] = 1
    elif attention.class_token:
        token += 1
    else:
        share += 1 / share.numel()
    return share, token


def _back(attention: AttentionMap, share: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Through one block: what (1, H, W) of its queries is on the tokens that enter it, and in the class token."""
    weights = attention.probabilities.mean(1)  # (1, N, M)
    queries = share.flatten(1)
    if attention.class_token:
        queries = torch.cat([token, queries], 1)
    keys = (queries.unsqueeze(1) @ weights).squeeze(1)  # (1, M)
    attended = keys_to_tokens(attention, keys[:, int(attention.class_token) :])
    through = _down(share, attention.seen, attention.query_stride)
    if attention.class_token:
        token = (token + keys[:, :1]) / 2
    return (through + attended) / 2, token


def _to_stage_before(share: Tensor, captured: list[Captured], index: int, size: tuple[int, int]) -> Tensor:
    """Through a stage's embedding, to the tokens of the stage before or to the pixels."""
    here = captured[index]
    if index == 0:
        return _down(share, size, (here.stride, here.stride))
    before = captured[index - 1]
    grid = before.attn.query_size(*_tokens_of(before))
    ratio = here.stride // before.stride if grid != here.grid else 1
    return _down(share, grid, (ratio, ratio))


def _tokens_of(captured: Captured) -> tuple[int, int]:
    tokens = captured.args[0] if captured.args else captured.kwargs["x"]
    return tokens.shape[1], tokens.shape[2]


def _down(share: Tensor, grid: tuple[int, int], ratio: tuple[int, int]) -> Tensor:
    """Each value of (1, H, W) spread evenly over its block of `ratio` in a finer grid."""
    if share.shape[1:] == grid:
        return share
    rows, columns = (axis_spread(grid[i], 1, grid[i], share.shape[1 + i], ratio[i], False) for i in (0, 1))
    return rows.to(share) @ share @ columns.to(share).T
