"""The feed-forward and its gradients in bands of rows, in torch's operators: any dtype, nothing hidden is kept.

A band is some rows of one map, or several whole maps. The 3x3 reads one row beyond what it gives: the output of a band
needs the hidden rows one beyond, its gradient those two beyond.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from srattn.ops.feed_forward import Weights


class Band(NamedTuple):
    """Maps of the batch, and rows of them."""

    maps: slice
    first: int
    last: int

    def reach(self, halo: int, height: int) -> tuple[int, int]:
        """First and last row with `halo` more on either side, within the map."""
        return max(self.first - halo, 0), min(self.last + halo, height)


def bands(batch: int, height: int, rows: int) -> Iterator[Band]:
    """All bands of a batch of maps, in order."""
    maps = max(1, rows // height)
    for start in range(0, batch, maps):
        for first in range(0, height, rows if maps == 1 else height):
            yield Band(slice(start, start + maps), first, min(first + rows, height))


def banded_forward(x: Tensor, w: "Weights", relu: bool, rows: int) -> Tensor:
    """x (B, H, W, in) to (B, H, W, out)."""
    out = x.new_empty(*x.shape[:3], w.fc2.shape[0])
    for band in bands(x.shape[0], x.shape[1], rows):
        low, high = band.reach(int(w.taps is not None), x.shape[1])
        hidden = _hidden(x[band.maps, low:high], w, relu)
        hidden = _mix(hidden, w)[:, band.first - low : band.last - low]
        out[band.maps, band.first : band.last] = F.linear(F.gelu(hidden), w.fc2, w.fc2_bias)
    return out


def banded_backward(x: Tensor, dy: Tensor, w: "Weights", relu: bool, rows: int) -> list[Tensor | None]:
    """Gradients of x and of every weight, None for those that are absent; sums over bands are in float32 at least."""
    dx, one = torch.empty_like(x, memory_format=torch.contiguous_format), int(w.taps is not None)
    sums = [None if t is None else torch.zeros_like(t, dtype=_sum_type(t)) for t in w]
    d_fc1, d_fc1_bias, d_taps, d_taps_bias, d_fc2, d_fc2_bias = sums
    for band in bands(x.shape[0], x.shape[1], rows):
        (low2, high2), (low, high) = band.reach(2 * one, x.shape[1]), band.reach(one, x.shape[1])
        seen = slice(band.first - low, band.last - low)  # the band itself within the rows low..high
        hidden = _hidden(x[band.maps, low2:high2], w, relu)
        mixed = _mix(hidden, w)[:, low - low2 : high - low2]
        wide = dy[band.maps, low:high]
        d = torch.ops.aten.gelu_backward(wide @ w.fc2, mixed)
        tokens, own = x[band.maps, band.first : band.last].flatten(0, 2), wide[:, seen].flatten(0, 2)
        _add(d_fc2, own.T @ F.gelu(mixed[:, seen]).flatten(0, 2))
        _add(d_fc2_bias, own.sum(0))
        if w.taps is not None:
            near = hidden[:, low - low2 : high - low2]
            d = _unmix(d, near, w.taps, seen, d_taps, d_taps_bias)
            d = d.masked_fill_(near[:, seen] <= 0, 0.0) if relu else d
        elif relu:
            d = d.masked_fill_(hidden <= 0, 0.0)
        d = d.flatten(0, 2)
        _add(d_fc1, d.T @ tokens)
        _add(d_fc1_bias, d.sum(0))
        dx[band.maps, band.first : band.last] = (d @ w.fc1).view(dx[band.maps, band.first : band.last].shape)
    return [dx, *(None if s is None or t is None else s.to(t.dtype) for s, t in zip(sums, w, strict=True))]


def _hidden(x: Tensor, w: "Weights", relu: bool) -> Tensor:
    hidden = F.linear(x, w.fc1, w.fc1_bias)
    return F.relu_(hidden) if relu else hidden


def _mix(hidden: Tensor, w: "Weights") -> Tensor:
    """The depthwise 3x3, zeros beyond what is given; the identity where there is none."""
    if w.taps is None:
        return hidden
    out = F.conv2d(hidden.permute(0, 3, 1, 2), w.taps, w.taps_bias, padding=1, groups=w.taps.shape[0])
    return out.permute(0, 2, 3, 1)


def _unmix(d: Tensor, near: Tensor, taps: Tensor, seen: slice, d_taps: Tensor | None, d_bias: Tensor | None) -> Tensor:
    """From the gradient of the convolution's output, rows around `seen`, to that of its input within `seen`."""
    # A convolution with the taps turned around is several times quicker than torch's backward of the input.
    back = F.conv2d(d.permute(0, 3, 1, 2), taps.flip(2, 3), padding=1, groups=taps.shape[0])
    d = d.clone()
    d[:, : seen.start] = 0
    d[:, seen.stop :] = 0
    channels, ones = taps.shape[0], [1, 1]
    _, by_taps, by_bias = torch.ops.aten.convolution_backward(
        *(d.permute(0, 3, 1, 2), near.permute(0, 3, 1, 2), taps, [channels], ones, ones, ones),
        *(False, [0, 0], channels, [False, True, True]),
    )
    _add(d_taps, by_taps)
    _add(d_bias, by_bias)
    return back.permute(0, 2, 3, 1)[:, seen].contiguous()


def _sum_type(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _add(total: Tensor | None, part: Tensor) -> None:
    if total is not None:
        total.add_(part)
