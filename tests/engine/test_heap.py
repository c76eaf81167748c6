"""Memory stays with the process while a run lasts, and goes back afterwards."""

import subprocess
import sys

import pytest

from srattn.engine import heap

SCRIPT = """
import os, torch
from srattn.engine.heap import kept_heap

def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.ones(10)
before = held()
with kept_heap():
    tensors = [torch.ones(2_000_000) for _ in range(25)]  # 200 MB
    del tensors
    within = held()
    again = [torch.empty(2_000_000) for _ in range(25)]
    del again
    assert held() < within + 20e6, "the same memory is taken again"
print(within - before, held() - before)
"""


def test_memory_is_kept_and_given_back() -> None:
    if heap._glibc() is None:
        pytest.skip("malloc is not glibc's")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    within, after = (int(word) for word in done.stdout.split())
    assert within > 180e6
    assert after < 40e6
