"""A model to predict or embed with, from whatever a user names: a run, a checkpoint, a published model, the box's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srattn.engine import run_folder
from srattn.engine.foreign import CLASSIFIES, foreign_task, open_foreign, plain_preprocess
from srattn.engine.weights import LoadedRun, load_run
from srattn.errors import SrattnError, nearest
from srattn.models.registry import find_name, list_models
from srattn.models.weights import without_tag

BOX = "box"
"""What the model in the box is called on a command line."""
BOXED = {BOX: "cifar10.safetensors", "box-small": "cifar10-small.safetensors"}
"""The models that come with the package: the best, and one that takes a processor a small part of its time."""


def open_model(name: str | None, device: str | torch.device = "cpu", size: int | None = None) -> LoadedRun:
    """A model in eval mode with its classes and preprocessing.

    Args:
        name: a run folder or its model.safetensors; a checkpoint in any layout that `srattn convert` reads; a
            registered model, or its weights by timm's name, which are fetched; None or "box" for the model in the box,
            "box-small" for the small one.
        size: side of the square images in pixels, where it shall not be the model's own.

    Raises:
        SrattnError: none of these, or weights that cannot be read or found.
    """
    name = BOX if name is None else name
    boxed = name in BOXED and not Path(name).exists()
    run = boxed_model(device, name) if boxed else _open(name, device)
    if run.model.dimensions != 2:
        raise SrattnError(f"{run.path} is a model of volumes, not of images")
    if size is not None:
        run = dataclasses.replace(run, preprocess=dataclasses.replace(run.preprocess, size=(size, size)))
    return run


def task_of(name: str | None) -> str:
    """The task of the model that `open_model` would open: of a run from its file's header alone; in doubt
    "classification", and `open_model` says what is wrong."""
    from safetensors import SafetensorError, safe_open

    path = Path(name or "")
    if name is None or not path.exists():
        return CLASSIFIES
    if _is_foreign(path):
        try:
            return foreign_task(path)
        except SrattnError:
            return CLASSIFIES
    file = path / run_folder.WEIGHTS if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        return CLASSIFIES
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {}).get("srattn", "null"))
    except (SafetensorError, ValueError, RecursionError, OSError):
        return CLASSIFIES
    return str(facts.get("task", CLASSIFIES)) if isinstance(facts, dict) else CLASSIFIES


def boxed_model(device: str | torch.device = "cpu", name: str = BOX) -> LoadedRun:
    """A model that comes with the package, of those that `BOXED` has, so that a first prediction needs nothing else.

    Raises:
        SrattnError: this installation has none.
    """
    file = files("srattn").joinpath("weights").joinpath(BOXED[name])
    if not file.is_file():
        raise SrattnError(
            "no model comes with this installation: give --model RUN (a run folder of srattn train, a checkpoint, "
            "or a name that srattn models lists)"
        )
    with as_file(file) as path:
        return load_run(path, device)


def model_facts(run: LoadedRun) -> dict[str, Any]:
    """What defines the answers of a model, with a hash of its weights; plain values."""
    return {
        "model": {**run.model.config, "norm_eps": run.model.norm_eps, "edge": run.model.edge},
        "weights": fingerprint(run.model),
        "preprocessing": run.preprocess.to_dict(),
    }


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights with their names, types and shapes."""
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _open(name: str, device: str | torch.device) -> LoadedRun:
    path = Path(name)
    if not path.exists():
        if (known := find_name(name)) is not None:
            return _published(known, device)
        raise SrattnError(
            f"{path} does not exist; give a run folder or its {run_folder.WEIGHTS}, a checkpoint, or a model's name"
            f"{nearest(without_tag(name), list_models())}"
        )
    return open_foreign(path, device) if _is_foreign(path) else load_run(path, device)


def _is_foreign(path: Path) -> bool:
    """Whether what is there is no run of ours, nor a folder of `srattn push`."""
    if not path.is_dir():
        return path.suffix in (".pth", ".pt", ".bin") or (path.suffix == ".safetensors" and not _is_ours(path))
    weights = path / run_folder.WEIGHTS
    if (path / run_folder.CONFIG).is_file() or not (path / "config.json").is_file():
        return False
    return not (weights.is_file() and _is_ours(weights))


def _is_ours(path: Path) -> bool:
    """Whether a file says what `load_run` needs; one that cannot be read is left to its words."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get("srattn", "")
    except (SafetensorError, ValueError, OSError):
        return True
    return '"classes"' in said and '"preprocess"' in said


def _published(name: str, device: str | torch.device) -> LoadedRun:
    from srattn.convert import create_model

    model = create_model(name, pretrained=True)
    classes = [str(index) for index in range(model.num_classes)]
    return LoadedRun(model.eval().to(device), classes, plain_preprocess(name, 3), {}, Path(name))
