"""From the name that a user gives to data that is read, checked and split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from srattn.data.augment import Augment
from srattn.data.digits import digits_preprocess, read_digits
from srattn.data.folder import list_folder, read_folder
from srattn.data.preprocess import Preprocess
from srattn.data.samples import ImageData
from srattn.errors import SrattnError, nearest

BUILT_IN = ("digits",)


def is_built_in(data: str) -> bool:
    """Whether `data` names a data set that comes with a package, and not a path ("./digits" is always a path).

    Raises:
        SrattnError: neither a known name nor an existing path.
    """
    if data in BUILT_IN:
        return True
    if not Path(data).exists():
        raise SrattnError(
            f"data {data!r} is neither {' nor '.join(BUILT_IN)} nor an existing folder{nearest(data, BUILT_IN)}"
        )
    return False


def default_preprocess(data: str, size: int, channels: int) -> Preprocess:
    """What images of `data` go through before a model, at `size` x `size` pixels.

    Raises:
        SrattnError: a built-in data set with another number of channels.
    """
    if data in BUILT_IN:
        if channels != 1:
            raise SrattnError(f"{data} are grey: leave channels at 1, got {channels}")
        return digits_preprocess(size)
    if channels == 1:
        return Preprocess(channels=1, size=(size, size), mean=(0.449,), std=(0.226,))
    return Preprocess(size=(size, size))


def load_data(
    data: str,
    augment: Augment,
    *,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    on_bad_image: Literal["skip", "error"] = "skip",
    hold_bytes: int = 1 << 30,
    workers: int = 0,
    notify: Callable[[int, int], None] | None = None,
) -> ImageData:
    """Reads "digits" or a folder (see `list_folder`, `read_folder`), prepared for `augment` and its preprocessing."""
    if is_built_in(data):
        return read_digits(augment.preprocess.size[0], val_fraction, split_seed)
    listing = list_folder(Path(data), val_fraction, split_seed)
    return read_folder(
        listing,
        augment.preprocess,
        augment.prepare,
        on_bad_image=on_bad_image,
        hold_bytes=hold_bytes,
        workers=workers,
        notify=notify,
    )
