"""A file format each, all with the same four functions: `write`, `stamp`, `read_stamp` and `open_file`.

Those that can suppress boxes have a fifth, `suppress`: it adds that to a file with the outputs `boxes` and `scores`.

What a file says of itself is one text, the stamp: JSON that `srattn.export.facts` makes and checks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from srattn.errors import SrattnError, missing_extra, nearest
from srattn.telemetry import import_untold

Runner = Callable[[Tensor], list[Tensor]]
"""Images, or pictures, to the outputs in their order, all on the CPU."""

STAMP = "srattn"
MODULES = {
    "torch": "srattn.export.formats.torch_program",
    "torch-compiled": "srattn.export.formats.torch_compiled",
    "onnx": "srattn.export.formats.onnx_file",
    "openvino": "srattn.export.formats.openvino_file",
}
NAMES = {"torch": "torch.export", "torch-compiled": "AOTInductor", "onnx": "ONNX", "openvino": "OpenVINO"}
EXTRA = "export"


class Format(Protocol):
    """What a format's module answers. `needs` are the packages to import."""

    NEEDS: tuple[str, ...]

    def write(self, program: str, target: str, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> None:
        """Converts a saved program of torch.export to a file of this format."""
        ...

    def stamp(self, target: str, text: str) -> None:
        """Puts the stamp into a file that `write` wrote."""
        ...

    def read_stamp(self, path: Path) -> str | None:
        """The stamp, or None where there is none; nothing of the file is run."""
        ...

    def open_file(self, path: Path, threads: int | None = None) -> Runner:
        """The file in its own runtime, in float32."""
        ...


def get_format(name: str) -> Format:
    """The module of a format.

    Raises:
        SrattnError: no such format, or one of its packages is not installed.
    """
    if name not in MODULES:
        raise SrattnError(f"no format {name!r}{nearest(name, MODULES)}; formats are {', '.join(MODULES)}")
    module: Any = importlib.import_module(MODULES[name])
    for package in module.NEEDS:
        try:
            import_untold(package)
        except ModuleNotFoundError as error:
            raise missing_extra(package, EXTRA) from error
    return module


def format_of(path: Path) -> str | None:
    """The format of a file by its suffix, and for .pt2 by what the archive holds; None for any other file."""
    if path.suffix == ".pt2":
        from srattn.export.formats.archive import is_compiled

        return "torch-compiled" if is_compiled(path) else "torch"
    return {".onnx": "onnx", ".xml": "openvino"}.get(path.suffix)
