"""A model whose answers are known without computing: the class is the grey level, the vector is the colour."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.data.preprocess import Preprocess
from srattn.engine.weights import LoadedRun


class Levels(nn.Module):
    """Counts the sizes of its batches, sleeps `delay` seconds in each, and waits while `closed` is set."""

    config = {"name": "levels"}  # noqa: RUF012

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.delay, self.batches = delay, []
        self.open = threading.Event()
        self.open.set()
        self.fails = False

    def forward_features(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        self.open.wait(30)
        if self.fails:
            raise RuntimeError("secret words of /the/inside")
        time.sleep(self.delay)
        return images

    def forward_head(self, images: Tensor, pre_logits: bool = False) -> Tensor:
        return images.mean(dim=(2, 3)).round()

    def forward(self, images: Tensor) -> Tensor:
        levels = self.forward_head(self.forward_features(images)).mean(dim=1).round().long()
        return 50 * F.one_hot(levels, 256).float()


def levels_run(delay: float = 0.0) -> LoadedRun:
    """As `load_run` gives it: classes "0" to "255"."""
    preprocess = Preprocess(size=(8, 8), mean=(0.0,) * 3, std=(1 / 255,) * 3, fit="squash")
    classes = [str(level) for level in range(256)]
    return LoadedRun(cast(Any, Levels(delay).eval()), classes, preprocess, {}, Path("levels"))
