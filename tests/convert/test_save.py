"""save_checkpoint: every layout written, read back bit for bit, whole or not at all."""

import json
import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import srattn
from srattn.convert import convert_state_dict, detect_layout
from srattn.convert.tensor_file import write_tensors

SMALL = {"embed_dims": (16, 32, 40, 64), "depths": (1, 1, 2, 1), "num_classes": 10}


def build(name="pvt_v2_b0", **options: Any) -> Any:
    extra = {"img_size": 64} if name == "pvt_tiny" else {}
    model = srattn.create_model(name, **{**SMALL, **extra, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand_like(parameter) - 0.5)
    return model


def as_origin(model, layout):
    """The model with the epsilons and the edge policy of a layout's code, so that nothing is to be warned of."""
    if layout in ("transformers", "mmdet"):
        model.set_norm_eps(1e-6, 1e-6, 1e-6)
    model.set_edge("floor")
    return model


CASES = [
    ("pvt_v2_b0", {}, "official"),
    ("pvt_v2_b0", {}, "timm"),
    ("pvt_v2_b0", {}, "transformers"),
    ("pvt_v2_b0", {"num_classes": 0}, "mmdet"),
    ("pvt_v2_b0", {"linear": True}, "official"),
    ("pvt_v2_b0", {"linear": True}, "timm"),
    ("pvt_v2_b0", {"linear": True}, "transformers"),
    ("pvt_v2_b0", {"qkv_bias": False}, "official"),
    ("pvt_v2_b0", {"qkv_bias": False}, "transformers"),
    ("pvt_v2_b0", {"sr_ratios": ((8, 4), (4, 2), 2, 1)}, "official"),
    ("pvt_tiny", {}, "official"),
    ("pvt_tiny", {}, "transformers"),
    ("pvt_v2_b0", {}, "srattn"),
    ("pvt_tiny", {"class_token": False}, "srattn"),
]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize(("name", "options", "layout"), CASES)
def test_written_and_read_back_bit_for_bit(name, options, layout, suffix, tmp_path):
    if layout == "transformers":  # a file alone says nothing of the heads; its folder does
        options = {**options, "num_heads": (1, 2, 5, 8)}
    model = as_origin(build(name, **options), layout)
    path = srattn.save_checkpoint(model, tmp_path / f"weights{suffix}", layout=layout)
    assert os.listdir(tmp_path) == [path.name]
    again = srattn.create_model(name, **{**SMALL, **({"img_size": 64} if name == "pvt_tiny" else {}), **options})
    report = srattn.load_checkpoint(again, path)
    assert report.layout == layout and not report.missing and not report.unexpected
    assert_equal(again, model)


def assert_equal(left, right):
    theirs = right.state_dict()
    assert set(left.state_dict()) == set(theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in left.state_dict().items())
    assert (left.norm_eps, left.edge) == (right.norm_eps, right.edge)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_own_files_carry_what_rebuilds_the_model(suffix, tmp_path):
    model = build(stem_stride=2, edge="error")
    model.set_norm_eps(1e-4, 1e-3, 1e-2)
    path = srattn.save_checkpoint(model, tmp_path / f"own{suffix}", metadata={"classes": ["a", "b"]})
    if suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            described = json.loads(file.metadata()["srattn"])
    else:
        described = json.loads(torch.load(path, weights_only=True)["srattn"])
    assert described["classes"] == ["a", "b"] and described["version"] == srattn.__version__
    again: Any = srattn.create_model(**described["model"])
    assert again.edge == "error"
    again.set_edge("floor")
    report = srattn.load_checkpoint(again, path)
    assert (report.edge, report.norm_eps) == ("error", {"block": 1e-4, "reduction": 1e-3, "patch": 1e-2})
    assert_equal(again, model)


def test_own_state_dict_leaves_epsilons_and_edge_alone():
    model, other = build(edge="error"), build()
    model.set_norm_eps(1e-4, 1e-3, 1e-2)
    srattn.load_checkpoint(model, other.state_dict())
    assert model.edge == "error" and model.norm_eps["reduction"] == 1e-3


def test_own_weights_of_other_heads_are_refused(tmp_path):
    path = srattn.save_checkpoint(build(), tmp_path / "own.safetensors")
    with pytest.raises(srattn.SrattnError, match=r"have num_heads \[1, 2, 5, 8\], the model has \[1, 1, 1, 1\]"):
        srattn.load_checkpoint(build(num_heads=(1, 1, 1, 1)), path)


def test_feature_pyramids_are_written(tmp_path):
    pyramid = build(features_only=True, out_indices=(1, 2))
    path = srattn.save_checkpoint(pyramid, tmp_path / "pyramid.safetensors")
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["srattn"])
    again = srattn.create_model(**described["model"])
    srattn.load_checkpoint(again, path)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(again.eval()(image), pyramid(image), strict=True))


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("official", lambda m: None, "edge policy 'floor', the model 'pad'"),
        ("official", lambda m: m.set_norm_eps(1e-6, 1e-6, 1e-6), r"reduction 1e-06 -> 1e-05, patch 1e-06 -> 1e-05"),
        ("timm", lambda m: m.set_norm_eps(1e-5, 1e-5, 1e-5), r"block 1e-05 -> 1e-06"),
        ("transformers", lambda m: None, r"reduction 1e-05 -> 1e-06"),
        ("mmdet", lambda m: None, r"no place for head\.weight, head\.bias"),
    ],
)
def test_what_the_targets_code_does_otherwise_is_warned_of(layout, change, message, tmp_path):
    model = build()
    change(model)
    with pytest.warns(UserWarning, match=message):
        srattn.save_checkpoint(model, tmp_path / "weights.pth", layout=layout)
    assert detect_layout(torch.load(tmp_path / "weights.pth", weights_only=True)) == (layout, "pvt_v2")


