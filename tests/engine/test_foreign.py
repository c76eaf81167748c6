"""Checkpoints of whole models, ours and others', opened as models of their task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import srattn
from srattn.engine.foreign import task_of_head
from srattn.engine.open_model import open_model, task_of
from srattn.engine.scene_predict import Looking, predict_boxes, predict_mask
from srattn.errors import SrattnError
from srattn.tasks.models import build_task_model, task_options
from srattn.tasks.registry import make_task

SMALL: dict[str, Any] = {
    "embed_dims": (8, 8, 16, 16),
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 1, 2, 2),
    "mlp_ratios": (2, 2, 2, 2),
    "sr_ratios": (2, 1, 1, 1),
}
HEADS = [
    ("segmentation", "segformer", {"hidden": 16}),
    ("segmentation", "semantic_fpn", {"width": 16, "norm": "group"}),
    ("segmentation", "upernet", {"width": 16, "scales": (1, 2)}),
    ("segmentation", "unet", {"widths": [8, 8, 8]}),
    ("detection", "fcos", {"width": 16, "convs": 1, "levels": 4}),
    ("detection", "retinanet", {"width": 16, "convs": 1, "base": 2.0, "extra_relu": False}),
    ("depth", "glpn", {"hidden": 16, "max_depth": 80.0}),
    ("pose", "heatmap", {"width": 16, "fuse": False}),
    ("pose", "simcc", {"split": 1.5}),
]


def make(task: str, head: str, options: dict[str, Any], **more: Any) -> Any:
    """A small model whose edges, epsilons and weights are nobody's defaults."""
    model: Any = build_task_model(task, "pvt_v2_b0", 3, head, options, **SMALL, **more).eval()
    model.set_edge("floor")
    model.set_norm_eps(1e-3, 1e-4, 1e-5)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(("task", "head", "options"), HEADS, ids=[head for _, head, _ in HEADS])
def test_a_saved_checkpoint_is_the_whole_model(
    task: str, head: str, options: dict[str, Any], suffix: str, tmp_path: Path
) -> None:
    model = make(task, head, options, img_size=(64, 96))
    path = srattn.save_checkpoint(model, tmp_path / f"whole{suffix}")
    assert task_of(str(path)) == task
    run = open_model(str(path))
    classes = ["depth"] if task == "depth" else ["0", "1", "2"]
    assert (run.task, run.classes, run.name) == (task, classes, "pvt_v2_b0")
    assert run.model.config == model.config and run.model.norm_eps == model.norm_eps and run.model.edge == "floor"
    assert run.preprocess.fit == ("shorter" if task in ("segmentation", "depth") else "inside")
    assert (run.preprocess.size == (64, 96)) == (task == "pose"), "windows are those that it was built for"
    assert run.palette is not None and run.palette.names == tuple(classes) and not run.model.training
    images = torch.randn(2, 3, *((64, 96) if task == "pose" else (70, 45)))
    with torch.inference_mode():
        assert torch.equal(run.model(images), model(images))


def test_it_predicts(tmp_path: Path) -> None:
    picture = Image.effect_noise((90, 61), 60).convert("RGB")
    for task, head, options in (HEADS[0], HEADS[4]):
        path = srattn.save_checkpoint(make(task, head, options), tmp_path / f"{task}.pth")
        run = open_model(str(path), size=64)
        assert run.preprocess.size == (64, 64)
        if task == "segmentation":
            mask = predict_mask(run, picture)
            assert mask.shape == (61, 90) and int(mask.max()) < 3
        else:
            boxes = predict_boxes(run, picture, Looking(threshold=0.0))
            assert boxes.shape[1] == 6 and len(boxes) and (boxes[:, 2] <= 90).all() and (boxes[:, 3] <= 61).all()


def test_a_backbone_alone_stays_one(tmp_path: Path) -> None:
    model = srattn.create_model("pvt_v2_b0", num_classes=4, **SMALL)
    path = srattn.save_checkpoint(model, tmp_path / "plain.safetensors")
    run = open_model(str(path))
    assert task_of(str(path)) == run.task == "classification"
    assert len(run.classes) == 4 and run.palette is None and run.preprocess.fit == "crop"


def test_a_checkpoint_says_its_classes_and_preprocessing(tmp_path: Path) -> None:
    names = {"classes": ["sky", "road", "road"]}
    path = srattn.save_checkpoint(make(*HEADS[0]), tmp_path / "named.safetensors", metadata=names)
    run = open_model(str(path))
    assert run.classes == ["sky", "road 1", "road 2"], "of pixels no two classes have one name"
    said = {**run.preprocess.to_dict(), "size": [96, 128], "fit": "squash"}
    path = srattn.save_checkpoint(make(*HEADS[0]), tmp_path / "said.pth", metadata={**names, "preprocess": said})
    assert open_model(str(path)).preprocess.size == (96, 128)


def test_one_logit_is_of_two_classes(tmp_path: Path) -> None:
    model: Any = build_task_model("segmentation", "pvt_v2_b0", 1, "segformer", {"hidden": 16}, **SMALL)
    run = open_model(str(srattn.save_checkpoint(model, tmp_path / "one.pth")), size=64)
    assert run.classes == ["0", "1"]
    mask = predict_mask(run, Image.effect_noise((64, 64), 60).convert("RGB"))
    logits = run.model(run.preprocess.normalise(torch.zeros(1, 3, 64, 64)))
    assert logits.shape[1] == 1 and set(mask.unique().tolist()) <= {0, 1}
    with pytest.raises(SrattnError, match=r"1 output\(s\) for 2 classes"):
        srattn.save_pretrained(run, tmp_path / "hub")


