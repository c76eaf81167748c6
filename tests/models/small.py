"""Numbers that make any model of the registry small enough for a test."""

from typing import Any

from srattn.models import build_model

SMALL = {"embed_dims": (8, 16, 20, 32), "num_heads": (1, 2, 2, 4), "depths": (1, 1, 2, 1), "num_classes": 5}

# Where a family cannot take these numbers, or has more lists of one number a stage; by the beginning of its names.
BY_FAMILY: dict[str, dict[str, Any]] = {
    "cmt_": {"stem_channels": 8, "fc_dim": 48},
    "cvt_": {"mlp_ratios": (2, 2, 2, 2), "sr_ratios": (2, 2, 2, 1)},  # of three stages as published
    "shunted_": {"num_heads": (2, 2, 2, 4)},  # two ratios share the heads evenly
}


def small_numbers(name: str) -> dict[str, Any]:
    """Options that make the model of this name small."""
    own = next((numbers for prefix, numbers in BY_FAMILY.items() if name.startswith(prefix)), {})
    return {**SMALL, **own}


def short_numbers(name: str) -> dict[str, Any]:
    """The same with two stages of one block, the first and the last: torch's symbolic sizes take long to trace."""
    config = build_model(name, device="meta", **small_numbers(name)).config
    stages = len(config["embed_dims"])
    each = {option: (v[0], v[-1]) for option, v in config.items() if isinstance(v, list | tuple) and len(v) == stages}
    return {**small_numbers(name), **each, "depths": (1, 1)}
