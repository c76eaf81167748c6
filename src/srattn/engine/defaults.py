"""What a run takes where the user leaves the choice: by the kind of data."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from srattn.data.dense.kinds import SceneKind, scene_folders, scene_kind
from srattn.data.depth_files import MILLIMETRES, check_scale
from srattn.data.index import part_called
from srattn.data.reader import BUILT_IN, absolute, is_built_in
from srattn.engine.config import OF_THE_MACHINE, ResolvedConfig, TrainConfig
from srattn.engine.device import pick_device
from srattn.engine.precision import fastest
from srattn.errors import SrattnError
from srattn.models.registry import registered_name
from srattn.tasks.models import Targets, backbone_config, targets_of
from srattn.tasks.registry import task_called

# 0.27 million parameters; 99.7 to 100 % of the held-out digits (seeds 0 to 2) in 40 seconds on one core.
DIGITS: dict[str, Any] = {
    "size": 16,
    "channels": 1,
    "model": "pvt_v2_b0",
    "model_options": {
        "stem_stride": 1,
        "embed_dims": [16, 32, 64, 96],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 3],
        "mlp_ratios": [4, 4, 4, 4],
        "sr_ratios": [4, 2, 1, 1],
    },
    "augment": "affine",
    "epochs": 28,
    "lr": 2e-3,
    "drop_path_rate": 0.0,
    # So small a model gains little from a second thread, and one computes alike on every machine, busy or not.
    "threads": 1,
    "num_workers": 0,
}
# A photo folder from scratch: small enough for a CPU to show progress in minutes; larger sizes and models by option.
FOLDER: dict[str, Any] = {
    "size": 128,
    "channels": 3,
    "model": "pvt_v2_b0",
    "model_options": {},
    "augment": "crop,flip",
    "epochs": 30,
    "lr": 1e-3,
    "drop_path_rate": 0.1,
}


# A folder of images and masks: SegFormer-B0 on windows, which a CPU trains in minutes to hours.
MASKS: dict[str, Any] = {
    "size": 256,
    "channels": 3,
    "model": "mit_b0",
    "model_options": {},
    "head": "segformer",
    "loss": "ce",
    "augment": "scale=0.5-2,flip,jitter",
    "epochs": 50,
    "lr": 1e-3,
    "drop_path_rate": 0.1,
    "label_smoothing": 0.0,
}
BOXES: dict[str, Any] = {
    "size": 320,
    "channels": 3,
    "model": "pvt_v2_b0",
    "model_options": {},
    "head": "fcos",
    "augment": "scale=0.75-1.5,flip,jitter",
    "epochs": 50,
    "lr": 1e-3,
    "drop_path_rate": 0.1,
    "label_smoothing": 0.0,
}
# A folder of images and depths: GLPN on a small MiT. Metres stay what they are, so sizes vary little.
DEPTHS: dict[str, Any] = {
    "size": 256,
    "channels": 3,
    "model": "mit_b0",
    "model_options": {},
    "head": "glpn",
    "depth_scale": MILLIMETRES,
    "augment": "scale=1-1.5,flip,jitter",
    "epochs": 50,
    "lr": 1e-3,
    "drop_path_rate": 0.1,
    "label_smoothing": 0.0,
}
# A folder of people with joints: a window a person, varied as published for heatmaps (arXiv:1804.06208).
JOINTS: dict[str, Any] = {
    "size": 192,
    "channels": 3,
    "model": "pvt_v2_b0",
    "model_options": {},
    "head": "heatmap",
    "augment": "scale=0.7-1.3,rotate=40,flip,jitter",
    "epochs": 50,
    "lr": 1e-3,
    "drop_path_rate": 0.1,
    "label_smoothing": 0.0,
}
OF_TARGETS = {"masks": MASKS, "boxes": BOXES, "depths": DEPTHS, "joints": JOINTS}
_TASK_OF: dict[SceneKind, str] = {"masks": "segment", "boxes": "detect", "depths": "depth", "joints": "pose"}


def resolve(config: TrainConfig) -> ResolvedConfig:
    """Fills what is None. The options of the default model apply to that model alone.

    Without a model, weights to start from bring theirs, with its options, and the size and channels of its images.

    Raises:
        SrattnError: `data` is neither a known name nor an existing path, or it has masks or the like and no task is
            said; or there are no weights to start from.
    """
    if config.task is None:
        _check_labels(config.data)
    task = task_called(config.task)
    targets = targets_of(task)
    _check_options(config, task)
    defaults = _usual(targets, targets == "labels" and is_built_in(config.data))
    if config.model is None and config.init is not None:
        found = _of_weights(config.init)
        defaults |= found if targets == "labels" else {name: found[name] for name in ("model", "model_options")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun's processes share the machine
    defaults.setdefault("threads", cores)
    defaults.setdefault("num_workers", min(cores, 8))
    values: dict[str, Any] = {**dataclasses.asdict(config), "task": task}
    values |= _taken(config, defaults)
    values["model"] = registered_name(values["model"])
    values["eval_size"] = values["eval_size"] or values["size"]
    if config.precision == "auto":
        values["precision"] = fastest(pick_device(config.device))
    if values["head"] == "simcc" and values["eval_size"] != values["size"]:
        raise SrattnError(
            f"simcc is for images of one size: leave --eval_size out, or give --eval_size {values['size']}"
        )
    return ResolvedConfig(**{**values, **absolute_paths(config)})


def absolute_paths(config: TrainConfig) -> dict[str, Any]:
    """The options that may be paths, so that they mean the same from any working folder; names stay what they are."""
    values = {name: getattr(config, name) for name in ("data", "val", "classes", "init", "distill")}
    values["data"] = absolute(config.data)
    if config.classes is not None and os.path.isfile(config.classes):
        values["classes"] = os.path.abspath(config.classes)
    for name in ("init", "distill"):  # what is no path is the name of a model
        if values[name] is not None and os.path.exists(values[name]):
            values[name] = os.path.abspath(values[name])
    if config.val is not None and config.val != "split" and part_called(config.val) is None:
        values["val"] = absolute(config.val)
    return values


def known(config: TrainConfig) -> dict[str, Any]:
    """What `resolve` takes for options that are None, as far as it follows from the other options alone: without a look
    at data, weights or the machine. The size that it measures at stays open, since it follows that of training.

    Raises:
        SrattnError: an unknown task.
    """
    task = task_called(config.task)
    if config.resume is not None:
        return {}
    defaults = _usual(targets_of(task), config.data in BUILT_IN)
    if config.init is not None:  # which brings its own
        for name in ("model", "model_options", "size", "channels"):
            defaults.pop(name)
    for name in OF_THE_MACHINE:
        defaults.pop(name, None)
    return {"task": task, **_taken(config, defaults)}


def _usual(targets: Targets, built_in: bool) -> dict[str, Any]:
    """The defaults for data that is learnt from."""
    defaults = (DIGITS if built_in else FOLDER) if targets == "labels" else OF_TARGETS[targets]
    return {"label_smoothing": 0.1, **defaults}


def _taken(config: TrainConfig, defaults: dict[str, Any]) -> dict[str, Any]:
    """Of `defaults` those that `config` leaves open. Options of the default model apply to that model alone."""
    taken = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    base = defaults.get("model_options", {}) if config.model is None else {}
    return {**taken, "model_options": {**base, **config.model_options}}


def _check_labels(data: str) -> None:
    """Refuses to take folders of images and masks, or the like, for two classes, unless the task is said."""
    kind = scene_kind(data)
    if kind is not None:
        raise SrattnError(
            f"{data} has images with {kind} ({scene_folders(data, kind)}): give --task {_TASK_OF[kind]} to learn "
            "those, or --task classification if its folders are classes"
        )


def _check_options(config: TrainConfig, task: str) -> None:
    """Refuses options that the task would ignore, and data that it cannot learn from."""
    targets = targets_of(task)
    for name, given, belongs in (
        ("loss", config.loss, ("masks",)),
        ("void", config.void, ("masks",)),
        ("classes", config.classes, ("masks", "boxes")),
        ("label_smoothing", config.label_smoothing, ("labels", "masks")),
        ("class_weights", config.class_weights, ("labels",)),
        ("depth_scale", config.depth_scale, ("depths",)),
        ("head", config.head, tuple(OF_TARGETS)),
        ("head_options", config.head_options, tuple(OF_TARGETS)),
        ("distill", config.distill, ("labels",)),
        ("on_empty_class", config.on_empty_class, ("labels",)),
        *((name, getattr(config, name), ("labels",)) for name in ("image_column", "label_column", "split_column")),
    ):
        if given not in (None, [], {}, "", 0.0) and targets not in belongs:
            raise SrattnError(f"--{name} has no meaning for {task}, which learns from {targets}; leave it out")
    if config.class_weights is not None and config.distill is not None:
        raise SrattnError("--class_weights and --distill exclude each other: a teacher's answers have no class")
    if config.depth_scale is not None:
        check_scale(config.depth_scale)
    if targets != "labels" and not os.path.isdir(config.data):
        raise SrattnError(f"{task} takes a folder of images and {targets}, and {config.data!r} is none")


def _of_weights(source: str) -> dict[str, Any]:
    """The model of `source` and what it sees, as defaults."""
    from srattn.engine.open_model import open_model
    from srattn.engine.start import SET_BY_TRAINING

    found = open_model(source)
    config = backbone_config(found.model.config)
    options = {name: value for name, value in config.items() if name not in SET_BY_TRAINING | {"name"}}
    return {
        "model": config["name"],
        "model_options": options,
        "size": max(found.preprocess.size),
        "channels": found.preprocess.channels,
    }
