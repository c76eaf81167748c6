"""The model that an exported file was made of, for what a file cannot be asked: attention, gradients, vectors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from srattn.engine.open_model import BOX, fingerprint, open_model
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.export.facts import Facts
from srattn.export.opened import preprocess_of, read_facts


def open_source(
    path: str | Path, source: str | None = None, device: str | torch.device = "cpu", size: int | None = None
) -> LoadedRun:
    """The model of an exported file, with the file's preprocessing: its weights are the very ones that were exported.

    Args:
        path: the exported file.
        source: what `srattn.engine.open_model.open_model` takes; by default the run folder that the file lies in, or
            the model in the box.
        size: side of the images in pixels, for a file whose height and width are dynamic.

    Raises:
        SrattnError: no such file, none of ours, a size that it does not take, or other weights.
    """
    path = Path(path)
    facts = read_facts(path)
    preprocess = preprocess_of(path, facts, size)
    if not facts.weights:
        raise SrattnError(f"{path} does not say which weights it was made of: export it again")
    run = _named(path, facts, source, device) if source is not None else _found(path, facts, device)
    return dataclasses.replace(run, preprocess=preprocess)


def _named(path: Path, facts: Facts, source: str, device: str | torch.device) -> LoadedRun:
    run = open_model(source, device)
    if fingerprint(run.model) != facts.weights:
        raise SrattnError(f"{path} was made of other weights than those of {source}; it was made of {_origin(facts)}")
    return run


def _found(path: Path, facts: Facts, device: str | torch.device) -> LoadedRun:
    for name in (str(path.resolve().parent), BOX):
        try:
            run = open_model(name, device)
        except SrattnError:  # no run, or no model in the box
            continue
        if fingerprint(run.model) == facts.weights:
            return run
    raise SrattnError(
        f"{path} answers with its outputs alone, and the model that it was made of is not beside it; give --source the "
        f"run or the checkpoint that it was exported from: {_origin(facts)}"
    )


def _origin(facts: Facts) -> str:
    name = facts.model.get("name", "an unnamed model")
    return f"{name}, from {facts.card['source']}" if "source" in facts.card else str(name)
