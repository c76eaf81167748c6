"""The images of a configuration, read and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

from srattn.data.augment import Augment
from srattn.data.preprocess import Preprocess
from srattn.data.reader import is_built_in, load_data
from srattn.data.samples import ImageData
from srattn.engine.config import ResolvedConfig
from srattn.engine.progress import Progress


@dataclasses.dataclass(frozen=True)
class _Preparation:
    """What reading needs of an `Augment`: training pictures for one size, validation pictures of another."""

    preprocess: Preprocess
    prepare: Callable[..., Any]
    least: int | None


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
        )

    if config.eval_size == config.size:
        return load(augment)
    measured = dataclasses.replace(augment.preprocess, size=(config.eval_size, config.eval_size))
    data = load(_Preparation(measured, augment.prepare, augment.least))
    if is_built_in(config.data):  # all its pictures are made at one size
        data = dataclasses.replace(data, train=load(augment).train)
    return data
