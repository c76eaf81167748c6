"""`export_model`: trace, convert, verify and put in place."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError
from srattn.export import verify
from srattn.export.child import in_child, tell
from srattn.export.facts import Facts
from srattn.export.formats import NAMES, get_format
from srattn.export.formats.torch_compiled import TRUST
from srattn.export.graph import INPUT, make_graph, make_program
from srattn.export.options import SUFFIXES, Options
from srattn.files import atomic_path
from srattn.models.backbone import Backbone


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file in its place and what it says of itself."""

    path: Path
    facts: Facts
    bytes: int


def export_model(
    model: Backbone,
    out: str | os.PathLike[str],
    options: Options,
    *,
    labels: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    real: Sequence[Tensor] = (),
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes a model for another runtime, once its answers there were compared with eager.

    The model itself is not changed. Converting and running happen in a process of their own. On any error nothing is
    left at `out`.

    Args:
        labels: class names; numbers by default.
        preprocess: what the model's images go through; it is written into the file, and into the graph where
            `options.preprocess` says so.
        real: images of `options.size` as the model takes them (or pictures as the graph does), (B, ...) each, that are
            compared beside the random ones.
        card: what else the file shall say of the model, JSON-able.

    Raises:
        SrattnError: options that cannot be, a package that is missing, a compiler that failed or crashed, or answers
            that differ from eager by more than they may.
    """
    target = Path(out)
    check_target(target, options, overwrite)
    get_format(options.format)
    if model.dimensions != 2:
        raise SrattnError(f"export is for models of images, {model.config['name']} takes volumes")
    options.check(model.min_size)
    names = labels if labels is not None else [str(i) for i in range(model.num_classes)]
    kept = preprocess or Preprocess(channels=model.in_chans, size=options.size, **_plain(model.in_chans))
    kept = dataclasses.replace(kept, size=options.size)
    training = model.training
    model.eval()
    try:
        graph = make_graph(model, options, kept)
        with tempfile.TemporaryDirectory(prefix="srattn-export-") as name:
            folder = Path(name)
            program, absorbed = make_program(graph, options)
            torch.export.save(program, folder / "program.pt2")
            made = folder / f"model{SUFFIXES[options.format]}"
            facts = Facts(
                options=options,
                labels=list(names) if options.task == "classify" else [],
                preprocess=kept,
                outputs=graph.outputs(),
                model={**model.config, "norm_eps": model.norm_eps, "edge": model.edge},
                card=dict(card or {}),
                absorbed=absorbed,
            )
            text = in_child(
                f"the export to {NAMES[options.format]}",
                __name__,
                "make",
                program=str(folder / "program.pt2"),
                target=str(made),
                cases=verify.write_cases(graph, options, real, folder),
                text=facts.to_text(),
            )
            facts = Facts.from_text(text, target)
            return Exported(target, facts, _place(made, target, overwrite))
    finally:
        model.train(training)


def make(program: str, target: str, cases: list[str], text: str) -> str:
    """In the child: converts a saved program, runs the file on every case, and stamps it; returns the stamp."""
    facts = Facts.from_text(text, Path(target))
    name = facts.options.format
    file = get_format(name)
    tell(f"the conversion to {NAMES[name]}")
    file.write(program, target, [INPUT], facts.outputs, facts.options.opset)
    tell(f"the file in {NAMES[name]}")
    os.environ[TRUST] = "1"  # it was compiled a moment ago, by this command
    run = file.open_file(Path(target))
    worst, shapes = (0.0, verify.FLOOR), []
    for each in cases:
        case = verify.read_case(each)
        shapes.append(list(case["images"].shape))
        worst = max(worst, verify.judge(run(case["images"]), case))
    del run
    tell(f"the stamp in {NAMES[name]}")
    text = dataclasses.replace(facts, verified=verify.Verdict(*worst, shapes)._asdict()).to_text()
    file.stamp(target, text)
    return text


def check_target(target: Path, options: Options, overwrite: bool) -> None:
    """Refuses what could not be written at the end.

    Raises:
        SrattnError: an unknown format, another suffix, or something is there already.
    """
    wanted = SUFFIXES[options.format]
    if target.suffix != wanted:
        raise SrattnError(f"a file of {NAMES[options.format]} is called NAME{wanted}, got --out {target}")
    for path in files_of(target):
        if os.path.lexists(path) and not overwrite:
            raise SrattnError(f"{path} exists and is not overwritten; choose another --out, or say --overwrite")


def files_of(path: Path) -> list[Path]:
    """The files that an export is, the one that names it last."""
    return [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]


def _place(made: Path, target: Path, overwrite: bool) -> int:
    """Puts the finished file, or pair of files, in its place; their size in bytes."""
    size = 0
    for source, place in zip(files_of(made), files_of(target), strict=True):
        with atomic_path(place, overwrite) as aside:
            shutil.copyfile(source, aside)
        size += source.stat().st_size
    return size


def _plain(channels: int) -> dict[str, Any]:
    return {"mean": (0.5,) * channels, "std": (0.5,) * channels}
