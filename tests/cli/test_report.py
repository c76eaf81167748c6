"""`srattn report` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srattn.cli.main import main


def make_run(folder: Path, accuracy: float) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("lr: 0.001\n")
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "val_accuracy": 0.5, "seconds": 2}\n')
    (folder / "result.json").write_text(json.dumps({"accuracy": accuracy, "val_images": 100}))
    return folder


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(make_run(tmp_path / name, accuracy)) for name, accuracy in (("a", 0.5), ("b", 0.75))]
    out = tmp_path / "deep" / "report.html"
    assert main(["report", *runs, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 2 runs compared\n"
    assert "75.0 %" in out.read_text("utf-8")
    assert main(["report", *runs, "--out", str(out)]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert main(["report", *runs[::-1], "--out", str(out), "--overwrite"]) == 0


def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "a", 0.5), tmp_path / "r.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: one run\n"
    (run / "result.json").unlink()  # not finished yet
    assert main(["report", str(run), "--out", str(out), "--overwrite"]) == 0
    page = out.read_text("utf-8")
    assert "<title>a</title>" in page and "not finished" in page and "compared" not in page
