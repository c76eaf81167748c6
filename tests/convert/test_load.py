"""load_checkpoint: wrappers, files, adaptation to the model, refusals that leave the model as it was."""

import json
import pickle
import zipfile
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import srattn
from srattn.convert import convert_state_dict, detect_layout
from srattn.convert.source import read_source

SMALL = {"embed_dims": (16, 32, 40, 64), "depths": (1, 1, 2, 1), "num_classes": 10}


def build(name="pvt_v2_b0", **options: Any) -> Any:
    extra = {"img_size": 64} if name.startswith("pvt_t") else {}
    return srattn.create_model(name, **{**SMALL, **extra, **options}).eval()


def official(name="pvt_v2_b0", **options):
    """The official layout's state of a model with weights that are nobody's defaults."""
    model = build(name, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand_like(parameter) - 0.5)
    return convert_state_dict(model.state_dict(), "official")


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}, model.norm_eps, model.edge


def assert_unchanged(model, before):
    state, eps, edge = before
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert (model.norm_eps, model.edge) == (eps, edge)


def assert_holds(model, state):
    """The model holds exactly the tensors of an official state."""
    expected = convert_state_dict(state, "srattn")
    found = model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# -- wrappers ----------------------------------------------------------------------------------------------------------


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s},
        lambda s: {"model": s, "epoch": 7, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        lambda s: {"state_dict": {"model": s}},
        lambda s: {"model_ema": s},
        lambda s: {"model": s, "model_ema": {key: value + 1 for key, value in s.items()}},
        lambda s: prefixed("module.", s),
        lambda s: prefixed("backbone.", s),
        lambda s: {"state_dict": prefixed("module.model.", s)},
        lambda s: prefixed("_orig_mod.module.", s),
        lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.", s)},
        lambda s: {"state_dict": {**prefixed("backbone.", s), "neck.lateral.weight": torch.zeros(2)}},
    ],
)
def test_wrappers_are_looked_through(wrap):
    state = official()
    wrapped = wrap(state)
    assert detect_layout(wrapped) == ("official", "pvt_v2")
    model = build()
    report = srattn.load_checkpoint(model, wrapped)
    assert_holds(model, state)
    assert not report.missing and len(report.loaded) == len(model.state_dict())


@pytest.mark.parametrize("prefix", ["encoder.", "model.encoder.", "backbone.encoder.", "model.backbone.encoder."])
def test_transformers_encoders_without_their_model_are_known(prefix):
    state = official()
    renamed = {
        key.replace("pvt_v2.encoder.", prefix): value
        for key, value in convert_state_dict(state, "transformers").items()
        if not key.startswith("classifier")
    }
    assert detect_layout(renamed) == ("transformers", "pvt_v2")
    model = build(num_classes=0)
    srattn.load_checkpoint(model, renamed)
    assert torch.equal(model.state_dict()["stages.3.norm.weight"], state["norm4.weight"])


def test_keys_of_surrounding_parts_are_reported():
    state = {**prefixed("backbone.", official()), "bbox_head.conv.weight": torch.zeros(2, 2)}
    report = srattn.load_checkpoint(build(), state)
    assert report.unexpected == ("bbox_head.conv.weight",)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"a": 1},
        {"weight": torch.zeros(2), "bias": torch.zeros(2)},
        {"head.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2), "norm.weight": torch.zeros(2)},
        {"state_dict": {"epoch": 3}},
    ],
)
def test_what_is_no_checkpoint_is_refused(state):
    with pytest.raises(srattn.SrattnError, match=r"no state dict|none of the layouts"):
        srattn.load_checkpoint(build(), state)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_wrong_model_is_refused_with_key_shapes_and_the_one_that_fits():
    state = convert_state_dict(srattn.create_model("pvt_v2_b1", device="meta").state_dict(), "official")
    model = srattn.create_model("pvt_v2_b0")
    before = snapshot(model)
    with pytest.raises(srattn.SrattnError) as caught:
        srattn.load_checkpoint(model, state)
    message = str(caught.value)
    assert "'stages.0.patch_embed.proj.weight'" in message and "'patch_embed1.proj.weight'" in message
    assert "(64, 3, 7, 7)" in message and "(32, 3, 7, 7)" in message
    assert message.endswith("these weights fit pvt_v2_b1")
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("theirs", "model", "fits"),
    [
        ("pvt_tiny", "pvt_v2_b1", "pvt_tiny"),
        ("pvt_v2_b2_li", "pvt_v2_b2", "pvt_v2_b2_li"),
        ("pvt_small", "pvt_tiny", "pvt_small"),
    ],
)
def test_the_model_that_fits_is_named(theirs, model, fits):
    state = convert_state_dict(srattn.create_model(theirs, device="meta").state_dict(), "transformers")
    with pytest.raises(srattn.SrattnError, match=rf"fit {fits}$"):
        srattn.load_checkpoint(srattn.create_model(model, device="meta"), state)


