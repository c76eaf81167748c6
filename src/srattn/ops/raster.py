"""Means over runs of consecutive tokens of a map laid out in raster order (Next-ViT), and the edge policy there."""

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.errors import SrattnError


def run_count(tokens: int, run: int, edge: str) -> int:
    """Runs of `run` tokens: ceil under `pad`, where the last may be shorter; floor under `floor`.

    Raises:
        SrattnError: under `error`, when tokens are left over; under `floor`, when there is not one whole run.
    """
    if edge == "pad":
        return (tokens + run - 1) // run
    if edge == "error" and tokens % run:
        raise SrattnError(f"runs of {run} do not divide {tokens} tokens: resize or pad the input, or use edge='pad'")
    if tokens < run:
        raise SrattnError(f"{tokens} tokens are no run of {run}, edge='floor' leaves no keys: use edge='pad'")
    return tokens // run


def run_means(x: Tensor, run: int, edge: str, mask: Tensor | None = None) -> Tensor:
    """(B, N, C) to the means of its runs (B, M, C), over valid tokens alone where mask (B, N) is given.

    A last run that is shorter is the mean of what is left.
    """
    run_count(x.shape[1], run, edge)  # refuses what cannot be
    if mask is None:
        return _means(x, run, edge)
    share = _means(mask.unsqueeze(-1).to(x.dtype), run, edge)
    return _means(x.masked_fill(~mask.unsqueeze(-1), 0.0), run, edge) / share.clamp(min=1 / run)


def run_sums(x: Tensor, run: int, edge: str) -> Tensor:
    """(B, N) to the sums of its runs (B, M)."""
    starts = torch.arange(run_count(x.shape[1], run, edge), device=x.device) * run
    return _means(x.unsqueeze(-1), run, edge).squeeze(-1) * (x.shape[1] - starts).clamp(max=run)


def _means(x: Tensor, run: int, edge: str) -> Tensor:
    return F.avg_pool1d(x.transpose(1, 2), run, run, ceil_mode=edge == "pad").transpose(1, 2)
