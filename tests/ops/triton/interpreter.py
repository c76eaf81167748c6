"""Kernels in Triton's interpreter, which has to be chosen before anything loads Triton: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path


def ask(module: str, root: Path, cache: Path) -> dict[str, list[str]]:
    """What `answer` prints when `module` is run so: by the name of each case, the words for what is wrong with it."""
    paths = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
    here = {"TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "SRATTN_CACHE": str(cache)}
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, cwd=root, env=os.environ | here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answer(cases: Iterable[str], check: Callable[[str], list[str]]) -> None:
    """Prints one JSON object for `ask`; a case that raises is wrong by its traceback."""
    assert os.environ.get("TRITON_INTERPRET") == "1"
    import torch

    torch.set_num_threads(1)
    found = {}
    for name in cases:
        try:
            found[name] = check(name)
        except Exception:
            found[name] = [traceback.format_exc(limit=-3)]
    json.dump(found, sys.stdout)
