"""The kernels themselves, in Triton's interpreter: forward, all gradients, odd sizes, masks, bias, every precision.

A result may be twice as far from float64 as plain torch in the same precision (see `srattn.bench.gpu_check`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.triton.interpreted import CASES, OTHERS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def wrong(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is wrong with each case, from one process in which Triton interprets."""
    paths = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
    here = {"TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    here["SRATTN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    command = [sys.executable, "-m", "tests.ops.triton.interpreted"]
    done = subprocess.run(command, cwd=root, env=os.environ | here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_interpreted_kernel_agrees_with_float64(case: str, wrong: dict[str, list[str]]) -> None:
    assert wrong[case] == []
