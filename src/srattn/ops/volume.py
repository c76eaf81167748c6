"""The strided reduction of PVT on volumes (batch, depth, height, width, channels), and the edge policy there.

The formula as it stands (arXiv:2102.12122, eq. 3): each block of R_d x R_h x R_w tokens is laid end to end, which
copies the volume once, and multiplied by W^S.
"""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError
from srattn.ops.tracing import is_exporting

Triple = tuple[int, int, int]


def reduced_size(size: Triple, ratio: Triple, edge: str) -> Triple:
    """Grid of the reduced tokens: ceil under `pad`, floor under `floor`; `error` wants a multiple.

    Raises:
        SrattnError: under `error`, when the ratio does not divide the grid; under `floor`, when nothing would be left.
    """
    if edge == "pad":
        return _triple((n + r - 1) // r for n, r in zip(size, ratio, strict=True))
    if edge == "error" and any(n % r for n, r in zip(size, ratio, strict=True)):
        raise SrattnError(
            f"ratio {_by(ratio)} does not divide the grid {_by(size)}: resize or pad the input, or use edge='pad'"
        )
    if any(n < r for n, r in zip(size, ratio, strict=True)):
        raise SrattnError(
            f"grid {_by(size)} is smaller than the ratio {_by(ratio)}, edge='floor' leaves no keys: use edge='pad'"
        )
    return _triple(n // r for n, r in zip(size, ratio, strict=True))


def blocks(x: Tensor, ratio: Triple, edge: str) -> Tensor:
    """Reshape(x, R): (B, D, H, W, C) to (B, D/R_d, H/R_h, W/R_w, R_d R_h R_w C), padded or cropped as `edge` says."""
    depth, height, width = x.shape[1:4]
    grid = reduced_size((depth, height, width), ratio, edge)
    extra = [m * r - n for m, r, n in zip(grid, ratio, (depth, height, width), strict=True)]
    if edge == "pad":
        # While exporting, sizes are symbols and the branch would pin them.
        if is_exporting() or any(extra):
            x = F.pad(x, (0, 0, 0, extra[2], 0, extra[1], 0, extra[0]))
    else:
        x = x[:, : depth + extra[0], : height + extra[1], : width + extra[2]]
    for axis, r in enumerate(ratio, 1):
        x = x.unfold(axis, r, r)  # a view, also where sizes are symbols
    return x.movedim(4, -1).flatten(4)  # (B, M_d, M_h, M_w, R_d, R_h, R_w, C) before


def strided(
    x: Tensor, weight: Tensor, bias: Tensor | None, ratio: Triple, edge: str, mask: Tensor | None = None
) -> Tensor:
    """Reshape(x, R) W^S, before the norm. x (B, D, H, W, C), weight (C_out, R_d R_h R_w C), mask (B, D, H, W) or None.

    Returns (B, D/R_d, H/R_h, W/R_w, C_out).
    """
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
    return F.linear(blocks(x, ratio, edge), weight, bias)


def block_sum(x: Tensor, ratio: Triple, edge: str) -> Tensor:
    """Sums each block of (B, D, H, W) to (B, D/R_d, H/R_h, W/R_w)."""
    return blocks(x.unsqueeze(-1), ratio, edge).sum(-1)


def _triple(numbers: Iterable[int]) -> Triple:
    first, second, third = numbers
    return first, second, third


def _by(size: Triple) -> str:
    return "x".join(map(str, size))
