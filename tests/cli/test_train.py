"""`srattn train` from the command line."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from srattn.cli.main import main
from srattn.engine.config import TrainConfig
from srattn.engine.defaults import known, resolve

TINY: dict[str, Any] = {
    "model": "pvt_v2_b0",
    "model_options": {
        "stem_stride": 1,
        "embed_dims": [8, 8, 8, 8],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 1],
        "mlp_ratios": [1, 1, 1, 1],
        "sr_ratios": [4, 2, 1, 1],
    },
    "size": 8,
    "batch_size": 256,
    "threads": 1,
    "epochs": 1,
    "device": "cpu",
}


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Options of a run of a second."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return ["train", "--config", str(path)]


@pytest.fixture
def no_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the part of the report that measures for seconds."""
    import srattn.cli.train as module

    whole = module.report_inputs

    def quick(result: Any) -> Any:
        inputs = whole(result)
        inputs.measure_scaling = False
        return inputs

    monkeypatch.setattr(module, "report_inputs", quick)


def test_from_options_to_report(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], no_scaling: None
) -> None:
    out = tmp_path / "run"
    assert main([*tiny, "--out", str(out), "--epochs", "2", "--model_options.qkv_bias", "false"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "0.01 million parameters" in printed[0] and "359 held out" in printed[0]
    assert [line.split()[1] for line in printed if line.startswith("epoch")] == ["1/2", "2/2"]
    assert re.fullmatch(r"held-out accuracy \d+\.\d\d% on 359 images", printed[-3])
    assert printed[-2:] == [f"run folder {out}", f"report {out / 'report.html'}"]
    assert "<svg" in (out / "report.html").read_text()
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["epochs"] == 2
    assert config["model_options"] == TINY["model_options"] | {"qkv_bias": False}

    # The configuration of a run makes the same run again.
    again = tmp_path / "again"
    assert main(["train", "--config", str(out / "config.yaml"), "--out", str(again)]) == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert (again / "config.yaml").read_bytes() == (out / "config.yaml").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "4"], r"size 4 is below the 8 pixels"),
        (["--data", "nowhere"], r"'nowhere' is neither"),
        (["--modle", "x"], r"did you mean '--model'"),
        (["--learning-rate", "1"], r"--learning-rate 1; did you mean '--lr'\?"),
        (["--model", "pvt_v2_b9"], r"no model 'pvt_v2_b9'"),
        (["--epochs", "many"], r"epochs"),
        (["--epochs", "0"], r"epochs must be at least 1"),
        (["--augment", "melt"], r"augment"),
        (["--resume", "nowhere"], r"nothing to resume"),
        (["--config", "nowhere.yaml"], r"nowhere\.yaml"),
        (["--distributed", "fsdp"], r"torchrun --nproc-per-node"),
        (["--precision", "fp8"], r"precision"),
        (["--sinks", "[nowhere]"], r"no sink 'nowhere'"),
        (
            ["--model_options.depths", "[1, 0, 1, 1]"],
            r"--model_options\.depths takes a list of which each is a whole number above 0, got \[1, 0, 1, 1\]",
        ),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([*tiny, "--out", str(tmp_path / "run"), *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("srattn: error: ") and errors.count("\n") == 1
    assert re.search(message, errors)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe\x00", "is no text in UTF-8"),
        (b"learning_rate: 1\n", "Option 'learning_rate' is not accepted; did you mean 'lr'?"),
        (b"output_dir: x\n", "Option 'output_dir' is not accepted; did you mean 'out'?"),
    ],
)
def test_a_config_with_mistakes(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, message: str
) -> None:
    (tmp_path / "bad.yaml").write_bytes(text)
    assert main([*tiny, "--out", str(tmp_path / "run"), "--config", str(tmp_path / "bad.yaml")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("srattn: error: ") and errors.count("\n") == 1 and message in errors


def test_a_place_for_no_run_is_refused_before_data_is_read(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srattn.engine.run.read_data", None)
    (tmp_path / "file").write_text("x")
    assert main([*tiny, "--out", str(tmp_path / "file" / "run")]) == 2
    place = re.escape(str(tmp_path / "file"))
    assert re.search(rf"{place}/run cannot be written \(not a directory: {place}\); choose", capsys.readouterr().err)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("x")
    assert main(tiny) == 2
    assert "cannot be written (not a directory" in capsys.readouterr().err


def test_an_existing_run_is_refused(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*tiny, "--out", str(tmp_path)]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_resume_takes_up_or_refuses_whatever_is_given(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], no_scaling: None
) -> None:
    out = tmp_path / "run"
    assert main([*tiny, "--out", str(out)]) == 0
    capsys.readouterr()
    resume = ["train", "--resume", str(out)]
    (tmp_path / "more.yaml").write_text("clip_grad: 2.0\n")
    for given, message in (
        (["--batch_size", "64"], "batch_size is 256, not 64"),  # as it is by default
        (["--config", str(tmp_path / "more.yaml")], "clip_grad is 1.0, not 2.0"),
        (["--model_options.depths", "[1,1,1,2]"], "model_options is "),
        (["--data", str(tmp_path)], "data is 'digits', not "),
        (["--out", str(tmp_path / "other")], "leave --out away"),
    ):
        assert main([*resume, *given]) == 2
        assert message in capsys.readouterr().err
    # What is the run's own may be said again.
    own = ["--config", str(out / "config.yaml"), "--resume", str(out), "--model_options.depths", "[1,1,1,1]"]
    assert main(["train", *own, "--precision", "auto", "--data", "digits", "--threads", "1"]) == 0
    assert "finished: epoch 1 was its last; it is measured again and nothing is trained" in capsys.readouterr().out


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_scaling: None,
) -> None:
    from srattn.engine.checkpoint_files import _Watched

    put = _Watched.put

    def full(self: _Watched, data: memoryview) -> int:
        if "step-0000000012" in str(self.name):  # of the second epoch
            put(self, data[:4])
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(self, data)

    monkeypatch.setattr(_Watched, "put", full)
    out = tmp_path / "run"
    assert main([*tiny, "--out", str(out), "--epochs", "2"]) == 2
    said = capsys.readouterr().err
    assert "no space left on the disk" in said and "nothing is lost" in said
    assert said.endswith(f"srattn train --resume {out}\n") and said.count("\n") == 1
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"step-0000000000", "step-0000000006"}
    monkeypatch.undo()
    assert main(["train", "--resume", str(out)]) == 0
    whole = tmp_path / "whole"
    assert main([*tiny, "--out", str(whole), "--epochs", "2"]) == 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".safetensors", ".json", ".html"])
