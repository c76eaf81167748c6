"""`train(config)`: a run from its options to its folder, or a stopped one to its end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from srattn.data.index import part_called
from srattn.data.loader import Loader
from srattn.data.reader import BUILT_IN, is_built_in
from srattn.engine import run_folder
from srattn.engine.alike import check_data, check_options
from srattn.engine.checkpoint import Checkpoints, read_facts
from srattn.engine.config import OF_THE_MACHINE, OF_THE_PLACE, ResolvedConfig, TrainConfig, from_dict, to_dict
from srattn.engine.defaults import absolute_paths, resolve
from srattn.engine.device import pick_device
from srattn.engine.distributed import World, join, whole
from srattn.engine.evaluate import Evaluation
from srattn.engine.heap import kept_heap
from srattn.engine.interrupt import catch_signals, resumable
from srattn.engine.progress import Progress, Silent
from srattn.engine.read import make_augment, make_loader, read_data
from srattn.engine.results import make_result
from srattn.engine.run_lock import locked
from srattn.engine.settings import apply_settings, settings_of
from srattn.engine.sinks import Factory, find_sinks, open_sinks
from srattn.engine.start import check_size, prepare_model, with_teacher, without_adapters
from srattn.engine.trainer import Trainer
from srattn.engine.watch import watch_others
from srattn.engine.weights import save_weights
from srattn.errors import SrattnError
from srattn.models.backbone import Backbone
from srattn.tasks.classification import weights_of
from srattn.tasks.models import targets_of, task_options
from srattn.tasks.registry import make_task, task_called
from srattn.version import __version__


@dataclasses.dataclass
class RunResult:
    """A finished run.

    Attributes:
        folder: where its files are.
        result: the content of result.json.
        history: one record an epoch.
        model: in eval mode, on the device it was trained on (from divided weights: in main memory).
        loader: its data, in `loader.data`.
        evaluation: of the final model; `evaluation.answers` are the probabilities of the validation images in order.
        first: whether this process is the one that writes; always so in a run of one process.
    """

    folder: Path
    config: ResolvedConfig
    result: dict[str, Any]
    history: list[dict[str, float]]
    model: Backbone
    loader: Loader
    evaluation: Evaluation
    first: bool = True


def train(
    config: TrainConfig,
    progress: Progress | None = None,
    on_step: Callable[[int], None] | None = None,
    given: Collection[str] | None = None,
) -> RunResult:
    """Trains, measures and saves a model; or finishes the run `config.resume`.

    Everything that can be wrong with the options or the data is refused before a run folder is made. Under torchrun
    every process calls this and gets the result; the first alone shows and writes.

    Args:
        progress: shown to a person; nothing by default.
        on_step: called after each step with the number of steps done.
        given: the options that were asked for, which a resumed run refuses or takes up where they are not its own; by
            default those that are not as in `TrainConfig()`.

    Raises:
        SrattnError: options, data or a run folder that cannot be used, a loss that is no number any more, or another
            process that failed; or another process that trains in the run's folder.
        Interrupted: SIGINT or SIGTERM; the run is saved and can be resumed.
        OSError: no space left; what was there before is whole. Of a run that has begun it is a `NoSpace`, and the run
            can be resumed.
    """
    resuming = config.resume is not None
    with (
        join(config.distributed, config.device, resuming=resuming) as world,
        watch_others(world),
        contextlib.ExitStack() as lock,
    ):
        progress = progress if progress is not None and world.first else Silent()
        resolved, checkpoint = _resumed(config, world, lock, progress, given) if resuming else (resolve(config), None)
        if not resuming and world.first:
            run_folder.check_place(config.out)
        check_options(resolved, world)
        with _settings_of(resolved), contextlib.closing(progress):
            factories = find_sinks(resolved.sinks)
            trainer = _prepare(resolved, world, progress, on_step, weights=checkpoint is None)
            with catch_signals() as stop:
                folder = _place(trainer, checkpoint, factories, lock)
                progress.note(_headline(trainer, folder))
                if trainer.finished:
                    progress.note(_ended(trainer, folder))
                try:
                    with resumable(folder):
                        trainer.run(stop)
                finally:
                    if trainer.sinks:
                        trainer.sinks.close()
            with resumable(folder):
                return _finish(trainer, folder)


@contextlib.contextmanager
def _settings_of(config: ResolvedConfig) -> Iterator[None]:
    """The threads and the heap of the run; these and the caller's random numbers are afterwards what they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    on_cpu = pick_device(config.device).type == "cpu"
    try:
        with torch.random.fork_rng(devices=[]), kept_heap() if on_cpu else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)


