"""Numbers that make any model of the registry small enough for a test."""

SMALL = {"embed_dims": (8, 16, 20, 32), "num_heads": (1, 2, 2, 4), "depths": (1, 1, 2, 1), "num_classes": 5}

# Where a family cannot take these numbers, or has more lists of one number a stage; by the beginning of its names.
BY_FAMILY: dict[str, dict[str, object]] = {
    "cmt_": {"stem_channels": 8, "fc_dim": 48},
    "cvt_": {"mlp_ratios": (2, 2, 2, 2), "sr_ratios": (2, 2, 2, 1)},  # of three stages as published
    "shunted_": {"num_heads": (2, 2, 2, 4)},  # two ratios share the heads evenly
}


def small_numbers(name: str) -> dict[str, object]:
    """Options that make the model of this name small."""
    own = next((numbers for prefix, numbers in BY_FAMILY.items() if name.startswith(prefix)), {})
    return {**SMALL, **own}
