"""Gradient checkpointing of a block."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: Tensor, *context: Any) -> Tensor:
    """block(x, *context), computed again in backward instead of keeping its activations.

    Batch norms count the batch once: computing it again leaves their running statistics alone.
    """
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    # A compiler functionalises the statistics' update, which it then does not repeat, and takes no context.
    if not norms or torch.compiler.is_compiling():
        return checkpoint(block, x, *context, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _StatisticsKept(norms)

    return checkpoint(block, x, *context, use_reentrant=False, context_fn=contexts)


class _StatisticsKept(AbstractContextManager[None]):
    """Can be entered more than once, as a second backward through one graph does."""

    def __init__(self, norms: list[_BatchNorm]) -> None:
        self.norms = norms

    def __enter__(self) -> None:
        # With a momentum of 0 the statistics stay, and what autograd saves is the same as in the first pass.
        self.before = [(n.momentum, None if (c := n.num_batches_tracked) is None else c.clone()) for n in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
