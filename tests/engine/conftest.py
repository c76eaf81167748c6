"""A model so small that a run over the digits takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from srattn.engine import TrainConfig, train

TINY: dict[str, Any] = {
    "model": "pvt_v2_b0",
    "model_options": {
        "stem_stride": 1,
        "embed_dims": [8, 8, 8, 8],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 1],
        "mlp_ratios": [1, 1, 1, 1],
        "sr_ratios": [4, 2, 1, 1],
    },
    "size": 8,
    "batch_size": 256,
    "threads": 1,
    "epochs": 2,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Options of `TrainConfig`."""
    return TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(TrainConfig(**TINY, out=str(folder)))
    return folder
