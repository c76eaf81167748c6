"""Checkpoints of other layouts, and of ours without classes, opened as what they are: backbones or whole models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch

from srattn.convert import hf, load_checkpoint
from srattn.convert.head_numbers import saved_backbone, saved_kind, saved_parts, told_parts
from srattn.convert.heads import Head
from srattn.convert.source import Source, read_source
from srattn.convert.state import Ours, to_ours
from srattn.convert.variants import infer, ratios_of
from srattn.data.palette import standard_palette
from srattn.data.preprocess import Preprocess
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.layers.reduction import as_pair
from srattn.models.backbone import Backbone
from srattn.models.registry import count_parameters, list_models, variant
from srattn.models.weights import Preprocessing, find_weights
from srattn.tasks.models import backbone_name, heads_of, rebuild

CLASSIFIES = "classification"
# How images come in, where the file does not say it: as the heads were published. The shorter side, or all of the image
# within a square: SegFormer on ADE20K (arXiv:2105.15203, section 4.1), GLPN on NYU Depth (arXiv:2201.07436, section
# 4.1), whose code feeds levels in [0, 1] as they are, and PVT's detectors (arXiv:2102.12122, section 5.2).
_LOOKS: dict[str, dict[str, Any]] = {
    "segmentation": {"fit": "shorter", "size": (512, 512)},
    "depth": {"fit": "shorter", "size": (480, 480), "mean": (0.0,), "std": (1.0,)},
    "detection": {"fit": "inside", "size": (800, 800)},
    "pose": {"fit": "inside"},  # of the size that the model was built for
}


def open_foreign(path: Path, device: str | torch.device) -> LoadedRun:
    """A checkpoint of another's layout, or of ours without classes: the whole model where it holds one.

    Raises:
        SrattnError: weights that cannot be read, or of no model that is known here.
    """
    read = read_source(path)
    try:
        ours = _ours(read)
        head = None if ours.head is None else ours.head.to_ours()
        task = CLASSIFIES if head is None else task_of_head(head.kind)
        config = _config(read, ours, head)
        _check_size(config, ours, head)
        model = cast(Backbone, rebuild(config))
    except SrattnError as error:
        raise error if str(error).startswith(read.origin) else SrattnError(f"{read.origin}: {error}") from None
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SrattnError(f"{path} does not describe a model ({error})") from None
    load_checkpoint(model, path)
    classes = _classes(read, getattr(model, "num_classes", 0), task)
    plain = task == CLASSIFIES or not classes
    return LoadedRun(
        model.eval().to(device),
        classes,
        _preprocess(read, model, task),
        {},
        path,
        task,
        None if plain else standard_palette(classes),
    )


def foreign_task(path: Path) -> str:
    """The task of what `open_foreign` would open.

    Raises:
        SrattnError: weights that cannot be read, or of no model that is known here.
    """
    read = read_source(path)
    kind = saved_kind(read.metadata)
    if kind is None and (found := to_ours(read.state).head) is not None:
        kind = found.kind
    return CLASSIFIES if kind is None else task_of_head(kind)


def task_of_head(kind: str) -> str:
    """What a kind of head answers.

    Raises:
        SrattnError: no task here has such a head.
    """
    for task in _LOOKS:
        if kind in heads_of(task):
            return task
    raise SrattnError(f"a {kind} head is of no task that is known here; open the backbone alone with load_checkpoint")


def plain_preprocess(name: str, channels: int) -> Preprocess:
    """As the published weights of a backbone want it; as PVT's do, where there are none."""
    found = find_weights(name)
    told = found.preprocessing if found is not None else Preprocessing(crop_pct=0.875)
    if channels not in (1, 3):
        raise SrattnError(f"the model takes images of {channels} channels; prediction reads grey and RGB images")
    grey = channels == 1
    return Preprocess(
        channels=channels,
        size=(told.size, told.size),
        mean=(0.449,) if grey else told.mean,
        std=(0.226,) if grey else told.std,
        crop_fraction=told.crop_pct,
        interpolation=told.interpolation,
    )


def _ours(read: Source) -> Ours:
    """The tensors by our keys, with what the file says of ratios, grids and the kind of its head."""
    saved = saved_backbone(read.metadata)
    known = saved.get("name") in list_models()
    context = dataclasses.replace(hf.context_from(read.config), ratios=ratios_of(saved) if known else ())
    prefer = variant(saved["name"]).family.__module__.rpartition(".")[2] if known else None
    return to_ours(read.state, prefer=prefer, context=context, kind=saved_kind(read.metadata))


def _config(read: Source, ours: Ours, head: Head | None) -> dict[str, Any]:
    """What `rebuild` takes: as the file says it, else as the shapes do."""
    backbone = saved_backbone(read.metadata)
    if backbone.get("name") not in list_models():
        family = ours.detected.family
        name, found = infer(ours.state, family)
        heads = hf.numbers_from(read.config)
        told = {} if heads is None or len(heads) != len(found.config["depths"]) else {"num_heads": heads}
        if name is None and told:  # a width of nobody's is still a registered model with all of its numbers replaced
            name = next(n for n in list_models() if variant(n).family.__module__.rpartition(".")[2] == family)
        if name is None:
            raise SrattnError(f"{read.origin} holds weights of {family}, but of no registered model")
        backbone = {"name": name, **found.config, **told}
    if head is None:
        return backbone
    parts = told_parts(head.kind, head.state, read.metadata, read.config)
    return {"backbone": backbone, **{**saved_parts(read.metadata), **parts}}


def _check_size(config: dict[str, Any], ours: Ours, head: Head | None) -> None:
    """Refuses a file whose words describe a model far larger than its tensors, before memory is taken for it."""
    tensors = [*ours.state.values(), *(() if head is None else head.state.values())]
    depths = config.get("backbone", config).get("depths") or ()
    blocks, most = sum(depths), sum(tensor.numel() for tensor in tensors)
    described = 0 if blocks > len(tensors) else count_parameters(rebuild(config, device="meta"))
    if blocks > len(tensors) or described > 2 * most:
        size = f" and {described:,} parameters" if described else ""
        raise SrattnError(
            f"it describes a model of {blocks} blocks{size}, and holds {len(tensors)} tensors with {most:,} numbers"
        )


def _classes(read: Source, count: int, task: str) -> list[str]:
    """Their names as the file has them, else their numbers; those of pixels and boxes differ from each other."""
    if task == "depth":
        return ["depth"]
    if task == "segmentation" and count == 1:
        return ["0", "1"]  # one logit, of the second
    names, saved = read.config.get("id2label"), read.metadata.get("classes")
    numbers = [str(index) for index in range(count)]
    if isinstance(names, dict) and set(names) == set(numbers):
        saved = [names[index] for index in numbers]
    found = [str(name) for name in saved] if isinstance(saved, list) and len(saved) == count else numbers
    if task != CLASSIFIES and len(set(found)) < count:
        found = [f"{name} {index}" if found.count(name) > 1 else name for index, name in enumerate(found)]
    return found


def _preprocess(read: Source, model: Backbone, task: str) -> Preprocess:
    plain = plain_preprocess(backbone_name(model.config), model.in_chans)
    if task == CLASSIFIES:
        return plain
    if isinstance(said := read.metadata.get("preprocess"), dict):
        return Preprocess.from_dict(said)
    look = {"size": as_pair(model.img_size, "img_size"), **_LOOKS[task]}
    for key in {"mean", "std"} & look.keys():
        look[key] = look[key] * model.in_chans
    return dataclasses.replace(plain, interpolation="bilinear", **look)
