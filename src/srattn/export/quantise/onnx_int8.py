"""Whole numbers in ONNX Runtime: pairs of QuantizeLinear and DequantizeLinear, which it fuses into its own kernels.

Weights have a scale for each output channel, activations one each, from the values between which all but 1 in 10,000
lie. Only steps with weights are quantised: attention's products of two activations stay float.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from srattn.export.formats.onnx_file import silent
from srattn.export.quantise.parts import part_of

_SCOPES = "pkg.torch.onnx.name_scopes"
_KINDS = ["Conv", "MatMul", "Gemm"]
PERCENTILE = 99.99


class OnnxQuantiser:
    """One file in float, from which files with some of its parts in whole numbers are made."""

    def __init__(self, path: Path, images: Sequence[Tensor]) -> None:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._path = path.with_name("prepared.onnx")
        scopes = {node.name: _scope(node) for node in onnx.load(str(path)).graph.node}
        with silent():
            quant_pre_process(str(path), str(self._path), skip_symbolic_shape=True)
        graph = onnx.load(str(self._path)).graph
        weights = {each.name for each in graph.initializer}
        steps = [node for node in graph.node if node.op_type in _KINDS and node.input[1] in weights]
        self._steps: dict[str, str] = {
            node.name: part for node in steps if (part := part_of(scopes.get(node.name, ""))) is not None
        }
        self._input = graph.input[0].name
        self._ranges = self._calibrated(images)

    @property
    def parts(self) -> list[str]:
        """What can be quantised, in order of execution."""
        return list(dict.fromkeys(self._steps.values()))

    def write(self, target: Path, parts: Collection[str]) -> None:
        """A file in which these parts are quantised."""
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        steps = [name for name, part in self._steps.items() if part in parts]
        with silent():
            quantizer = QDQQuantizer(
                onnx.load(str(self._path)),
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self._ranges,
                nodes_to_quantize=steps,
                nodes_to_exclude=[],
                op_types_to_quantize=_KINDS,
                extra_options={},
            )
            quantizer.quantize_model()
            quantizer.model.save_model_to_file(str(target))

    def _calibrated(self, images: Sequence[Tensor]) -> Any:
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

        with silent():
            calibrator: Any = create_calibrator(
                str(self._path),
                _KINDS,
                str(self._path.with_name("augmented.onnx")),
                CalibrationMethod.Percentile,
                extra_options={"percentile": PERCENTILE},
            )
            for batch in images:  # one by one: what a batch has made is let go before the next
                calibrator.collect_data(_Once({self._input: batch.contiguous().numpy()}))
            return calibrator.compute_data()


def write_weights(path: Path, target: Path) -> None:
    """A file whose products have weights in whole numbers, and activations that are rounded as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name("prepared.onnx")
    with silent():
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(
            str(prepared),
            str(target),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )


class _Once:
    """One batch, as a calibrator asks for data."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self._batch: dict[str, Any] | None = batch

    def get_next(self) -> dict[str, Any] | None:
        batch, self._batch = self._batch, None
        return batch


def _scope(node: Any) -> str:
    """The path of the module that a node comes from; torch's exporter notes it."""
    for each in node.metadata_props:
        if each.key == _SCOPES:
            paths = ast.literal_eval(each.value)
            return next((path for path in reversed(paths) if "." in path), "")
    return ""
