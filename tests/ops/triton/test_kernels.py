"""The kernels themselves, in Triton's interpreter: forward, all gradients, odd sizes, masks, bias, every precision.

A result may be twice as far from float64 as plain torch in the same precision (see `srattn.bench.gpu_check`).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.ops.triton.interpreted import CASES, OTHERS
from tests.ops.triton.interpreter import ask

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def wrong(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is wrong with each case."""
    return ask("tests.ops.triton.interpreted", root, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_interpreted_kernel_agrees_with_float64(case: str, wrong: dict[str, list[str]]) -> None:
    assert wrong[case] == []
