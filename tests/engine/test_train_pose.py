"""Poses as a trained task: stick figures whose joints are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from srattn.data.dense.person import person_windows
from srattn.engine import TrainConfig, train
from srattn.engine.config import to_yaml
from srattn.engine.defaults import resolve
from srattn.engine.run import RunResult
from srattn.engine.weights import load_run
from srattn.errors import SrattnError
from srattn.tasks import make_task
from srattn.tasks.models import build_task_model, rebuild, task_options
from srattn.tasks.pose import in_image

NAMES = ["head", "left_hand", "right_hand", "left_foot", "right_foot"]
COLOURS = [(255, 255, 255), (255, 60, 60), (60, 255, 60), (60, 60, 255), (255, 255, 0)]
SMALL: dict[str, Any] = {
    "model": "pvt_v2_b0",
    "model_options": {"embed_dims": [16, 16, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "head_options": {"width": 16, "up": "bilinear"},
    "size": 32,
    "threads": 1,
    "num_workers": 0,
    "device": "cpu",
}


def figure(random: np.random.Generator, height: float = 36) -> np.ndarray:
    """Five joints around 0: a head above, hands and feet in places of their own (K, 2)."""
    plain = np.array([[0, -0.5], [0.35, -0.1], [-0.35, -0.1], [0.2, 0.5], [-0.2, 0.5]])
    return (plain + random.uniform(-0.12, 0.12, plain.shape)) * height


def save_figures(root: Path, count: int, part: str = "train", seed: int = 0) -> Path:
    """Images of 64x80 with one or two people: a dot of its own colour for each joint, and grey limbs."""
    random, images, people = np.random.default_rng(seed), [], []
    (root / "images" / part).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for number in range(count):
        picture = Image.new("RGB", (80, 64), (20, 20, 20))
        draw = ImageDraw.Draw(picture)
        for person in range(1 + number % 2):
            place = np.array([20 + 36 * person + random.uniform(0, 4), 32 + random.uniform(-4, 4)])
            joints = figure(random) + place
            middle = joints.mean(0)
            for x, y in joints:
                draw.line([*middle, x, y], fill=(110, 110, 110), width=2)
            for (x, y), colour in zip(joints, COLOURS, strict=True):
                draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
            low, high = joints.min(0) - 2, joints.max(0) + 2
            people.append(
                {
                    "id": len(people) + 1, "image_id": number, "category_id": 1, "num_keypoints": 5, "iscrowd": 0,
                    "keypoints": [value for x, y in joints for value in (float(x), float(y), 2)],
                    "bbox": [*low.tolist(), *(high - low).tolist()], "area": float((high - low).prod() / 2),
                }
            )  # fmt: skip
        picture.save(root / "images" / part / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 80})
    category = {"id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
    content = {"images": images, "annotations": people, "categories": [category]}
    (root / "annotations" / f"person_keypoints_{part}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = save_figures(tmp_path_factory.mktemp("figures"), 16)
    return save_figures(root, 6, "val", seed=1)


@pytest.fixture(scope="module")
def finished(figures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    options = SMALL | {"augment": "scale=0.9-1.1,flip,rotate=10", "epochs": 12, "batch_size": 8, "lr": 1e-2}
    out = tmp_path_factory.mktemp("pose") / "run"
    return train(TrainConfig(task="pose", data=str(figures), out=str(out), drop_path_rate=0.0, **options))


def test_a_toy_is_learnt_and_the_run_says_so(finished: RunResult) -> None:
    result = finished.result
    assert result["headline"] == "oks_ap" and result["pck"] > 0.9 and result["oks_ap"] > 0.1
    assert finished.history[0]["val_pck"] < 0.5
    assert result["people"] == 9 and result["support"] == dict.fromkeys(NAMES, 9)
    assert result["classes"] == NAMES and min(result["per_joint_pck"].values()) > 0.7
    assert finished.evaluation.answers.shape == (9, 5, 3)


def test_weights_come_back_and_find_joints_in_an_image(finished: RunResult, figures: Path) -> None:
    run = load_run(finished.folder)
    assert run.task == "pose" and run.classes == NAMES and run.name == "pvt_v2_b0"
    content = json.loads((figures / "annotations" / "person_keypoints_val.json").read_text())
    person = content["annotations"][0]
    x, y, width, height = person["bbox"]
    with Image.open(figures / "images" / "val" / "0.png") as image:
        boxes = torch.tensor([[x, y, x + width, y + height]])
        windows, matrices = person_windows(image.convert("RGB"), boxes, run.preprocess)
    task: Any = make_task(run.task, run.classes, **task_options(run.model))
    with torch.no_grad():
        answers = task.postprocess(run.model(windows))
    assert torch.allclose(answers[0], finished.evaluation.answers[0], atol=1e-5)  # another batch, other sums
    found = in_image(answers, matrices, run.preprocess.size)[0]
    true = torch.tensor(person["keypoints"]).view(5, 3)[:, :2] + 0.5
    assert (found[:, :2] - true).norm(dim=1).median() < 0.1 * max(width, height)


def test_simcc_learns_and_comes_back(figures: Path, tmp_path: Path) -> None:
    """A few epochs, in which the loss falls; to find joints from the coarsest map alone takes many."""
    options = SMALL | {"model_options": SMALL["model_options"] | {"stem_stride": 2}, "head_options": {"split": 1.0}}
    options |= {"augment": "none", "epochs": 3, "batch_size": 8, "lr": 1e-2, "drop_path_rate": 0.0}
    done = train(TrainConfig(task="pose", head="simcc", data=str(figures), out=str(tmp_path / "run"), **options))
    assert done.history[2]["val_loss"] < 0.9 * done.history[0]["val_loss"]
    run = load_run(done.folder)
    images = torch.rand(2, 3, 32, 32)
    assert run.model(images).shape == (2, 5, 64) and torch.equal(run.model(images), done.model(images))
    assert task_options(run.model) == {"columns": 32}


def test_refusals_name_the_way_out(figures: Path) -> None:
    data = str(figures)
    for options, words in (
        ({"head": "simcc", "size": 32, "eval_size": 64}, "simcc is for images of one size"),
        ({"classes": "a,b"}, "--classes has no meaning for pose, which learns from joints"),
        ({"depth_scale": 0.001}, "--depth_scale has no meaning for pose"),
        ({"label_smoothing": 0.1}, "--label_smoothing has no meaning for pose"),
    ):
        with pytest.raises(SrattnError, match=words):
            resolve(TrainConfig(task="pose", data=data, **options))
    kept = resolve(TrainConfig(task="pose", data=data))
    assert resolve(TrainConfig(**yaml.safe_load(to_yaml(kept)))) == kept
    for options, words in (
        ({"head": "heatmaps"}, "did you mean 'heatmap'"),
        ({"head_options": {"widht": 3}}, "did you mean 'width'"),
        ({"head": "simcc", "head_options": {"size": 3}}, "it has: split"),
        ({"head": "simcc", "head_options": {"split": 0.3}}, "a whole number"),
        ({"data": str(figures / "images")}, "no people in COCO's form"),
        ({"augment": "flop"}, "did you mean 'flip'"),
    ):
        with pytest.raises(SrattnError, match=words):
            train(TrainConfig(**{"task": "pose", "data": data, **SMALL, **options}))


@pytest.mark.parametrize("backbone", ["pvt_v2_b0", "mit_b0", "twins_svt_small"])
@pytest.mark.parametrize("head", ["heatmap", "simcc"])
def test_a_model_is_built_again_from_its_config(backbone: str, head: str) -> None:
    model: Any = build_task_model("pose", backbone, 4, head, {}, img_size=64, device="meta")
    again: Any = rebuild(json.loads(json.dumps(model.config)), device="meta")
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert again.num_classes == 4 and again.columns == (128 if head == "simcc" else None)
    other = model.config | {"head": model.config["head"] | {"size": [32, 64], "grid": [1, 2]}}
    if head == "simcc":
        with pytest.raises(SrattnError, match="for other images than the backbone's"):
            rebuild(other, device="meta")
