"""`srattn tune` from the command line."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import yaml
from PIL import Image

from srattn.cli.main import main

TINY = (
    "--model", "pvt_v2_b0", "--size", "8", "--threads", "1", "--device", "cpu", "--model_options",
    "{stem_stride: 1, embed_dims: [8, 8, 8, 8], depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 1], "
    "mlp_ratios: [1, 1, 1, 1], sr_ratios: [4, 2, 1, 1]}",
)  # fmt: skip


def tune(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["tune", *map(str, arguments), *TINY])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_lr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--lowest", "1e-4", "--steps", 60, "--csv", "lr.csv", "--picture", "lr.png", "--batch_size", 64)
    code, out, err = tune(capsys, "lr", *options)
    assert (code, err) == (0, "")
    assert "suggested: --lr 0.0" in out and "the loss falls fastest at" in out
    assert sorted(os.listdir()) == ["lr.csv", "lr.png"]  # and no run
    with open("lr.csv") as file:
        rows = list(csv.DictReader(file))
    assert 20 < len(rows) <= 60 and list(rows[0]) == ["rate", "loss", "smoothed"]
    with Image.open("lr.png") as drawn:
        assert min(drawn.size) > 500
    code, _, err = tune(capsys, "lr", *options)
    assert code == 2 and "lr.csv exists and is not overwritten" in err


def test_a_recipe_under_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "lr", "--recipe", "digits", "--batch_size", "32", "--print_config"]) == 0
    told = yaml.safe_load(capsys.readouterr().out)
    assert (told["data"], told["augment"], told["batch_size"]) == ("digits", "affine", 32)
    assert main(["tune", "lr", "--lr", "0.1", "--recipe", "digits"]) == 2
    assert "give --recipe first: it would overrule what is said of lr" in capsys.readouterr().err


def test_lr_without_a_suggestion_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = tune(capsys, "lr", "--lowest", "1e-9", "--highest", "1e-8", "--steps", 20, "--batch_size", 64)
    assert code == 2 and "the loss never fell" in out and "no learning rate can be suggested" in err


def test_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, picture = tmp_path / "batch.csv", tmp_path / "batch.png"
    code, out, err = tune(capsys, "batch", "--most", 16, "--memory", 8, "--csv", table, "--picture", picture)
    assert (code, err) == (0, "")
    assert "batch     8:" in out and "batch    16:" in out and "fastest: --batch_size" in out
    with open(table) as file:
        assert [row["batch"] for row in csv.DictReader(file)] == ["8", "16"]
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("speed",), "what"),
        (("lr", "--steps", "5"), "steps must be at least 20, got 5"),
        (("batch", "--memory", "0"), "memory must be above 0 GB, got 0.0"),
        (("lr", "--out", "runs/x"), "--out"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = tune(capsys, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
