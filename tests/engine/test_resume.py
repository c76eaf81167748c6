"""A run that was stopped ends as one that was not, to the last bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from srattn.engine import Interrupted, TrainConfig, train
from srattn.engine.exam import open_exam
from srattn.engine.progress import Silent
from srattn.engine.weights import load_run
from srattn.errors import SrattnError

# Everything random is on: augmentation, dropout, stochastic depth; the average has weights of its own,
# and matrices an optimiser of theirs.
RANDOM = {
    "drop_rate": 0.2, "drop_path_rate": 0.3, "ema_decay": 0.9, "augment": "affine,flip,mixup", "epochs": 3,
    "accumulate": 2, "layer_decay": 0.8, "optimiser": "muon_conv",
}  # fmt: skip
TIMES = ("images_per_second", "loader_share", "seconds")
Launch = Callable[..., list[Any]]  # see conftest


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_run(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert records(one) == records(other)
    assert len((other / "metrics.csv").read_text().splitlines()) == 1 + len(records(other))


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def options(tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny | RANDOM


@pytest.fixture(scope="module")
def whole(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(TrainConfig(**options, out=str(folder)))
    return folder


def test_the_same_seed_gives_the_same_numbers(options: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    torch.rand(7)  # what was drawn before does not matter
    train(TrainConfig(**options, out=str(tmp_path / "again"), num_workers=2))
    same_run(whole, tmp_path / "again")
    train(TrainConfig(**options | {"epochs": 1}, out=str(tmp_path / "other"), seed=1))
    assert records(tmp_path / "other")[0] != records(whole)[0]


# 6 steps an epoch: within one, after the last of one (before its validation), the first of all, within the last.
@pytest.mark.parametrize("steps", [(3,), (6,), (1, 8, 17)])
def test_interrupted_by_ctrl_c_and_resumed(
    options: dict[str, Any], whole: Path, tmp_path: Path, steps: tuple[int, ...]
) -> None:
    before = signal.getsignal(signal.SIGINT)  # a job in the background is started with it ignored
    folder = tmp_path / "run"
    config = TrainConfig(**options, out=str(folder))
    for stop_at in steps:

        def on_step(step: int, stop_at: int = stop_at) -> None:
            if step == stop_at:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(Interrupted) as stopped:
            train(config, on_step=on_step)
        assert stopped.value.folder == folder
        assert not (folder / "model.safetensors").exists()
        config = TrainConfig(resume=str(folder))
    result = train(config)
    assert result.result["epochs"] == 3
    same_run(whole, folder)
    assert signal.getsignal(signal.SIGINT) is before


# A checkpoint each 4 steps and after each epoch of 6; killed before the first, at one, between two, in the last epoch.
def test_killed_at_any_step_it_ends_the_same(
    options: dict[str, Any], whole: Path, launch: Launch, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    given = options | {"out": str(folder), "checkpoint_steps": 4}
    for kill in (1, 4, 9, 17):
        (ended,) = launch(1, options=given, do={"kill": [0, kill]})
        assert ended.code == -signal.SIGKILL, ended.text
        given = {"resume": str(folder)}
    (ended,) = launch(1, options=given)
    assert ended.code == 0, ended.text
    assert len(ended.report["losses"]) < 18  # it did not begin from the start
    same_run(whole, folder)


def test_fp16_with_its_scaler_is_resumed_exactly(tiny: dict[str, Any], launch: Launch, tmp_path: Path) -> None:
    options = tiny | {"epochs": 1, "precision": "fp16"}
    train(TrainConfig(**options, out=str(tmp_path / "whole")))
    folder = tmp_path / "run"
    (ended,) = launch(1, options=options | {"out": str(folder), "checkpoint_steps": 2}, do={"kill": [0, 5]})
    assert ended.code == -signal.SIGKILL, ended.text
    state = json.loads(max((folder / "checkpoints").glob("step-*/state.json")).read_text())
    assert state["scaler"]["scale"] > 0
    train(TrainConfig(resume=str(folder)))
    same_run(tmp_path / "whole", folder)


def test_half_a_checkpoint_is_passed_over(options: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    for damage in ("cut", "missing", "aside"):
        folder = tmp_path / damage
        shutil.copytree(whole, folder)
        (folder / "model.safetensors").unlink()
        last = folder / "checkpoints" / "step-0000000018"
        if damage == "cut":
            with open(last / "__0_0.distcp", "rb+") as file:
                file.truncate(1000)
        elif damage == "missing":
            (last / ".metadata").unlink()
        else:
            last.rename(last.with_name(".aside-step-0000000018"))
        seen: list[int] = []
        train(TrainConfig(resume=str(folder)), on_step=seen.append)
        assert seen == list(range(13, 19))
        same_run(whole, folder)
        assert all(path.name.startswith("step-") for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_is_interrupted_saves_and_says_how_to_go_on(
    options: dict[str, Any], whole: Path, tmp_path: Path, number: int, code: int
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    folder = tmp_path / "run"
    # The command itself, made to wait for us in its eighth step.
    command = """if True:
        import sys
        from srattn.cli.main import main
        from srattn.engine.trainer import Trainer
        step = Trainer._step
        def wait(self, *batch):
            step(self, *batch)
            self._look()
            if self.steps_done == 8:
                print("waiting", flush=True)
                sys.stdin.readline()
        Trainer._step = wait
        sys.exit(main(["train", *sys.argv[1:]]))
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", command, "--config", str(tmp_path / "config.yaml"), "--out", str(folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "waiting" in line:
            process.send_signal(number)
            break
    _, errors = process.communicate("go on\n", timeout=120)
    assert process.returncode == code, errors
    assert f"stopped in epoch 2 after step 2 and saved; continue with: srattn train --resume {folder}" in errors
    assert "Traceback" not in errors
    train(TrainConfig(resume=str(folder)))
    same_run(whole, folder)