def test_a_width_of_nobodys_is_described():
    with pytest.raises(
        srattn.SrattnError, match=r"are a pvt_v2 with embed_dims=\(16, 32, 40, 64\), depths=\(1, 1, 2, 1\)"
    ):
        srattn.load_checkpoint(srattn.create_model("pvt_v2_b0", device="meta"), official())


@pytest.mark.parametrize("at", ["block1.0.attn.q.weight", "block4.0.mlp.fc2.bias", "norm4.weight"])
def test_a_late_mismatch_changes_nothing(at):
    state = official()
    state[at] = torch.zeros(3, 3)
    model = build()
    before = snapshot(model)
    with pytest.raises(srattn.SrattnError, match=at.replace(".", r"\.")):
        srattn.load_checkpoint(model, state)
    assert_unchanged(model, before)


@pytest.mark.parametrize("broken", [torch.zeros(3), torch.zeros(7, 16), torch.zeros(())])
def test_halves_that_cannot_be_split_are_refused(broken):
    state = official()
    state["block1.0.attn.kv.weight"] = broken
    with pytest.raises(srattn.SrattnError, match=r"attn\.(kv|k)\.weight"):
        srattn.load_checkpoint(build(), state)


def test_missing_and_unexpected_keys():
    state = official()
    gone = state.pop("block2.0.norm1.bias")
    model = build()
    kept = model.state_dict()["stages.1.blocks.0.norm1.bias"].clone()
    assert not torch.equal(kept, gone)
    with pytest.raises(srattn.SrattnError, match=r"have no 'stages\.1\.blocks\.0\.norm1\.bias' \(32,\)"):
        srattn.load_checkpoint(model, state)
    report = srattn.load_checkpoint(model, state, strict=False)
    assert report.missing == ("stages.1.blocks.0.norm1.bias",)
    assert torch.equal(model.state_dict()["stages.1.blocks.0.norm1.bias"], kept)

    strange = {**official(), "block1.0.extra.weight": torch.zeros(2)}
    with pytest.raises(srattn.SrattnError, match=r"no key 'block1\.0\.extra\.weight'"):
        srattn.load_checkpoint(model, strange)
    assert srattn.load_checkpoint(model, strange, strict=False).unexpected == ("block1.0.extra.weight",)


def test_one_half_of_a_pair_is_refused():
    state = convert_state_dict(official(), "srattn")
    del state["stages.0.blocks.0.attn.v.weight"]
    with pytest.raises(
        srattn.SrattnError, match=r"k\.weight' is present without 'stages\.0\.blocks\.0\.attn\.v\.weight'"
    ):
        convert_state_dict(state, "timm")


def test_numbers_of_another_kind_are_refused():
    state = {**official(), "norm4.weight": torch.ones(64, dtype=torch.int64)}
    model = build()
    before = snapshot(model)
    with pytest.raises(srattn.SrattnError, match=r"norm\.weight' holds torch\.int64"):
        srattn.load_checkpoint(model, state)
    assert_unchanged(model, before)


BREAKS = {
    "gone": lambda t: None,
    "scalar": lambda t: t.flatten()[0],
    "empty": lambda t: t[:0],
    "longer": lambda t: torch.cat([t, t]),
    "flat": lambda t: t.flatten(),
    "one more dimension": lambda t: t.unsqueeze(-1),
    "whole numbers": lambda t: t.long(),
    "no numbers": lambda t: t.to("meta"),
}


