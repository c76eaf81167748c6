"""`srattn bench gpu`: its complaints, and the whole run at tiny sizes on a CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srattn.bench import gpu
from srattn.ops import plan

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "chek"], "no part 'chek'; did you mean 'check'?; parts are check, tune"),
        (["--parts", ","], "--parts names none of check"),
        (["--minutes", "0"], "--minutes is above 0, got 0.0"),
        (["--out", "figures.txt"], "--out ends in .json, got 'figures.txt'"),
    ],
)
def test_what_is_wrong_is_said_before_work_starts(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(words) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert gpu.main(["--out", str(tmp_path / "a.json")]) == 2
    assert "is not overwritten; add --overwrite" in capsys.readouterr().err


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "no GPU is within reach (torch " in capsys.readouterr().err


def smoke(root: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The run in a process of its own, in which no extra can be imported."""
    code = """
import sys
for name in ("rich", "jsonargparse", "timm", "numpy.f2py", "safetensors", "yaml"):
    sys.modules[name] = None
from srattn.cli.main import main
sys.exit(main(["bench", "gpu", *sys.argv[1:]]))
"""
    here = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "--smoke", "--out", str(out), *words]
    return subprocess.run(command, env=here, capture_output=True, text=True, check=False)


@pytest.mark.slow
@needs_triton
def test_smoke_run_without_extras(root: Path, tmp_path: Path) -> None:
    done = smoke(root, tmp_path / "gpu.json", "--parts", "check,tune,attention,memory,modules")
    assert done.returncode == 0, done.stderr
    assert "3 comparisons with float64 within twice the error of plain torch, 0 wrong" in done.stdout
    assert "timm is not installed: beside ours stand the published module" in done.stdout
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert {"device", "torch", "triton", "commit"} <= result["machine"].keys()
    assert {row["part"] for row in result["rows"]} == {"tune", "attention", "memory", "modules"}
    names = {row["candidate"] for row in result["rows"]}
    assert {"our kernel alone", "published compiled", "ours", "flash path with its projections"} <= names
    assert all(row["seconds"] > 0 for row in result["rows"] if row["part"] != "memory")
    assert result["wrong"] == [] == result["left_out"]


def test_whole_models_are_compared_and_then_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from srattn.bench import gpu_model
    from srattn.bench.gpu_sizes import TINY
    from srattn.bench.gpu_timing import Cost, StopClock

    pair = gpu_model.Pair(TINY.model, CPU, TINY.options)
    assert gpu_model.difference(pair, 2, 32) == []
    clock = StopClock(60)
    for training, what in ((False, "inference"), (True, "training step")):
        costs = {"eager": Cost(0.0), "compiled": Cost(1e9)}
        rows = gpu_model.rows_of(pair, 1, 32, clock, training, costs)
        assert [row["candidate"] for row in rows] == ["sdpa path eager", "ours eager"]
        assert all(row["seconds"] > 0 and what in row["what"] for row in rows)
        assert 0 < costs["eager"].seconds < 60  # learnt
    assert len(clock.skipped) == 4 and "needs 1000000000 s" in clock.skipped[0]
    monkeypatch.setattr(gpu_model, "compiled", lambda model, **_: torch.compile(model, backend="eager", dynamic=False))
    (row,) = gpu_model.sizes_rows(pair, (2, 1), 32)
    assert row["note"].endswith("0 more over repeated sizes") and row["seconds"] > 0


def test_a_model_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from srattn.bench import gpu_model
    from srattn.bench.gpu_sizes import TINY

    pair = gpu_model.Pair(TINY.model, CPU, TINY.options)
    by_path = {"plain": 0.0, "sdpa": 0.001, None: 0.1}
    monkeypatch.setattr(pair.ours, "forward", lambda x: torch.full((1, 3), by_path[plan.forced()], dtype=x.dtype))
    assert "pvt_v2_b0's output is" in gpu_model.difference(pair, 1, 32)[0]


@needs_triton
def test_what_no_longer_fits_is_named(root: Path, tmp_path: Path) -> None:
    done = smoke(root, tmp_path / "gpu.json", "--minutes", "0.0001", "--parts", "check")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "gpu.json").read_text())["left_out"]) == 3
    assert "left out: check of attention" in done.stdout
