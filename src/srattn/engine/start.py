"""What a model is before its first step: built, given weights, frozen in part, with adapters, with a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from srattn.data.keyed import seed_of
from srattn.data.preprocess import Preprocess
from srattn.engine.config import ResolvedConfig
from srattn.engine.settings import apply_settings, settings_of
from srattn.errors import SrattnError
from srattn.models.backbone import Backbone
from srattn.tasks.models import build_task_model, check_options
from srattn.tasks.protocol import Task

if TYPE_CHECKING:
    from srattn.convert import LoadReport
    from srattn.engine.weights import LoadedRun

_INITIAL_WEIGHTS = 4  # a key beside those of the loader and of the steps

SET_BY_TRAINING = frozenset(
    {"num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate", "device", "features_only"}
)
"""Options of a model that follow from those of the run."""
_SETTINGS = {"edge", "extra_relu"}  # which weights bring along, unless an option says otherwise


def make_model(config: ResolvedConfig, classes: int, device: str | None = None) -> Backbone:
    """The untrained model of a configuration."""
    for name in SET_BY_TRAINING & config.model_options.keys():
        raise SrattnError(
            f"model_options.{name} is set by training itself (size, channels, classes, drop rates, device)"
        )
    check_options(config.task, config.model, config.head or "", config.model_options, config.head_options)
    options = dict(config.model_options)
    if config.head is None:
        options["drop_rate"] = config.drop_rate
    elif config.drop_rate:
        raise SrattnError(f"--drop_rate is before a classifier; give --head_options.drop_rate {config.drop_rate:g}")
    model = build_task_model(
        config.task,
        config.model,
        classes,
        config.head or "",
        config.head_options,
        in_chans=config.channels,
        img_size=config.size,
        drop_path_rate=config.drop_path_rate,
        device=device,
        **options,
    )
    return cast(Backbone, model)


def check_size(config: ResolvedConfig) -> None:
    """Refuses images too small for the model, which is built without memory for that."""
    least = make_model(config, 2, device="meta").min_size
    for name in ("size", "eval_size"):
        if getattr(config, name) < least:
            raise SrattnError(
                f"{name} {getattr(config, name)} is below the {least} pixels that {config.model} needs with these "
                f"options; give --{name} {least} or more, or a smaller --model_options.stem_stride"
            )


def prepare_model(config: ResolvedConfig, classes: list[str], *, weights: bool = True) -> tuple[Backbone, list[str]]:
    """The model as training finds it, and lines that say what was done to it.

    Args:
        weights: load those of `config.init`; not needed where a checkpoint follows.

    Raises:
        SrattnError: `init`, `freeze` or the adapters do not fit the model.
    """
    torch.manual_seed(seed_of(config.seed, _INITIAL_WEIGHTS))
    model = make_model(config, len(classes))
    notes: list[str] = []
    if config.init is not None and weights:
        notes += _load(model, config, classes)
    if config.freeze:
        from srattn.engine.freeze import freeze

        notes.append(f"frozen {', '.join(config.freeze)}: {freeze(model, config.freeze)}")
    if config.lora_rank:
        notes.append(_adapt(model, config))
    return model, notes


def _load(model: Backbone, config: ResolvedConfig, classes: list[str]) -> list[str]:
    """The weights of `config.init`; its head only if that answers in the same classes."""
    from srattn.engine.open_model import open_model

    assert config.init is not None
    source, found = config.init, open_model(config.init)
    settings = settings_of(found.model)
    for own in _SETTINGS & {*config.model_options, *config.head_options}:
        settings.pop(own, None)
    if "backbone" in model.config:
        return _load_backbone(model, found, source, classes, settings)
    if "backbone" in found.model.config:
        raise SrattnError(f"{source} is a model for {found.task}; start a classifier from one that classifies")
    same = found.classes == classes
    report = _fitted(model, found.model.state_dict(), source, "load" if same else "keep")
    apply_settings(model, settings)
    notes = [f"starts from {source}: {len(report.loaded)} tensors"]
    notes += [f"{key} resized {how}" for key, how in report.resized.items()]
    if not same:
        notes.append(f"a new head for {len(classes)} classes: {source} answers in {len(found.classes)} others")
    return notes


def _load_backbone(
    model: Backbone, found: LoadedRun, source: str, classes: list[str], settings: dict[str, Any]
) -> list[str]:
    """Weights of another task's model, or of the same: the backbone's, and the head's where all of it fits and it
    answers in the same classes."""
    from srattn.convert.layouts.mm_heads import BESIDE

    body, theirs = cast(Any, model).backbone, getattr(found.model, "backbone", found.model)
    own = body.state_dict()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name in own}
    report = _fitted(body, state, source, "keep")
    apply_settings(model, {name: value for name, value in settings.items() if name != "extra_relu"})
    notes = [f"starts from {source}: {len(report.loaded)} tensors of the backbone"]
    notes += [f"{key} resized {how}" for key, how in report.resized.items()]
    ours, others = model.state_dict(), found.model.state_dict()
    rest = [name for name in ours if not name.startswith("backbone.")]
    fits = [name for name in rest if name in others and others[name].shape == ours[name].shape]
    # A head that serves training alone begins anew where the other model has none.
    if "backbone" in found.model.config and all(name in fits or name.startswith(BESIDE) for name in rest):
        other = _another_class(classes, found.classes)
        if other is not None:
            told = f"class {other} is {classes[other]!r} here and {found.classes[other]!r} in {source}"
            return [*notes, f"a new head: {told}"]
        with torch.no_grad():
            for name in fits:
                ours[name].copy_(others[name])
        apply_settings(model, settings)
        return [*notes, "and those of its head"]
    return [*notes, "a new head"]


def _fitted(model: nn.Module, state: Mapping[str, Any], source: str, head: Literal["load", "keep"]) -> LoadReport:
    """Loads what `--init` names.

    Raises:
        SrattnError: it is of another model than the options describe.
    """
    from srattn.convert import load_checkpoint

    try:
        return load_checkpoint(model, state, layout="srattn", head=head)
    except SrattnError as error:
        raise SrattnError(
            f"--init {source} is of another model than the options describe: {error}; leave --model and "
            f"--model_options out to have the one that it brings"
        ) from None


def _another_class(ours: list[str], theirs: list[str]) -> int | None:
    """The first number that means another class; None where all mean the same, or one side has numbers for names."""
    numbers = [str(number) for number in range(len(ours))]
    if numbers in (ours, theirs):
        return None
    return next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)


def _adapt(model: Backbone, config: ResolvedConfig) -> str:
    from srattn.engine.freeze import hold_norms
    from srattn.engine.lora import add_lora
    from srattn.engine.lora_file import beside_adapters

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and beside_adapters(model, name))
    hold_norms(model)
    added = add_lora(model, config.lora_rank, config.lora_alpha, config.lora_targets)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{len(added) // 2} adapters of rank {config.lora_rank}: {trained:,} parameters are trained"


def with_teacher(task: Task, config: ResolvedConfig, preprocess: Preprocess, classes: list[str]) -> Task:
    """The task, whose loss follows `config.distill` too."""
    if config.distill is None:
        return task
    from srattn.engine.distill import Distillation
    from srattn.engine.open_model import open_model

    return Distillation(
        task,
        open_model(config.distill),
        config.distill_kind,
        config.distill_temperature,
        config.distill_weight,
        preprocess=preprocess,
        classes=classes,
    )


def without_adapters(model: Backbone) -> Backbone:
    """The model with its adapters put into the weights, which gives the same answers and is saved like any other."""
    from srattn.engine.lora import merge_lora

    merge_lora(model)
    return model
