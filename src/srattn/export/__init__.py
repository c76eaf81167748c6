"""Models for other programs: torch.export, AOTInductor, ONNX and OpenVINO, each verified against eager first.

Names load on first use: a child process that needs one step of this room loads no more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srattn.export.export import Exported as Exported
    from srattn.export.export import export_model as export_model
    from srattn.export.opened import open_export as open_export
    from srattn.export.options import Options as Options

_HOME = {"Exported": "export", "Options": "options", "export_model": "export", "open_export": "opened"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'srattn.export' has no attribute {name!r}")
    return getattr(import_module(f"srattn.export.{_HOME[name]}"), name)
