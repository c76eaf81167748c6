"""What a training step keeps for backward: in words, stage by stage, and counted in bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from srattn.layers.feed_forward import FeedForward
from srattn.ops.feed_forward import check_memory, words

if TYPE_CHECKING:
    from srattn.models.backbone import Backbone


def set_memory(model: Backbone, memory: str) -> None:
    """Sets "fast" or "lean" for every feed-forward of a model, as `Backbone.set_memory` says."""
    model.memory = check_memory(memory)
    for module in model.modules():
        if isinstance(module, FeedForward):
            module.memory = memory
    for stage in model.iter_stages():
        stage.lean = memory == "lean" and not any(isinstance(m, FeedForward) for m in stage.modules())


def describe_training(model: Backbone, size: int | tuple[int, int], batch: int = 1) -> list[str]:
    """One line a stage: how its feed-forwards pass a training step on `batch` images of `size` pixels, and why."""
    height, width = (size, size) if isinstance(size, int) else size
    weight = next(model.parameters())
    device = "cpu" if weight.device.type == "meta" else weight.device.type
    lines = []
    for index, stage in enumerate(model.iter_stages()):
        height, width = stage.size(height, width)
        name = f"stage {index + 1}, {height}x{width}"
        parts = [m for m in stage.modules() if isinstance(m, FeedForward)]
        if stage.grad_checkpointing or stage.lean:
            lines.append(f"{name}: every block is computed again in backward")
        elif not parts:
            lines.append(f"{name}: its feed-forward is of another kind, and keeps what torch keeps")
        else:
            choice = parts[0].plan_for(height, width, batch, device=device, dtype=weight.dtype)
            lines.append(f"{name}: {words(choice, height)}")
    return lines


def saved_bytes(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for backward while `run` computes a loss, parameters and buffers not counted.

    Each piece of memory is counted once, whoever shares it.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive = []  # what is freed could be given out again under the same address

    def count(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        run()
    return sum(kept.values())
