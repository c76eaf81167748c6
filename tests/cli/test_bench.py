from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srattn.bench import arena
from srattn.bench.arena import Rates
from srattn.cli.main import main


@pytest.fixture(autouse=True)
def _rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "_rates", lambda case: Rates(1e11, 1e10))


def bench(*words: str) -> int:
    return main(["bench", *words])


def test_model_writes_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.json"
    words = ["model", "pvt_v2_b0", "--size", "32", "32x64", "--rounds", "1", "--peers", "none", "--threads", "1"]
    assert bench(*words, "--memory", "false", "--out", str(out)) == 0
    said = capsys.readouterr()
    assert "pvt_v2_b0 at 32x64, batch 1, float32, inference" in said.out and "left" in said.err
    result = json.loads(out.read_text())
    assert [row["size"] for row in result["rows"]] == [[32, 32], [32, 64]]
    assert all(row["seconds"]["rounds"] == 1 for row in result["rows"]) and result["machine"]["threads"] == 1
    assert bench("compare", str(out), str(out)) == 0
    # Refused before anything is measured.
    assert bench(*words, "--out", str(out)) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_compare_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(name: str, median: float, cpu: str = "x") -> str:
        seconds = {"median": median, "q1": median, "q3": median}
        case = {"model": "m", "size": [32, 32], "batch": 1, "dtype": "float32", "mode": "inference"}
        row: dict[str, Any] = {**case, "candidate": "srattn", "seconds": seconds}
        path = tmp_path / name
        path.write_text(json.dumps({"kind": "model", "format": 1, "machine": {"cpu": cpu}, "rows": [row]}))
        return str(path)

    a, b, c = write("a.json", 1.0), write("b.json", 1.2), write("c.json", 1.0, cpu="y")
    assert bench("compare", a, b) == 1
    assert "slower" in capsys.readouterr().out
    assert bench("compare", a, b, "--limit", "25%") == 0
    assert bench("compare", b, a) == 0
    assert bench("compare", a, c) == 2
    assert "machines differ (cpu x and y)" in capsys.readouterr().err
    assert bench("compare", a, c, "--across") == 0


def test_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.json"
    words = ["--sides", "8", "12", "--dim", "8", "--ratio", "4", "--seconds", "0", "--memory", "false"]
    assert bench("attention", *words, "--threads", "1", "--out", str(out)) == 0
    assert "linear SRA ms" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert len(result["rows"]) == 16 and result["exponents"][0]["seconds"] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "pvt_v2_b9"], "did you mean 'pvt_v2_b"),
        (["model", "pvt_v2_b0", "--size", "big"], "--size is a side in pixels"),
        (["model", "pvt_v2_b0", "--peers", "tim"], "did you mean 'timm'"),
        (["model", "pvt_v2_b0", "--threads", "0"], "--threads is at least 1"),
        (["model", "pvt_v2_b0", "--batch", "0"], "--batch is at least 1"),
        (["model", "pvt_v2_b0", "--rounds", "0"], "--rounds is at least 1"),
        (["model", "pvt_v2_b0", "--out", "a.txt"], "unknown suffix '.txt'"),
        (["model", "segformer3d", "--peers", "none"], "takes volumes"),
        (["attention", "--modes", "forwards"], "did you mean 'forward'"),
        (["compare", "no.json", "no.json"], "does not exist"),
        (["models"], "did you mean 'model'"),
    ],
)
def test_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*words) == 2
    assert message in capsys.readouterr().err
