"""Settings that weights bring along: they stay with a run through checkpoints, and into its file."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from srattn.data.preprocess import Preprocess
from srattn.engine import Interrupted, TrainConfig, load_run, train
from srattn.engine.config import ResolvedConfig
from srattn.engine.defaults import resolve
from srattn.engine.settings import apply_settings, settings_of
from srattn.engine.start import prepare_model
from srattn.engine.weights import save_weights
from srattn.layers.batch_norm import convert_sync_batchnorm
from srattn.models import build_model
from srattn.tasks.models import build_task_model

Launch = Callable[..., list[Any]]  # see conftest
EPS = {"block": 1e-3, "reduction": 1e-5, "patch": 1e-5}
DETECTOR = {
    "task": "detect", "model": "pvt_v2_b0", "head": "fcos", "size": 32,
    "model_options": {"embed_dims": [8] * 4, "depths": [1] * 4, "num_heads": [1] * 4, "mlp_ratios": [1] * 4},
}  # fmt: skip
PYRAMID = {"width": 8, "convs": 1}


@pytest.fixture(scope="module")
def donor(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with the settings of a published origin, which are not those of a new model."""
    run = load_run(finished)
    run.model.set_edge("floor")
    run.model.set_norm_eps(block=EPS["block"])
    file = tmp_path_factory.mktemp("donor") / "donor.safetensors"
    save_weights(file, run.model, run.classes, run.preprocess)
    return file


@pytest.fixture(scope="module")
def options(tiny: dict[str, Any], donor: Path) -> dict[str, Any]:
    return tiny | {"init": str(donor), "size": 10, "epochs": 1, "ema_decay": 0.9}  # 10: the ratio 4 does not divide it


def settings_in(folder: Path) -> dict[str, Any]:
    return settings_of(load_run(folder).model)


def stopped(options: dict[str, Any], folder: Path) -> None:
    def on_step(step: int) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(TrainConfig(**options, out=str(folder)), on_step=on_step)


def test_a_resumed_run_keeps_the_settings_of_its_first_weights(options: dict[str, Any], tmp_path: Path) -> None:
    whole = train(TrainConfig(**options, out=str(tmp_path / "whole")))
    stopped(options, tmp_path / "run")
    resumed = train(TrainConfig(resume=str(tmp_path / "run")))
    assert settings_in(tmp_path / "run") == settings_in(tmp_path / "whole") == {"norm_eps": EPS, "edge": "floor"}
    assert resumed.history[-1]["val_loss"] == whole.history[-1]["val_loss"]
    theirs = resumed.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in whole.model.state_dict().items())


def test_a_checkpoint_from_before_settings_were_kept_is_resumed(options: dict[str, Any], tmp_path: Path) -> None:
    stopped(options, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("step-*/state.json"):
        facts = json.loads(path.read_text())
        del facts["settings"]
        path.write_text(json.dumps(facts))
    assert train(TrainConfig(resume=str(tmp_path / "run"))).result["epochs"] == 1


def test_divided_weights_are_saved_with_their_settings(options: dict[str, Any], launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = launch(2, options=options | {"out": str(folder), "distributed": "fsdp"})
    assert [process.code for process in ended] == [0, 0], [process.text for process in ended]
    assert settings_in(folder) == {"norm_eps": EPS, "edge": "floor"}


def detector(**options: Any) -> Any:
    given = DETECTOR["model_options"]
    return build_task_model("detection", "pvt_v2_b0", 2, "fcos", PYRAMID | options, img_size=32, **given)


def resolved(init: Path, data: Path, head_options: dict[str, Any]) -> ResolvedConfig:
    return resolve(TrainConfig(**DETECTOR, data=str(data), init=str(init), head_options=head_options))


def test_a_pyramid_keeps_the_relu_that_its_weights_learnt(tmp_path: Path) -> None:
    file, look = tmp_path / "detector.safetensors", Preprocess(size=(32, 32), fit="inside")
    save_weights(file, detector(extra_relu=False), ["a", "b"], look, task="detection")
    config = resolved(file, tmp_path, PYRAMID)
    model: Any = prepare_model(config, ["a", "b"])[0]
    assert model.neck.extra_relu is False
    again: Any = prepare_model(config, ["a", "b"], weights=False)[0]
    assert again.neck.extra_relu is True
    apply_settings(again, json.loads(json.dumps(settings_of(model))))
    assert again.neck.extra_relu is False
    fresh: Any = prepare_model(config, ["b", "a"])[0]  # other classes: all beside the backbone begins anew
    assert fresh.neck.extra_relu is True
    own: Any = prepare_model(resolved(file, tmp_path, PYRAMID | {"extra_relu": True}), ["a", "b"])[0]
    assert own.neck.extra_relu is True


def test_norms_over_several_processes_have_epsilons_too() -> None:
    model = build_model("cmt_ti", num_classes=2)
    model.set_norm_eps(reduction=1e-3)
    common = convert_sync_batchnorm(model)
    assert isinstance(common, type(model)) and common.norm_eps["reduction"] == 1e-3
    common.set_norm_eps(reduction=1e-4)
    assert common.norm_eps["reduction"] == 1e-4
