"""Models by name: parameter counts, options, and errors with the nearest match."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import srattn
from srattn import SrattnError
from srattn.models import build_model, list_models, register_model
from srattn.models.registry import _variants, count_parameters, registered_name
from srattn.models.weights import WEIGHTS
from tests.models.small import SMALL

# As published, to the last one.
PARAMETERS = {
    "pvt_tiny": 13_229_288,
    "pvt_small": 24_485_864,
    "pvt_medium": 44_208_104,
    "pvt_large": 61_369_320,
    "pvt_v2_b0": 3_666_760,
    "pvt_v2_b1": 14_009_000,
    "pvt_v2_b2": 25_362_856,
    "pvt_v2_b2_li": 22_553_512,
    "pvt_v2_b3": 45_238_696,
    "pvt_v2_b4": 62_556_072,
    "pvt_v2_b5": 81_956_008,
}


@pytest.mark.parametrize("name", list_models("pvt*"))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert count_parameters(build_model(name, device="meta")) == PARAMETERS[name]


def test_every_published_size_is_registered() -> None:
    assert set(PARAMETERS) <= set(list_models())
    assert list_models("pvt_v2_b2*") == ["pvt_v2_b2", "pvt_v2_b2_li"]
    assert list_models(["pvt_t*", "pvt*b5"]) == ["pvt_tiny", "pvt_v2_b5"]
    assert list_models("resnet*") == []
    shown = repr(list_models())
    assert ast.literal_eval(shown) == list_models() and max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", list_models("pvt*"))
def test_a_config_survives_json_and_rebuilds_the_model(name: str, features_only: bool) -> None:
    model = build_model(name, **SMALL, features_only=features_only)
    config = json.loads(json.dumps(model.config))
    again = srattn.create_model(**config)
    assert [(n, p.shape) for n, p in again.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]
    assert again.config == config


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pvt_v2_b9", {}, "no model 'pvt_v2_b9'; did you mean 'pvt_v2_b"),
        ("pvt_v2_b0", {"sr_ratio": (1, 1, 1, 1)}, "no option 'sr_ratio'; did you mean 'sr_ratios'"),
        ("pvt_v2_b0", {"embed_dims": (8, 16, 32)}, "differ in length: embed_dims has 3"),
        ("pvt_v2_b0", {"embed_dims": (9, 15, 20, 32)}, "num_heads must divide dim"),
        ("pvt_v2_b0", {"edge": "crop"}, "no edge policy 'crop'"),
        ("pvt_v2_b0", {"out_indices": (1, 2)}, "set features_only=True"),
        ("pvt_v2_b0", {"features_only": True, "out_indices": (1, 4)}, "indices are -4 to 3"),
        ("pvt_tiny", {"sr_ratios": (8, 4, 2, 2)}, "class_token=False"),
        ("pvt_tiny", {"linear": True}, "no option 'linear'"),
        ("pvt_v2_b0", {"num_classes": 5.0}, r"num_classes is a whole number, got 5\.0: give an int"),
        ("pvt_v2_b0", {"num_classes": True}, r"num_classes is a whole number, got True"),
        ("pvt_v2_b0", {"num_classes": "5"}, r"num_classes is a whole number, got '5'"),
        ("pvt_v2_b0", {"in_chans": np.float64(3)}, r"in_chans is a whole number, got np\.float64\(3\.0\)"),
        ("pvt_v2_b0", {"img_size": (64, 64.0)}, r"img_size is a whole number, got 64\.0"),
    ],
)
def test_what_cannot_be_built_says_why(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        build_model(name, device="meta", **options)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("pvt_v2_b0.in1k", "pvt_v2_b0"),
        ("timm/pvt_v2_b0.in1k", "pvt_v2_b0"),
        ("hf-hub:timm/twins_svt_base.in1k", "twins_svt_base"),
        ("hf_hub:timm/mvitv2_tiny.fb_in1k", "mvitv2_tiny"),
        ("mit_b0.in1k", "mit_b0"),
        ("nvidia/mit-b0", "mit_b0"),
        ("pvt_tiny.in1k", "pvt_tiny"),
    ],
)
def test_a_name_of_published_weights_is_their_model(name: str, model: str) -> None:
    assert registered_name(name) == model
    assert build_model(name, device="meta").config == build_model(model, device="meta").config


def test_every_row_of_weights_has_a_name() -> None:
    for row in WEIGHTS:
        assert {registered_name(n) for n in (row.repo, f"{row.model}.{row.tag}")} == {row.model}


def test_a_name_that_is_registered_is_no_tag() -> None:
    family, numbers = _variants["pvt_v2_b0"]
    register_model("pvt_v2_b0.mine", family, **numbers)
    try:
        assert build_model("pvt_v2_b0.mine", device="meta").config["name"] == "pvt_v2_b0.mine"
    finally:
        del _variants["pvt_v2_b0.mine"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pvt_v2_b0.fb_in1k", r"no weights 'pvt_v2_b0\.fb_in1k' of pvt_v2_b0; those published are pvt_v2_b0\.in1k"),
        ("mvitv2_tiny.in1k", r"those published are mvitv2_tiny\.fb_in1k"),
        ("hf-hub:someone/theirs", r"someone/theirs is no repository.*srattn\.from_pretrained.*srattn\.load_checkpoint"),
        ("pvt_v2_b9.in1k", r"no model 'pvt_v2_b9\.in1k'; did you mean 'pvt_v2_b"),
        ("timm/pvt_v2_b2li.in1k", r"did you mean 'pvt_v2_b2_li'"),
        ("cmt_tii.in1k", r"did you mean 'cmt_ti'"),
    ],
)
def test_a_name_of_no_weights_says_the_way_out(name: str, message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        build_model(name, device="meta")


def test_numbers_of_numpy_are_taken(tmp_path: Path) -> None:
    given = {key: np.array(v) if isinstance(v, int) else tuple(map(np.int64, v)) for key, v in SMALL.items()}
    more = {"in_chans": np.int64(1), "img_size": (np.int32(64), np.int64(64)), "sr_ratios": [np.int64(2)] * 4}
    model = srattn.create_model("pvt_v2_b0", **given, **more, drop_rate=np.float32(0.5))
    assert json.loads(json.dumps(model.config)) == model.config
    model.reset_classifier(np.int64(7))  # pyright: ignore[reportArgumentType]
    assert type(model.num_classes) is int and json.loads(json.dumps(model.config))["num_classes"] == 7
    srattn.save_checkpoint(model, tmp_path / "model.safetensors")
    pyramid = build_model("pvt_v2_b0", **SMALL, features_only=True, out_indices=[np.int64(0), np.int64(-1)])
    assert json.loads(json.dumps(pyramid.config))["out_indices"] == [0, 3]
    with pytest.raises(SrattnError, match=r"num_classes is a whole number, got 7\.5"):
        model.reset_classifier(7.5)  # pyright: ignore[reportArgumentType]


def test_another_package_can_register_its_own() -> None:
    family, numbers = _variants["pvt_v2_b0"]
    register_model("my_pvt", family, **numbers, mlp_ratios=(2, 2, 2, 2))
    try:
        assert "my_pvt" in list_models() and count_parameters(build_model("my_pvt")) < PARAMETERS["pvt_v2_b0"]
        with pytest.raises(SrattnError, match=r"registered already"):
            register_model("my_pvt", family)
    finally:
        del _variants["my_pvt"]


def test_device_and_dtype() -> None:
    model = build_model("pvt_v2_b0", **SMALL, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
