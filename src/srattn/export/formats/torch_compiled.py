"""A program compiled ahead of time by AOTInductor: machine code for the machine that made it, in a .pt2 archive."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from srattn.errors import SrattnError
from srattn.export.formats import Runner
from srattn.export.formats.archive import read_stamp as read_stamp
from srattn.export.formats.archive import stamp as stamp
from srattn.export.formats.torch_program import runner_of

NEEDS: tuple[str, ...] = ()
TRUST = "SRATTN_TRUST_COMPILED"


def write(program: str, target: str, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> None:
    loaded = torch.export.load(program)
    torch._inductor.aoti_compile_and_package(loaded, package_path=target, inductor_configs={"freezing": True})


def open_file(path: Path, threads: int | None = None) -> Runner:
    """Loads the machine code, which can do anything that this process can.

    Raises:
        SrattnError: the environment does not say that the file is trusted.
    """
    if os.environ.get(TRUST, "0") in ("", "0"):
        raise SrattnError(f"{path} is machine code, which can do anything: if it is your own, set {TRUST}=1")
    return runner_of(torch._inductor.aoti_load_package(str(path)))
