"""The images of a configuration, read and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, cast

from srattn.data.augment import Augment
from srattn.data.columns import Columns
from srattn.data.dense import JointAugment, SceneLoader, parse_joint
from srattn.data.dense.boxes import open_boxes
from srattn.data.dense.depths import open_depths
from srattn.data.dense.masks import open_masks
from srattn.data.dense.people import open_people
from srattn.data.dense.person import PersonAugment
from srattn.data.dense.read import Found, load_scenes
from srattn.data.index import part_called
from srattn.data.loader import Loader
from srattn.data.preprocess import Preprocess
from srattn.data.reader import default_preprocess, is_built_in, load_data
from srattn.data.samples import ImageData
from srattn.data.spec import parse_augment
from srattn.engine.config import ResolvedConfig
from srattn.engine.distributed import World
from srattn.engine.progress import Progress
from srattn.errors import SrattnError
from srattn.tasks.depth import MAX_DEPTH
from srattn.tasks.models import MASK_HEADS, targets_of


@dataclasses.dataclass(frozen=True)
class _Preparation:
    """What reading needs of an `Augment`: training pictures for one size, validation pictures of another."""

    preprocess: Preprocess
    prepare: Callable[..., Any]
    least: int | None


def make_augment(config: ResolvedConfig) -> Augment | JointAugment:
    """The variation of training images that a configuration asks for.

    Raises:
        SrattnError: see `srattn.data.spec.parse_augment` and `srattn.data.dense.parse_joint`.
    """
    targets = targets_of(config.task)
    if targets == "labels":
        return parse_augment(config.augment, default_preprocess(config.data, config.size, config.channels))
    kind = PersonAugment if targets == "joints" else JointAugment
    return parse_joint(config.augment, _of_scenes(config, config.size), kind)


def make_loader(config: ResolvedConfig, augment: Augment | JointAugment, data: ImageData, world: World) -> Loader:
    """Batches of `data` for this process."""
    kind: Any = SceneLoader if isinstance(augment, JointAugment) else Loader
    return kind(
        data,
        augment,
        config.batch_size,
        config.seed,
        config.num_workers,
        rank=world.rank,
        world=world.size,
        eval_batch_size=config.eval_batch_size,
        passes=config.passes,
        pin=world.device.type == "cuda",
    )


def read_data(config: ResolvedConfig, augment: Augment | JointAugment, progress: Progress) -> ImageData:
    """What a run learns from and is measured by, read and checked.

    Raises:
        SrattnError: nothing there, or nothing that can be used.
    """
    if not isinstance(augment, JointAugment):
        return read_images(config, augment, progress)
    found = find_scenes(config, augment)
    _check_choice(config, [part for part, items in found.parts.items() if items])
    return load_scenes(
        found,
        augment,
        _of_scenes(config, config.eval_size),
        val=config.val,
        val_fraction=config.val_fraction,
        split_seed=config.split_seed,
        on_bad_image=config.on_bad_image,
        hold_bytes=config.cache_mb << 20,
        workers=config.num_workers,
        notify=progress.checking,
    )


def _check_choice(config: ResolvedConfig, parts: Collection[str]) -> None:
    """Refuses weights that would be chosen by test images."""
    part = next((name for name in ("val", "test") if name in parts), None)
    if config.val is not None:
        part = part_called(config.val)
    for option, chooses in (("--keep best", config.keep == "best"), ("--patience", config.patience > 0)):
        if chooses and part == "test":
            raise SrattnError(
                f"{option} would choose weights by the test images of {config.data}, whose figures would then say too "
                f"much: hold out a part of the training images with --val split, or leave {option} out"
            )


def find_scenes(config: ResolvedConfig, augment: JointAugment) -> Found:
    """The images and their targets, by what the task learns from."""
    targets, workers = targets_of(config.task), config.num_workers
    if targets == "masks":
        return open_masks(config.data, config.classes, config.void, workers=workers).found()
    if targets == "depths":
        most = float(config.head_options.get("max_depth", MAX_DEPTH))
        assert config.depth_scale is not None
        return open_depths(config.data, config.depth_scale, most, workers=workers).found()
    if targets == "joints":
        return open_people(config.data, mirrored=bool(augment.flip or augment.flipv))[0]
    return open_boxes(config.data, config.classes, masks=config.head in MASK_HEADS)[0]


def _of_scenes(config: ResolvedConfig, size: int) -> Preprocess:
    """Masks and depths: the shorter side becomes `size`; boxes, and windows of people: all within size x size."""
    plain = default_preprocess(config.data, size, config.channels)
    return dataclasses.replace(plain, fit="shorter" if targets_of(config.task) in ("masks", "depths") else "inside")


def read_images(config: ResolvedConfig, augment: Augment, progress: Progress) -> ImageData:
    """Training images as `augment` wants them, validation images at `config.eval_size`.

    Raises:
        SrattnError: nothing there, or nothing that can be used.
    """

    def load(preparation: Augment | _Preparation) -> ImageData:
        return load_data(
            config.data,
            cast(Augment, preparation),
            val=config.val,
            val_fraction=config.val_fraction,
            split_seed=config.split_seed,
            on_bad_image=config.on_bad_image,
            on_empty_class=config.on_empty_class,
            hold_bytes=config.cache_mb << 20,
            workers=config.num_workers,
            notify=progress.checking,
            check_parts=lambda parts: _check_choice(config, parts),
            columns=Columns(config.image_column, config.label_column, config.split_column),
        )

    if config.eval_size == config.size:
        return load(augment)
    measured = dataclasses.replace(augment.preprocess, size=(config.eval_size, config.eval_size))
    data = load(_Preparation(measured, augment.prepare, augment.least))
    if is_built_in(config.data):  # all its pictures are made at one size
        data = dataclasses.replace(data, train=load(augment).train)
    return data
