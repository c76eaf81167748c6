"""The options of a training run: each field is `--field` on the command line, its help stands under it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from srattn.errors import SrattnError, nearest


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Options of `srattn train`. None means: chosen by the data (see `srattn.engine.defaults`)."""

    data: str = "digits"
    """What to train on: digits (no download), a folder of class folders, or one with train/ and val/."""
    val_fraction: float = 0.2
    """The part of each class that is held out where the data is not split already."""
    split_seed: int = 0
    """Chooses what is held out. Apart from seed, so that runs with several seeds share one split."""
    on_bad_image: Literal["skip", "error"] = "skip"
    """Unreadable images: leave them out and name them, or stop before training."""
    size: int | None = None
    """Side of the square images that the model sees, in pixels."""
    channels: Literal[1, 3] | None = None
    """1 to train on grey levels, 3 on RGB."""
    model: str | None = None
    """A name that `srattn models` lists."""
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the model, as in --model_options.embed_dims '[16, 32, 64, 128]' --model_options.stem_stride 2."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    drop_path_rate: float | None = None
    """Stochastic depth: the probability of skipping the last block, falling linearly to 0 for the first."""
    augment: Literal["none", "affine", "crop"] | None = None
    """Variation of training images: small turns, moves and scales of the whole image, or random resized crops."""
    rotate: float = 10.0
    """affine: the largest turn, in degrees."""
    shift: float = 0.08
    """affine: the largest move, as a part of the side."""
    zoom: float = 0.1
    """affine: the largest change of scale."""
    crop_area: float = 0.35
    """crop: the smallest part of the area that a crop keeps."""
    flip: float | None = None
    """The probability of a mirror image."""
    epochs: int | None = None
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step."""
    lr: float | None = None
    """The highest learning rate, after warm-up."""
    min_lr: float = 1e-5
    """The learning rate of the last step."""
    warmup_epochs: float = 2.0
    """Epochs in which the learning rate rises linearly; a cosine takes it down afterwards."""
    weight_decay: float = 0.05
    """AdamW's decay of matrices; biases, norms and position embeddings have none."""
    clip_grad: float = 1.0
    """The largest norm of all gradients together; 0 for no limit."""
    label_smoothing: float = 0.1
    """The part of each target that is spread over all classes."""
    ema_decay: float = 0.0
    """Above 0: an exponential moving average of the weights is what is measured and kept."""
    seed: int = 0
    """Chooses initial weights, order and augmentation. On a CPU the same seed gives the same numbers on every run."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes cuda where there is one, else cpu."""
    threads: int | None = None
    """Threads of a CPU run. Another number may change the last bits of the result."""
    num_workers: int | None = None
    """Threads that decode and augment ahead of the model; the result does not depend on it."""
    cache_mb: int = 1024
    """Decoded images are held in memory up to this many megabytes; the rest is decoded again each epoch."""
    out: str | None = None
    """The run folder, which must not exist. Default: runs/NAME-1, -2, and so on."""
    resume: str | None = None
    """A run folder to continue with its own options, to the same weights as if it had never stopped."""

    def __post_init__(self) -> None:
        _check_ranges(self)


@dataclasses.dataclass(frozen=True)
class ResolvedConfig(TrainConfig):
    """The same with nothing left to choose; what config.yaml holds."""

    size: int = 0
    channels: Literal[1, 3] = 3
    model: str = ""
    drop_path_rate: float = 0.0
    augment: Literal["none", "affine", "crop"] = "none"
    flip: float = 0.0
    epochs: int = 0
    lr: float = 0.0
    threads: int = 1
    num_workers: int = 0


def to_yaml(config: TrainConfig) -> str:
    """The options as YAML that `srattn train --config` takes; the run's own place is left out."""
    values = dataclasses.asdict(config)
    del values["out"], values["resume"]
    return yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)


def from_dict(values: Mapping[str, Any]) -> ResolvedConfig:
    """A resolved configuration from plain values.

    Raises:
        SrattnError: an unknown or missing option, or a value out of range.
    """
    names = {field.name for field in dataclasses.fields(ResolvedConfig)}
    for name in values:
        if name not in names:
            raise SrattnError(f"unknown option {name!r}{nearest(name, names)}")
    try:
        return ResolvedConfig(**values)
    except TypeError as error:
        raise SrattnError(f"bad option: {error}") from None


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML and for checkpoints that are loaded with `weights_only`."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values, from which `from_dict` makes the same configuration."""
    return _plain(dataclasses.asdict(config))


_AT_LEAST: dict[str, float] = {
    "size": 1, "epochs": 1, "batch_size": 1, "threads": 1, "num_workers": 0, "cache_mb": 0, "min_lr": 0,
    "warmup_epochs": 0, "weight_decay": 0, "clip_grad": 0, "drop_rate": 0, "drop_path_rate": 0, "ema_decay": 0,
}  # fmt: skip
_BELOW: dict[str, float] = {"drop_rate": 1, "drop_path_rate": 1, "ema_decay": 1}


def _check_ranges(config: TrainConfig) -> None:
    resolved = isinstance(config, ResolvedConfig)
    for name, least in _AT_LEAST.items():
        value = getattr(config, name)
        if value is not None and not value >= least and not (resolved and value == 0):
            raise SrattnError(f"{name} must be at least {least:g}, got {value}")
    for name, limit in _BELOW.items():
        value = getattr(config, name)
        if value is not None and not value < limit:
            raise SrattnError(f"{name} must be below {limit:g}, got {value}")
    if config.lr is not None and not 0 < config.lr < float("inf") and not resolved:
        raise SrattnError(f"lr must be above 0, got {config.lr}")
    if not -(2**63) <= config.seed < 2**63:
        raise SrattnError(f"seed must fit in 64 bits, got {config.seed}")