def described(path: Path, **changes: Any) -> Path:
    """The file with other words in the configuration of its backbone."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["srattn"])
    facts["model"] |= changes
    save_file(load_file(path), path, {"srattn": json.dumps(facts)})
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": [1, 1, 1, 10**7]}, "10000003 blocks"),
        ({"embed_dims": [8, 8, 16, 10**5]}, "parameters, and holds"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"mlp_ratios": [4, 4, 4, 4]}, "the model's is"),
        ({"depths": "many"}, "does not describe a model"),
    ],
)
def test_a_file_that_lies_is_one_line(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = described(srattn.save_checkpoint(make(*HEADS[0]), tmp_path / "x.safetensors"), **changes)
    with pytest.raises(SrattnError, match=words) as raised:
        open_model(str(path))
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)
    assert task_of(str(path)) == "segmentation"


def test_what_is_no_checkpoint_is_told_by_open_model(tmp_path: Path) -> None:
    (tmp_path / "no.pth").write_bytes(b"no")
    assert task_of(str(tmp_path / "no.pth")) == "classification"
    with pytest.raises(SrattnError, match=r"no\.pth"):
        open_model(str(tmp_path / "no.pth"))
    with pytest.raises(SrattnError, match="capsule head"):
        task_of_head("capsule")


def golden(shared: Path, name: str, folder: Path, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    """Writes a golden as the folder that transformers would, and returns what it recorded."""
    found = load_file(shared / "goldens" / f"{name}.safetensors")
    config = json.loads((shared / "goldens" / "index.json").read_text())[name]["config"]
    if names is not None:
        config["id2label"] = {str(number): each for number, each in enumerate(names)}
    folder.mkdir()
    state = {key.removeprefix("state."): value for key, value in found.items() if key.startswith("state.")}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return found


def test_segformer_of_transformers_segments(shared: Path, tmp_path: Path) -> None:
    names = [*"abcdefgh", "i", "i"]
    found = golden(shared, "segformer_seg_hf", tmp_path / "hub", names)
    assert task_of(str(tmp_path / "hub")) == "segmentation"
    run = open_model(str(tmp_path / "hub"), size=64)
    assert run.task == "segmentation" and run.classes == [*names[:8], "i 8", "i 9"] and run.preprocess.fit == "shorter"
    for number in range(2):
        with torch.inference_mode():
            logits = run.model(found[f"run{number}.input"])
        # As far as the golden's own test allows: twice float32's distance from float64, where more than 1e-5.
        torch.testing.assert_close(logits, found[f"run{number}.output"], rtol=1e-4, atol=1e-5)

    picture = Image.effect_noise((104, 72), 80).convert("RGB")
    mask = predict_mask(run, picture)
    pixels = run.preprocess.normalise(run.preprocess.pixels(picture).unsqueeze(0).float() / 255)
    with torch.inference_mode():
        logits = run.model(pixels)
    whole = torch.nn.functional.interpolate(logits, (72, 104), mode="bilinear", align_corners=False)[0]
    best, second = whole.topk(2, 0).values
    clear = best - second > 1e-5  # elsewhere rounding decides
    assert clear.float().mean() > 0.99 and torch.equal(mask.long()[clear], whole.argmax(0)[clear])

    metrics: Any = make_task("segmentation", run.classes).metrics()
    target = torch.nn.functional.interpolate(logits, (72, 104), mode="bilinear", align_corners=False).argmax(1)
    metrics.update(logits, target)
    perfect = metrics.compute()
    assert perfect["miou"] == perfect["pixel_accuracy"] == perfect["dice"] == 1
    metrics.update(logits, (target + 1) % 10)
    assert metrics.compute()["pixel_accuracy"] == 0.5


def test_glpn_of_transformers_gives_depths(shared: Path, tmp_path: Path) -> None:
    found = golden(shared, "glpn_depth_hf", tmp_path / "hub")
    assert task_of(str(tmp_path / "hub")) == "depth"
    run = open_model(str(tmp_path / "hub"))
    assert (run.task, run.classes) == ("depth", ["depth"])
    assert run.preprocess.mean == (0, 0, 0) and run.preprocess.std == (1, 1, 1), "levels in [0, 1] as they are"
    with torch.inference_mode():
        depths = run.model(found["run1.input"])
    torch.testing.assert_close(depths, found["run1.output"], rtol=1e-4, atol=1e-5)
    # Of streets: how far it sees stands in its configuration alone, and in what measuring goes by.
    file = tmp_path / "hub" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_depth": 80}))
    streets = open_model(str(tmp_path / "hub"))
    assert task_options(streets.model) == {"max_depth": 80}
    with torch.inference_mode():
        torch.testing.assert_close(streets.model(found["run1.input"]), 8 * depths)


def test_widths_of_nobody_need_the_number_of_heads(shared: Path, tmp_path: Path) -> None:
    golden(shared, "segformer_seg_hf", tmp_path / "hub")
    with pytest.raises(SrattnError, match="of mit, but of no registered model"):
        open_model(str((tmp_path / "hub" / "model.safetensors").rename(tmp_path / "alone.safetensors")))
