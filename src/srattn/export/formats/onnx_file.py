"""ONNX, written by torch's exporter and run by ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.export.formats import STAMP, Runner, operators_onnx
from srattn.export.formats.halves import in_half
from srattn.tasks.detection.decode import Choice

NEEDS = ("onnx", "onnxscript", "onnxruntime", "numpy")


def write(program: str, target: str, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> None:
    loaded = torch.export.load(program)
    with silent(), torch.no_grad():
        found = torch.onnx.export(
            loaded,
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            custom_translation_table={
                torch.ops.aten.repeat_interleave.self_int: _repeat_interleave,
                **operators_onnx.table(),
            },
            verbose=False,
        )
        assert found is not None
        found.save(target, external_data=False)


def _repeat_interleave(self: Any, repeats: Any, dim: int | None = None, output_size: Any = None) -> Any:
    """`Tensor.repeat_interleave` by one number for all; onnxscript 0.7 errs in the axis if that is a symbol."""
    op: Any = importlib.import_module("onnxscript").opset18
    if dim is None:
        self, dim = op.Reshape(self, op.Constant(value_ints=[-1])), 0
        rank = 1
    else:
        rank = len(self.shape)
    dim %= rank
    times = op.Constant(value_ints=[repeats]) if isinstance(repeats, int) else op.Reshape(repeats, _ints(op, -1))
    around = [_ints(op, *[1] * count) for count in (dim + 1, rank - dim - 1) if count]
    tiles = op.Concat(around[0], times, *around[1:], axis=0)
    tiled = op.Expand(op.Unsqueeze(self, _ints(op, dim + 1)), tiles)
    parts = [op.Shape(self, start=0, end=dim)] if dim else []
    parts += [_ints(op, -1), *([op.Shape(self, start=dim + 1)] if dim + 1 < rank else [])]
    return op.Reshape(tiled, op.Concat(*parts, axis=0))


def _ints(op: Any, *values: int) -> Any:
    return op.Constant(value_ints=list(values))


def suppress(target: str, choice: Choice, opset: int) -> None:
    import onnx

    from srattn.export.formats.suppression import nodes_of, output_of

    model = onnx.load(target)
    nodes, constants = nodes_of(choice)
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    del model.graph.output[:]
    model.graph.output.append(output_of(choice))
    onnx.checker.check_model(model)
    onnx.save(model, target)


def trim(target: str, outputs: Sequence[str]) -> None:
    """Leaves out all other outputs, and the nodes that served them alone."""
    import onnx

    model = onnx.load(target)
    graph, kept = model.graph, list[Any]()
    wanted = set(outputs)
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(node.input)
    fields: list[tuple[Any, list[Any]]] = [
        (graph.node, kept[::-1]),
        (graph.initializer, [each for each in graph.initializer if each.name in wanted]),
        (graph.output, [each for each in graph.output if each.name in outputs]),
    ]
    for field, left in fields:
        copies = [type(each).FromString(each.SerializeToString()) for each in left]
        del field[:]
        field.extend(copies)
    onnx.checker.check_model(model)
    onnx.save(model, target)


def halve(target: str) -> None:
    """Stores weights in float16, each with a step that makes float32 of it; what is computed is float32."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(target)
    graph, casts = model.graph, []
    for weight in graph.initializer:
        half = in_half(numpy_helper.to_array(weight))
        if half is None:
            continue
        name = f"{weight.name}_float16"
        casts.append(
            onnx.helper.make_node("Cast", [name], [weight.name], name=f"cast_{name}", to=onnx.TensorProto.FLOAT)
        )
        weight.CopyFrom(numpy_helper.from_array(half, name))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)


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
def silent() -> Iterator[None]:
    """The exporter and the quantisers talk on standard output and through warnings and logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
