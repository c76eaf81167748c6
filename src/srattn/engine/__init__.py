"""Training, resuming and prediction: `train(config)`, `load_run(path)`, `classify(run, ...)`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srattn.engine.config import TrainConfig as TrainConfig
    from srattn.engine.interrupt import Interrupted as Interrupted
    from srattn.engine.predict import Prediction as Prediction
    from srattn.engine.predict import classify as classify
    from srattn.engine.run import RunResult as RunResult
    from srattn.engine.run import train as train
    from srattn.engine.weights import LoadedRun as LoadedRun
    from srattn.engine.weights import load_run as load_run

_PUBLIC = {
    "Interrupted": "interrupt",
    "LoadedRun": "weights",
    "Prediction": "predict",
    "RunResult": "run",
    "TrainConfig": "config",
    "classify": "predict",
    "load_run": "weights",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
