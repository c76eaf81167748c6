"""Backbone and head in one checkpoint: read, written, taken apart, refused."""

import json
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import srattn
from srattn.cli.main import main
from srattn.convert import convert_state_dict, detect_layout
from srattn.tasks.dense import build_dense, glpn, segformer

SMALL: dict[str, Any] = {"embed_dims": (16, 32, 40, 64), "depths": (1, 1, 2, 1)}


def build(kind="segformer", **options: Any) -> Any:
    """A small whole model whose weights are nobody's defaults, with the settings of transformers."""
    make = glpn if kind == "glpn" else segformer
    numbers = {"hidden": 32, **SMALL, **options}
    model = make("mit_b0", **numbers) if kind == "glpn" else make("mit_b0", **{"num_classes": 7, **numbers})
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) * 0.5 + (0.1 if "running_var" in name else -0.2))
    model.backbone.set_norm_eps(1e-5, 1e-5, 1e-5)
    model.backbone.set_edge("floor")
    return model.eval()


fresh = build  # random each time


def assert_same(left, right):
    assert set(left) == set(right)
    for key, tensor in right.items():
        assert left[key].dtype == tensor.dtype and torch.equal(left[key], tensor), key


CASES = [
    ("segformer", {}, "official"),
    ("segformer", {}, "transformers"),
    ("segformer", {"projection_norm": True}, "mmseg"),
    ("segformer", {}, "srattn"),
    ("glpn", {}, "transformers"),
    ("glpn", {"max_depth": 80.0}, "srattn"),
]