def test_stem_stride_and_absent_class_token_are_warned_of(tmp_path):
    model = as_origin(build("pvt_tiny", stem_stride=2, class_token=False), "official")
    with pytest.warns(UserWarning, match=r"stem_stride 4, the model 2; its classifier needs a class token"):
        srattn.save_checkpoint(model, tmp_path / "weights.pth", layout="official")


def test_nothing_is_warned_of_where_the_numbers_agree(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        srattn.save_checkpoint(as_origin(build(), "timm"), tmp_path / "weights.pth", layout="timm")


@pytest.mark.parametrize(
    ("options", "layout", "message"),
    [
        ({"linear": True}, "mmdet", "no linear"),
        ({"qkv_bias": False}, "mmdet", "qkv_bias=False"),
        ({"sr_ratios": ((8, 4), 4, 2, 1)}, "transformers", "not square"),
        ({"linear": True, "pool_size": 5}, "transformers", "pool_size=5"),
        ({}, "keras", "unknown layout 'keras'"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(options, layout, message, tmp_path):
    with pytest.raises(srattn.SrattnError, match=message):
        srattn.save_checkpoint(build(**options), tmp_path / "weights.pth", layout=layout)
    assert not os.listdir(tmp_path)


def test_families_a_layout_has_not(tmp_path):
    with pytest.raises(srattn.SrattnError, match="timm layout has no pvt; layouts with pvt: srattn, official"):
        srattn.save_checkpoint(build("pvt_tiny"), tmp_path / "weights.pth", layout="timm")
    with pytest.raises(srattn.SrattnError, match="class_token=False"):
        srattn.save_checkpoint(build("pvt_tiny", class_token=False), tmp_path / "folder", layout="transformers")
    with pytest.raises(srattn.SrattnError, match="square position grids"):
        srattn.save_checkpoint(build("pvt_tiny", img_size=(64, 128)), tmp_path / "folder", layout="transformers")
    assert not os.listdir(tmp_path)


def test_paths(tmp_path):
    model = as_origin(build(), "official")
    with pytest.raises(srattn.SrattnError, match=r"unknown suffix '\.h5'"):
        srattn.save_checkpoint(model, tmp_path / "weights.h5")
    with pytest.raises(srattn.SrattnError, match="metadata can stand in the srattn layout alone"):
        srattn.save_checkpoint(model, tmp_path / "weights.pth", layout="official", metadata={"a": 1})
    path = tmp_path / "weights.pth"
    path.write_bytes(b"precious")
    with pytest.raises(srattn.SrattnError, match="exists and is not overwritten"):
        srattn.save_checkpoint(model, path)
    assert path.read_bytes() == b"precious"
    srattn.save_checkpoint(model, path, overwrite=True)
    assert_equal_after_load(path, model)


def assert_equal_after_load(path, model):
    again = build()
    srattn.load_checkpoint(again, path)
    assert_equal(again, model)


@pytest.mark.parametrize(
    ("layout", "name"), [("srattn", "w.safetensors"), ("official", "w.pth"), ("transformers", "folder")]
)
def test_a_failed_write_leaves_what_was_there(layout, name, tmp_path, monkeypatch):
    model, path = as_origin(build(), layout), tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "precious").write_text("kept")
    else:
        path.write_text("kept")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("srattn.convert.save.write_tensors", full)
    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        srattn.save_checkpoint(model, path, layout=layout, overwrite=True)
    assert os.listdir(tmp_path) == [name]
    assert (path / "precious" if name == "folder" else path).read_text() == "kept"


@pytest.mark.parametrize(("name", "options"), [("pvt_v2_b0", {}), ("pvt_v2_b0", {"linear": True}), ("pvt_tiny", {})])
def test_transformers_folder_round_trips(name, options, tmp_path):
    model = as_origin(build(name, **options), "transformers")
    folder = srattn.save_checkpoint(model, tmp_path / "hub", layout="transformers")
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    again = build(name, **options)
    srattn.load_checkpoint(again, folder)
    assert_equal(again, model)


@pytest.mark.parametrize(("name", "options"), [("pvt_v2_b0", {}), ("pvt_v2_b0", {"linear": True}), ("pvt_tiny", {})])
def test_transformers_itself_loads_the_folder(name, options, tmp_path):
    auto = pytest.importorskip("transformers").AutoModelForImageClassification
    model = as_origin(build(name, **options), "transformers")
    srattn.save_checkpoint(model, tmp_path / "hub", layout="transformers")
    theirs, told = auto.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs.eval()(images).logits, rtol=1e-5, atol=1e-4)


def test_tensor_files_are_those_of_safetensors(tmp_path):
    tensors = {
        "wide": torch.randn(3, 4, dtype=torch.float64),
        "view": torch.randn(4, 6).t(),
        "half": torch.randn(3).half(),
        "brain": torch.randn(5).bfloat16(),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 2),
        'näme "quoted"': torch.arange(3, dtype=torch.int8),
    }
    write_tensors(tmp_path / "ours.safetensors", tensors, {"format": "pt", "note": "ü"})
    found = load_file(tmp_path / "ours.safetensors")
    assert set(found) == set(tensors)
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "ü"}
    with pytest.raises(srattn.SrattnError, match=r"'z': .*complex64"):
        write_tensors(tmp_path / "z.safetensors", {"z": torch.zeros(1, dtype=torch.complex64)}, {})


def test_numpy_is_not_needed(tmp_path):
    """The bare installation has torch and safetensors, and converts."""
    script = """
import sys, warnings
sys.modules["numpy"] = None
warnings.simplefilter("ignore")  # torch tells that it misses numpy
import srattn
from srattn.cli.main import main
model = srattn.create_model("pvt_v2_b0", num_classes=2, embed_dims=(16, 32, 40, 64))
srattn.save_checkpoint(model, sys.argv[1] + "/a.safetensors")
assert srattn.load_checkpoint(model, sys.argv[1] + "/a.safetensors").layout == "srattn"
raise SystemExit(main(["convert", sys.argv[1] + "/a.safetensors", sys.argv[1] + "/b.safetensors", "--to", "timm"]))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert detect_layout(load_file(tmp_path / "b.safetensors")) == ("timm", "pvt_v2")


def test_converted_tensors_share_no_memory():
    state = convert_state_dict(build().state_dict(), "official")
    back = convert_state_dict(state, "srattn")
    state["block1.0.attn.kv.weight"].zero_()
    assert back["stages.0.blocks.0.attn.k.weight"].abs().sum() > 0
