"""The options of a training run: each field is `--field` on the command line, its help stands under it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from srattn.errors import SrattnError, nearest


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Options of `srattn train`. None means: chosen by the data (see `srattn.engine.defaults`), or not used."""

    # -- data -------------------------------------------------------------------------------------------------------
    data: str = "digits"
    """What to train on: digits (no download), a folder of class folders, or what else `srattn data check` reads."""
    val: str | None = None
    """Data to measure with, where it is not a part of data."""
    val_fraction: float = 0.2
    """The part of each class that is held out where the data is not split already."""
    split_seed: int = 0
    """Chooses what is held out. Apart from seed, so that runs with several seeds share one split."""
    on_bad_image: Literal["skip", "error"] = "skip"
    """Unreadable images: leave them out and name them, or stop before training."""
    on_empty_class: Literal["skip", "error"] | None = None
    """Classes without a usable image: leave them out and name them, or stop, as class folders do if it is not given."""
    image_column: str | None = None
    """The column of a list or table that holds the images, where it has none of the usual names."""
    label_column: str | None = None
    """The column of their classes."""
    split_column: str | None = None
    """The column of their parts: train, val or test."""
    classes: str | None = None
    """Names of masks' or boxes' classes in the order of their numbers: with commas between, or a file with a line each,
    name or name r g b. By default a classes.txt or palette.json beside the data, or what occurs."""
    void: list[int] = dataclasses.field(default_factory=list)
    """Numbers in masks that are no class, beside 255."""
    depth_scale: float | None = None
    """Metres that one unit of the depth files is: 0.001, millimetres, if not given; 0.00390625 for KITTI's."""
    size: int | None = None
    """Side of the square images that the model sees, in pixels; of masks, of windows of images that are as large."""
    eval_size: int | None = None
    """Side of the images that it is measured with and later predicts from (of masks, the shorter one); size, if not
    given."""
    channels: Literal[1, 3] | None = None
    """1 to train on grey levels, 3 on RGB."""
    augment: str | None = None
    """Variation of training images, such as none, affine, crop, or several with their numbers; see the page on
    training."""
    cache_mb: int = 1024
    """Decoded images are held in memory up to this many megabytes; the rest is decoded again each epoch."""
    num_workers: int | None = None
    """Threads that decode and augment ahead of the model; the result does not depend on it."""

    # -- model ------------------------------------------------------------------------------------------------------
    task: str | None = None
    """classification, if not given; segment: a class for each pixel, from folders images and masks; detect: boxes, from
    Pascal VOC or COCO; depth: metres for each pixel, from folders images and depths; pose: joints of people, from COCO.
    Another package adds its own under the entry points `srattn.tasks`."""
    model: str | None = None
    """A name that `srattn models` lists."""
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the model, as in --model_options.embed_dims '[16, 32, 64, 128]' --model_options.stem_stride 2."""
    head: str | None = None
    """segment: segformer, semantic_fpn, upernet or unet. detect: fcos, retinanet, faster_rcnn, or mask_rcnn, which
    learns masks of objects too. depth: glpn. pose: heatmap or simcc."""
    head_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the head, as in --head_options.hidden 128; of depths --head_options.max_depth 80, in metres."""
    loss: str | None = None
    """segment: ce, dice, focal, lovasz, boundary, structure, or a sum such as ce+dice or 0.5*ce+lovasz."""
    init: str | None = None
    """Weights to start from: a run, a checkpoint, a published name, box or box-small. Other classes get a new head."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    drop_path_rate: float | None = None
    """Stochastic depth: the probability of skipping the last block, falling linearly to 0 for the first."""
    freeze: list[str] = dataclasses.field(default_factory=list)
    """Parts that are not trained: names or patterns such as stages.0, or backbone for all but the head."""
    lora_rank: int = 0
    """Above 0: the model is frozen but for its head, a detector's pyramid, and adapters of this rank on the attention
    projections."""
    lora_alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    lora_targets: list[str] = dataclasses.field(default_factory=lambda: ["q", "v"])
    """Projections that have adapters."""
    distill: str | None = None
    """A teacher to learn from as well: a run, a checkpoint, or the name of a published model."""
    distill_kind: Literal["soft", "hard"] = "soft"
    """The teacher's probabilities, or its likeliest class."""
    distill_temperature: float = 3.0
    """soft: the temperature of both distributions."""
    distill_weight: float = 0.5
    """The teacher's part of the loss, from 0 to 1."""

    # -- optimisation -----------------------------------------------------------------------------------------------
    epochs: int | None = None
    """Passes over the training images; the model is measured after each."""
    passes: int = 1
    """More than 1: so many passes are one epoch, so that a small data set is measured less often."""
    batch_size: int = 64
    """Images a step, over all processes."""
    accumulate: int = 1
    """Parts in which a step is computed: the same gradient with less memory."""
    eval_batch_size: int | None = None
    """Images at a time and process when measuring; by default its part of batch_size."""
    optimiser: Literal["adamw", "muon", "muon_conv"] = "adamw"
    """muon moves the linear maps outside the head along orthogonal matrices, at AdamW's learning rates; AdamW moves the
    rest. muon_conv: the kernels of convolutions that mix channels too."""
    lr: float | None = None
    """The highest learning rate, after warm-up."""
    min_lr: float = 1e-5
    """The learning rate of the last step."""
    warmup_epochs: float = 2.0
    """Epochs in which the learning rate rises linearly; a cosine takes it down afterwards."""
    layer_decay: float = 1.0
    """Below 1: each layer learns at this part of the rate of the one after it; the head at the whole."""
    weight_decay: float = 0.05
    """The decay of matrices, apart from the gradient; biases, norms and position embeddings have none."""
    clip_grad: float = 1.0
    """The largest norm of all gradients together; 0 for no limit."""
    label_smoothing: float | None = None
    """The part of each target that is spread over all classes; 0.1 of labels, none of masks and boxes, if not given."""
    class_weights: list[float] | str | None = None
    """classification: how much an image counts by its class, a number for each in their order, or balanced: each class
    as much as the others, however many images it has."""
    ema_decay: float = 0.0
    """Above 0: an exponential moving average of the weights is what is measured and kept."""
    seed: int = 0
    """Chooses initial weights, order and augmentation. On a CPU the same seed gives the same numbers on every run."""

    # -- stopping and saving ----------------------------------------------------------------------------------------
    patience: int = 0
    """Above 0: stop after this many epochs without a better result."""
    max_minutes: float = 0.0
    """Above 0: end after this time, measured and saved; the learning rate keeps the plan of all epochs."""
    budget_minutes: float = 0.0
    """Above 0: train for this time, or all epochs if those take less: the learning rate falls by the clock, and is at
    its lowest when the time is over. Such a run does not repeat to the bit."""
    keep: Literal["last", "best"] = "last"
    """Which epoch's weights become model.safetensors."""
    keep_checkpoints: int = 2
    """How many of the latest checkpoints are kept, beside that of the best epoch."""
    checkpoint_minutes: float = 10.0
    """A checkpoint after this time within an epoch, beside the one at its end; 0 for none."""
    checkpoint_steps: int = 0
    """Above 0: a checkpoint after this many steps as well."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """A loss or gradient that is no number: stop, or go back to the last checkpoint and leave that batch out."""
    max_rollbacks: int = 3
    """How many batches may be left out so, before the run stops."""

    # -- machine ----------------------------------------------------------------------------------------------------
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes cuda where there is one, else cpu."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """What the model computes in; weights stay fp32, and fp16 scales its loss. auto takes bf16 where the device has
    units for it, else fp32."""
    compile: bool = False
    """Compile the model's blocks with torch.compile: training steps only, after a wait for the first."""
    cuda_graph: bool = False
    """Record a whole training step as a CUDA graph and replay it, so that the GPU need not wait for its host. For one
    process and not for fp16; elsewhere than on a GPU it changes nothing."""
    channels_last: bool = False
    """Keep images and convolutions in channels-last memory."""
    distributed: Literal["auto", "ddp", "fsdp"] = "auto"
    """Under torchrun: copies of the model (ddp, which auto takes), or its weights divided over the processes (fsdp)."""
    threads: int | None = None
    """Threads of a CPU run. Another number may change the last bits of the result."""
    sinks: list[str] = dataclasses.field(default_factory=list)
    """Where figures go beside metrics.csv, metrics.jsonl and TensorBoard: names of entry points `srattn.sinks`."""
    out: str | None = None
    """The run folder, which must not exist. Default: runs/NAME-1, -2, and so on."""
    resume: str | None = None
    """A run folder to continue with its own options, to the same weights as if it had never stopped. Beside it
    --data may say where the data lies now, and --device, --threads and the like where to compute."""

    def __post_init__(self) -> None:
        _check_ranges(self)


