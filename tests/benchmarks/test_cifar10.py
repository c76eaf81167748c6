"""From the benchmark's command to its table, and from a run to the model in the box."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from srattn.cli.main import main as srattn
from srattn.engine import load_run
from srattn.models import build_model
from srattn.models.registry import count_parameters

Script = Callable[[str], ModuleType]
SMALL = (
    "{model: pvt_v2_b0, model_options: {stem_stride: 2, embed_dims: [8, 8], depths: [1, 1], num_heads: [1, 1], "
    "mlp_ratios: [1, 1], sr_ratios: [2, 1]}, batch_size: 16, precision: fp32, compile: false, num_workers: 0}"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["script", *map(str, arguments)])
    module.main()


def test_runs_tables_and_the_box(
    script: Script, images: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cifar10, box = script("cifar10"), script("box")
    options = ("--data", images, "--runs", runs, "--results", tmp_path, "--threads", 1, "--override", SMALL)
    options = (*options, "--only", "ours", "--epochs", 2)
    run(cifar10, monkeypatch, *options, "--seed", 0)
    run(cifar10, monkeypatch, *options, "--seed", 0, 1)
    assert "ours-seed0 is finished" in capsys.readouterr().out
    rows = json.loads((tmp_path / "cifar10.json").read_text())["runs"]
    assert [row["seed"] for row in rows] == [0, 1] and all(row["epochs"] == 2 for row in rows)
    assert all(len(row["curve"]["accuracy"]) == len(row["curve"]["minutes"]) == 2 for row in rows)
    assert rows[0]["curve"]["accuracy"][-1] == rows[0]["accuracy"]
    assert {"cpu", "threads", "torch", "commit"} <= rows[0]["machine"].keys()
    assert (tmp_path / "cifar10.md").read_text().count("| ours |") == 3
    with Image.open(tmp_path / "cifar10.png") as picture:
        assert picture.size == (1080, 432)
    shutil.copytree(runs / "ours-seed1", tmp_path / "few" / "ours-seed1")
    shutil.copy(runs / "ours-seed1.json", tmp_path / "few")
    few = ("--runs", tmp_path / "few", "--results", tmp_path, "--report")
    run(cifar10, monkeypatch, *few, "--add")
    assert json.loads((tmp_path / "cifar10.json").read_text())["runs"] == rows
    run(cifar10, monkeypatch, *few, "--name", "one")
    assert json.loads((tmp_path / "one.json").read_text())["runs"] == rows[1:]

    target = ("--target", tmp_path / "weights", "--corrupted_images", 7)
    run(box, monkeypatch, runs / "ours-seed0", "--data", images, *target, "--threads", 1)
    facts = json.loads((tmp_path / "weights" / "cifar10.json").read_text())
    assert facts["measured"]["images"] == 20 and len(facts["measured"]["corruptions"]) > 3
    assert facts["corrupted_images"] == 7 and facts["training"]["passes"] == 2
    accuracies = [value for row in facts["measured"]["corruptions"].values() for value in row.values()]
    assert all(7 * value == pytest.approx(round(7 * value)) for value in accuracies)
    assert facts["training"]["recipe"]["epochs"] == 2
    text = (tmp_path / "weights" / "README.md").read_text()
    assert f"{100 * facts['measured']['top1']:.2f} %" in text and "class 9" in text and "## Limits" in text
    shipped, trained = (load_run(p) for p in (tmp_path / "weights" / "cifar10.safetensors", runs / "ours-seed0"))
    for name, tensor in trained.model.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(shipped.model.state_dict()[name], tensor.half().float())

    monkeypatch.setattr("srattn.engine.open_model.files", lambda name: tmp_path)
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "photo.jpg")
    capsys.readouterr()
    assert srattn(["predict", str(tmp_path / "photo.jpg"), "--format", "json", "--top", "1"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)[0]["class"] in trained.classes
    assert "the model in the box answers; it knows class 0, class 1" in captured.err


def test_a_box_that_is_too_large_is_refused(
    script: Script, images: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = script("box")
    monkeypatch.setattr(box, "MAX_BYTES", 1000)
    with pytest.raises(SystemExit, match="bytes are more than the 1,000 of the box"):
        run(box, monkeypatch, runs / "ours-seed0", "--data", images, "--target", tmp_path, "--threads", 1)
    assert not list(tmp_path.iterdir())


def test_epochs_that_fit_the_minutes(
    script: Script, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar10 = script("cifar10")
    script("cifar10_peers").register()
    monkeypatch.setattr(cifar10, "measured_speed", lambda config, seconds: {"train": 500.0, "eval": 2000.0})
    args = Namespace(
        recipe="cifar10", data=str(images), runs=tmp_path, minutes=60, epochs=0, threads=1, path=None,
        measure_seconds=1.0, override="{lr: 0.5}",
    )  # fmt: skip
    config = cifar10.config_of("vit", 3, args)
    # 100 s of training and 5 s of evaluation an epoch, 90 % of 3,600 s
    assert config.epochs == 30 and config.max_minutes == 60 and config.model == "bench_vit"
    assert (config.seed, config.lr) == (3, 0.5)
    again = cifar10.config_of("ours", 0, Namespace(**vars(args) | {"epochs": 7}))
    assert again.epochs == 7 and again.max_minutes == 0


def test_peers_are_of_the_size_of_ours(script: Script) -> None:
    from srattn import recipes

    cifar10, peers = script("cifar10"), script("cifar10_peers")
    peers.register()
    recipe = recipes.load("cifar10")
    ours = count_parameters(build_model(recipe["model"], num_classes=10, img_size=32, **recipe["model_options"]))
    x = torch.randn(2, 3, 32, 32)
    for name in ("bench_resnet", "bench_vit"):
        model = build_model(name, num_classes=10)
        assert 0.93 < count_parameters(model) / ours < 1.07
        assert model(x).shape == (2, 10)
        again = build_model(**model.config)
        again.load_state_dict(model.state_dict())
        assert torch.equal(model.eval()(x), again.eval()(x))
    small = {"model": "bench_vit", "model_options": {"dim": 8, "depth": 1, "heads": 1}, "size": 32}
    # patches, 3 x 48 x 8 each of 64; q, k, v, out and feed-forward 12 d^2; scores and sums 2 x 64 x d; head
    assert cifar10.mega_macs(small) == pytest.approx((64 * (48 * 8 + 12 * 64 + 2 * 64 * 8) + 80) / 1e6, rel=1e-9)


def test_a_step_is_divided_into_its_parts(script: Script) -> None:
    scaling = script("scaling")
    one = {"processes": 1, "step": [0.2, 0.2, 0.5], "loader": [0.01, 0.01, 0.01], "alone": [0.15, 0.2, 0.2]}
    two = {"processes": 2, "step": [0.1, 0.1, 0.5], "loader": [0.01, 0.01, 0.01], "alone": [0.07, 0.07, 0.07]}
    first, second = (scaling.summary([found], 100) for found in (one, two))
    assert (first["images_per_second"], second["images_per_second"]) == (500.0, 1000.0)
    assert (first["compute_ms"], first["communication_ms"]) == (190.0, 0.0)
    assert (second["loader_ms"], second["communication_ms"], second["compute_ms"]) == (10.0, 20.0, 70.0)
    machine = {"cpu": "C", "cores": 2, "torch": "2", "srattn": "0", "python": "3", "commit": "none"}
    text = scaling.table({"model": "m", "batch_size": 100, "rows": [first, second], "machine": machine})
    assert "| 2 | 1000 | 2.00 | 100.0 ms | 10.0 ms | 70.0 ms | 20.0 ms |" in text
