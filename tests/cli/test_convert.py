"""srattn convert: from the command line to every layout, and its errors in one line."""

import json
import os
import re
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import srattn
from srattn.cli.main import main
from srattn.convert import convert_state_dict, detect_layout

SMALL = {"embed_dims": (16, 32, 40, 64), "depths": (1, 1, 2, 1), "num_classes": 10}


@pytest.fixture
def weights(tmp_path):
    """A small PVT v2 in the official layout, wrapped as its authors publish it."""
    state = convert_state_dict(srattn.create_model("pvt_v2_b0", **SMALL).state_dict(), "official")
    path = tmp_path / "in.pth"
    torch.save({"model": state, "epoch": 3}, path)
    return path, state


def test_official_to_timm(weights, tmp_path, capsys):
    path, state = weights
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(path), str(out), "--to", "timm"]) == 0
    found = load_file(out)
    assert detect_layout(found) == ("timm", "pvt_v2")
    back = convert_state_dict(found, "official")
    assert set(back) == set(state) and all(torch.equal(back[key], state[key]) for key in state)
    printed = capsys.readouterr().out
    assert "official layout of pvt_v2" in printed and f"{len(found)} tensors in the timm layout" in printed


def test_to_our_layout_and_back_to_a_model(weights, tmp_path, capsys):
    path, _ = weights
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(path), str(out), "--to", "srattn"]) == 0
    assert "assumed: num_heads (1, 2, 5, 8)" in capsys.readouterr().out
    with safe_open(out, "pt") as file:
        described = json.loads(file.metadata()["srattn"])
    model = srattn.create_model(**described["model"])
    report = srattn.load_checkpoint(model, out)
    assert report.edge == "floor" and report.norm_eps == {"block": 1e-6, "reduction": 1e-5, "patch": 1e-5}
    direct = srattn.create_model("pvt_v2_b0", **SMALL)
    srattn.load_checkpoint(direct, path)
    image = torch.randn(1, 3, 72, 104)
    with torch.no_grad():
        assert torch.equal(model.eval()(image), direct.eval()(image))


def test_to_a_transformers_folder(weights, tmp_path, capsys):
    path, state = weights
    out = tmp_path / "hub"
    assert main(["convert", str(path), str(out), "--to", "transformers"]) == 0
    printed = capsys.readouterr().out
    assert "assumed: num_heads (1, 2, 5, 8)" in printed and "reduction 1e-05 -> 1e-06" in printed
    config = json.loads((out / "config.json").read_text())
    assert config["hidden_sizes"] == [16, 32, 40, 64] and config["num_attention_heads"] == [1, 2, 5, 8]
    assert config["sr_ratios"] == [8, 4, 2, 1] and len(config["id2label"]) == 10
    assert detect_layout(load_file(out / "model.safetensors")) == ("transformers", "pvt_v2")
    again = tmp_path / "again.pth"
    assert main(["convert", str(out), str(again), "--to", "official"]) == 0
    found = torch.load(again, weights_only=True)
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_pvt_of_another_image_size(tmp_path):
    model = srattn.create_model("pvt_tiny", **SMALL, img_size=96)
    source, out = tmp_path / "in.bin", tmp_path / "out.safetensors"
    torch.save(convert_state_dict(model.state_dict(), "official"), source)
    assert main(["convert", str(source), str(out), "--to", "srattn"]) == 0
    with safe_open(out, "pt") as file:
        config = json.loads(file.metadata()["srattn"])["model"]
    assert config["img_size"] == 96 and config["class_token"] is True
    assert set(srattn.create_model(**config).state_dict()) == set(model.state_dict())


def test_published_sizes_are_recognised(tmp_path, capsys):
    source, out = tmp_path / "in.pth", tmp_path / "out.pth"
    model = srattn.create_model("pvt_v2_b0", num_classes=3)
    torch.save(convert_state_dict(model.state_dict(), "timm"), source)
    assert main(["convert", str(source), str(out), "--to", "srattn", "--model", "pvt_v2_b0"]) == 0
    assert "timm layout of pvt_v2, pvt_v2_b0" in capsys.readouterr().out
    assert main(["convert", str(source), str(tmp_path / "no.pth"), "--to", "srattn", "--model", "pvt_v2_b1"]) == 2
    assert "weights have embed_dims [32, 64, 160, 256], pvt_v2_b1 [64, 128, 320, 512]; they fit pvt_v2_b0" in (
        capsys.readouterr().err
    )
    assert main(["convert", str(source), str(tmp_path / "no.pth"), "--to", "srattn", "--model", "pvt_tiny"]) == 2
    assert "weights of pvt_v2, not of pvt_tiny" in capsys.readouterr().err
    assert not (tmp_path / "no.pth").exists()


def test_metadata_of_our_files_is_kept(tmp_path):
    model = srattn.create_model("pvt_v2_b0", **SMALL, num_heads=(2, 2, 2, 2), edge="error")
    source, out = tmp_path / "in.safetensors", tmp_path / "out.pth"
    srattn.save_checkpoint(model, source, metadata={"classes": ["zero", "one"]})
    assert main(["convert", str(source), str(out), "--to", "srattn"]) == 0
    described = json.loads(torch.load(out, weights_only=True)["srattn"])
    assert described["classes"] == ["zero", "one"] and described["edge"] == "error"
    assert described["model"] == model.config


