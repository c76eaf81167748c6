"""A model's numbers from the shapes of its tensors: whoever builds with them gets those shapes again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import srattn
from srattn.convert.infer import infer_config

FOUR = {
    "embed_dims": (8, 16, 24, 48),
    "num_heads": (1, 2, 3, 4),
    "depths": (1, 2, 1, 3),
    "mlp_ratios": (3, 1.5, 8, 2.6),
}
ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "pvt": ("pvt_tiny", {**FOUR, "sr_ratios": (4, 2, 3, 1), "img_size": (64, 96), "in_chans": 2}),
    "pvt_v2": ("pvt_v2_b0", {**FOUR, "sr_ratios": (5, 3, 2, 1), "num_classes": 0}),
    "pvt_v2 linear": ("pvt_v2_b2_li", FOUR),
    "mit": ("mit_b0", {**FOUR, "sr_ratios": (8, 3, 2, 1), "in_chans": 1}),
    "twins": ("twins_pcpvt_small", {**FOUR, "sr_ratios": (6, 3, 2, 1)}),
    "p2t": ("p2t_tiny", FOUR),
    "cvt": ("cvt_13", {"embed_dims": (8, 16, 32), "num_heads": (1, 2, 4), "depths": (2, 1, 3), "sr_ratios": (4, 2, 3)}),
    "cmt": (
        "cmt_ti",
        {**FOUR, "embed_dims": (8, 16, 24, 64), "sr_ratios": (4, 3, 2, 1), "stem_channels": 10, "qk_ratio": 2},
    ),
    "shunted": ("shunted_tiny", {**FOUR, "embed_dims": (16, 32, 64, 128), "num_heads": (2, 4, 8, 16)}),
}


def _shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


@pytest.mark.parametrize("case", ODD)
def test_odd_numbers_come_back(case: str) -> None:
    name, numbers = ODD[case]
    model = srattn.create_model(name, device="meta", **numbers)
    found = infer_config(model.state_dict(), case.split()[0], numbers["num_heads"])
    again = srattn.create_model(name, device="meta", **found.config)
    assert _shapes(again) == _shapes(model)
    for key in numbers.keys() & {"embed_dims", "depths", "sr_ratios", "in_chans", "num_classes"}:
        value = found.config[key]
        assert (tuple(value) if isinstance(value, list) else value) == numbers[key], key


@pytest.mark.parametrize("dim", [3, 25, 46, 50, 100, 255, 1500, 2047])
def test_every_hidden_width_comes_back(dim: int) -> None:
    """Also those that the nearest decimal misses: 25 * 1.16 is 28.999... to a computer."""
    for hidden in range(dim // 2 + 1, 5 * dim, 1 if dim < 1000 else 7):
        state = {
            "stages.0.blocks.0.mlp.fc1.weight": torch.empty(hidden, dim, device="meta"),
            "stages.0.patch_embed.proj.weight": torch.empty(dim, 3, 7, 7, device="meta"),
        }
        (ratio,) = infer_config(state, "mit", [1]).config["mlp_ratios"]
        assert int(dim * ratio) == hidden