def _resumed(
    config: TrainConfig,
    world: World,
    lock: contextlib.ExitStack,
    progress: Progress,
    given: Collection[str] | None,
) -> tuple[ResolvedConfig, Path]:
    """The options of a stopped run, whose folder is this run's from now on, and the checkpoint to take it up at."""
    assert config.resume is not None
    checkpoints = Checkpoints(Path(config.resume, run_folder.CHECKPOINTS), world)
    names, refused = [], ""
    # Nothing is written into a folder that is no run.
    if world.first and (checkpoints.names() or checkpoints.set_aside()):
        try:
            lock.enter_context(locked(Path(config.resume), progress.note))
            checkpoints.recover()
        except SrattnError as error:
            refused = str(error)
        names = checkpoints.names()
    names, refused = world.tell((names, refused))
    if refused:
        raise SrattnError(refused)
    if not names:
        run = next(
            (str(above) for above in Path(config.resume).parents[:3] if (above / run_folder.CONFIG).is_file()), ""
        )
        hint = f"; did you mean {run}?" if run else ""
        raise SrattnError(f"{config.resume} has no complete checkpoint: there is nothing to resume{hint}")
    path = checkpoints.folder / names[0]
    own = read_facts(path).get("config")
    if not isinstance(own, dict):
        raise SrattnError(f"{path} is not a checkpoint of a training run of this version")
    try:
        resolved = from_dict(own)
    except SrattnError as error:
        raise SrattnError(
            f"{path} has options that srattn {__version__} does not take, it may be of a newer version: {error}"
        ) from None
    return _own_options(config, _where_it_lies(resolved, path.parent.parent), given), path


def _where_it_lies(own: ResolvedConfig, folder: Path) -> ResolvedConfig:
    """The options of a checkpoint with the places that the run's config.yaml names: a run that was resumed with data
    that was moved, and killed before its next checkpoint, says them there alone."""
    noted = {name: place for name, place in run_folder.places(folder).items() if place and getattr(own, name)}
    there = {name: place for name, place in noted.items() if os.path.exists(place) or _is_reachable(place)}
    return dataclasses.replace(own, **there)


def _is_reachable(place: str) -> bool:
    """Whether it is a pattern, a URL or a name on the hub; what lies there is seen when it is read."""
    try:
        return not is_built_in(place)
    except SrattnError:
        return False


def _own_options(config: TrainConfig, own: ResolvedConfig, given: Collection[str] | None) -> ResolvedConfig:
    """The options of a stopped run; others cannot be given, since the result would belong to neither.

    Where it computes may change, though on another machine the last bits of the result may too; and where its data
    lies: whether that is the same is seen when it is read.
    """
    values, kept = to_dict(config) | absolute_paths(config) | {"task": task_called(config.task)}, to_dict(own)
    if given is None:
        untouched = to_dict(TrainConfig())
        given = [name for name, value in to_dict(config).items() if value != untouched[name]]
    if "out" in given and config.out is not None:
        raise SrattnError("--resume continues in the run's own folder; leave --out away")
    changed = {}
    for name in values:
        value = values[name]
        if name not in given or name in ("resume", "out") or value is None or _is_kept(name, value, kept[name]):
            continue
        if name not in OF_THE_MACHINE and not (name in OF_THE_PLACE and _is_place(name, value, kept[name])):
            raise SrattnError(f"--resume continues with the run's own options: {name} is {kept[name]!r}, not {value!r}")
        changed[name] = value
    resumed = dataclasses.replace(own, **changed)
    if resumed.data == own.data and not os.path.exists(own.data):
        try:
            is_built_in(own.data)
        except SrattnError:
            raise SrattnError(
                f"{own.data} is not there any more; if it was moved, say where it is now: --data PLACE beside --resume"
            ) from None
    return resumed


def _is_kept(name: str, value: Any, kept: Any) -> bool:
    """Whether an option that was given is as the run has it."""
    if isinstance(value, dict) and isinstance(kept, dict):  # options of the model and of the head, one by one
        return all(key in kept and kept[key] == item for key, item in value.items())
    return value == kept or (name == "precision" and value == "auto")


def _is_place(name: str, value: str, kept: Any) -> bool:
    """Whether both are places where something lies: no built-in data, no names of parts or of classes."""
    if name == "data":
        return not is_built_in(value) and kept not in BUILT_IN
    if name == "classes":
        return os.path.isfile(value) and os.path.isabs(kept or "")
    return all(place != "split" and part_called(place) is None for place in (value, kept or "split"))