@pytest.mark.parametrize("layout", ["official", "mmdet"])
def test_what_is_lost_is_told(layout, tmp_path, capsys):
    ours = tmp_path / "ours.safetensors"
    srattn.save_checkpoint(srattn.create_model("pvt_v2_b0", **SMALL, stem_stride=2), ours)
    assert main(["convert", str(ours), str(tmp_path / "out.pth"), "--to", layout]) == 0
    printed = capsys.readouterr().out
    assert "stem_stride 4, the model 2" in printed and "edge policy 'floor', the model 'pad'" in printed
    assert ("no place for head." in printed) == (layout == "mmdet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "IN is missing"),
        (["{in}"], "OUT is missing"),
        (["{in}", "{out}"], "--to LAYOUT is missing"),
        (["{in}", "{out}", "--to", "tim"], "unknown layout 'tim'; there are .*did you mean 'timm'"),
        (["{in}", "{out}.h5", "--to", "timm"], "unknown suffix '.h5'"),
        (["{in}", "{in}", "--to", "timm"], "exists and is not overwritten"),
        (["{out}", "{out}", "--to", "timm"], "no such file"),
        (["{in}", "{out}", "--to", "timm", "--layout", "mmdet"], "the mmdet layout does not know"),
        (["{in}", "{out}", "--to", "timm", "--model", "pvt_v2_b2li"], "error: no model .*did you mean 'pvt_v2_b2_li'"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message, weights, tmp_path, capsys):
    names: dict[str, str] = {
        "{in}": str(weights[0]),
        "{out}": str(tmp_path / "out.pth"),
        "{out}.h5": str(tmp_path / "out.h5"),
    }
    before = weights[0].read_bytes()
    assert main(["convert", *(names.get(argument, argument) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("srattn: error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert os.listdir(tmp_path) == ["in.pth"] and weights[0].read_bytes() == before


def test_overwriting_is_asked_for(weights, tmp_path):
    out = tmp_path / "out.pth"
    out.write_text("old")
    assert main(["convert", str(weights[0]), str(out), "--to", "timm"]) == 2
    assert out.read_text() == "old"
    assert main(["convert", str(weights[0]), str(out), "--to", "timm", "--overwrite"]) == 0
    assert detect_layout(torch.load(out, weights_only=True)) == ("timm", "pvt_v2")


def test_unknown_tensors_are_refused_by_name(tmp_path, capsys):
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "in.safetensors")
    assert main(["convert", str(tmp_path / "in.safetensors"), str(tmp_path / "out.pth"), "--to", "timm"]) == 2
    assert "in.safetensors: none of the layouts srattn, official, timm" in capsys.readouterr().err


def test_the_list_of_layouts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # which holds for terminals alone
    assert main(["convert", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed and "mmdetection, mmsegmentation" in printed
    for layout in ("srattn", "official", "timm", "transformers", "mmdet"):
        assert layout in printed
    assert "pvt_v2" in printed and "1e-06, 1e-05, 1e-05" in printed
    heads = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.partition("heads of")[2].splitlines()]
    assert ["srattn", "unet", "any family"] in heads and ["mmdet", "retinanet", "pvt, pvt_v2"] in heads
    assert ["transformers", "glpn", "mit"] in heads and not any(cells[:2] == ["timm", "segformer"] for cells in heads)


@pytest.mark.parametrize(
    ("task", "head", "options", "told"),
    [
        (
            "segmentation",
            "semantic_fpn",
            {"width": 16, "hidden": 32},
            "  head: semantic_fpn (num_classes 4, width 16, ",
        ),
        ("detection", "retinanet", {"width": 16, "convs": 1, "levels": 4}, "  head: retinanet (num_classes 4, "),
    ],
)
def test_the_head_of_a_file_is_told(task, head, options, told, tmp_path, capsys):
    from srattn.convert.files import convert_file
    from srattn.tasks.models import build_task_model

    numbers: dict[str, Any] = {key: value for key, value in SMALL.items() if key != "num_classes"}
    model: Any = build_task_model(task, "pvt_v2_b0", 4, head, options, **numbers)
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
    srattn.save_checkpoint(model, ours)
    assert main(["convert", str(ours), str(theirs), "--to", "mmdet"]) == 0
    printed = capsys.readouterr().out
    assert told in printed and "kind" not in printed
    assert ("  neck: (first 1, width 16, extra_levels 1" in printed) == (head == "retinanet")
    done = convert_file(theirs, tmp_path / "again.safetensors", "srattn")
    assert done.parts["head"]["kind"] == head and set(done.parts) == set(model.config) - {"backbone"}
    assert done.parts["head"].items() <= model.config["head"].items()


def test_a_backbone_has_no_head_to_tell(weights, tmp_path, capsys):
    assert main(["convert", str(weights[0]), str(tmp_path / "out.pth"), "--to", "timm"]) == 0
    assert "head:" not in capsys.readouterr().out
