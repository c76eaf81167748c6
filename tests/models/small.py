"""Numbers that make any model of the registry small enough for a test."""

SMALL = {"embed_dims": (8, 16, 20, 32), "num_heads": (1, 2, 2, 4), "depths": (1, 1, 2, 1), "num_classes": 5}
