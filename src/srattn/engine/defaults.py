"""What a run takes where the user leaves the choice: by the kind of data."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from srattn.data.index import part_called
from srattn.data.reader import absolute, is_built_in
from srattn.engine.config import ResolvedConfig, TrainConfig

# 0.27 million parameters; 99.7 to 100 % of the held-out digits (seeds 0 to 2) in 40 seconds on one core.
DIGITS: dict[str, Any] = {
    "size": 16,
    "channels": 1,
    "model": "pvt_v2_b0",
    "model_options": {
        "stem_stride": 1,
        "embed_dims": [16, 32, 64, 96],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 3],
        "mlp_ratios": [4, 4, 4, 4],
        "sr_ratios": [4, 2, 1, 1],
    },
    "augment": "affine",
    "epochs": 28,
    "lr": 2e-3,
    "drop_path_rate": 0.0,
    # So small a model gains little from a second thread, and one computes alike on every machine, busy or not.
    "threads": 1,
    "num_workers": 0,
}
# A photo folder from scratch: small enough for a CPU to show progress in minutes; larger sizes and models by option.
FOLDER: dict[str, Any] = {
    "size": 128,
    "channels": 3,
    "model": "pvt_v2_b0",
    "model_options": {},
    "augment": "crop,flip",
    "epochs": 30,
    "lr": 1e-3,
    "drop_path_rate": 0.1,
}


def resolve(config: TrainConfig) -> ResolvedConfig:
    """Fills what is None. The options of the default model apply to that model alone.

    Without a model, weights to start from bring theirs, with its options, and the size and channels of its images.

    Raises:
        SrattnError: `data` is neither a known name nor an existing path, or there are no weights to start from.
    """
    digits = is_built_in(config.data)
    defaults = dict(DIGITS if digits else FOLDER)
    if config.model is None and config.init is not None:
        defaults |= _of_weights(config.init)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun's processes share the machine
    defaults.setdefault("threads", cores)
    defaults.setdefault("num_workers", min(cores, 8))
    values = dataclasses.asdict(config)
    base = defaults.pop("model_options") if config.model is None else {}
    defaults.pop("model_options", None)
    values.update({name: default for name, default in defaults.items() if values[name] is None})
    values["model_options"] = {**base, **values["model_options"]}
    values["eval_size"] = values["eval_size"] or values["size"]
    values["data"] = absolute(config.data)
    if config.val is not None and config.val != "split" and part_called(config.val) is None:
        values["val"] = absolute(config.val)
    return ResolvedConfig(**values)


def _of_weights(source: str) -> dict[str, Any]:
    """The model of `source` and what it sees, as defaults."""
    from srattn.engine.open_model import open_model
    from srattn.engine.start import SET_BY_TRAINING

    found = open_model(source)
    options = {name: value for name, value in found.model.config.items() if name not in SET_BY_TRAINING | {"name"}}
    return {
        "model": found.model.config["name"],
        "model_options": options,
        "size": max(found.preprocess.size),
        "channels": found.preprocess.channels,
    }
