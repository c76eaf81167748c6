"""`train(config)`: a run from its options to its folder, or a stopped one to its end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch

from srattn.data.augment import Augment
from srattn.data.keyed import seed_of
from srattn.data.loader import Loader
from srattn.data.reader import default_preprocess, load_data
from srattn.engine import run_folder
from srattn.engine.checkpoint import load_checkpoint
from srattn.engine.config import ResolvedConfig, TrainConfig, from_dict, to_dict
from srattn.engine.defaults import resolve
from srattn.engine.evaluate import Evaluation, evaluate
from srattn.engine.interrupt import catch_signals
from srattn.engine.progress import Progress, Silent
from srattn.engine.results import make_result
from srattn.engine.trainer import Trainer, pick_device
from srattn.engine.weights import save_weights
from srattn.errors import SrattnError
from srattn.models import build_model
from srattn.models.backbone import Backbone
from srattn.tasks.classification import Classification

_INITIAL_WEIGHTS = 4  # a key beside those of the loader and of the steps


@dataclasses.dataclass
class RunResult:
    """A finished run.

    Attributes:
        folder: where its files are.
        result: the content of result.json.
        history: one record an epoch.
        model: in eval mode, on the device it was trained on.
        loader: its data, in `loader.data`.
        evaluation: of the final model; `evaluation.answers` are the probabilities of the validation images in order.
    """

    folder: Path
    config: ResolvedConfig
    result: dict[str, Any]
    history: list[dict[str, float]]
    model: Backbone
    loader: Loader
    evaluation: Evaluation


def train(
    config: TrainConfig,
    progress: Progress | None = None,
    on_step: Callable[[int], None] | None = None,
) -> RunResult:
    """Trains, measures and saves a model; or finishes the run `config.resume`.

    Everything that can be wrong with the options or the data is refused before a run folder is made.

    Args:
        progress: shown to a person; nothing by default.
        on_step: called after each step with the number of steps done.

    Raises:
        SrattnError: options, data or a run folder that cannot be used, or a loss that is no number any more.
        Interrupted: SIGINT or SIGTERM; the run is saved and can be resumed.
        OSError: no space left; what was there before is whole.
    """
    progress = progress or Silent()
    state = folder = None
    if config.resume is not None:
        folder = Path(config.resume)
        state = load_checkpoint(folder / run_folder.CHECKPOINT)
        resolved = _own_options(config, state)
    else:
        run_folder.check_free(config.out)
        resolved = resolve(config)
    with _settings_of(resolved), contextlib.closing(progress):
        trainer = _prepare(resolved, progress, on_step)
        with catch_signals() as stop:
            if state is not None and folder is not None:
                trainer.restore(state)
                run_folder.write_history(folder, trainer.position.history)
            else:
                folder = run_folder.create(resolved, trainer.state())
            progress.note(_headline(trainer, folder))
            trainer.run(folder, stop)
        return _finish(trainer, folder)


@contextlib.contextmanager
def _settings_of(config: ResolvedConfig) -> Iterator[None]:
    """The threads of the run; these and the caller's random numbers are afterwards what they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def _own_options(config: TrainConfig, state: dict[str, Any]) -> ResolvedConfig:
    """The options of a stopped run; others cannot be given, since the result would belong to neither."""
    own = from_dict(state["config"])
    given, untouched, kept = to_dict(config), to_dict(TrainConfig()), to_dict(own)
    for name, value in given.items():
        if name not in ("resume", "out") and value != untouched[name] and value != kept[name]:
            raise SrattnError(f"--resume continues with the run's own options: {name} is {kept[name]!r}, not {value!r}")
    if config.out is not None:
        raise SrattnError("--resume continues in the run's own folder; leave --out away")
    return own


def _prepare(config: ResolvedConfig, progress: Progress, on_step: Callable[[int], None] | None) -> Trainer:
    pick_device(config.device)
    _check_size(config)
    augment = Augment(
        config.augment,
        default_preprocess(config.data, config.size, config.channels),
        rotate=config.rotate,
        shift=config.shift,
        zoom=config.zoom,
        crop_area=config.crop_area,
        flip=config.flip,
    )
    data = load_data(
        config.data,
        augment,
        val_fraction=config.val_fraction,
        split_seed=config.split_seed,
        on_bad_image=config.on_bad_image,
        hold_bytes=config.cache_mb << 20,
        workers=config.num_workers,
        notify=progress.checking,
    )
    for line in data.skipped:
        progress.note(f"skipped {line}")
    loader = Loader(data, augment, config.batch_size, config.seed, config.num_workers)
    task = Classification(data.classes, config.label_smoothing)
    task.metrics()  # a missing package is met now, not after an epoch
    torch.manual_seed(seed_of(config.seed, _INITIAL_WEIGHTS))
    model = make_model(config, len(data.classes))
    return Trainer(config, model, loader, task, progress, on_step)


def make_model(config: ResolvedConfig, classes: int, device: str | None = None) -> Backbone:
    """The untrained model of a configuration."""
    own = {"num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate", "device", "features_only"}
    for name in own & config.model_options.keys():
        raise SrattnError(
            f"model_options.{name} is set by training itself (size, channels, classes, drop rates, device)"
        )
    model = build_model(
        config.model,
        num_classes=classes,
        in_chans=config.channels,
        img_size=config.size,
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
        device=device,
        **config.model_options,
    )
    return cast(Backbone, model)


def _check_size(config: ResolvedConfig) -> None:
    least = make_model(config, 2, device="meta").min_size
    if config.size < least:
        raise SrattnError(
            f"size {config.size} is below the {least} pixels that {config.model} needs with these options; "
            f"give --size {least} or more, or a smaller --model_options.stem_stride"
        )


def _headline(trainer: Trainer, folder: Path) -> str:
    config, data = trainer.config, trainer.loader.data
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return (
        f"{config.model} with {parameters / 1e6:.2f} million parameters on {config.data}: {len(data.train)} images "
        f"for training, {len(data.val)} held out, {len(data.classes)} classes, {config.size}x{config.size} pixels; "
        f"run folder {folder}"
    )


def _finish(trainer: Trainer, folder: Path) -> RunResult:
    data = trainer.loader.data
    if trainer.evaluation is None:  # resumed after the last epoch
        trainer.evaluation = evaluate(trainer.measured, trainer.loader, trainer.task, trainer.device)
    assert trainer.evaluation is not None
    model = trainer.measured.eval()
    save_weights(folder / run_folder.WEIGHTS, model, data.classes, data.preprocess)
    result = make_result(trainer)
    run_folder.write_result(folder, result)
    return RunResult(
        folder, trainer.config, result, trainer.position.history, model, trainer.loader, trainer.evaluation
    )
