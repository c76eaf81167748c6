"""The goldens, read and built by the same script that writes the committed table of parity."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def parity(root: Path) -> ModuleType:
    """benchmarks/parity.py as a module."""
    spec = importlib.util.spec_from_file_location("parity", root / "benchmarks" / "parity.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden(parity: ModuleType, shared: Path) -> Callable[[str], Any]:
    """Reads a golden by name, once."""
    known: dict[str, Any] = {}

    def read(name: str) -> Any:
        if name not in known:
            known[name] = parity.read_golden(shared / "goldens", name)
        return known[name]

    return read