@dataclasses.dataclass(frozen=True)
class ResolvedConfig(TrainConfig):
    """The same with nothing left to choose; what config.yaml holds."""

    size: int = 0
    eval_size: int = 0
    channels: Literal[1, 3] = 3
    augment: str = "none"
    label_smoothing: float = 0.1
    num_workers: int = 0
    task: str = "classification"
    model: str = ""
    drop_path_rate: float = 0.0
    epochs: int = 0
    lr: float = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: int = 1


OF_THE_MACHINE = ("device", "distributed", "threads", "num_workers", "cache_mb", "eval_batch_size")
"""Options that a resumed run may change: they say where it computes and not what."""
OF_THE_PLACE = ("data", "val", "classes")
"""Options that a resumed run may change to another place of the same: what lies there is compared."""


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
    """Tuples as lists, for YAML and JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values, from which `from_dict` makes the same configuration."""
    return _plain(dataclasses.asdict(config))


_AT_LEAST: dict[str, float] = {
    "size": 1, "eval_size": 1, "epochs": 1, "passes": 1, "batch_size": 1, "eval_batch_size": 1, "accumulate": 1,
    "threads": 1, "num_workers": 0, "cache_mb": 0, "min_lr": 0, "warmup_epochs": 0, "weight_decay": 0, "clip_grad": 0,
    "drop_rate": 0,
    "drop_path_rate": 0, "ema_decay": 0, "lora_rank": 0, "patience": 0, "max_minutes": 0, "budget_minutes": 0,
    "keep_checkpoints": 1,
    "checkpoint_minutes": 0, "checkpoint_steps": 0, "max_rollbacks": 0,
}  # fmt: skip
_BELOW: dict[str, float] = {"drop_rate": 1, "drop_path_rate": 1, "ema_decay": 1}
_ABOVE_ZERO = ("lr", "layer_decay")


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
    for name in _ABOVE_ZERO:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf") and not (resolved and value == 0):
            raise SrattnError(f"{name} must be above 0, got {value}")
    if config.layer_decay > 1:
        raise SrattnError(f"layer_decay must be at most 1, got {config.layer_decay}")
    if config.accumulate > config.batch_size:
        raise SrattnError(f"accumulate must be at most batch_size ({config.batch_size}), got {config.accumulate}")
    if config.optimiser != "adamw" and config.distributed == "fsdp":
        raise SrattnError(
            f"{config.optimiser} needs whole matrices, which fsdp divides: take optimiser adamw, or distributed ddp"
        )
    if config.class_weights is not None:
        _check_weights(config.class_weights)
    if not -(2**63) <= config.seed < 2**63:
        raise SrattnError(f"seed must fit in 64 bits, got {config.seed}")


def _check_weights(given: Sequence[float] | str) -> None:
    """Refuses what cannot be weights of classes."""
    if given == "balanced":
        return
    if isinstance(given, str) or not given or not all(math.isfinite(w) and w >= 0 for w in given) or not any(given):
        raise SrattnError(
            f"class_weights are balanced, or a number from 0 up for each class, such as '[1, 2.5]', got {given!r}"
        )
