"""scikit-learn's digits."""

from __future__ import annotations

import torch

from srattn.data.digits import digits_preprocess, read_digits
from srattn.data.preprocess import to_image


def test_all_digits_once_stratified_and_fixed() -> None:
    data = read_digits(16)
    assert len(data.train) + len(data.val) == 1797
    assert not set(data.train.names) & set(data.val.names)
    for label in range(10):
        inside, held = (int((part.labels == label).sum()) for part in (data.train, data.val))
        assert abs(held / (inside + held) - 0.2) < 0.005
    assert data.fingerprint() == read_digits(16).fingerprint()
    assert data.fingerprint() != read_digits(16, split_seed=1).fingerprint()


def test_pixels_are_the_scans_enlarged() -> None:
    data = read_digits(16)
    pixels = torch.stack([data.val.pixels(index) for index in range(len(data.val))])
    assert pixels.shape[1:] == (1, 16, 16) and pixels.dtype == torch.uint8
    assert pixels.max() == 255 and pixels.min() == 0
    at_source = read_digits(8).val.pixels(0)
    expected = torch.nn.functional.interpolate(at_source[None].float(), (16, 16), mode="bilinear")
    assert (pixels[0].float() - expected[0]).abs().max() <= 1


def test_dark_ink_on_paper_is_inverted_and_the_scans_are_not() -> None:
    preprocess = digits_preprocess(8)
    digit = read_digits(8).train.pixels(3)
    assert torch.equal(preprocess.pixels(to_image(digit)), digit)
    assert torch.equal(preprocess.pixels(to_image(255 - digit)), digit)
