"""What stands beside every figure: the machine, the versions and the commit; and what the machine itself can do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from srattn.version import __version__

# What a figure may depend on; those that are absent are left out.
PACKAGES = ("torch", "timm", "transformers", "onnxruntime", "openvino", "onnx", "onnxscript", "numpy")
_SIDES = (1024, 1536, 2048, 3072)
_COPIED = 64 << 20  # float32 values: far beyond any cache


def describe(threads: int) -> dict[str, Any]:
    """Machine, versions and commit, JSON-able. `commit` ends in + where sources differ from it, "none" outside git."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "srattn": __version__,
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """The installed ones of `PACKAGES` with their versions."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the sources that run, short."""
    folder = Path(__file__).resolve().parents[1]

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)

    try:
        if git("ls-files", "--error-unmatch", "__init__.py").returncode:
            return "none"  # installed somewhere inside of a repository that is not ours
        changed = bool(git("status", "--porcelain", ".").stdout)
        return git("rev-parse", "--short", "HEAD").stdout.strip() + ("+" if changed else "")
    except OSError:
        return "none"


def matrix_rate(dtype: torch.dtype = torch.float32, sides: tuple[int, ...] = _SIDES) -> float:
    """The best rate of `torch.mm` on square matrices, in FLOP/s (two for a multiply-add), with the threads as set."""
    best = 0.0
    for side in sides:
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        out = torch.empty(side, side, dtype=dtype)
        seconds = _fastest(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
        best = max(best, 2 * side**3 / seconds)
        if seconds > 0.5:  # a type that the machine has no units for
            break
    return best


def copy_rate(values: int = _COPIED) -> float:
    """The best rate of a copy between two float32 tensors in bytes/s; each value counts as read and as written."""
    source = torch.zeros(values).fill_(1.0)
    target = torch.zeros(values).fill_(0.0)
    return 8 * values / _fastest(lambda: target.copy_(source))


def _fastest(call: Callable[[], object], least: int = 3, seconds: float = 0.3) -> float:
    """Seconds of the fastest of at least `least` runs within about `seconds`, after one that does not count."""
    call()
    best, start, runs = float("inf"), time.perf_counter(), 0
    while runs < least or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
        runs += 1
        if runs >= least and time.perf_counter() - start > 4 * seconds:
            break
    return best


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