@settings(max_examples=60)
@given(
    data=st.data(), how=st.sampled_from(sorted(BREAKS)), layout=st.sampled_from(["srattn", "official", "transformers"])
)
def test_whatever_is_broken_one_error_tells_and_nothing_changes(data, how, layout):
    name = data.draw(st.sampled_from(["pvt_v2_b0", "pvt_tiny"]))
    state = convert_state_dict(official(name), layout)
    key = data.draw(st.sampled_from(sorted(state)))
    broken = BREAKS[how](state[key])
    if broken is None:
        del state[key]
    elif broken.shape == state[key].shape and broken.dtype == state[key].dtype and not broken.is_meta:
        return  # a vector is flat already
    else:
        state[key] = broken
    model = build(name)
    before = snapshot(model)
    with pytest.raises(srattn.SrattnError):
        srattn.load_checkpoint(model, state)
    assert_unchanged(model, before)


def test_model_and_option_must_be_known():
    with pytest.raises(srattn.SrattnError, match="no srattn backbone"):
        srattn.load_checkpoint(torch.nn.Linear(2, 2), official())
    with pytest.raises(srattn.SrattnError, match="did you mean 'official'"):
        srattn.load_checkpoint(build(), official(), layout="oficial")
    with pytest.raises(srattn.SrattnError, match="'load' or 'keep'"):
        srattn.load_checkpoint(build(), official(), head="drop")  # type: ignore[arg-type]
    with pytest.raises(srattn.SrattnError, match="the timm layout does not know"):
        srattn.load_checkpoint(build("pvt_tiny"), official("pvt_tiny"), layout="timm")
    with pytest.raises(srattn.SrattnError, match="meta device"):
        srattn.load_checkpoint(build(device="meta"), official())


# -- fitting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_first_convolution_is_adapted(channels):
    state = official()
    model = build(in_chans=channels)
    report = srattn.load_checkpoint(model, state)
    key = "stages.0.patch_embed.proj.weight"
    assert set(report.adapted) == {key}
    weight, theirs = model.state_dict()[key], state["patch_embed1.proj.weight"]
    if channels == 1:
        torch.testing.assert_close(weight, theirs.sum(1, keepdim=True))
    else:
        expected = torch.stack([theirs[:, i % 3] for i in range(channels)], 1) * 3 / channels
        torch.testing.assert_close(weight, expected)


def test_a_grey_image_gives_the_same_numbers_on_one_and_six_channels():
    state, image = official(), torch.randn(1, 1, 64, 64)
    outputs = []
    for channels in (1, 3, 6):
        model = build(in_chans=channels)
        srattn.load_checkpoint(model, state)
        with torch.no_grad():
            outputs.append(model(image.expand(-1, channels, -1, -1)))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs[2], outputs[1], rtol=1e-3, atol=1e-3)


