"""Packages of others that would tell their makers of their use, imported so that they do not."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

_SWITCHES = ("ORT_DISABLE_TELEMETRY", "NNCF_CI")
"""Variables of ONNX Runtime, which would write a database below ~/.cache and send it, and of NNCF."""
_SENDER = "openvino_telemetry"
"""OpenVINO's and NNCF's: it writes ~/intel and asks for its maker's host at every import and conversion."""


def import_untold(name: str) -> ModuleType:
    """The module `name`; ONNX Runtime, OpenVINO and NNCF then send and store no word of their use.

    That holds for the whole process. What is set in the environment stays, as does a package that was imported before.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    for switch in _SWITCHES:
        os.environ.setdefault(switch, "1")
    # As if it were not installed: whoever imports it, some not before they convert, then takes a stub of their own.
    modules: dict[str, Any] = sys.modules
    modules.setdefault(_SENDER, None)
    module: Any = importlib.import_module(name)
    if name == "onnxruntime":
        module.disable_telemetry_events()  # those of Windows, which know no variable
    return module