def _prepare(
    config: ResolvedConfig,
    world: World,
    progress: Progress,
    on_step: Callable[[int], None] | None,
    weights: bool,
) -> Trainer:
    check_size(config)
    augment = make_augment(config)
    data = read_data(config, augment, progress)
    check_data(data, config.data, world)
    for line in data.skipped:
        progress.note(f"skipped {line}")
    loader = make_loader(config, augment, data, world)
    model, notes = prepare_model(config, data.classes, weights=weights)
    options = {**task_options(model), **({} if config.loss is None else {"loss": config.loss})}
    if config.class_weights is not None:
        options["weights"] = weights_of(config.class_weights, data.train.labels, data.classes)
    task = make_task(config.task, data.classes, config.label_smoothing, **options)
    task = with_teacher(task, config, augment.preprocess, data.classes)
    for line in (*getattr(data, "notes", ()), *notes):
        progress.note(line)
    trainer = Trainer(config, model, loader, task, progress, on_step, world)
    if trainer.learner.precision.warning:
        progress.note(trainer.learner.precision.warning)
    return trainer


def _place(
    trainer: Trainer, checkpoint: Path | None, factories: dict[str, Factory], lock: contextlib.ExitStack
) -> Path:
    """The run's folder: a new one, locked by the first process, or its own with the state of `checkpoint` taken up."""
    config, world = trainer.config, trainer.world
    if checkpoint is None:
        made = run_folder.create(config) if world.first else None
        folder = Path(world.tell(str(made)))
        if world.first:
            lock.enter_context(locked(folder, trainer.progress.note))
    else:
        folder = checkpoint.parent.parent
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, world, config.keep_checkpoints)
    trainer.begin(folder, checkpoints)
    if checkpoint is None:
        try:
            trainer.save(wait=True)  # so that it can be resumed from the start
        except BaseException:
            if world.first:
                lock.close()
                run_folder.remove(folder)
            raise
    else:
        trainer.restore(checkpoint)
        if world.first:
            run_folder.move(folder, config, trainer.steps_done)
            run_folder.write_history(folder, trainer.position.history)
    if world.first:
        trainer.sinks = open_sinks(factories, folder, to_dict(config), trainer.steps_done, trainer.progress.note)
    return folder


def _headline(trainer: Trainer, folder: Path) -> str:
    config, data, world = trainer.config, trainer.loader.data, trainer.world
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    targets, count = targets_of(config.task), len(data.classes)
    answers = "depths" if targets == "depths" else f"{count} {'joints' if targets == 'joints' else 'classes'}"
    several = f"; {world.size} processes ({world.kind})" if world.size > 1 else ""
    return (
        f"{config.model} with {parameters / 1e6:.2f} million parameters on {config.data}: {len(data.train)} images "
        f"for training, {len(data.val)} held out, {answers}, {config.size}x{config.size} pixels"
        f"{several}; run folder {folder}"
    )


def _ended(trainer: Trainer, folder: Path) -> str:
    """What is said of a run that is resumed after its end."""
    done, ended = trainer.position.epoch, trainer.position.ended
    how = f"{ended} ended it after epoch {done}" if ended else f"epoch {done} was its last"
    return (
        f"this run is finished: {how}; it is measured again and nothing is trained. To go on from its weights begin a "
        f"new run: srattn train --init {folder} --epochs N, with the options of {folder / run_folder.CONFIG}"
    )


def _finish(trainer: Trainer, folder: Path) -> RunResult:
    config, data, world = trainer.config, trainer.loader.data, trainer.world
    evaluation = trainer.finish()
    result = make_result(trainer)
    model = trainer.model
    if world.kind == "fsdp":
        state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
        model, _ = prepare_model(config, data.classes, weights=False)
        model.load_state_dict(state)
        apply_settings(model, settings_of(trainer.model))
        model.eval()
    if config.lora_rank:
        if world.first:
            run_folder.write_adapters(folder, model)
        model = without_adapters(model)
    if world.first:
        told = {name: getattr(data, name, None) for name in ("palette", "of_255")}
        save_weights(folder / run_folder.WEIGHTS, model, data.classes, data.preprocess, task=config.task, **told)
        run_folder.write_result(folder, result)
    return RunResult(
        folder, config, result, trainer.position.history, model, trainer.loader, evaluation, first=world.first
    )
