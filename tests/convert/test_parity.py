"""Every golden of PVT and PVT v2 through load_checkpoint: numbers, epsilons, edge, and conversions between layouts."""

import json
import subprocess
import sys

import pytest
import torch

import srattn
from srattn.convert import convert_state_dict, detect_layout
from srattn.convert.variants import backbone_of

NAMES = {
    "pvt_v1_official": ("official", "pvt"),
    "pvt_v1_hf": ("transformers", "pvt"),
    "pvt_v1_mmdet": ("mmdet", "pvt"),
    "pvt_v2_official": ("official", "pvt_v2"),
    "pvt_v2_timm": ("timm", "pvt_v2"),
    "pvt_v2_hf": ("transformers", "pvt_v2"),
    "pvt_v2_mmdet": ("mmdet", "pvt_v2"),
    "pvt_v2_linear_official": ("official", "pvt_v2"),
    "pvt_v2_linear_timm": ("timm", "pvt_v2"),
    "pvt_v2_linear_hf": ("transformers", "pvt_v2"),
    "twins_pcpvt_official": ("official", "twins"),
    # timm keeps the authors' names.
    "twins_pcpvt_timm": ("official", "twins"),
    "twins_svt_timm": ("official", "twins"),
    "shunted_official": ("official", "shunted"),
    "mit_mmseg": ("mmseg", "mit"),
    "segformer_cls_hf": ("transformers", "mit"),
    "segformer_seg_hf": ("transformers", "mit"),
    "glpn_depth_hf": ("transformers", "mit"),
    "cmt_official": ("official", "cmt"),
    "p2t_official": ("official", "p2t"),
}


def test_no_golden_is_left_out(shared):
    index = json.loads((shared / "goldens" / "index.json").read_text())
    families = ("pvt_", "twins_", "shunted_", "mit_", "segformer_", "glpn_", "cmt_", "p2t_")
    assert sorted(name for name in index if name.startswith(families)) == sorted(NAMES)


@pytest.mark.parametrize("path", ["default", "plain", "absorbed"])
@pytest.mark.parametrize("name", NAMES)
def test_features_and_outputs_agree(name, path, golden, parity):
    oracle = golden(name)
    model = parity.build(oracle)
    report = srattn.load_checkpoint(model, oracle.state)
    assert (report.layout, report.family) == NAMES[name]
    with parity._forced(path):
        errors = parity.errors(model, oracle)
    expected = set() if oracle.layout == "transformers" else {f"feature{s}" for s in (1, 2, 3, 4)}
    assert set(errors) == expected | (set() if oracle.layout in ("mmdet", "mmseg") else {"output"})
    # In float64 nothing of the difference is ours: it is the rounding of the golden itself (up to 1.2e-5). In float32,
    # on a machine that rounds in another order, such a golden may be missed by as much once more.
    exact = parity.errors(model.double(), parity.as_double(oracle))
    assert max(exact.values()) <= 2 * parity.LIMIT, exact
    assert max(errors.values()) <= parity.limit_of(max(exact.values())), errors


@pytest.mark.parametrize("name", NAMES)
def test_origin_sets_epsilons_and_edge(name, golden, parity):
    oracle = golden(name)
    whole = parity.build(oracle, edge="pad")
    model = backbone_of(whole)
    model.set_norm_eps(1e-3, 1e-3, 1e-3)
    report = srattn.load_checkpoint(whole, oracle.state)
    reduction = 1e-5 if oracle.layout in ("official", "timm") else 1e-6
    expected = {"block": 1e-6, "reduction": reduction, "patch": reduction}
    if NAMES[name] == ("transformers", "mit"):  # SegFormer and GLPN there leave every norm at torch's default
        reduction, expected = 1e-5, {"block": 1e-5, "reduction": 1e-5, "patch": 1e-5}
    assert model.norm_eps == report.norm_eps == expected
    assert model.edge == report.edge == "floor"
    norms = {n: m.eps for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.BatchNorm2d)}
    assert {eps for name, eps in norms.items() if "reduction" in name} == {reduction}
    assert norms["stages.1.patch_embed.norm"] == reduction
    assert norms["stages.0.blocks.0.norm1"] == expected["block"]


@pytest.mark.parametrize(
    "name", ["pvt_v2_official", "pvt_v2_timm", "pvt_v2_hf", "pvt_v2_mmdet", "mit_mmseg", "segformer_seg_hf"]
)
def test_wrong_edge_would_be_seen(name, golden, parity):
    """The second input has grids that the ratios do not divide, so the errors above do test the edge policy."""
    oracle = golden(name)
    model = parity.build(oracle)
    srattn.load_checkpoint(model, oracle.state)
    backbone_of(model).set_edge("pad")
    assert max(parity.errors(model, oracle).values()) > 100 * parity.LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_layout_round_trips_bit_for_bit(name, golden):
    state = golden(name).state
    layout, _ = detect_layout(state)
    back = convert_state_dict(convert_state_dict(state, "srattn"), layout)
    assert_same(back, state)


@pytest.mark.parametrize("name", ["pvt_v2_official", "pvt_v2_linear_official", "pvt_v1_official"])
def test_chain_through_every_layout_keeps_every_bit(name, golden):
    oracle = golden(name)
    ours = convert_state_dict(oracle.state, "srattn")
    state = oracle.state
    chain = ["timm", "transformers"] if oracle.family == "pvt_v2" else ["transformers"]
    for layout in [*chain, "srattn", "official"]:
        state = convert_state_dict(state, layout)
        assert detect_layout(state) == (layout, oracle.family)
    assert_same(state, oracle.state)
    assert_same(convert_state_dict(state, "srattn"), ours)


def test_chain_through_mmdet_keeps_every_bit(golden):
    """A backbone alone: mmdetection has no place for a classifier."""
    whole = golden("pvt_v2_official").state
    backbone = {key: value for key, value in whole.items() if not key.startswith("head.")}
    state = convert_state_dict(convert_state_dict(backbone, "timm"), "transformers")
    state = convert_state_dict(state, "mmdet")
    assert detect_layout(state) == ("mmdet", "pvt_v2")
    assert_same(convert_state_dict(state, "official"), backbone)
    with pytest.raises(srattn.SrattnError, match=r"mmdet layout has no place for 'head"):
        convert_state_dict(whole, "mmdet")


def test_every_key_of_the_published_b2_is_taken(shared):
    listed = json.loads((shared / "goldens" / "pvt_v2_b2_official_keys.json").read_text())
    state = {key: torch.empty(shape) for key, shape in listed}
    for number, tensor in enumerate(state.values()):
        tensor.fill_(number / 1000)
    assert len(state) == 334 and sum(t.numel() for t in state.values()) == 25_362_856
    model = srattn.create_model("pvt_v2_b2")
    report = srattn.load_checkpoint(model, state)
    assert len(report.loaded) == len(model.state_dict()) and not report.missing and not report.unexpected
    assert_same(convert_state_dict(model.state_dict(), "official"), state)


@pytest.mark.slow
def test_the_table_is_written(shared, root, tmp_path):
    command = [sys.executable, "benchmarks/parity.py", "--goldens", str(shared / "goldens"), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "parity.json").read_text())
    assert {row["golden"] for row in result["rows"]} == set(NAMES) and 0 < result["worst"] <= 2 * result["limit"]
    table = (tmp_path / "parity.md").read_text()
    assert all(table.count(f"| {name} |") == 2 for name in NAMES)


def assert_same(left, right):
    assert set(left) == set(right)
    for key, tensor in right.items():
        assert left[key].dtype == tensor.dtype and torch.equal(left[key], tensor), key
