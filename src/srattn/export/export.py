"""`export_model`: trace, convert, verify and put in place."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from srattn.data.palette import Palette, standard_palette
from srattn.data.preprocess import Preprocess
from srattn.engine.open_model import fingerprint
from srattn.errors import SrattnError
from srattn.export import verify
from srattn.export.answers import NAMES
from srattn.export.child import in_child, tell
from srattn.export.facts import Facts
from srattn.export.formats import NAMES as FORMATS
from srattn.export.formats import get_format
from srattn.export.formats.torch_compiled import TRUST
from srattn.export.graph import INPUT, Graph, backbone_of, check_model, least_dynamic, make_graph, make_program
from srattn.export.make_stages import make_stages
from srattn.export.options import COLOURED, SUFFIXES, WHOLE, Options
from srattn.export.quantise.openvino_int8 import load_nncf
from srattn.export.quantise.steps import quantise
from srattn.export.stages import choice_of, settled
from srattn.files import atomic_path, check_writable, flush_to_disk
from srattn.heads.mask_rcnn import FasterRCNNHead
from srattn.tasks.detection.decode import Choice
from srattn.tasks.detection.stages.model import TwoStageModel


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file in its place and what it says of itself."""

    path: Path
    facts: Facts
    bytes: int


def export_model(
    model: nn.Module,
    out: str | os.PathLike[str],
    options: Options,
    *,
    labels: Sequence[str] | None = None,
    palette: Palette | None = None,
    preprocess: Preprocess | None = None,
    real: Sequence[Tensor] = (),
    calibrate: Sequence[Tensor] = (),
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes a model for another runtime, once its answers there were compared with eager.

    The model itself is not changed. Converting and running happen in a process of their own. On any error nothing is
    left at `out`.

    Args:
        model: a classifier, or a model of masks, boxes, depths or joints; `options.task` says which.
        labels: class names; numbers by default.
        palette: colours of the classes of pixels and boxes; standard ones by default.
        preprocess: what the model's images go through; it is written into the file, and into the graph where
            `options.preprocess` says so. A graph of one size stretches what "shorter" would give sizes of its own.
        real: images of `options.size` as the model takes them (or pictures as the graph does), (B, ...) each, that are
            compared beside the random ones.
        calibrate: of "int8", batches of images in the same form: the ranges of activations are those that they have.
            "int8-weights" measures what it costs on them. Every fourth is held out for that.
        card: what else the file shall say of the model, JSON-able.

    Raises:
        SrattnError: options that cannot be, a package that is missing, a compiler that failed or crashed, or answers
            that differ from eager by more than they may.
    """
    target = Path(out)
    check_target(target, options, overwrite)
    get_format(options.format)
    check_model(model, options)
    staged = isinstance(model, TwoStageModel) and options.task != "features"
    options = settled(options) if staged else options
    body = backbone_of(model)
    if body.dimensions != 2:
        raise SrattnError(f"export is for models of images, {body.config['name']} takes volumes")
    kept = options.fitted(preprocess or Preprocess(channels=body.in_chans, **_plain(body.in_chans)))
    options.check(body.min_size, least_dynamic(model, options))
    whole = options.precision in WHOLE
    if whole and not calibrate:
        raise SrattnError(f"--precision {options.precision} needs images: --calibrate FOLDER")
    if whole and options.format == "openvino":
        load_nncf()
    training = model.training
    model.eval()
    try:
        graph = make_graph(model, options, kept)
        with tempfile.TemporaryDirectory(prefix="srattn-export-") as name:
            folder = Path(name)
            program, absorbed = make_program(graph, options)
            torch.export.save(program, folder / "program.pt2")
            made = folder / f"model{SUFFIXES[options.format]}"
            facts = _facts(model, graph, labels, palette, kept, card or {}, absorbed)
            if staged:
                text = make_stages(graph, folder / "program.pt2", made, real, facts)
            else:
                text = in_child(
                    f"the export to {FORMATS[options.format]}",
                    __name__,
                    "make",
                    program=str(folder / "program.pt2"),
                    target=str(made),
                    cases=verify.write_cases(graph, options, real, folder),
                    text=facts.to_text(),
                    calibrate=_write_images(calibrate, folder) if whole else None,
                )
            facts = Facts.from_text(text, target)
            return Exported(target, facts, _place(made, target, overwrite))
    finally:
        model.train(training)


def _write_images(batches: Sequence[Tensor], folder: Path) -> str:
    path = folder / "calibrate.safetensors"
    save_file({f"{n:06}": batch.contiguous().clone() for n, batch in enumerate(batches)}, path)
    return str(path)


def _facts(
    model: Any,
    graph: Graph,
    labels: Sequence[str] | None,
    palette: Palette | None,
    preprocess: Preprocess,
    card: Mapping[str, Any],
    absorbed: list[bool],
) -> Facts:
    options = graph.options
    names = list(labels) if labels is not None else [str(i) for i in range(model.num_classes)]
    colours = (palette or standard_palette(names)).colours if options.task in COLOURED else ()
    return Facts(
        options=options,
        labels=[] if options.task == "features" else names,
        preprocess=preprocess,
        outputs=graph.outputs(),
        model={**model.config, "norm_eps": model.norm_eps, "edge": model.edge},
        card=dict(card),
        absorbed=absorbed,
        colours=[list(colour) for colour in colours],
        choice=dataclasses.asdict(_choice(model)) if options.answer == "detections" else {},
        least=least_dynamic(graph.model, options),
        weights=fingerprint(model),
    )


def _choice(model: Any) -> Choice:
    return choice_of(cast(FasterRCNNHead, model.head)) if isinstance(model, TwoStageModel) else Choice()


def make(program: str, target: str, cases: list[str], text: str, calibrate: str | None = None) -> str:
    """In the child: converts a saved program, runs the file on every case, and stamps it; returns the stamp.

    Args:
        calibrate: a file with batches of images, for a file in whole numbers.
    """
    facts = Facts.from_text(text, Path(target))
    options = facts.options
    name, answer = options.format, options.answer
    file = get_format(name)
    suppresses = answer == "detections"
    tell(f"the conversion to {FORMATS[name]}")
    file.write(program, target, [INPUT], NAMES["boxes"] if suppresses else facts.outputs, options.opset)
    _reduce(file, target, options)
    tell(f"the file in {FORMATS[name]}")
    os.environ[TRUST] = "1"  # it was compiled a moment ago, by this command
    run = file.open_file(Path(target))
    worst, shapes = (0.0, verify.FLOOR), []
    for each in cases:
        case = verify.read_case(each)
        shapes.append(list(case["images"].shape))
        for _ in range(2):  # a runtime may take another way once it knows a shape
            worst = max(worst, verify.judge(run(case["images"]), case, answer))
    del run
    facts = dataclasses.replace(facts, verified=verify.Verdict(*worst, shapes)._asdict())
    if calibrate is not None:
        images = [batch for _, batch in sorted(load_file(calibrate).items())]
        facts = dataclasses.replace(facts, quantised=quantise(Path(target), program, images, options))
    if suppresses:
        _suppress(file, target, cases, facts)
    tell(f"the stamp in {FORMATS[name]}")
    text = facts.to_text()
    file.stamp(target, text)
    return text


def _reduce(file: Any, target: str, options: Options) -> None:
    if options.precision == "float16":
        file.halve(target)
    elif options.precision == "bfloat16" and options.format == "openvino":
        file.compute_in_bfloat16(target)


def _suppress(file: Any, target: str, cases: list[str], facts: Facts) -> None:
    """Adds suppression to a file whose boxes and scores are right, and holds what is left against the rule."""
    choice = Choice(**facts.choice)
    run = file.open_file(Path(target))
    boxes = [run(verify.read_case(each)["images"]) for each in cases]
    del run
    tell(f"suppression in {FORMATS[facts.options.format]}")
    file.suppress(target, choice, facts.options.opset)
    run = file.open_file(Path(target))
    for each, (places, scores) in zip(cases, boxes, strict=True):
        (detections,) = run(verify.read_case(each)["images"])
        verify.judge_detections(detections, places, scores, choice)


def check_target(target: Path, options: Options, overwrite: bool) -> None:
    """Refuses what could not be written at the end.

    Raises:
        SrattnError: an unknown format, another suffix, something is there already, or no file can be made there.
    """
    wanted = SUFFIXES[options.format]
    if target.suffix != wanted:
        raise SrattnError(f"a file of {FORMATS[options.format]} is called NAME{wanted}, got --out {target}")
    for path in files_of(target):
        if os.path.lexists(path) and not overwrite:
            raise SrattnError(f"{path} exists and is not overwritten; choose another --out, or say --overwrite")
        check_writable(path, overwrite)


def files_of(path: Path) -> list[Path]:
    """The files that an export is, the one that names it last."""
    return [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]


def _place(made: Path, target: Path, overwrite: bool) -> int:
    """Puts the finished file, or pair of files, in its place once all of it is on the disk; the size in bytes."""
    size = 0
    with contextlib.ExitStack() as stack:
        for source, place in zip(reversed(files_of(made)), reversed(files_of(target)), strict=True):
            flush_to_disk(Path(shutil.copyfile(source, stack.enter_context(atomic_path(place, overwrite)))))
            size += source.stat().st_size
    return size


def _plain(channels: int) -> dict[str, Any]:
    return {"mean": (0.5,) * channels, "std": (0.5,) * channels}
