"""`export_model` for detectors of two stages: a file with all its steps, verified, and then without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srattn.export import verify
from srattn.export.child import in_child, tell
from srattn.export.facts import Facts
from srattn.export.formats import NAMES, get_format
from srattn.export.graph import INPUT, Graph
from srattn.export.stages import all_outputs_of, outputs_of
from srattn.export.verify_stages import Judge
from srattn.tasks.detection.stages.model import TwoStageModel

_WHOLE, _LEFT, _RUNS = "whole", "left", 2
"""Files of answers: with all steps, and of the finished file; twice, since a runtime may take another way once it knows
a shape."""


def make_stages(graph: Graph, program: Path, target: Path, real: Sequence[Tensor], facts: Facts) -> str:
    """Converts a saved program, and returns the stamp of the file once its answers were held against the model.

    Args:
        graph: the reference.
        target: the file to write.
        real: further inputs beside the random ones, as the graph takes them.
    """
    options, model = graph.options, cast(TwoStageModel, graph.model)
    inputs, files = verify.inputs_of(graph, options, real), list[str]()
    for number, images in enumerate(inputs):
        files.append(str(target.with_name(f"case_{number}.safetensors")))
        save_file({"images": images.contiguous()}, files[-1])
    who = f"the export to {NAMES[options.format]}"
    order = {"program": str(program), "target": str(target), "cases": files, "text": facts.to_text()}
    order |= {"written": all_outputs_of(model, graph.pictures is not None), "left": outputs_of(model)}
    in_child(who, __name__, "write_and_run", **order)
    facts = dataclasses.replace(facts, verified=judge(graph, files)._asdict())
    return in_child(who, __name__, "finish", target=str(target), text=facts.to_text())


@torch.inference_mode()
def judge(graph: Graph, cases: Sequence[str]) -> verify.Verdict:
    """Holds a file's answers against the model.

    Args:
        cases: files with the images, and beside them the answers of `write_and_run`.

    Raises:
        SrattnError: one is too far away, or breaks a rule.
    """
    exact, others = verify.references(graph, graph.options)
    worst, shapes = (0.0, verify.FLOOR), []
    for path in cases:
        images = load_file(path)["images"]
        case, whole = Judge(exact, others, images), [load_file(f"{path}.{_WHOLE}{number}") for number in range(_RUNS)]
        for found in whole:
            case.judge(found)
        for number in range(_RUNS):
            case.judge_trimmed(load_file(f"{path}.{_LEFT}{number}"), whole)
        worst = max(worst, case.worst)
        shapes.append(list(images.shape))
    return verify.Verdict(*worst, shapes)


def write_and_run(
    program: str, target: str, cases: Sequence[str], text: str, written: Sequence[str], left: Sequence[str]
) -> None:
    """In the child: converts a program, runs the file on every case, leaves out all outputs but those that are `left`,
    and runs it again."""
    options = Facts.from_text(text, Path(target)).options
    file: Any = get_format(options.format)
    tell(f"the conversion to {NAMES[options.format]}")
    file.write(program, target, [INPUT], written, options.opset)
    if options.precision == "float16":
        file.halve(target)
    tell(f"the file in {NAMES[options.format]}")
    _run(file, target, cases, written, _WHOLE)
    file.trim(target, left)
    _run(file, target, cases, left, _LEFT)


def _run(file: Any, target: str, cases: Sequence[str], names: Sequence[str], mark: str) -> None:
    """Writes the answers to each case beside it."""
    run = file.open_file(Path(target))
    for case in cases:
        images = load_file(case)["images"]
        for number in range(_RUNS):
            found = {name: value.contiguous() for name, value in zip(names, run(images), strict=True)}
            save_file(found, f"{case}.{mark}{number}")


def finish(target: str, text: str) -> str:
    """In the child: stamps the file."""
    name = Facts.from_text(text, Path(target)).options.format
    tell(f"the stamp in {NAMES[name]}")
    get_format(name).stamp(target, text)
    return text