@pytest.mark.parametrize(("kind", "options", "layout"), CASES)
def test_written_and_read_back_bit_for_bit(kind, options, layout, tmp_path):
    model = build(kind, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the epsilons, which are transformers'
        path = srattn.save_checkpoint(model, tmp_path / "whole.safetensors", layout=layout)
    again = fresh(kind, **options)
    if kind == "glpn" and layout == "srattn":
        again.head.max_depth = 1.0
    report = srattn.load_checkpoint(again, path)
    assert (report.layout, report.family) == (layout, "mit") and not report.missing and not report.unexpected
    assert len(report.loaded) == len(model.state_dict())
    assert_same(again.state_dict(), model.state_dict())
    if kind == "glpn":
        assert again.head.max_depth == (80.0 if layout == "srattn" else 10.0)
    state = load_file(path)
    assert detect_layout(state) == (layout, "mit")
    assert_same(convert_state_dict(convert_state_dict(state, "srattn"), layout), state)


def older(state):
    """The names of transformers before version 5."""
    pairs = [
        (r"segformer.stages.", r"segformer.encoder.block."),
        (".attention.q_proj.", ".attention.self.query."),
        (".attention.k_proj.", ".attention.self.key."),
        (".attention.v_proj.", ".attention.self.value."),
        (".attention.o_proj.", ".attention.output.dense."),
        (".attention.sequence_reduction.sequence_reduction.", ".attention.self.sr."),
        (".attention.sequence_reduction.layer_norm.", ".attention.self.layer_norm."),
        (".layernorm_before.", ".layer_norm_1."),
        (".layernorm_after.", ".layer_norm_2."),
        (".mlp.fc1.", ".mlp.dense1."),
        (".mlp.fc2.", ".mlp.dense2."),
        (".linear_projections.", ".linear_c."),
    ]
    renamed = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[:2] == ["segformer", "stages"] and parts[3] == "patch_embeddings":
            key = f"segformer.encoder.patch_embeddings.{parts[2]}." + ".".join(parts[4:])
        elif parts[:2] == ["segformer", "stages"] and parts[3] == "layer_norm":
            key = f"segformer.encoder.layer_norm.{parts[2]}.{parts[4]}"
        else:
            for new, old in pairs:
                key = key.replace(new, old)
            key = key.replace(".blocks.", ".")
        renamed[key] = tensor
    return renamed


def test_the_older_names_are_read_and_the_newer_written(golden):
    state = golden("segformer_seg_hf").state
    old = older(state)
    assert "segformer.encoder.block.0.0.attention.self.sr.weight" in old and "decode_head.linear_c.0.proj.bias" in old
    assert not any(".stages." in key for key in old) and len(old) == len(state)
    assert detect_layout(old) == ("transformers", "mit")
    assert_same(convert_state_dict(old, "transformers"), state)
    encoder = {key.removeprefix("segformer."): value for key, value in old.items() if key.startswith("segformer.")}
    assert detect_layout(encoder) == ("transformers", "mit")
    mixed = {**old, **{key: value for key, value in state.items() if "stages.0." in key}}
    with pytest.raises(srattn.SrattnError, match="are both"):
        convert_state_dict(mixed, "official")


def test_a_backbone_takes_its_part_and_leaves_the_head(golden):
    for name, head in (("segformer_seg_hf", "decode_head."), ("glpn_depth_hf", ("decoder.", "head."))):
        state = golden(name).state
        for wrapped in (state, {"state_dict": {f"module.{key}": value for key, value in state.items()}}):
            model: Any = srattn.create_model("mit_b0", num_classes=0, **SMALL)
            report = srattn.load_checkpoint(model, wrapped)
            assert len(report.loaded) == len(model.state_dict())
            assert set(report.unexpected) == {key for key in state if key.startswith(head)}
        pyramid = srattn.create_model("mit_b0", features_only=True, out_indices=(0, 1), **SMALL)
        srattn.load_checkpoint(pyramid, state)
    with pytest.raises(srattn.SrattnError, match="no classifier"):
        srattn.load_checkpoint(srattn.create_model("mit_b0", num_classes=7, **SMALL), state)


def test_official_segformer_with_its_unused_classifier():
    model = build()
    state = convert_state_dict(model.state_dict(), "official")
    assert "backbone.block1.0.attn.sr.weight" in state and "decode_head.linear_c4.proj.weight" in state
    state = {
        **state,
        "decode_head.conv_seg.weight": torch.zeros(7, 32, 1, 1),
        "decode_head.conv_seg.bias": torch.zeros(7),
    }
    report = srattn.load_checkpoint(fresh(), {"state_dict": state, "meta": {"epoch": 160}})
    assert report.unexpected == ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
    # They concatenate from the coarsest map, we from the finest.
    theirs = state["decode_head.linear_fuse.conv.weight"]
    assert torch.equal(model.head.fuse.weight[:, :32], theirs[:, 96:, 0, 0])


def test_a_backbones_own_weights_and_a_new_head():
    backbone = srattn.create_model("mit_b0", num_classes=9, **SMALL)
    state = convert_state_dict(backbone.state_dict(), "official")
    model = fresh()
    head = {key: value.clone() for key, value in model.head.state_dict().items()}
    with pytest.raises(srattn.SrattnError, match=r'have no segformer head; keep the model.s own with head="keep"'):
        srattn.load_checkpoint(model, state)
    report = srattn.load_checkpoint(model, state, head="keep")
    assert report.adapted["head"] == "the model's own head is kept"
    assert_same(model.head.state_dict(), head)
    assert torch.equal(model.backbone.stages[3].norm.weight, backbone.stages[3].norm.weight)


REFUSED = [
    (
        "segformer",
        {"num_classes": 4},
        {},
        r"classifier.weight' .* is \(7, 32\), the model's is \(4, 32\); .*num_classes=7",
    ),
    (
        "segformer",
        {"hidden": 16},
        {},
        r"'head.projections.0.weight'.*; these weights fit a segformer head with .*hidden=32",
    ),
    ("segformer", {"projection_norm": True}, {}, r"have no 'head.projection_norms.0.weight'.*projection_norm=False"),
    ("segformer", {}, {"projection_norm": True}, r"have no 'head.projections.0.bias'.*projection_norm=True"),
]


@pytest.mark.parametrize(("kind", "mine", "theirs", "message"), REFUSED)
def test_heads_of_other_numbers_are_refused_and_nothing_changes(kind, mine, theirs, message):
    state = convert_state_dict(build(kind, **theirs).state_dict(), "srattn")
    model = fresh(kind, **mine)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(srattn.SrattnError, match=message):
        srattn.load_checkpoint(model, state)
    assert_same(model.state_dict(), before)


def test_heads_of_another_kind_are_refused():
    with pytest.raises(srattn.SrattnError, match="have a glpn head, the model has a segformer head"):
        srattn.load_checkpoint(fresh(), build("glpn").state_dict())


def test_fine_tuning_on_other_classes_keeps_the_rest_of_the_head():
    source, model = build(), fresh(num_classes=4)
    classifier = model.head.classifier.weight.detach().clone()
    report = srattn.load_checkpoint(model, source.state_dict(), strict=False)
    assert torch.equal(model.head.classifier.weight, classifier)
    assert torch.equal(model.head.fuse.weight, source.head.fuse.weight)
    assert "classifier of another size (7, 32)" in report.adapted["head.classifier.weight"]


def test_layouts_without_such_a_head_say_so(tmp_path):
    whole = build()
    for layout, model, message in (
        ("timm", whole, "timm layout has no mit"),
        ("mmseg", whole, "no rule for 'head.projections.0.bias'"),
        ("official", build("glpn"), "official layout has no glpn head beside mit"),
        ("transformers", build(projection_norm=True), "no rule for 'head.projection_norms.0.weight'"),
        ("transformers", segformer("pvt_v2_b0", 7, hidden=32, **SMALL), "no segformer head beside pvt_v2"),
    ):
        with pytest.raises(srattn.SrattnError, match=message):
            srattn.save_checkpoint(model, tmp_path / "x.safetensors", layout=layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backbone", ["pvt_v2_b0", "pvt_tiny"])
def test_any_backbone_with_a_head_has_our_own_layout(backbone, tmp_path):
    extra = {"img_size": 64} if backbone == "pvt_tiny" else {}
    model = segformer(backbone, 7, hidden=32, **SMALL, **extra)
    path = srattn.save_checkpoint(model, tmp_path / "own.safetensors")
    again = segformer(backbone, 7, hidden=32, **SMALL, **extra)
    assert not srattn.load_checkpoint(again, path).missing
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("kind", "auto"), [("segformer", "SegformerForSemanticSegmentation"), ("glpn", "GLPNForDepthEstimation")]
)
def test_the_command_line_converts_whole_models(kind, auto, tmp_path, golden, capsys):
    oracle = golden("glpn_depth_hf" if kind == "glpn" else "segformer_seg_hf")
    source, hub, own = tmp_path / "in.pth", tmp_path / "hub", tmp_path / "own.safetensors"
    torch.save(oracle.state, source)
    assert main(["convert", str(source), str(hub), "--to", "transformers"]) == 0
    config = json.loads((hub / "config.json").read_text())
    assert config["architectures"] == [auto] and config["decoder_hidden_size"] == oracle.config["decoder_hidden_size"]
    assert_same(load_file(hub / "model.safetensors"), oracle.state)
    if kind == "glpn":
        (hub / "config.json").write_text(json.dumps({**config, "max_depth": 80}))
    assert main(["convert", str(hub), str(own), "--to", "srattn"]) == 0
    assert "not converted" not in capsys.readouterr().out
    described = srattn.convert.source.read_source(own).metadata
    model = build_dense(described["model"], described["head"])
    report = srattn.load_checkpoint(model, own)
    assert report.norm_eps == {"block": 1e-5, "reduction": 1e-5, "patch": 1e-5} and report.edge == "floor"
    again = fresh(kind, hidden=config["decoder_hidden_size"], **({} if kind == "glpn" else {"num_classes": 10}))
    srattn.load_checkpoint(again, hub)
    images = oracle.runs[0][0]
    with torch.no_grad():
        assert torch.equal(model.eval()(images), again.eval()(images))
    if kind == "glpn":
        assert model.head.max_depth == 80.0


def test_the_command_line_tells_twins_in_name_apart(tmp_path, capsys):
    """PVT v2 and Mix Transformer have the same keys with their authors, and other widths."""
    source, out = tmp_path / "in.pth", tmp_path / "hub"
    torch.save(convert_state_dict(srattn.create_model("mit_b0", device="meta").state_dict(), "official"), source)
    numbers = {key: torch.zeros(value.shape) for key, value in torch.load(source, weights_only=True).items()}
    torch.save(numbers, source)
    assert main(["convert", str(source), str(out), "--to", "transformers", "--model", "pvt_v2_b0"]) == 2
    assert "mlp_ratios [4, 4, 4, 4], pvt_v2_b0 [8, 8, 4, 4]" in capsys.readouterr().err and not out.exists()
    assert main(["convert", str(source), str(out), "--to", "transformers"]) == 0
    assert "official layout of mit, mit_b0" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["model_type"] == "segformer"


@pytest.mark.parametrize("kind", ["segformer", "glpn", "classifier"])
def test_transformers_itself_loads_the_folder(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    if kind == "classifier":
        model: Any = srattn.create_model("mit_b0", num_classes=7, **SMALL).eval()
        model.load_state_dict({key: torch.rand_like(value) - 0.5 for key, value in model.state_dict().items()})
        model.set_norm_eps(1e-5, 1e-5, 1e-5)
        model.set_edge("floor")
    else:
        model = build(kind)
    auto = {"segformer": "SemanticSegmentation", "glpn": "DepthEstimation", "classifier": "ImageClassification"}[kind]
    srattn.save_checkpoint(model, tmp_path / "hub", layout="transformers")
    loader = getattr(transformers, f"AutoModelFor{auto}")
    theirs, told = loader.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = theirs.eval()(images)
        expected = found.predicted_depth if kind == "glpn" else found.logits
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
