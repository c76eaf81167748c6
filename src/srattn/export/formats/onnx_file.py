"""ONNX, written by torch's exporter and run by ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.export.formats import STAMP, Runner

NEEDS = ("onnx", "onnxscript", "onnxruntime", "numpy")


def write(program: str, target: str, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> None:
    loaded = torch.export.load(program)
    with _silent(), torch.no_grad():
        found = torch.onnx.export(
            loaded,
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
        assert found is not None
        found.save(target, external_data=False)


def stamp(target: str, text: str) -> None:
    import onnx

    model = onnx.load(target)
    del model.metadata_props[:]  # torch's own notes name files of this machine
    onnx.helper.set_model_props(model, {STAMP: text})
    model.producer_name = "srattn"
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.save(model, target)


def read_stamp(path: Path) -> str | None:
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise SrattnError(f"{path} is no whole ONNX file ({' '.join(str(error).split())[:100]})") from None
    return next((each.value for each in model.metadata_props if each.key == STAMP), None)


def open_file(path: Path, threads: int | None = None) -> Runner:
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(each.copy()) for each in session.run(None, {name: images.contiguous().numpy()})]

    return run


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Exporting talks on standard output and through warnings and logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
