"""A program of torch.export in a .pt2 archive."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from srattn.export.formats import Runner
from srattn.export.formats.archive import read_stamp as read_stamp
from srattn.export.formats.archive import stamp as stamp
from srattn.export.formats.archive import without_code

NEEDS: tuple[str, ...] = ()


def write(program: str, target: str, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> None:
    shutil.copyfile(program, target)


def open_file(path: Path, threads: int | None = None) -> Runner:
    module = torch.export.load(without_code(path)).module()
    return runner_of(module)


def runner_of(module: object) -> Runner:
    """A callable of torch as a runner."""

    def run(images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            found = module(images)  # type: ignore[operator]
        return list(found) if isinstance(found, tuple | list) else [found]

    return run
