from __future__ import annotations

import pytest

from srattn.bench import timing
from srattn.bench.timing import interleave, ratios, summarise


def test_rounds_meet_all_alike() -> None:
    calls: list[str] = []
    told: list[float] = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    values = interleave(runs, rounds=5, tell=told.append)
    assert {name: len(v) for name, v in values.items()} == dict.fromkeys("abc", 5)
    assert told == sorted(told) and told[-1] == 1 and len(told) == 15
    # Each round is whole before the next begins, and not always in the same order.
    turns = [name for name, before in zip(calls[6:], calls[5:], strict=False) if name != before]
    assert set(turns[:3]) <= set("abc")
    assert len({tuple(calls[i : i + 1]) for i in range(len(calls))}) == 3


def test_seconds_give_at_least_three_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_TURN", 0.0)
    assert len(interleave({"a": lambda: None}, seconds=0)["a"]) == 3
    assert len(interleave({"a": lambda: None}, seconds=0.05)["a"]) > 3


def test_summary() -> None:
    assert summarise([4.0, 1.0, 2.0, 3.0, 5.0]) == (3, 2, 4, 1, 5)
    assert summarise([4.0, 1.0, 2.0, 3.0, 5.0]).spread == pytest.approx(1 / 3)
    assert summarise([2.0]) == (2, 2, 2, 2, 1)


def test_ratio_is_taken_round_by_round() -> None:
    ours = [1.0, 10.0, 1.0]  # the second round met a slow moment
    assert ratios([2.0, 20.0, 2.0], ours).median == 2
    assert ratios([2.0, 20.0, 2.0], ours).spread == 0
