"""Whole numbers in OpenVINO, by NNCF: weights with a scale for each channel, activations with one each.

Only steps with weights are quantised. Left to itself NNCF quantises what attention multiplies too, of which OpenVINO
2026.4 makes NaN on some processors.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srattn.errors import missing_extra
from srattn.export.formats import EXTRA
from srattn.export.formats.onnx_file import silent
from srattn.export.quantise.parts import part_of
from srattn.telemetry import import_untold

_KINDS = ("MatMul", "Convolution", "GroupConvolution")


class OpenVINOQuantiser:
    """One file in float, from which files with some of its parts in whole numbers are made."""

    def __init__(self, path: Path, images: Sequence[Tensor], program: str) -> None:
        import openvino as ov

        self._nncf, self._path = load_nncf(), path
        self._images = [batch.contiguous().numpy() for batch in images]
        scopes = _scopes(program)
        self._steps: dict[str, str | None] = {}
        for node in ov.Core().read_model(path).get_ordered_ops():
            name = node.get_friendly_name()
            product = node.get_type_name() in _KINDS and _is_constant(node.input_value(1).get_node())
            self._steps[name] = part_of(scopes.get(name.partition("/")[0], "")) if product else None

    @property
    def parts(self) -> list[str]:
        """What can be quantised, in order of execution."""
        return list(dict.fromkeys(part for part in self._steps.values() if part is not None))

    def write(self, target: Path, parts: Collection[str]) -> None:
        """A file in which these parts are quantised."""
        import openvino as ov

        nncf = self._nncf
        kept = [name for name, part in self._steps.items() if part not in parts]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = nncf.quantize(
                ov.Core().read_model(self._path),
                nncf.Dataset(self._images),
                # Activations behind a GELU are not symmetric.
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(self._images),
                ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
            )
        ov.save_model(found, target, compress_to_fp16=False)


def write_weights(path: Path, target: Path) -> None:
    """A file whose weights are stored in whole numbers; it computes in float."""
    import openvino as ov

    nncf = load_nncf()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = nncf.compress_weights(ov.Core().read_model(path))
    ov.save_model(found, target, compress_to_fp16=False)


def _is_constant(node: Any) -> bool:
    """Whether a step's values are known beforehand: weights, as they are or made from them."""
    if node.get_type_name() == "Constant":
        return True
    inputs = [each.get_node() for each in node.input_values()]
    return bool(inputs) and all(_is_constant(each) for each in inputs)


def load_nncf() -> Any:
    """The package, which then sends nobody word of its use.

    Raises:
        SrattnError: it is not installed.
    """
    try:
        nncf: Any = import_untold("nncf")
    except ImportError:
        raise missing_extra("nncf", EXTRA) from None
    nncf.set_log_level(logging.ERROR)
    return nncf


def _scopes(program: str) -> dict[str, str]:
    """The path of the module that a step comes from, by the step's name, which OpenVINO's begin with."""
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    with silent():
        decoder: Any = TorchFXPythonDecoder.from_exported_program(torch.export.load(program))
    found = {}
    for node in decoder.pt_module.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if stack:
            found[node.name] = str(stack[-1][0])
    return found
