"""Every recipe says what it is and is made of options that training knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from srattn import recipes
from srattn.engine.config import TrainConfig
from srattn.errors import SrattnError
from srattn.models.registry import list_models
from srattn.models.weights import find_weights
from srattn.tasks.models import build_task_model, targets_of
from srattn.tasks.registry import task_called

NAMES = recipes.names()
RESULTS = {"top1", "miou", "ap"}  # what the sizes of published recipes reach


def test_names() -> None:
    imagenet = {"imagenet_mit", "imagenet_pvt", "imagenet_pvt_v2", "imagenet_twins"}
    dense = {"ade20k_pvt_semantic_fpn", "coco_pvt_retinanet", "camvid", "blood_cells"}
    assert {"cifar10", "digits"} | imagenet | dense <= set(NAMES)
    assert all(recipes.path(name).is_file() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is(name: str) -> None:
    about = recipes.describe(name)
    for field in (about.title, about.command, about.cost, about.result, about.source):
        assert isinstance(field, str) and field and "\n" not in field
    assert f"--recipe {name}" in about.command
    assert isinstance(about.run_here, bool)
    if about.run_here:
        assert re.search(r"\d", about.result) and re.search(r"\d", about.cost)
    else:
        assert "published" in about.result or "not measured" in about.result


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_made_of_known_options(name: str) -> None:
    config = TrainConfig(**recipes.load(name))
    assert config.out is None and config.resume is None and config.device == "auto"
    options = {"device": "meta", "in_chans": config.channels, **config.model_options}
    build_task_model(task_called(config.task), str(config.model), 7, config.head or "", config.head_options, **options)


@pytest.mark.parametrize("name", NAMES)
def test_augmentation_is_one_that_training_knows(name: str) -> None:
    spec = pytest.importorskip("srattn.data.spec")
    from srattn.data.dense import parse_joint
    from srattn.data.preprocess import Preprocess

    config = recipes.load(name)
    channels = config["channels"]
    preprocess = Preprocess(channels=channels, size=(32, 32), mean=(0.5,) * channels, std=(0.5,) * channels)
    if targets_of(task_called(config.get("task", "classification"))) == "labels":
        spec.parse_augment(config["augment"], preprocess)
    else:
        parse_joint(config["augment"], preprocess)


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name: str) -> None:
    about, config = recipes.describe(name), recipes.load(name)
    for size in about.sizes:
        assert size["model"] in list_models()
        TrainConfig(**{**config, **{key: value for key, value in size.items() if key not in RESULTS}})
        if "top1" not in size:
            continue
        published = find_weights(size["model"])
        # The table of weights names others' measurements of them too: a tenth apart at most.
        assert published is not None and abs(published.top1 - size["top1"]) <= 0.16
    if about.sizes:
        (own,) = [size for size in about.sizes if size["model"] == config["model"]]
        assert all(str(own[key]) in about.result for key in RESULTS & own.keys())
        assert all(config[key] == value for key, value in own.items() if key not in RESULTS)


def test_digits_are_the_defaults() -> None:
    from srattn.engine.defaults import resolve

    assert resolve(TrainConfig(**recipes.load("digits"))) == resolve(TrainConfig())


def test_digits_figures_are_the_committed_ones(root: Path) -> None:
    table = (root / "benchmarks/results/first_job.md").read_text()
    figures = re.findall(r"(?m)^\| \d \| ([\d.]+ %) \| (\d+) \|$", table)
    about = recipes.describe("digits")
    assert all(accuracy in about.result for accuracy, _ in figures)
    seconds = [int(each) for _, each in figures]
    assert all(str(each) in about.cost for each in (min(seconds), max(seconds)))


def test_no_such_recipe() -> None:
    with pytest.raises(SrattnError, match="no recipe 'digit'; did you mean 'digits'"):
        recipes.load("digit")
    for name in ("../recipes/digits", "/etc/passwd", ""):
        with pytest.raises(SrattnError, match="no recipe"):
            recipes.path(name)


@pytest.mark.parametrize("name", NAMES)
def test_files_hold_data_alone(name: str) -> None:
    text = recipes.text(name)
    assert "!!" not in text and yaml.safe_load(text).keys() == {"about", "config"}
