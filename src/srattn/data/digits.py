"""The digits of scikit-learn: 1,797 real handwritten digits of 8x8 pixels, part of that package, nothing to download.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import torch

from srattn.data.preprocess import Preprocess, to_image
from srattn.data.samples import ImageData, Samples, labels_tensor
from srattn.data.split import stratified_split
from srattn.errors import missing_extra

MEAN, STD = (0.3,), (0.3,)


def digits_preprocess(size: int) -> Preprocess:
    """Grey, light ink on dark: a photo or scan of dark ink on paper is inverted."""
    return Preprocess(channels=1, size=(size, size), mean=MEAN, std=STD, fit="squash", crop_fraction=1.0, invert="auto")


def read_digits(size: int, val_fraction: float = 0.2, split_seed: int = 0) -> ImageData:
    """All digits at `size` x `size` pixels, bilinear from 8x8, split by `split_seed` alone.

    Raises:
        SrattnError: scikit-learn is missing, or `val_fraction` is out of range.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing_extra("scikit-learn", "train") from None
    rows, targets = load_digits(return_X_y=True)
    levels = torch.tensor(rows).view(-1, 8, 8)  # (1797, 8, 8), 0 to 16
    labels = [int(target) for target in targets]
    preprocess = digits_preprocess(size)
    eight_bits = (levels * (255 / 16)).round().to(torch.uint8).unsqueeze(1)  # (1797, 1, 8, 8)
    pixels = [preprocess.pixels(to_image(picture)) for picture in eight_bits]
    classes = [str(digit) for digit in range(10)]

    def part(indices: list[int]) -> Samples:
        return Samples(
            names=[f"digits/{index}" for index in indices],
            labels=labels_tensor([labels[index] for index in indices]),
            sources=[pixels[index] for index in indices],
            channels=1,
        )

    train, val = stratified_split(labels, val_fraction, split_seed, classes)
    return ImageData(classes, part(train), part(val), preprocess, skipped=[])
