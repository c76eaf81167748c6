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
from srattn.export.formats import STAMP, Runner, operators_openvino
from srattn.export.formats.halves import in_half
from srattn.ops.native.build import processor_flags
from srattn.tasks.detection.decode import Choice

NEEDS = ("openvino", "numpy")
_MOST_SHAPES = 4
_PRECISION, _BFLOAT16 = "srattn_precision", "bf16"


def write(program: str, target: str, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> None:
    import openvino as ov

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.export.load(program)
        model: Any = ov.convert_model(traced, extension=operators_openvino.extensions())
    _declare(model, traced)
    for kind, names in ((model.inputs, inputs), (model.outputs, outputs)):
        for port, name in zip(kind, names, strict=True):
            port.get_tensor().set_names({name})
    ov.save_model(model, target, compress_to_fp16=False)


def _declare(model: Any, program: torch.export.ExportedProgram) -> None:
    """Gives the images the sizes that the program has: converted, all of them vary."""
    import openvino as ov

    nodes = {node.name: node for node in program.graph.nodes}
    (name,) = program.graph_signature.user_inputs
    shape = nodes[name].meta["val"].shape  # type: ignore[index]
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if sizes != [-1 if size.is_dynamic else size.get_length() for size in model.input(0).get_partial_shape()]:
        model.reshape(ov.PartialShape(sizes))


def suppress(target: str, choice: Choice, opset: int) -> None:
    import openvino

    from srattn.export.formats.suppression import suppression_model

    ov: Any = openvino
    model: Any = ov.Core().read_model(target)
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as folder:
        path = Path(folder) / "suppression.onnx"
        path.write_bytes(suppression_model(choice, opset).SerializeToString())
        tail: Any = ov.convert_model(path)
    for parameter in tail.get_parameters():
        port = next(each for each in model.outputs if parameter.output(0).get_names() & each.get_names())
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(port.get_node().input_value(0))
    _rewrite(target, ov.Model(tail.get_results(), model.get_parameters()))


def trim(target: str, outputs: Sequence[str]) -> None:
    """Leaves out all other outputs, and what served them alone."""
    import openvino

    ov: Any = openvino
    model: Any = ov.Core().read_model(target)
    results: list[Any] = model.get_results()
    ports = zip(model.outputs, results, strict=True)
    left = [result for port, result in ports if port.get_names() & set(outputs)]
    _rewrite(target, ov.Model(left, model.get_parameters()))


def halve(target: str) -> None:
    """Stores weights in float16; what is computed is float32."""
    import openvino as ov
    from openvino import opset13 as op

    model: Any = ov.Core().read_model(target)
    for node in model.get_ops():
        half = in_half(node.data) if node.get_type_name() == "Constant" else None
        if half is not None:
            stored = op.convert(op.constant(half, name=f"{node.get_friendly_name()}_float16"), "f32")
            node.output(0).replace(stored.output(0))
    _rewrite(target, model)


def compute_in_bfloat16(target: str) -> None:
    """Lets the runtime compute in bfloat16, which is a matter of running the file: a note in it says so."""
    import openvino as ov

    model: Any = ov.Core().read_model(target)
    model.set_rt_info(_BFLOAT16, [_PRECISION])
    _rewrite(target, model)


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

    model = _read(path)
    half = model.has_rt_info([_PRECISION]) and model.get_rt_info([_PRECISION]).value == _BFLOAT16
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _BFLOAT16 if half else "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        config |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    core = ov.Core()
    fragile = _is_fragile(model)
    free = None if fragile else core.compile_model(model, "CPU", config).create_infer_request()
    seen: set[tuple[int, ...]] = set()
    fixed: dict[tuple[int, ...], Any] = {}

    def request_for(shape: tuple[int, ...]) -> Any:
        """A shape that comes again gets a request of its own: OpenVINO is several times as fast where it knows it."""
        if shape in fixed:
            return fixed[shape]
        if fragile:
            if len(fixed) == _MOST_SHAPES:
                del fixed[next(iter(fixed))]
        elif not model.is_dynamic() or shape not in seen or len(fixed) == _MOST_SHAPES:
            seen.add(shape)
            return free
        known = model.clone()
        known.reshape(list(shape))
        fixed[shape] = core.compile_model(known, "CPU", config).create_infer_request()
        return fixed[shape]

    def run(images: Tensor) -> list[Tensor]:
        found = request_for(tuple(images.shape)).infer({0: images.contiguous().numpy()})
        return [torch.from_numpy(each.copy()) for each in found.to_tuple()]

    return run


def _is_fragile(model: Any) -> bool:
    """Whether OpenVINO would crash unless it knows the size of its images.

    On processors with AMX it does so in whole numbers on dynamic heights and widths (its issue 37577, 2026.1 to
    2026.4). A graph that resizes pictures has one size from there on.
    """
    whole = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    port = model.input(0)
    sizes = list(port.get_partial_shape())[2:]
    varies = port.get_element_type().get_type_name() == "f32" and any(size.is_dynamic for size in sizes)
    return whole and varies and "amx_int8" in processor_flags()


def _read(path: Path) -> Any:
    import openvino as ov

    if not path.with_suffix(".bin").is_file():
        raise SrattnError(f"{path} needs its weights, {path.with_suffix('.bin').name}, beside it")
    try:
        return ov.Core().read_model(path)
    except Exception as error:
        raise SrattnError(f"{path} is no whole OpenVINO model ({' '.join(str(error).split())[:100]})") from None
