"""What a person sees."""

from __future__ import annotations

import io

import pytest

from srattn.engine.progress import Lines, Live, epoch_line, figure_text, make_progress

RECORD = {
    "epoch": 1, "step": 10, "train_loss": 0.5, "train_accuracy": 0.75, "val_loss": 0.25, "val_accuracy": 0.9972,
    "learning_rate": 1e-3, "images_per_second": 812.4, "loader_share": 0.034, "seconds": 30.0,
}  # fmt: skip


def test_plain_lines_without_a_terminal() -> None:
    file, now = io.StringIO(), [1000.0]
    lines = Lines(file, clock=lambda: now[0])
    lines.checking(10, 10)
    lines.start(step=0, steps=40, epochs=4)
    now[0] += 30
    lines.step(1, 10, {"loss": 0.5, "accuracy": 0.75}, 812.4, 0.034)
    lines.epoch(RECORD)
    lines.close()
    first, second = file.getvalue().splitlines()
    assert first == "checked 10 of 10 image files"
    assert second.startswith(
        "epoch 1/4  train_loss 0.5000  train_accuracy 75.00%  val_loss 0.2500  val_accuracy 99.72%"
    )
    assert second.endswith("  812 images/s  loader 3%  left 1:30")
    assert "\x1b" not in file.getvalue()


def test_time_left_of_a_resumed_run_counts_its_own_steps() -> None:
    file, now = io.StringIO(), [1000.0]
    lines = Lines(file, clock=lambda: now[0])
    lines.start(step=28, steps=40, epochs=4)
    now[0] += 720
    lines.step(3, 30, {}, 1.0, 0.0)
    lines.epoch(RECORD | {"epoch": 3, "seconds": 3600.0})  # of its ten steps, eight of them before it was resumed
    assert file.getvalue().rstrip().endswith("left 1:00:00")


def test_long_epochs_have_a_line_a_minute() -> None:
    file, now = io.StringIO(), [1000.0]
    lines = Lines(file, clock=lambda: now[0])
    lines.start(step=20, steps=400, epochs=10)
    for step, seconds in ((21, 30), (22, 29.9), (30, 0.2), (31, 59), (40, 1), (41, 1)):
        now[0] += seconds
        lines.step(1, step, {"loss": 0.5, "accuracy": 0.75}, 81.4, 0.034)
    now[0] += 58
    lines.epoch(RECORD)
    now[0] += 59
    lines.step(2, 42, {"loss": 0.5}, 81.4, 0.034)
    first, second, third = file.getvalue().splitlines()
    assert first == "epoch  1/10  step 30 of 400  loss 0.5000  accuracy 75.00%  81 images/s  loader 3%  left 37:04"
    assert "step 40 of 400" in second and third.startswith("epoch  1/10  train_loss")


def test_live_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    live = Live()
    live.checking(1, 2)
    live.checking(2, 2)
    live.note("a [bold] name")
    live.start(step=0, steps=40, epochs=4)
    live.step(1, 10, {"loss": 0.5, "accuracy": 0.75}, 812.4, 0.034)
    live.epoch(RECORD)
    live.close()
    shown = capsys.readouterr().out
    assert "a [bold] name" in shown
    assert "epoch 1/4" in shown and "accuracy 75.00% 812 images/s loader 3%" in shown
    assert "val_accuracy 99.72%" in shown


def test_the_choice_follows_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_progress(), Lines)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert isinstance(make_progress(), Live)


def test_shares_are_per_cent_and_other_figures_are_not() -> None:
    shares = [
        "accuracy",
        "pixel_accuracy",
        "miou",
        "dice",
        "boundary_f",
        "map50",
        "map75",
        "map",
        "delta1",
        "segm_map",
        "segm_map50",
    ]
    for name in shares:
        assert [figure_text(f"{part}{name}", 0.53204) for part in ("", "train_", "val_")] == ["53.20%"] * 3
    for name in ("loss", "val_loss", "box_loss", "rmse", "abs_rel", "mapping"):
        assert figure_text(name, 0.53204) == "0.5320"
    record = {"epoch": 1, "train_loss": 2.0, "val_loss": 1.5, "val_map50": 0.1, "images_per_second": 8.0}
    assert "val_loss 1.5000  val_map50 10.00%" in epoch_line(record, 1)
