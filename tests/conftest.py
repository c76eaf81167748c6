"""What every test may rely on: the same seed, one thread, a headless plot, and the data beside the repository."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")

# No test depends on the time that it takes, nor on what an earlier run happened to find.
settings.register_profile("srattn", deadline=None, derandomize=True)
settings.load_profile("srattn")

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))  # for what several rooms of tests share: scenes


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository; a test that asks for it is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "goldens").is_dir():
        pytest.skip(f"needs the reference data in {folder}, which is not there")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests compute on tiny tensors, where on a busy machine threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["matrix units", "vectors"])
def products(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the kernels multiply bfloat16 in; skips where the processor has no such instructions."""
    from srattn.ops.native.library import available, use_matrix_units, why_not

    if not available("bfloat16"):
        pytest.skip(f"no products of bfloat16 here: {why_not('bfloat16')}")
    wanted = request.param == "matrix units"
    if use_matrix_units(wanted) != wanted:
        pytest.skip("this processor has no units for products of matrices, or the system keeps them")
    yield request.param
    use_matrix_units(True)


@pytest.fixture(scope="module")  # no longer: its loop of events would be in the way of others
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    from tests.in_browser import started

    yield from started()


@pytest.fixture(scope="session")
def mask_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of squares and discs with their masks, split into train/ and val/; tests only read it."""
    from scenes import write_masks

    return write_masks(tmp_path_factory.mktemp("masks") / "shapes")


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes with boxes and masks, in the form of COCO; tests only read it."""
    from scenes import write_coco

    return write_coco(tmp_path_factory.mktemp("coco") / "shapes")


@pytest.fixture(scope="session")
def box_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes with their boxes, in the form of Pascal VOC; tests only read it."""
    from scenes import write_boxes

    return write_boxes(tmp_path_factory.mktemp("boxes") / "shapes")
