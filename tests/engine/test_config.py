"""Options: their ranges, their defaults, and their way through YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from PIL import Image

from srattn.engine.config import ResolvedConfig, TrainConfig, from_dict, to_dict, to_yaml
from srattn.engine.defaults import DIGITS, resolve
from srattn.engine.progress import Silent
from srattn.engine.read import make_augment, read_data
from srattn.errors import SrattnError
from srattn.tasks.registry import task_called


def test_resolved_and_given_back_it_is_the_same() -> None:
    resolved = resolve(TrainConfig(epochs=3, model_options={"qkv_bias": False}))
    assert resolved.epochs == 3
    assert resolved.model_options == DIGITS["model_options"] | {"qkv_bias": False}
    again = yaml.safe_load(to_yaml(resolved))
    assert "out" not in again and "resume" not in again
    assert resolve(TrainConfig(**again)) == resolved
    assert from_dict(to_dict(resolved)) == resolved


def test_nothing_is_left_open(tmp_path: Path) -> None:
    for data in ("digits", str(tmp_path)):
        resolved = resolve(TrainConfig(data=data))
        values = dataclasses.asdict(resolved)
        unused = {"val", "on_empty_class", "init", "distill", "eval_batch_size", "out", "resume"}
        unused |= {"classes", "class_weights", "depth_scale", "head", "loss"}
        unused |= {"image_column", "label_column", "split_column"}
        assert {name for name, value in values.items() if value is None} == unused
        assert Path(data).name == Path(resolved.data).name


def test_images_are_measured_at_their_size_unless_told() -> None:
    assert resolve(TrainConfig(size=24)).eval_size == 24
    assert resolve(TrainConfig(model="pvt_v2_b1.in1k")).model == "pvt_v2_b1"
    assert resolve(TrainConfig(size=24, eval_size=32)).eval_size == 32


def test_processes_of_a_machine_share_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert resolve(TrainConfig(data=str(tmp_path))).threads == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert resolve(TrainConfig(data=str(tmp_path))).threads == 2


def test_options_of_the_default_model_are_for_that_model_alone() -> None:
    assert resolve(TrainConfig(model="pvt_v2_b1")).model_options == {}


def test_every_option_has_a_help() -> None:
    source = Path(__file__).parents[2] / "src" / "srattn" / "engine" / "config.py"
    lines = source.read_text().splitlines()
    for field in dataclasses.fields(TrainConfig):
        at = next(n for n, line in enumerate(lines) if line.startswith(f"    {field.name}:"))
        assert lines[at + 1].lstrip().startswith('"""'), field.name


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": -1.0},
        {"weight_decay": -0.1},
        {"drop_rate": 1.0},
        {"drop_path_rate": 1.0},
        {"ema_decay": 1.0},
        {"threads": 0},
        {"num_workers": -1},
        {"seed": 2**63},
        {"accumulate": 0},
        {"accumulate": 65},
        {"layer_decay": 0.0},
        {"layer_decay": 1.5},
        {"keep_checkpoints": 0},
        {"lora_rank": -1},
        {"patience": -1},
        {"max_minutes": -1.0},
    ],
)
def test_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(SrattnError, match=next(iter(options))):
        TrainConfig(**options)  # type: ignore[arg-type]


def test_unknown_options_in_a_checkpoint() -> None:
    values = to_dict(resolve(TrainConfig()))
    with pytest.raises(SrattnError, match="unknown option 'epoch'; did you mean 'epochs'"):
        from_dict(values | {"epoch": 3})
    assert isinstance(from_dict(values), ResolvedConfig)


@pytest.mark.parametrize(
    ("folder", "task"),
    [("masks", "segment"), ("annotations", "segment"), ("depths", "depth"), ("Annotations", "detect")],
)
def test_images_beside_their_masks_are_no_classes_unless_told(tmp_path: Path, folder: str, task: str) -> None:
    images = tmp_path / ("JPEGImages" if folder == "Annotations" else "images")
    for place in (images, tmp_path / folder):
        place.mkdir()
        for number in range(4):
            suffix = ".xml" if place.name == "Annotations" else ".png"
            (place / f"{number}{suffix}").write_bytes(b"opened by nobody")
    with pytest.raises(SrattnError) as error:
        resolve(TrainConfig(data=str(tmp_path)))
    for words in (f"{images} beside {tmp_path / folder}", f"--task {task} ", "--task classification"):
        assert words in str(error.value)
    assert resolve(TrainConfig(data=str(tmp_path), task="classification")).task == "classification"
    assert resolve(TrainConfig(data=str(tmp_path), task=task)).task == task_called(task)


def test_columns_of_lists_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "list.csv").write_text("where,what\na.png,x\nb.png,y\nc.png,x\nd.png,y\n")
    config = resolve(
        TrainConfig(data=str(tmp_path / "list.csv"), image_column="where", label_column="what", num_workers=0, size=8)
    )
    augment = make_augment(config)
    assert read_data(config, augment, Silent()).classes == ["x", "y"]
    with pytest.raises(SrattnError, match="--image_column has no meaning for depth, which learns from depths"):
        resolve(TrainConfig(data=str(tmp_path), task="depth", image_column="where"))


def test_classes_called_images_and_masks_whose_files_do_not_pair(tmp_path: Path) -> None:
    for place in ("images", "masks"):
        for number in range(3):
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / f"{place}{number * 7}{place[number]}.png").write_bytes(b"")
    assert resolve(TrainConfig(data=str(tmp_path))).task == "classification"


def test_files_of_coco_are_named(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "person_keypoints_train.json").write_text("{}")
    with pytest.raises(SrattnError, match=r"annotations with COCO's files.*--task pose "):
        resolve(TrainConfig(data=str(tmp_path)))
