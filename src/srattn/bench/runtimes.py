"""ONNX Runtime and OpenVINO on a file that was exported once from a peer's own module."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srattn.bench.case import Case
from srattn.bench.peers import Absent, one_line
from srattn.telemetry import import_untold

Runner = Callable[[Any], Any]
"""Images to logits, both float32 arrays of numpy."""


def export(module: nn.Module, case: Case, path: Path) -> Path:
    """Writes the module at the shapes of the case as ONNX, float32, by torch's exporter, else by its older one.

    Raises:
        Absent: neither can, or they are not installed.
    """
    try:
        importlib.import_module("onnxscript")
    except ModuleNotFoundError as error:
        raise Absent("onnxscript is not installed, which exporting needs") from error
    first: Exception | None = None
    for dynamo in (True, False):
        try:
            with _silent(), torch.no_grad():
                torch.onnx.export(module, (case.images(),), str(path), dynamo=dynamo, verbose=False)
            return path
        except Exception as error:
            first = first or error
    assert first is not None
    raise Absent(f"the export failed: {one_line(first)}") from first


def start(name: str, path: Path, case: Case) -> Runner:
    """A session of the runtime on `path` with the threads and the precision of the case.

    Raises:
        Absent: it is not installed, or has not this precision here.
    """
    if case.mode == "train":
        raise Absent("runs inference alone")
    try:
        module = import_untold(name)
    except ModuleNotFoundError as error:
        raise Absent("not installed") from error
    try:
        return RUNTIMES[name](module, path, case)
    except Absent:
        raise
    except Exception as error:
        raise Absent(one_line(error)) from error


def _onnxruntime(ort: Any, path: Path, case: Case) -> Runner:
    if case.dtype != "float32":
        raise Absent(f"its CPU provider has no {case.dtype} kernels for these models")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Its threads wait actively within a run, and must not do so while another candidate runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _openvino(ov: Any, path: Path, case: Case) -> Runner:
    hint = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[case.dtype]
    core = ov.Core()
    config = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": case.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(str(path), "CPU", config)
    used = compiled.get_property("INFERENCE_PRECISION_HINT")
    used = used.get_type_name() if hasattr(used, "get_type_name") else str(used)
    if used != hint:
        raise Absent(f"computes in {used} on this machine, not in {hint}")
    request = compiled.create_infer_request()
    output = compiled.output(0)

    def run(images: Any) -> Any:
        return request.infer({0: images}, share_inputs=True, share_outputs=True)[output]

    return run


RUNTIMES: dict[str, Callable[[Any, Path, Case], Runner]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Exporting talks on both streams and through warnings and logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
