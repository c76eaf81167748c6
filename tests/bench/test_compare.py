from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from srattn import SrattnError
from srattn.bench import results
from srattn.bench.compare import compare, parse_limit


def model_row(candidate: str, median: float | None, noise: float = 0.0, **fields: Any) -> dict[str, Any]:
    seconds = median and {"median": median, "q1": median * (1 - noise), "q3": median * (1 + noise), "rounds": 9}
    case = {"model": "m", "size": [224, 224], "batch": 1, "dtype": "float32", "mode": "inference"}
    return {**case, "candidate": candidate, "seconds": seconds, "peak_bytes": None, "reason": None, **fields}


def result(*rows: dict[str, Any], kind: str = "model", **machine: Any) -> dict[str, Any]:
    known = {"cpu": "x", "cores": 2, "threads": 2, "capability": "AVX2", **machine}
    return {"kind": kind, "format": 1, "machine": known, "rows": list(rows)}


def verdict(before: dict[str, Any], after: dict[str, Any], limit: float = 0.05) -> str:
    (change,) = compare(result(before), result(after), limit)
    return change.verdict


def test_verdicts() -> None:
    base = model_row("srattn", 1.0)
    assert verdict(base, model_row("srattn", 1.04)) == "same"
    assert verdict(base, model_row("srattn", 1.06)) == "slower"
    assert verdict(base, model_row("srattn", 0.9)) == "faster"
    # Noise of both widens the limit.
    assert verdict(model_row("srattn", 1.0, 0.02), model_row("srattn", 1.08, 0.02)) == "same"
    assert verdict(model_row("srattn", 1.0, 0.02), model_row("srattn", 1.10, 0.02)) == "slower"
    assert verdict(base, model_row("srattn", None, reason="differs")) == "lost"
    assert verdict(model_row("srattn", None), base) == "new"
    assert verdict(model_row("srattn", None), model_row("srattn", None)) == "none"


def test_rows_of_one_file_alone() -> None:
    found = compare(result(model_row("a", 1.0)), result(model_row("b", 1.0)), 0.05)
    assert [(c.verdict, c.label.split()[-1]) for c in found] == [("lost", "a"), ("new", "b")]
    assert found[0].reason == "not in the second"


def test_memory_is_shown() -> None:
    (change,) = compare(result(model_row("a", 1.0, peak_bytes=100)), result(model_row("a", 1.0, peak_bytes=150)), 0.05)
    assert change.memory == 1.5 and change.verdict == "same"


def test_other_machine_and_other_kind() -> None:
    a, b = result(model_row("a", 1.0)), result(model_row("a", 1.0), threads=1)
    with pytest.raises(SrattnError, match=r"threads 2 and 1.*--across"):
        compare(a, b, 0.05)
    assert compare(a, b, 0.05, across=True)[0].verdict == "same"
    with pytest.raises(SrattnError, match="different kinds: model and attention"):
        compare(a, result(kind="attention"), 0.05)


def test_attention_results() -> None:
    seconds = {"median": 1.0, "q1": 1.0, "q3": 1.0}
    row = {"attention": "SRA", "side": 14, "dim": 64, "heads": 1, "ratio": 8, "mode": "forward", "seconds": seconds}
    slow = copy.deepcopy(row)
    slow["seconds"]["median"] = 2.0
    (change,) = compare(result(row, kind="attention"), result(slow, kind="attention"), 0.05)
    assert (change.verdict, change.ratio) == ("slower", 2)


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.1", 0.1), ("2.5 %", 0.025), ("0", 0.0)])
def test_limit(text: str, value: float) -> None:
    assert parse_limit(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "five", "-3%", "nan"])
def test_limit_refused(text: str) -> None:
    with pytest.raises(SrattnError, match="--limit is a part"):
        parse_limit(text)


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        json.dumps({"kind": "model", "format": 2}),
        json.dumps({**result(), "rows": [{"model": "m"}]}),
        json.dumps(result({**model_row("a", 1.0), "seconds": {"median": -1, "q1": 1, "q3": 1}})),
        json.dumps({**result(), "machine": None}),
    ],
)
def test_not_a_result(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(SrattnError, match=r"a\.json"):
        results.read(path)
    with pytest.raises(SrattnError, match="does not exist"):
        results.read(tmp_path / "b.json")
