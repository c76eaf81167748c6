"""Checkpoints of Twins: names that timm and the authors share, mmsegmentation's, leftovers, what shapes do not tell."""

import warnings

import pytest
import torch

import srattn
from srattn.convert import convert_state_dict, detect_layout
from srattn.convert.infer import infer_config
from srattn.convert.variants import infer

GOLDENS = ["twins_pcpvt_official", "twins_pcpvt_timm", "twins_svt_timm"]
TINY = {"embed_dims": (8, 16, 20, 32), "num_heads": (1, 2, 2, 4), "depths": (2, 1, 2, 1), "num_classes": 5}


def tiny(name, **options):
    return srattn.create_model(name, **{**TINY, **options}).eval()


def same(left, right):
    return set(left) == set(right) and all(torch.equal(left[key], right[key]) for key in right)


@pytest.mark.parametrize("name", GOLDENS)
def test_timm_can_be_named_though_its_keys_are_the_authors(name, golden, parity):
    oracle = golden(name)
    assert detect_layout(oracle.state) == ("official", "twins")
    model = parity.build(oracle)
    report = srattn.load_checkpoint(model, oracle.state, layout="timm")
    assert (report.layout, report.family, report.edge) == ("timm", "twins", "floor")
    assert same(convert_state_dict(oracle.state, "timm"), oracle.state)


@pytest.mark.parametrize("name", GOLDENS)
def test_mmsegmentation_and_back(name, golden):
    backbone = {k: v for k, v in golden(name).state.items() if not k.startswith(("head.", "norm."))}
    theirs = convert_state_dict(backbone, "mmseg")
    assert detect_layout(theirs) == ("mmseg", "twins")
    assert same(convert_state_dict(theirs, "official"), backbone)
    block = "layers.0.1"
    assert torch.equal(
        theirs[f"{block}.attn.attn.in_proj_weight"],
        torch.cat([backbone["blocks.0.1.attn.q.weight"], backbone["blocks.0.1.attn.kv.weight"]]),
    )
    assert f"{block}.attn.attn.out_proj.bias" in theirs and f"{block}.ffn.layers.0.0.weight" in theirs
    if "svt" in name:
        assert theirs["layers.0.0.attn.proj.weight"].equal(backbone["blocks.0.0.attn.proj.weight"])
        assert theirs["layers.0.0.attn.qkv.weight"].equal(backbone["blocks.0.0.attn.qkv.weight"])
    with pytest.raises(srattn.SrattnError, match=r"mmseg layout has no place for 'head"):
        convert_state_dict(golden(name).state, "mmseg")


@pytest.mark.parametrize("name", ["twins_pcpvt_small", "twins_svt_small"])
@pytest.mark.parametrize("layout", ["srattn", "official", "timm", "mmseg"])
def test_every_layout_round_trips_through_a_file(name, layout, tmp_path):
    model = tiny(name, num_classes=0 if layout == "mmseg" else 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        path = srattn.save_checkpoint(model, tmp_path / "model.safetensors", layout=layout)
    other = tiny(name, num_classes=0 if layout == "mmseg" else 5)
    report = srattn.load_checkpoint(other, path, layout=layout)
    assert same({k: v for k, v in other.state_dict().items() if k in report.loaded}, model.state_dict()) or (
        layout == "mmseg" and set(report.missing) == {"norm.weight", "norm.bias"}
    )
    for key in report.loaded:
        assert torch.equal(other.state_dict()[key], model.state_dict()[key])
    eps = {"mmseg": 1e-5}.get(layout, 1e-6)
    assert other.norm_eps == {"block": eps, "reduction": 1e-5, "patch": 1e-5}


def test_mmsegmentations_norm_after_each_stage(tmp_path):
    model = tiny("twins_svt_small", norm_after_stage=True, num_classes=0)
    theirs = convert_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("norm.")}, "mmseg")
    assert {f"norm_list.{i}.weight" for i in range(4)} <= set(theirs)
    other = tiny("twins_svt_small", norm_after_stage=True, features_only=True)
    srattn.load_checkpoint(other, {"state_dict": {f"backbone.{k}": v for k, v in theirs.items()}})
    images = torch.randn(1, 3, 64, 64)
    model.set_norm_eps(1e-5, 1e-5, 1e-5)
    model.set_edge("floor")
    expected = model.forward_intermediates(images, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(other(images), expected, strict=True))
    with pytest.raises(srattn.SrattnError, match=r"no place for .*norm_list"):
        srattn.load_checkpoint(tiny("twins_svt_small", num_classes=0), theirs)
    with pytest.raises(srattn.SrattnError, match=r"timm layout of twins has no rule for 'stages.0.norm"):
        srattn.save_checkpoint(model, tmp_path / "model.pth", layout="timm")


def test_leftovers_of_the_authors_base_class_are_left_out():
    model = tiny("twins_svt_small")
    state = convert_state_dict(model.state_dict(), "official")
    state |= {f"pos_embeds.{i}": torch.zeros(1, 4, 8) for i in range(4)} | {"cls_token": torch.zeros(1, 1, 32)}
    other = tiny("twins_svt_small")
    report = srattn.load_checkpoint(other, state)
    assert set(report.unexpected) == {"cls_token", *(f"pos_embeds.{i}" for i in range(4))}
    assert same(other.state_dict(), model.state_dict())
    # Without conditional positions the embeddings would be needed: that is no Twins.
    bare = {k: v for k, v in state.items() if not k.startswith("pos_block.")}
    with pytest.raises(srattn.SrattnError, match=r"position\.dwconv"):
        srattn.load_checkpoint(other, bare)


@pytest.mark.parametrize("name", srattn.list_models("twins*"))
def test_the_variant_is_told_by_the_shapes(name):
    state = srattn.create_model(name, device="meta").state_dict()
    found, inferred = infer(state, "twins")
    assert found == name
    config = srattn.create_model(name, device="meta").config
    assert {k: config[k] for k in inferred.config} == inferred.config
    windows = "svt" in name
    assert any("window_sizes" in text for text in infer_config(state, "twins").assumed) == windows


def test_weights_of_the_other_kind_name_the_model_that_they_fit():
    state = convert_state_dict(srattn.create_model("twins_svt_small").state_dict(), "timm")
    with pytest.raises(srattn.SrattnError, match=r"these weights fit twins_svt_small"):
        srattn.load_checkpoint(srattn.create_model("twins_pcpvt_small", device="meta"), state)
    with pytest.raises(srattn.SrattnError, match=r"these weights fit twins_svt_small"):
        srattn.load_checkpoint(srattn.create_model("pvt_small", device="meta"), state)


def test_windows_of_another_size_are_refused_where_the_file_tells(tmp_path):
    path = srattn.save_checkpoint(tiny("twins_svt_small"), tmp_path / "model.safetensors")
    with pytest.raises(srattn.SrattnError, match=r"the weights have window_sizes \[7, 7, 7, 7\], the model has \[3,"):
        srattn.load_checkpoint(tiny("twins_svt_small", window_sizes=(3, 3, 3, 3)), path)


@pytest.mark.parametrize(("layout", "mask_padding"), [("timm", True), ("official", True), ("mmseg", False)])
def test_saving_says_whose_code_treats_padding_otherwise(layout, mask_padding, tmp_path):
    model = tiny("twins_svt_small", mask_padding=mask_padding, num_classes=0, edge="floor")
    if layout == "mmseg":
        model.set_norm_eps(1e-5, 1e-5, 1e-5)
    with pytest.warns(UserWarning, match=r"the padding of windows: they differ"):
        srattn.save_checkpoint(model, tmp_path / "model.pth", layout=layout)