def test_positions_are_resized_each_by_its_own_grid():
    state = official("pvt_tiny")
    model = build("pvt_tiny", img_size=(96, 160))
    report = srattn.load_checkpoint(model, state)
    assert report.resized == {
        "stages.0.position.weight": "16x16 -> 24x40",
        "stages.1.position.weight": "8x8 -> 12x20",
        "stages.2.position.weight": "4x4 -> 6x10",
        "stages.3.position.weight": "2x2 -> 3x5",
    }
    tokens = state["pos_embed4"][:, 1:]  # without the class token's
    grid = F.interpolate(tokens.reshape(1, 2, 2, 64).permute(0, 3, 1, 2), (3, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.stages[3].position.weight, grid.permute(0, 2, 3, 1))
    assert torch.equal(model.class_position, state["pos_embed4"][:, :1])


def test_nothing_but_positions_and_the_first_convolution_is_adapted():
    for key, told in (("patch_embed1.proj.weight", 0), ("patch_embed2.proj.weight", 1)):
        state = official()
        weight = state[key]
        state[key] = torch.cat([weight, weight], told)  # twice the channels; of the first convolution those that go out
        model = build()
        before = snapshot(model)
        with pytest.raises(srattn.SrattnError, match=rf"{key}.*is \({state[key].shape[0]}, {state[key].shape[1]}, "):
            srattn.load_checkpoint(model, state)
        assert_unchanged(model, before)


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"features_only": True}])
def test_blocks_that_a_model_without_classifier_has_not_are_refused(options):
    model = build(**options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(srattn.SrattnError, match=r"no place for 'stages\.3\.blocks\.1"):
        srattn.load_checkpoint(model, official(depths=(1, 1, 2, 2)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_relative_positions_of_another_size_are_stretched_along_their_own_axis():
    small: dict[str, Any] = {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 1, 1), "depths": (1, 1, 1, 1)}
    theirs = srattn.create_model("mvitv2_tiny", num_classes=2, img_size=(64, 96), **small)
    ours = srattn.create_model("mvitv2_tiny", num_classes=2, img_size=(96, 64), **small)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
    report = srattn.load_checkpoint(ours, theirs.state_dict())
    name = "stages.0.blocks.0.attn.position"
    assert report.resized[f"{name}.rows"] == "31 -> 47" and report.resized[f"{name}.columns"] == "47 -> 31"
    for kind, length in (("rows", 47), ("columns", 31)):
        table, found = theirs.state_dict()[f"{name}.{kind}"], ours.state_dict()[f"{name}.{kind}"]
        at = ((torch.arange(length) + 0.5) * len(table) / length - 0.5).clamp(0, len(table) - 1)
        low = at.floor().long()
        expected = torch.lerp(table[low], table[(low + 1).clamp(max=len(table) - 1)], (at - low).unsqueeze(1))
        torch.testing.assert_close(found, expected)


def test_biases_of_grids_that_no_ratio_divides_come_back():
    small: dict[str, Any] = {"embed_dims": (8, 16, 24, 64), "num_heads": (1, 2, 3, 4), "depths": (1, 1, 1, 1)}
    theirs, ours = (srattn.create_model("cmt_ti", num_classes=2, img_size=(72, 104), **small) for _ in range(2))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
    state = convert_state_dict(theirs.state_dict(), "official")
    assert state["relative_pos_a"].shape == (1, 18 * 26, 3 * 4)  # keys of 8x8 queries, those at the edges of fewer
    assert not srattn.load_checkpoint(ours, state).resized
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())


def test_positions_of_float64_keep_their_digits():
    state = {key: value.double() + 1e-12 for key, value in official("pvt_tiny").items()}
    model = build("pvt_tiny", img_size=96).double()
    srattn.load_checkpoint(model, state)
    grid = state["pos_embed1"].reshape(1, 16, 16, 16).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (24, 24), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(model.stages[0].position.weight, expected, rtol=0, atol=1e-15)


def test_positions_of_an_image_that_is_not_square_come_back():
    wide = official("pvt_tiny", img_size=(64, 128))
    assert wide["pos_embed1"].shape == (1, 16 * 32, 16)
    model = build("pvt_tiny", img_size=(64, 128))
    report = srattn.load_checkpoint(model, wide)
    assert not report.resized
    assert_holds_positions(model, wide)
    # Nothing says that 512 tokens are 16 x 32 where the model has another grid.
    with pytest.raises(srattn.SrattnError, match=r"pos_embed1': its 512 tokens are no square grid"):
        srattn.load_checkpoint(build("pvt_tiny", img_size=96), wide)


def assert_holds_positions(model, state):
    for i, stage in enumerate(model.stages):
        tokens = stage.position.weight.flatten(1, 2)
        assert torch.equal(tokens, state[f"pos_embed{i + 1}"][:, -tokens.shape[1] :])


def test_class_token_is_dropped_where_the_model_has_none():
    state = official("pvt_tiny")
    model = build("pvt_tiny", class_token=False)
    report = srattn.load_checkpoint(model, state)
    assert {"class_token", "class_position"} <= set(report.unexpected) & set(report.adapted)
    assert not report.missing
    assert_holds_positions(model, state)


def test_weights_without_class_token_are_refused_by_a_model_with_one(golden):
    oracle = golden("pvt_v1_mmdet")
    options = {"num_heads": (1, 2, 3, 4), "embed_dims": (16, 32, 48, 64)}
    with pytest.raises(srattn.SrattnError, match="build the model with class_token=False"):
        srattn.load_checkpoint(build("pvt_tiny", **options), oracle.state)
    without = build("pvt_tiny", class_token=False, **options)
    with pytest.raises(srattn.SrattnError, match=r"mmdet layout has no 'norm\.weight'.*head=\"keep\""):
        srattn.load_checkpoint(without, oracle.state)
    pyramid = srattn.create_model("pvt_tiny", features_only=True, img_size=64, **{**SMALL, **options})
    assert not srattn.load_checkpoint(pyramid, oracle.state).missing


def test_classifier_of_another_size():
    state = official()
    model = build(num_classes=3)
    before = snapshot(model)
    with pytest.raises(
        srattn.SrattnError, match=r"head\.weight' is \(10, 64\), the model's is \(3, 64\); build it with"
    ):
        srattn.load_checkpoint(model, state)
    assert_unchanged(model, before)
    choices: list[dict[str, Any]] = [{"head": "keep"}, {"strict": False}]
    for options in choices:
        report = srattn.load_checkpoint(model, state, **options)
        assert set(report.unexpected) == {"head.weight", "head.bias"}
        assert torch.equal(model.head.weight, before[0]["head.weight"])
        assert torch.equal(model.stages[0].norm.weight, state["norm1.weight"])


def test_weights_without_classifier():
    state = {key: value for key, value in official().items() if not key.startswith("head.")}
    with pytest.raises(srattn.SrattnError, match=r"no classifier \('head\.weight'\).*keep"):
        srattn.load_checkpoint(build(), state)
    assert srattn.load_checkpoint(build(), state, head="keep").missing == ("head.weight", "head.bias")


def test_model_without_classifier_leaves_it_out():
    report = srattn.load_checkpoint(build(num_classes=0), official())
    assert set(report.unexpected) == {"head.weight", "head.bias"}
    assert "left out" in report.adapted["head.weight"]


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_tiny"])
@pytest.mark.parametrize("indices", [None, (0, 2)])
def test_feature_pyramids_load_the_same_weights(name, indices):
    state, image = official(name), torch.randn(1, 3, 64, 64)
    whole = build(name, **({"class_token": False} if name == "pvt_tiny" else {}))
    srattn.load_checkpoint(whole, state)
    pyramid = build(name, features_only=True, out_indices=indices)
    report = srattn.load_checkpoint(pyramid, state)
    assert not report.missing
    with torch.no_grad():
        expected = whole.forward_intermediates(image, indices=indices, intermediates_only=True)
        maps = pyramid(image)
    assert len(maps) == (4 if indices is None else 2)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_other_dtypes_are_converted():
    state = {key: value.half() for key, value in official().items()}
    model = build(dtype=torch.bfloat16)
    srattn.load_checkpoint(model, state)
    assert model.head.weight.dtype == torch.bfloat16
    assert torch.equal(model.head.weight, state["head.weight"].to(torch.bfloat16))


# -- files -------------------------------------------------------------------------------------------------------------


class Attack:
    """A pickle of this runs code where it is loaded without care."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("protocol", ["zip", "legacy", "plain pickle"])
def test_pickled_code_is_refused(tmp_path, protocol):
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    hostile = {"state_dict": official(), "meta": Attack(mark)}
    if protocol == "plain pickle":
        path.write_bytes(pickle.dumps(Attack(mark)))
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=protocol == "zip")
    model = build()
    before = snapshot(model)
    with pytest.raises(srattn.SrattnError, match=r"weights\.pth: (holds pickled objects|not a whole)"):
        srattn.load_checkpoint(model, path)
    assert not mark.exists()
    assert_unchanged(model, before)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"not weights", b"PK\x03\x04broken", b"\xff" * 16])
def test_broken_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(srattn.SrattnError, match=rf"broken\{suffix}: not a whole"):
        srattn.load_checkpoint(build(), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_named(tmp_path, suffix):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    srattn.save_checkpoint(build(), whole)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(srattn.SrattnError, match=rf"cut\{suffix}: not a whole"):
        srattn.load_checkpoint(build(), cut)


def test_absent_and_unknown_files(tmp_path):
    with pytest.raises(srattn.SrattnError, match=r"none\.pth: no such file"):
        srattn.load_checkpoint(build(), tmp_path / "none.pth")
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(srattn.SrattnError, match=r"unknown kind of checkpoint '\.h5'"):
        srattn.load_checkpoint(build(), tmp_path / "weights.h5")
    with pytest.raises(srattn.SrattnError, match="holds none of model"):
        srattn.load_checkpoint(build(), tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(srattn.SrattnError, match="holds a list"):
        srattn.load_checkpoint(build(), tmp_path / "list.pt")


def test_sizes_are_bounded(tmp_path):
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(1000)}, plain)
    with pytest.raises(srattn.SrattnError, match="refused above 100"):
        read_source(plain, max_bytes=100)
    # Few bytes in the file, a thousand terabytes by its shape.
    expanded = tmp_path / "expanded.pth"
    torch.save({"a": torch.zeros(1).expand(2**48)}, expanded)
    with pytest.raises(srattn.SrattnError, match=r"above .* bytes at 'a'"):
        read_source(expanded)
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**6)
    with pytest.raises(srattn.SrattnError, match="unpacks to 1,000,000 bytes"):
        read_source(bomb, max_bytes=10**5)
    itself = {"a": torch.zeros(1)}
    itself |= {str(i): itself for i in range(100)}  # 100 ** 5 paths to one tensor
    torch.save(itself, tmp_path / "itself.pt")
    assert read_source(tmp_path / "itself.pt").state["a"].shape == (1,)
    with pytest.raises(srattn.SrattnError, match="more than 100,000 tensors"):
        read_source({str(i): torch.empty(0) for i in range(100_001)})
    with pytest.raises(srattn.SrattnError, match="not a dense tensor"):
        read_source({"a": torch.eye(3).to_sparse()})


def write_folder(folder, state, shards=1, **config):
    folder.mkdir(exist_ok=True)
    base = {"model_type": "pvt_v2", "num_attention_heads": [1, 2, 5, 8], "layer_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps({**base, **config}))
    keys = list(state)
    names = (
        [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)] if shards > 1 else ["model.safetensors"]
    )
    where = {}
    for i, name in enumerate(names):
        part = {key: state[key].clone() for key in keys[i::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(part, name)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_transformers_folders(tmp_path, shards):
    state = official()
    folder = write_folder(tmp_path / "hub", convert_state_dict(state, "transformers"), shards, layer_norm_eps=1e-4)
    model = build()
    report = srattn.load_checkpoint(model, folder)
    assert_holds(model, state)
    assert report.layout == "transformers" and report.origin == str(folder)
    assert model.norm_eps == {"block": 1e-4, "reduction": 1e-4, "patch": 1e-4} and model.edge == "floor"


def test_config_beside_a_weights_file_is_read(tmp_path):
    folder = write_folder(tmp_path / "hub", convert_state_dict(official(), "transformers"), layer_norm_eps=1e-4)
    model = build()
    srattn.load_checkpoint(model, folder / "model.safetensors")
    assert model.norm_eps["block"] == 1e-4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": [1, 1, 1, 1]}, r"num_attention_heads is \[1, 1, 1, 1\].*build the model with"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, config, message):
    folder = write_folder(tmp_path / "hub", convert_state_dict(official(), "transformers"), **config)
    model = build()
    before = snapshot(model)
    with pytest.raises(srattn.SrattnError, match=message):
        srattn.load_checkpoint(model, folder)
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_shards_outside_the_folder_are_refused(tmp_path, name):
    folder = write_folder(tmp_path / "hub", convert_state_dict(official(), "transformers"), shards=2)
    save_file({"a": torch.zeros(2)}, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(srattn.SrattnError, match="not in its own folder"):
        srattn.load_checkpoint(build(), folder)


def test_incomplete_shards_are_refused(tmp_path):
    folder = write_folder(tmp_path / "hub", convert_state_dict(official(), "transformers"), shards=2)
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(listed))
    with pytest.raises(srattn.SrattnError, match="'ghost' is in none of its files"):
        srattn.load_checkpoint(build(), folder)
    index.write_text("{")
    with pytest.raises(srattn.SrattnError, match=r"index\.json: not JSON"):
        srattn.load_checkpoint(build(), folder)


def test_report_reads_as_text():
    report = srattn.load_checkpoint(build("pvt_tiny", img_size=96, num_classes=0), official("pvt_tiny"))
    text = str(report)
    assert "official layout of pvt" in text and "resized 16x16 -> 24x24" in text and "head.weight: left out" in text
    assert "edge: floor" in text
