from __future__ import annotations

import time
from pathlib import Path

import pytest

from srattn.bench.memory import ChildFailed, in_child

MODULE = """
import time
from srattn.bench.memory import peak_above

def hold(megabytes):
    kept = bytearray(32 << 20)  # before the call: does not count
    return peak_above(lambda: len(bytearray(megabytes << 20)))

def fail():
    raise ValueError("nothing doing")

def sleep():
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench_child_example.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_known_allocation() -> None:
    peak = in_child("bench_child_example", "hold", {"megabytes": 64}, threads=1)
    if peak is None:
        pytest.skip("this system does not tell a process its peak memory")
    # The system counts pages by processor and adds them up now and then.
    assert 63 << 20 < peak < 66 << 20


def test_failure_says_why() -> None:
    with pytest.raises(ChildFailed, match="ValueError: nothing doing"):
        in_child("bench_child_example", "fail", {}, threads=1)


def test_timeout_ends_the_child() -> None:
    start = time.monotonic()
    with pytest.raises(ChildFailed, match="longer than 3 s"):
        in_child("bench_child_example", "sleep", {}, threads=1, timeout=3)
    assert time.monotonic() - start < 50
