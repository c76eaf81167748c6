"""OpenVINO's own format: NAME.xml, the graph, and NAME.bin beside it, the weights."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.export.formats import STAMP, Runner
from srattn.tasks.detection.decode import Choice

NEEDS = ("openvino", "numpy")


def write(program: str, target: str, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> None:
    import openvino as ov

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = ov.convert_model(torch.export.load(program))
    for kind, names in ((model.inputs, inputs), (model.outputs, outputs)):
        for port, name in zip(kind, names, strict=True):
            port.get_tensor().set_names({name})
    ov.save_model(model, target, compress_to_fp16=False)


def suppress(target: str, choice: Choice, opset: int) -> None:
    import openvino

    from srattn.export.formats.suppression import suppression_model

    ov: Any = openvino
    model: Any = ov.Core().read_model(target)
    with tempfile.TemporaryDirectory(prefix="srattn-export-") as folder:
        path = Path(folder) / "suppression.onnx"
        path.write_bytes(suppression_model(choice, opset).SerializeToString())
        tail: Any = ov.convert_model(path)
    for parameter in tail.get_parameters():
        port = next(each for each in model.outputs if parameter.output(0).get_names() & each.get_names())
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(port.get_node().input_value(0))
    _rewrite(target, ov.Model(tail.get_results(), model.get_parameters()))


def stamp(target: str, text: str) -> None:
    import openvino as ov

    model: Any = ov.Core().read_model(target)
    model.set_rt_info(text, [STAMP])
    _rewrite(target, model)


def _rewrite(target: str, model: Any) -> None:
    """Replaces the file by what a model that was read from it has become."""
    import openvino as ov

    # Its weights are mapped from the file that is to be replaced.
    aside = Path(target).with_name("rewritten.xml")
    ov.save_model(model, aside, compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        aside.with_suffix(suffix).replace(Path(target).with_suffix(suffix))


def read_stamp(path: Path) -> str | None:
    model = _read(path)
    return str(model.get_rt_info([STAMP]).value) if model.has_rt_info([STAMP]) else None


def open_file(path: Path, threads: int | None = None) -> Runner:
    import openvino as ov

    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        config |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled: Any = ov.Core().compile_model(_read(path), "CPU", config)
    request = compiled.create_infer_request()

    def run(images: Tensor) -> list[Tensor]:
        found = request.infer({0: images.contiguous().numpy()})
        return [torch.from_numpy(found[port].copy()) for port in compiled.outputs]

    return run


def _read(path: Path) -> Any:
    import openvino as ov

    if not path.with_suffix(".bin").is_file():
        raise SrattnError(f"{path} needs its weights, {path.with_suffix('.bin').name}, beside it")
    try:
        return ov.Core().read_model(path)
    except Exception as error:
        raise SrattnError(f"{path} is no whole OpenVINO model ({' '.join(str(error).split())[:100]})") from None
