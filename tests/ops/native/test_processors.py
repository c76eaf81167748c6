"""The kernels for processors that the tests may not be run on: with AVX2, with neither, and with AMX."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from srattn.ops import native as kernels
from srattn.ops.native.build import processor_flags

ROOT = Path(__file__).parents[3]
BLOCKS = ["tests/layers/test_native.py", "tests/layers/test_convolved_kernels.py"]
OF_BFLOAT16 = "bfloat16 or half or products or units or several_images"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not kernels.available(), reason=f"no compiled kernels here: {kernels.why_not()}"),
]


def passed_on(processor: str, cache: Path, *options: str) -> tuple[int, str]:
    """How many tests of the kernels passed in a process of its own, and what it said."""
    env = {**os.environ, "SRATTN_TEST_PROCESSOR": processor, "SRATTN_CACHE": str(cache)}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "tests.ops.native.processors", "-p", "no:xdist"]
    done = subprocess.run([*command, *options], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    found = re.search(r"(\d+) passed", done.stdout)
    return int(found[1]) if found else 0, done.stdout


@pytest.mark.parametrize(("processor", "files"), [("avx2", BLOCKS), ("any", BLOCKS[:1])])
def test_less_than_this_one_may_have(processor: str, files: list[str], tmp_path: Path) -> None:
    if not {"avx2", "fma"} <= processor_flags():
        pytest.skip("this processor has not even AVX2")
    passed, said = passed_on(processor, tmp_path / "cache", "-k", "not bfloat16 and not half", *files)
    assert passed > 100 and "no compiled kernels here" not in said


def test_bfloat16_and_units_for_matrices(tmp_path: Path) -> None:
    """More is done in these than in float32, and most processors have none."""
    if not {"avx512f", "avx512bw", "avx512vl"} <= processor_flags():
        pytest.skip("they are emulated in AVX-512, which this processor does not have")
    passed, said = passed_on("amx", tmp_path / "cache", "-k", OF_BFLOAT16, *BLOCKS, "tests/ops/native/test_bfloat16.py")
    assert passed > 250 and "SKIPPED" not in said
