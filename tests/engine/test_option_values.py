"""Values within `--model_options` and `--head_options`, refused before data is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from srattn.engine.config import TrainConfig
from srattn.engine.defaults import resolve
from srattn.engine.start import SET_BY_TRAINING, check_size
from srattn.errors import SrattnError
from srattn.models import list_models
from srattn.models.option_values import check_values
from srattn.models.registry import model_options, variant

LIST = "a list of which each is"


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("pvt_v2_b0", {"depths": 2}, f"depths takes {LIST} a whole number above 0, got 2"),
        ("pvt_v2_b0", {"depths": [1, 0, 1, 1]}, "got [1, 0, 1, 1]"),
        ("pvt_v2_b0", {"depths": [1.5, 1, 1, 1]}, "depths takes"),
        ("pvt_v2_b0", {"embed_dims": [-8, 8, 8, 8]}, "embed_dims takes"),
        ("pvt_v2_b0", {"mlp_ratios": [4, 4, 4, float("nan")]}, f"mlp_ratios takes {LIST} a number above 0"),
        ("pvt_v2_b0", {"linear": "yes"}, "linear takes true or false, got 'yes'"),
        ("pvt_v2_b0", {"pool_size": "x"}, "pool_size takes a whole number above 0"),
        ("pvt_v2_b0", {"proj_drop_rate": 1.5}, "proj_drop_rate takes a number from 0 to below 1, got 1.5"),
        ("pvt_v2_b0", {"sr_ratios": [[8, 4, 2], 4, 2, 1]}, "a whole number above 0 or a list of 2 whole numbers"),
        ("twins_svt_small", {"window_sizes": 7}, "window_sizes takes"),
        ("cmt_ti", {"stem_depth": -1}, "stem_depth takes a whole number from 0 up, got -1"),
        ("p2t_tiny", {"pool_ratios": [1, 2, 3, 4]}, f"pool_ratios takes {LIST} {LIST} a number above 0"),
    ],
)
def test_values_of_a_model(model: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SrattnError) as error:
        check_size(resolve(TrainConfig(model=model, model_options=options)))
    assert str(error.value).startswith("--model_options.") and words in str(error.value)


@pytest.mark.parametrize(
    ("task", "head", "options", "words"),
    [
        ("segment", "upernet", {"scales": 3}, f"scales takes {LIST} a whole number above 0, got 3"),
        ("segment", "segformer", {"hidden": "x"}, "hidden takes a whole number above 0, got 'x'"),
        ("segment", "unet", {"widths": [8, "8"]}, "widths takes"),
        ("segment", None, {"projection_norm": 3}, "projection_norm takes true or false"),
        ("detect", "fcos", {"convs": -1}, "convs takes a whole number from 0 up"),
        ("detect", "mask_rcnn", {"mask_size": 0}, "mask_size takes a whole number above 0"),
        ("depth", None, {"max_depth": "far"}, "max_depth takes a number above 0, got 'far'"),
        ("pose", "simcc", {"split": [2]}, "split takes a number above 0"),
    ],
)
def test_values_of_a_head(tmp_path: Path, task: str, head: str | None, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SrattnError) as error:
        check_size(resolve(TrainConfig(data=str(tmp_path), task=task, head=head, head_options=options)))
    assert str(error.value).startswith("--head_options.") and words in str(error.value)


def test_lists_of_another_length_are_told(tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match=r"depths has 3"):
        check_size(resolve(TrainConfig(model="pvt_v2_b0", model_options={"depths": [1, 1, 1]})))


def test_what_models_are_made_of_is_taken() -> None:
    for name in list_models():
        options = {option: value for option, value in model_options(name).items() if option not in SET_BY_TRAINING}
        check_values("--model_options", variant(name).family, options)


def test_pairs_and_defaults() -> None:
    for options in ({"sr_ratios": [[8, 4], 4, (2, 2), 1]}, {"sr_ratios": None}, {"mlp_ratios": (4, 3.5, 4, 4)}):
        check_size(resolve(TrainConfig(size=32, model="pvt_v2_b0", model_options=options)))
