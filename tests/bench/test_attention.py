from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srattn import SrattnError
from srattn.bench import attention, plots, results
from srattn.bench.attention import DENSE, KEPT, KINDS, LINEAR, SRA, Setup, exponent, exponents, measure

TINY = Setup(sides=(8, 16), dim=8, heads=2, ratio=4, seconds=0.0, memory=False)


def test_every_kind_mode_and_size() -> None:
    rows = measure(TINY)
    assert [(r["mode"], r["side"], r["attention"]) for r in rows] == [
        (mode, side, kind) for mode in ("forward", "training") for side in (8, 16) for kind in KINDS
    ]
    assert all(row["seconds"]["median"] > 0 and row["reason"] is None for row in rows)
    keys = {row["attention"]: row["keys"] for row in rows if row["side"] == 16}
    assert keys == {DENSE: 256, KEPT: 256, SRA: 16, LINEAR: 49}


def test_limits_are_said() -> None:
    rows = measure(TINY._replace(modes=("forward",), limit_bytes=300_000.0))
    reasons = {(row["side"], row["attention"]): row["reason"] for row in rows}
    assert reasons[8, KEPT] is None and "would need about" in reasons[16, KEPT]
    assert reasons[16, DENSE] is None
    assert next(row for row in rows if row["reason"])["seconds"] is None
    slow = measure(TINY._replace(modes=("forward",), limit_seconds=1e-9))
    assert all("would take about" in row["reason"] for row in slow if row["side"] == 16)


def test_wrong_attention_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    build = attention.build

    def wrong(kind: str, setup: Setup) -> Any:
        module, run = build(kind, setup)
        return module, (lambda x: 1.001 * run(x)) if kind == SRA else run

    monkeypatch.setattr(attention, "build", wrong)
    with pytest.raises(SrattnError, match=r"SRA is .* off the definition: nothing is timed"):
        measure(TINY)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"modes": ("backward",)}, "no mode 'backward'"),
        ({"sides": (16, 8)}, "ascending"),
        ({"sides": ()}, "at least one"),
        ({"heads": 3}, "num_heads must divide"),
        ({"limit_bytes": 0.0}, "positive"),
    ],
)
def test_wrong_setup(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(SrattnError, match=words):
        measure(TINY._replace(**changed))


def test_exponent_of_known_growth() -> None:
    sizes = [14**2, 28**2, 56**2, 112**2, 224**2]
    assert exponent([(n, 3e-9 * n**2) for n in sizes]) == pytest.approx(2)
    # A constant that only the small sizes feel does not bend the fit much: those are left out.
    assert exponent([(n, 1e-3 + 1e-6 * n) for n in sizes]) == pytest.approx(1, abs=0.15)
    assert exponent([(1, 1)]) is None and exponent([]) is None


def test_exponents_leave_out_what_memory_cannot_tell() -> None:
    rows = [
        {
            "mode": "forward",
            "attention": "SRA",
            "tokens": n,
            "seconds": {"median": 1e-6 * n**1.5},
            "peak_bytes": 1000 * n if n > 1000 else 17,
        }
        for n in (100, 1000, 10_000, 100_000)
    ]
    assert exponents(rows) == [
        {"mode": "forward", "attention": "SRA", "seconds": pytest.approx(1.5), "bytes": pytest.approx(1)}
    ]


def test_memory_grows_with_the_scores() -> None:
    setup = TINY._replace(sides=(32, 48), modes=("forward",), heads=1)
    peaks = attention.peaks_in_child(KEPT, [32, 48], "forward", list(setup))
    if peaks[0] is None or peaks[1] is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert peaks[1] > 4 * 48**4  # one matrix of scores
    torch.set_num_threads(1)


def test_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = measure(TINY._replace(modes=("forward",)))
    result = results.collect("attention", rows, 1, TINY.settings()) | {"exponents": exponents(rows)}
    plots.attention(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