def test_a_finished_run_resumed_stays_what_it_is(whole: Path) -> None:
    before = weights(whole)
    seen: list[int] = []
    result = train(TrainConfig(resume=str(whole)), on_step=seen.append)
    assert seen == []
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(whole).items())
    assert result.result["accuracy"] == records(whole)[-1]["val_accuracy"]


def test_other_options_are_refused(whole: Path) -> None:
    with pytest.raises(SrattnError, match=r"lr is 0\.002, not 0\.5"):
        train(TrainConfig(resume=str(whole), lr=0.5))
    with pytest.raises(SrattnError, match="leave --out away"):
        train(TrainConfig(resume=str(whole), out="elsewhere"))


def test_where_it_computes_may_change(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    result = train(TrainConfig(resume=str(folder), num_workers=2, cache_mb=7))
    assert (result.config.num_workers, result.config.cache_mb) == (2, 7)


def test_the_only_checkpoint_survives_a_kill_while_it_is_replaced(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for path in (folder / "checkpoints").iterdir():
        path.rename(path.with_name(f".old-{path.name}"))
    result = train(TrainConfig(resume=str(folder)))
    assert result.result["epochs"] == 3 and list((folder / "checkpoints").glob("step-*"))
    same_run(whole, folder)


def test_what_cannot_be_resumed(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match="nothing to resume"):
        train(TrainConfig(resume=str(tmp_path)))
    for change, message in [
        ({"fingerprint": "0"}, "has changed since the run began"),
        ({"format": 1}, "nothing to resume"),
        ({"position": {"place": 1}}, "not a checkpoint of a training run of this version"),
        ({"config": "default"}, "not a checkpoint of a training run of this version"),
        ({"config": {"of_a_later_version": 1}}, r"may be of a newer version: unknown option 'of_a_later_version'"),
        ({"config": {"batch_size": "many"}}, r"has options that srattn .* does not take"),
    ]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(whole, folder)
        for path in (folder / "checkpoints").glob("step-*/state.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(SrattnError, match=message):
            train(TrainConfig(resume=str(folder)))
    for inner in ("checkpoints", "model.safetensors", "checkpoints/step-0000000018"):
        with pytest.raises(SrattnError, match=f"nothing to resume; did you mean {re.escape(str(whole))}\\?"):
            train(TrainConfig(resume=str(whole / inner)))
    state = json.loads(next((whole / "checkpoints").glob("step-*/state.json")).read_text())
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    other = {"config": state["config"] | {"model_options": state["config"]["model_options"] | {"depths": [1, 1, 1, 2]}}}
    for path in (folder / "checkpoints").glob("step-*/state.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | other))
    with pytest.raises(SrattnError, match="does not fit the model"):
        train(TrainConfig(resume=str(folder)))


def interrupted(options: dict[str, Any], folder: Path, step: int) -> None:
    """A run that was stopped after `step`."""

    def on_step(done: int) -> None:
        if done == step:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(TrainConfig(**options, out=str(folder)), on_step=on_step)


def write_photos(root: Path) -> Path:
    """Two classes of six pictures of 24x20 pixels each, whose files are all of one size."""
    for level, name in ((40, "dusk"), (160, "day")):
        (root / name).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (24, 20), (level + 7 * index,) * 3).save(root / name / f"{index}.bmp")
    return root


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_data_that_was_moved(tiny: dict[str, Any], tmp_path: Path, kind: str) -> None:
    old = write_photos(tmp_path / "old" / "photos")
    data = {"folder": old, "list": tmp_path / "old.csv"}[kind]

    def write_list(root: Path, path: Path) -> None:  # of absolute paths
        rows = [f"{image},{image.parent.name}\n" for image in sorted(root.rglob("*.bmp"))]
        path.write_text("image,label\n" + "".join(rows))

    write_list(old, tmp_path / "old.csv")
    options = tiny | {"data": str(data), "size": 16, "batch_size": 4, "num_workers": 0, "cache_mb": 0}
    whole = train(TrainConfig(**options, out=str(tmp_path / "whole")))
    interrupted(options, tmp_path / "run", 4)
    new = tmp_path / "elsewhere"
    old.rename(new)
    write_list(new, tmp_path / "new.csv")
    (tmp_path / "old.csv").unlink()
    with pytest.raises(SrattnError, match=rf"{data} is not there any more; if it was moved, .* --data PLACE"):
        train(TrainConfig(resume=str(tmp_path / "run")))
    place = {"folder": new, "list": tmp_path / "new.csv"}[kind]
    result = train(TrainConfig(resume=str(tmp_path / "run"), data=os.path.relpath(place)))
    assert result.config.data == result.result["data"] == str(place)
    same_run(whole.folder, tmp_path / "run")
    train(TrainConfig(resume=str(tmp_path / "run")))  # the last checkpoint knows the new place
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert written.splitlines()[0] == f'# until step 4: data: "{data}"'
    assert yaml.safe_load(written)["data"] == str(place)
    exam = open_exam(load_run(tmp_path / "run"), os.path.relpath(place))
    assert len(exam.samples) == len(result.loader.data.val) and "held out" in exam.split
    with pytest.raises(SrattnError, match=r"data is '.*', not 'digits'"):
        train(TrainConfig(resume=str(tmp_path / "run")), given={"data"})


def test_data_that_was_moved_twice_before_a_checkpoint(tiny: dict[str, Any], launch: Launch, tmp_path: Path) -> None:
    """What a resume was told is known to the next, though it was killed before it saved anything."""
    options = tiny | {"size": 16, "batch_size": 4, "num_workers": 0, "cache_mb": 0, "drop_path_rate": 0.0}
    places = [write_photos(tmp_path / "0")]
    whole = train(TrainConfig(**options, data=str(places[0]), out=str(tmp_path / "whole")))
    folder = tmp_path / "run"
    interrupted(options | {"data": str(places[0])}, folder, 4)
    for number in (1, 2):
        places.append(places[-1].rename(tmp_path / str(number)))
        (ended,) = launch(1, options={"resume": str(folder), "data": str(places[-1])}, do={"kill": [0, 5]})
        assert ended.code == -signal.SIGKILL, ended.text
    train(TrainConfig(resume=str(folder)))
    same_run(whole.folder, folder)
    lines = (folder / "config.yaml").read_text().splitlines()
    assert lines[:2] == [f'# until step 4: data: "{place}"' for place in places[:2]]
    assert yaml.safe_load("\n".join(lines))["data"] == str(places[2])


@pytest.mark.parametrize("text", [None, "data: [1, 2]\n", "{", "- 1\n", "data: /not/there\n"])
def test_a_configuration_that_says_no_place_is_no_hindrance(whole: Path, tmp_path: Path, text: str | None) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    if text is None:
        (folder / "config.yaml").unlink()
    else:
        (folder / "config.yaml").write_text(text)
    train(TrainConfig(resume=str(folder)))
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"] == "digits"


def test_other_pictures_under_the_same_names_are_noticed(tiny: dict[str, Any], tmp_path: Path) -> None:
    data = write_photos(tmp_path / "photos")
    options = tiny | {"data": str(data), "size": 16, "batch_size": 4, "num_workers": 0}
    interrupted(options, tmp_path / "run", 2)
    shutil.copytree(data, tmp_path / "other")
    changed = tmp_path / "other" / "dusk" / "0.bmp"
    size = changed.stat().st_size
    Image.new("RGB", (24, 20), (99, 0, 0)).save(changed)
    assert changed.stat().st_size == size
    shutil.copytree(data, tmp_path / "renamed")
    (tmp_path / "renamed" / "dusk").rename(tmp_path / "renamed" / "evening")
    for place, message in (("other", "has other pictures under the same names"), ("renamed", "has changed since")):
        with pytest.raises(SrattnError, match=message):
            train(TrainConfig(resume=str(tmp_path / "run"), data=str(tmp_path / place)))
    # A checkpoint of an earlier version does not say what was in the files.
    for path in (tmp_path / "run" / "checkpoints").glob("step-*/state.json"):
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in facts.items() if k not in ("contents", "rootless", "classes")}))
    train(TrainConfig(resume=str(tmp_path / "run"), data=str(tmp_path / "other")))


def test_an_option_that_is_given_at_its_default_is_no_less_given(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    config = TrainConfig(resume=str(folder))
    assert train(config).config.batch_size == 256
    with pytest.raises(SrattnError, match="batch_size is 256, not 64"):
        train(config, given={"batch_size"})
    assert train(config, given={"device"}).config.device == "auto"  # where it computes may change


def test_a_finished_run_says_so(options: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    class Listener(Silent):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    listener = Listener()
    train(TrainConfig(resume=str(folder)), progress=listener)
    assert any(
        "this run is finished: epoch 3 was its last;" in note and f"srattn train --init {folder} --epochs N" in note
        for note in listener.notes
    )
    interrupted(options, tmp_path / "stopped", 4)
    listener = Listener()
    train(TrainConfig(resume=str(tmp_path / "stopped")), progress=listener)
    assert not any("nothing is trained" in note for note in listener.notes)