def test_a_disk_that_is_full_for_another_file_of_a_run(
    tiny: list[str],
    suffix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_scaling: None,
) -> None:
    """History, weights, result and report; each is written aside, and what was there stays."""
    from srattn import files

    flush = files.flush_to_disk

    def full(path: Path) -> None:
        if path.suffix == suffix:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        flush(path)

    monkeypatch.setattr(files, "flush_to_disk", full)
    out = tmp_path / "run"
    assert main([*tiny, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "no space left on the disk" in said and "nothing is lost" in said
    assert said.endswith(f"srattn train --resume {out}\n") and said.count("\n") == 1
    assert not list(out.rglob(f"*{suffix}")) or suffix == ".json"  # checkpoints have a state.json
    monkeypatch.undo()
    assert main(["train", "--resume", str(out)]) == 0
    assert (out / "report.html").is_file() and (out / "result.json").is_file()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_limit_on_file_size_in_a_real_process(tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.run(
        [sys.executable, "-m", "srattn", *tiny, "--out", str(out)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("srattn: error: ") and process.stderr.count("\n") == 1
    assert not out.exists()


def test_a_recipe_under_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from srattn import recipes

    monkeypatch.setattr(recipes, "load", lambda name: TINY | {"epochs": 7, "lr": 0.5} if name == "tiny" else {})
    assert main(["train", "--recipe", "tiny", "--epochs", "3", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["epochs"], shown["lr"], shown["size"]) == (3, 0.5, 8)
    (tmp_path / "more.yaml").write_text("lr: 0.25\n")
    assert main(["train", "--recipe", "tiny", "--config", str(tmp_path / "more.yaml"), "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["epochs"], shown["lr"]) == (7, 0.25)
    assert main(["train", "--epochs", "3", "--recipe", "tiny"]) == 2
    assert "give --recipe first" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["train", "--recipe", "digitz"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err


def test_a_file_overrules_what_is_said_before_it_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("batch_size: 32\nlr: 0.25\nmodel_options: {stem_stride: 2}\n")
    given = ["--batch_size=64", "--epochs", "3", "--model_options.stem_stride", "1", "--config", str(file)]
    assert main(["train", *given, "--lr", "0.5", "--print_config"]) == 0
    printed = capsys.readouterr()
    shown = yaml.safe_load(printed.out)
    assert (shown["batch_size"], shown["epochs"], shown["lr"]) == (32, 3, 0.5)
    notes = printed.err.splitlines()
    assert len(notes) == 2 and all(f"note: {file} comes after --" in line for line in notes)
    assert "--batch_size and overrules it, 32 in place of 64; give --config before it" in notes[0]
    assert "--model_options and overrules it" in notes[1]
    assert main(["train", "--config", str(file), "--config", str(file), *given[:3], "--print_config"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"task": "classification", "size": 16, "model": "pvt_v2_b0", "lr": 2e-3, "label_smoothing": 0.1}),
        (["--data", "nowhere", "--epochs", "3"], {"size": 128, "epochs": 3, "augment": "crop,flip"}),
        (["--data", "nowhere", "--task", "segment"], {"task": "segmentation", "model": "mit_b0", "loss": "ce"}),
        (["--model", "mit_b1"], {"model": "mit_b1", "model_options": {}, "size": 16}),
        (["--init", "nowhere"], {"model": None, "model_options": {}, "size": None, "epochs": 28}),
        (["--resume", "nowhere"], {"model": None, "task": None}),
    ],
)
def test_a_printed_configuration_says_what_is_taken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], expected: dict[str, Any]
) -> None:
    assert main(["train", *options, "--print_config"]) == 0
    text = capsys.readouterr().out
    shown = yaml.safe_load(text)
    assert {name: shown[name] for name in expected} == expected
    assert shown["threads"] is None and shown["eval_size"] is None  # the machine's, and that of training
    (tmp_path / "printed.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    again = yaml.safe_load(capsys.readouterr().out)
    assert again == shown
    assert main(["train", *options, "--print_config=skip_default"]) == 0
    assert "augment" not in capsys.readouterr().out


def test_what_is_printed_is_the_run() -> None:
    for options in ({}, {"model": "mit_b0"}, {"epochs": 2, "model_options": {"stem_stride": 2}}):
        config = TrainConfig(**options)
        resolved = resolve(config)
        assert {name: getattr(resolved, name) for name in known(config)} == known(config)
        assert resolve(TrainConfig(**{**options, **known(config)})) == resolved


SMALL = ["--model_options.embed_dims", "[8,8,8,8]", "--model_options.depths", "[1,1,1,1]", "--size", "32"]
SMALL += ["--model_options.num_heads", "[1,1,2,1]", "--batch_size", "6", "--epochs", "1", "--threads", "1"]


@pytest.mark.parametrize(
    ("task", "folder", "head", "headline", "section"),
    [
        ("segment", "mask_folder", ["--head_options.hidden", "8"], "miou", "confusion"),
        ("detect", "box_folder", ["--head_options.width", "8", "--head_options.convs", "1"], "map50", "precision"),
    ],
)
def test_masks_and_boxes_have_a_report(
    task: str,
    folder: str,
    head: list[str],
    headline: str,
    section: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    out, data = tmp_path / "run", str(request.getfixturevalue(folder))
    options = ["--model", "pvt_v2_b0", "--device", "cpu", "--num_workers", "0", "--out", str(out)]
    assert main(["train", "--task", task, "--data", data, *SMALL, *head, *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"held-out {headline} \d+\.\d\d% on 4 images", printed[-3])
    assert printed[-2:] == [f"run folder {out}", f"report {out / 'report.html'}"]
    page = (out / "report.html").read_text()
    assert f'<section id="{section}">' in page and page.count("data:image/jpeg") == 4 * (4 if task == "segment" else 2)
    # Four images: two were the worst, two the best, by what the run has measured of each.
    assert page.count("<h3>The worst</h3>") == page.count("<h3>The best</h3>") == 1


def test_an_image_that_goes_missing_is_not_taken_for_another(
    mask_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import srattn.cli.train as module
    from srattn.data.dense import SceneLoader
    from srattn.data.dense.scenes import Scenes
    from srattn.engine.config import TrainConfig
    from srattn.engine.run import train

    options = {"embed_dims": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 1]}
    scene = Scenes.try_scene

    def lost(self: Scenes, index: int) -> Any:
        if len(self) == 4 and index == 1:
            self.lost[index] = "gone"
            return None
        return scene(self, index)

    monkeypatch.setattr(Scenes, "try_scene", lost)
    config = TrainConfig(
        task="segment", data=str(mask_folder), model="pvt_v2_b0", model_options=options, size=32, epochs=1, threads=1,
        batch_size=6, num_workers=0, device="cpu", head_options={"hidden": 8}, out=str(tmp_path / "run"),
    )  # fmt: skip
    result = train(config)
    inputs = module.scene_report_inputs(result)
    names, loader = result.loader.data.val.names, result.loader
    assert inputs.names == [names[0], names[2], names[3]] and len(result.result["per_image"]) == 3
    assert isinstance(loader, SceneLoader)
    found, expected = inputs.scene(1), loader.val_scene(2)
    assert found is not None and expected is not None and found[0].equal(expected[0])


def test_images_that_become_unreadable_are_named_once_and_left_out(
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_scaling: None,
) -> None:
    import json

    from PIL import Image

    from srattn.engine.trainer import Trainer

    photos, out = tmp_path / "photos", tmp_path / "run"
    for part, count in (("train", 6), ("val", 4)):
        for level, name in ((60, "dusk"), (200, "day")):
            (photos / part / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (24, 20), (level + index,) * 3).save(photos / part / name / f"{index}.png")
    gone = [photos / "train" / "day" / "3.png", photos / "val" / "dusk" / "1.png"]
    step = Trainer._step

    def damaging(self: Trainer, *batch: Any) -> None:
        step(self, *batch)
        for path in gone:
            path.unlink(missing_ok=True)

    monkeypatch.setattr(Trainer, "_step", damaging)
    options = ["--data", str(photos), "--size", "16", "--epochs", "3", "--batch_size", "4", "--cache_mb", "0"]
    assert main([*tiny, *options, "--num_workers", "0", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for path in gone:
        assert printed.count(f"not readable any more, and left out: {path}: ") == 1
    assert printed.index("left out") < printed.index("epoch 2/3")
    result = json.loads((out / "result.json").read_text())
    assert result["lost_images"] == 2 and [line.partition(": ")[0] for line in result["lost"]] == [*map(str, gone)]
    assert sum(map(sum, result["confusion"])) == 7 and result["skipped_images"] == 0
    page = (out / "report.html").read_text()
    assert all(path.name in page for path in gone)

    for path in (photos / "val").rglob("*.png"):
        gone.append(path)
    assert main([*tiny, *options, "--num_workers", "0", "--out", str(tmp_path / "other")]) == 2
    assert "no image to measure with can be read any more: " in capsys.readouterr().err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    import dataclasses

    from srattn.engine.config import TrainConfig

    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name} " in text
    assert "The highest learning rate, after warm-up" in text


def test_without_the_reports_packages_the_run_is_complete(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("srattn.explain")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*tiny, "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert 'no report, matplotlib is not installed: pip install "srattn[train]"' in captured.err
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert captured.out.splitlines()[-1] == f"run folder {tmp_path / 'run'}"
