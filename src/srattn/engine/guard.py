"""A loss or gradient that is no number: what is kept of it, and what is said."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from srattn.data.loader import Batch
from srattn.engine import run_folder
from srattn.engine.distributed import World


class BadStep(Exception):
    """A step whose loss or gradient is no finite number; seen alike by all processes."""

    def __init__(self, what: str, value: float, epoch: int, step: int, batch: Batch) -> None:
        super().__init__(f"the {what} is {value} in epoch {epoch + 1}, step {step + 1}")
        self.epoch, self.step, self.batch = epoch, step, batch


def check_finite(loss: float, norm: float, skips_overflow: bool) -> tuple[str, float] | None:
    """What is no number, and what it is instead; None where all is well.

    Args:
        skips_overflow: a gradient that overflows is left to the scaler of fp16.
    """
    if not math.isfinite(loss):
        return "loss", loss
    if not math.isfinite(norm) and not skips_overflow:
        return "norm of the gradients", norm
    return None


def save_bad_batch(folder: Path, bad: BadStep, number: int, names: Sequence[str], world: World) -> Path:
    """Writes the whole batch of all processes: inputs as the model got them, labels, indices, and their names.

    To be called in all processes; the first writes. The file is called by `number`, which says the how manieth step of
    the whole run it was: each bad batch has a file of its own.
    """
    from safetensors.torch import save

    parts = {"inputs": bad.batch.inputs, "labels": bad.batch.labels, "indices": bad.batch.indices}
    gathered = {name: world.gather(tensor.detach().cpu()) for name, tensor in parts.items()}
    path = folder / f"bad_batch-{number:010d}.safetensors"
    if world.first:
        state = {name: torch.cat(rows).contiguous() for name, rows in gathered.items()}
        called = [names[index] for index in state["indices"].tolist()]
        facts = {"epoch": bad.epoch + 1, "step": bad.step + 1, "reason": str(bad), "names": called}
        run_folder.write_bytes(path, save(state, metadata={"srattn": json.dumps(facts)}))
    return path
