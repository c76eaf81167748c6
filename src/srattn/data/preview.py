"""A few images of a large data set, without reading the rest."""

from __future__ import annotations

from srattn.data.augment import Augment
from srattn.data.columns import Columns
from srattn.data.index import read_samples
from srattn.data.keyed import permutation
from srattn.data.reader import is_built_in, load_data, open_data
from srattn.data.samples import ImageData
from srattn.errors import SrattnError


def read_some(data: str, augment: Augment, images: int, seed: int = 0, columns: Columns | None = None) -> ImageData:
    """About `images` training images, chosen by `seed`, as `augment` wants them; unreadable ones are left out.

    Raises:
        SrattnError: nothing there that can be read.
    """
    if is_built_in(data):
        return load_data(data, augment)
    index = open_data(data, columns=columns)
    items = index.parts.get("train") or next(iter(index.parts.values()), [])
    chosen = [items[number] for number in permutation(len(items), seed)[: 2 * images].tolist()]
    samples, skipped = read_samples(chosen, augment.preprocess.channels, augment.prepare, least=augment.least)
    if not len(samples):
        raise SrattnError(f"{data}: none of {len(chosen)} images can be read; the first: {skipped[0]}")
    return ImageData(index.classes, samples, samples, augment.preprocess, skipped)
