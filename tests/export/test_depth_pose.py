"""Files of models of depths and of joints: eager's answers in every runtime, and predict's from the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srattn.data.preprocess import Preprocess
from srattn.engine.scene_predict import predict_depth, predict_joints
from srattn.engine.weights import load_run, save_weights
from srattn.errors import SrattnError
from srattn.export import Exported, Options, export_model, verify
from srattn.export.answers import joints_of
from srattn.export.opened import open_export
from srattn.export.options import SUFFIXES
from srattn.export.quantise.measure import decibels, same
from srattn.tasks.dense import glpn
from srattn.tasks.models import task_options
from srattn.tasks.pose.model import pose_model
from tests.export.test_scenes import SHORT, available

JOINTS = ["nose", "left_eye", "right_eye"]
SIZE = (48, 40)


def depths() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return glpn("pvt_v2_b0", hidden=8, max_depth=80.0, **SHORT).eval()


def joints(head: str = "heatmap") -> Any:
    """Whose heatmaps are not nearly flat, as fresh ones are."""
    options = {"width": 8} if head == "heatmap" else {"split": 2.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = pose_model("pvt_v2_b0", len(JOINTS), head, options, img_size=SIZE, **SHORT).eval()
        with torch.no_grad():
            last = model.head.classifier if head == "heatmap" else model.head.joints
            last.weight.normal_()
    return model


def exported(model: Any, path: Path, task: str, name: str, **options: Any) -> Exported:
    asked = Options(name, SIZE, task=task, **options)  # type: ignore[arg-type]
    labels = ["depth"] if task == "depth" else JOINTS
    return export_model(model, path, asked, labels=labels, preprocess=preprocess(task))


def preprocess(task: str) -> Preprocess:
    return Preprocess(size=SIZE, fit="shorter" if task == "depth" else "inside")


@pytest.mark.parametrize("name", ["torch", "onnx", "openvino"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_depths_of_any_size_are_those_of_the_run(name: str, tmp_path: Path) -> None:
    available(name)
    model, path = depths(), tmp_path / f"model{SUFFIXES[name]}"
    facts = exported(model, path, "depth", name, dynamic=("height", "width")).facts
    assert facts.outputs == ["depths"] and 0 <= facts.verified["error"] <= facts.verified["tolerance"]
    assert len({tuple(shape[2:]) for shape in facts.verified["inputs"]}) == 3
    file = open_export(path)
    assert (file.task, file.classes, task_options(file.model)) == ("depth", ["depth"], {"max_depth": 80.0})
    save_weights(tmp_path / "run.safetensors", model, ["depth"], preprocess("depth"), task="depth")
    run = load_run(tmp_path / "run.safetensors")
    image = Image.fromarray((torch.rand(61, 83, 3) * 255).byte().numpy())
    wanted = predict_depth(run, image)
    assert wanted.shape == (61, 83)
    torch.testing.assert_close(predict_depth(file, image), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_that_takes_pictures_has_a_depth_for_each_of_their_pixels(tmp_path: Path) -> None:
    available("onnx")
    model, path = depths(), tmp_path / "model.onnx"
    exported(model, path, "depth", "onnx", preprocess=True)
    file = open_export(path)
    pixels = (torch.rand(61, 83, 3) * 255).byte()
    (found,) = file.model.outputs(pixels.permute(2, 0, 1).unsqueeze(0).float() / 255)  # type: ignore[operator]
    assert found.shape == (1, 61, 83)
    save_weights(tmp_path / "run.safetensors", model, ["depth"], Preprocess(size=SIZE, fit="squash"), task="depth")
    image = Image.fromarray(pixels.numpy())
    wanted = predict_depth(load_run(tmp_path / "run.safetensors"), image)
    few = 0.05 * float(wanted.std())  # a pixel between two levels may be rounded the other way
    torch.testing.assert_close(predict_depth(file, image), wanted, rtol=0, atol=few)
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=few)


@pytest.mark.parametrize("head", ["heatmap", "simcc"])
@pytest.mark.parametrize("name", ["torch", "onnx", "openvino"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_joints_are_those_of_the_run(head: str, name: str, tmp_path: Path) -> None:
    available(name)
    model, path = joints(head), tmp_path / f"model{SUFFIXES[name]}"
    facts = exported(model, path, "pose", name).facts
    assert facts.outputs == ["joints", "maps"] and 0 <= facts.verified["error"] <= facts.verified["tolerance"]
    file = open_export(path)
    assert (file.task, file.classes) == ("pose", JOINTS)
    assert task_options(file.model) == task_options(model) == {"columns": 80 if head == "simcc" else None}
    save_weights(tmp_path / "run.safetensors", model, JOINTS, preprocess("pose"), task="pose")
    run = load_run(tmp_path / "run.safetensors")
    image = Image.fromarray((torch.rand(61, 83, 3) * 255).byte().numpy())
    people = torch.tensor([[3.0, 4.0, 40.0, 60.0], [20.5, 0.0, 83.0, 50.0]])
    wanted = predict_joints(run, image, people)
    assert wanted.shape == (2, 3, 3) and not torch.equal(wanted[0], wanted[1])
    torch.testing.assert_close(predict_joints(file, image, people), wanted, rtol=1e-4, atol=1e-3)
    images = torch.randn(2, 3, *SIZE)
    found, maps = file.model.outputs(images)  # type: ignore[operator]
    with torch.no_grad():
        torch.testing.assert_close(maps, model(images), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found, joints_of(maps, model.columns, *SIZE), rtol=1e-5, atol=1e-4)
    assert bool((found[..., 0] <= SIZE[1]).all()) and bool((found[..., 1] <= SIZE[0]).all())


def test_joints_beside_their_maps_are_refused() -> None:
    maps = torch.rand(1, 3, 12, 10)
    right = joints_of(maps, None, *SIZE)
    case = {"images": torch.zeros(1, 3, *SIZE), "truth_0": maps.double(), "allowed": torch.tensor([1e-5])}
    case["columns"] = torch.tensor(0)
    assert verify.judge([right, maps], case, "joints") == (0.0, verify.FLOOR)
    wrong = right.clone()
    wrong[0, 1, 0] += 1
    with pytest.raises(SrattnError, match="in other places than its own maps"):
        verify.judge([wrong, maps], case, "joints")
    with pytest.raises(SrattnError, match="differs from eager by"):
        verify.judge([right, maps + 0.01], case, "joints")


def test_what_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    for options in ({"preprocess": True}, {"dynamic": ("height", "width")}):
        with pytest.raises(SrattnError, match="windows of one size"):
            exported(joints(), tmp_path / "model.onnx", "pose", "onnx", **options)
    asked = Options("torch", (64, 64), task="pose")
    with pytest.raises(SrattnError, match="made for images of 48x40"):
        export_model(joints("simcc"), tmp_path / "model.pt2", asked)
    with pytest.raises(SrattnError, match="--task depth or features, got pose"):
        export_model(depths(), tmp_path / "model.pt2", dataclasses.replace(asked, size=SIZE))
    assert not list(tmp_path.iterdir())


def test_joints_in_whole_numbers_count_as_the_same_within_a_cell() -> None:
    truth = [[torch.tensor([[[10.0, 20.0, 1.0], [5.0, 5.0, 1.0]]]), torch.ones(1, 2, 4, 4)]]
    found = [[truth[0][0] + torch.tensor([[[0.0, 3.9, 0.0], [3.0, 3.0, 0.0]]]), torch.ones(1, 2, 4, 4) * 1.1]]
    assert same(found, truth, "joints") == 0.5
    assert decibels(found, truth, "joints") == pytest.approx(20, abs=1e-3)
