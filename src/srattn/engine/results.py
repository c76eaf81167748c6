"""What result.json says of a run: its figures, and where they come from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from typing import Any

import torch

from srattn.engine.trainer import Trainer
from srattn.version import __version__

_PACKAGES = ("torch", "kornia", "torchmetrics", "faster-coco-eval", "pillow", "scikit-learn", "numpy", "safetensors")


def make_result(trainer: Trainer) -> dict[str, Any]:
    """Final figures, size of the job, versions and machine; plain values."""
    assert trainer.evaluation is not None
    config, data, position, world = trainer.config, trainer.loader.data, trainer.position, trainer.world
    history, best = position.history, position.best(f"val_{trainer.task.headline}")
    return {
        "task": config.task,
        "headline": trainer.task.headline,
        **trainer.evaluation.figures,
        "data": config.data,
        "model": config.model,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "image_size": config.eval_size,
        "classes": data.classes,
        "train_images": len(data.train),
        "val_images": len(data.val),
        "skipped_images": len(data.skipped),
        "skipped": data.skipped,
        "lost_images": len(position.lost),
        "lost": position.lost,
        "epochs": position.epoch,
        "best_epoch": None if best is None else best + 1,
        "ended": position.ended or "epochs",
        "steps_left_out": len(position.skipped),
        "steps": int(history[-1]["step"]),  # an epoch may have ended within
        "seed": config.seed,
        "seconds": round(position.seconds_before(), 3),
        "loader_share": round(sum(r["loader_share"] * r["seconds"] for r in history) / _seconds(history), 4),
        "precision": config.precision,
        "processes": world.size,
        "distributed": world.kind,
        **trainer.evaluation.details,
        "versions": versions(),
        "machine": machine(trainer.device),
    }


def _seconds(history: list[dict[str, float]]) -> float:
    return max(sum(record["seconds"] for record in history), 1e-9)


def versions() -> dict[str, str]:
    """Of Python, of this package and of those that the numbers depend on."""
    found = {"python": platform.python_version(), "srattn": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware, without names of hosts or users."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    facts: dict[str, Any] = {
        "system": platform.system(),
        "processor": str(capabilities.get("cpu_name") or platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts
