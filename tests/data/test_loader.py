"""Augmentation and batches: the same for the same keys, whatever went before."""

from __future__ import annotations

import threading

import pytest
import torch

from srattn.data.ahead import ahead
from srattn.data.augment import DRAWS, Augment
from srattn.data.digits import digits_preprocess, read_digits
from srattn.data.loader import Loader
from srattn.data.preprocess import Preprocess
from srattn.data.reader import load_data
from srattn.errors import SrattnError

RGB = Preprocess(size=(8, 8))


@pytest.fixture(scope="module")
def digits():
    return read_digits(8)


@pytest.mark.parametrize("kind", ["none", "affine", "crop"])
@pytest.mark.parametrize("workers", [0, 3])
def test_any_step_can_be_the_first(make_folder, kind: str, workers: int) -> None:
    augment = Augment(kind, RGB, flip=0.5)
    data = load_data(str(make_folder({"cat": 8, "dog": 9})), augment)
    whole = list(Loader(data, augment, 4, seed=3).train(epoch=5))
    later = list(Loader(data, augment, 4, seed=3, workers=workers).train(epoch=5, first_step=2))
    assert len(whole) == 4 and len(later) == 2
    for one, other in zip(whole[2:], later, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)


def test_an_epoch_holds_every_image_once_in_an_order_of_its_own(digits) -> None:
    loader = Loader(digits, Augment("none", digits_preprocess(8)), 100, seed=0)
    epochs = [torch.cat([batch.indices for batch in loader.train(epoch)]) for epoch in (0, 1)]
    assert len(epochs[0]) == len(digits.train) and loader.steps_per_epoch == 15
    assert torch.equal(epochs[0].sort().values, torch.arange(len(digits.train)))
    assert not torch.equal(*epochs)
    labels = torch.cat([batch.labels for batch in loader.train(0)])
    assert torch.equal(labels, digits.train.labels[epochs[0]])


@pytest.mark.parametrize("first", [0, 5, 14, 31])
def test_an_epoch_of_several_passes(digits, first: int) -> None:
    augment = Augment("affine", digits_preprocess(8))
    whole = list(Loader(digits, augment, 100, seed=0, passes=2).train(3))
    single = Loader(digits, augment, 100, seed=0)
    assert len(whole) == 2 * single.steps_per_epoch == Loader(digits, augment, 100, seed=0, passes=2).steps_per_epoch
    for batch, other in zip(whole, [*single.train(6), *single.train(7)], strict=True):
        assert torch.equal(batch.inputs, other.inputs) and torch.equal(batch.indices, other.indices)
    loader = Loader(digits, augment, 100, seed=0, passes=2)
    for batch, other in zip(whole[first:], loader.train(3, first), strict=True):
        assert torch.equal(batch.inputs, other.inputs)
    assert [loader.images_of_step(step) for step in range(len(whole))] == [len(batch.indices) for batch in whole]


def test_validation_is_in_order_and_unchanged(digits) -> None:
    loader = Loader(digits, Augment("affine", digits_preprocess(8)), 100, seed=0)
    batches = list(loader.val())
    assert torch.equal(torch.cat([batch.indices for batch in batches]), torch.arange(len(digits.val)))
    expected = (loader.val_pixels(batches[1].indices) - 0.3) / 0.3
    assert torch.allclose(batches[1].inputs, expected)


def test_affine_without_any_range_changes_nothing(digits) -> None:
    augment = Augment("affine", digits_preprocess(8), rotate=0, shift=0, zoom=0)
    images = torch.rand(3, 1, 8, 8)
    assert torch.allclose(augment.batch(images, torch.rand(3, DRAWS)), images, atol=1e-5)


def test_affine_moves_by_no_more_than_it_says() -> None:
    images = torch.zeros(64, 1, 33, 33)
    images[:, :, 16, 16] = 1
    draws = torch.rand(64, DRAWS, dtype=torch.float64)
    moved = Augment("affine", Preprocess(1, (33, 33), (0.0,), (1.0,)), rotate=0, shift=0.1, zoom=0).batch(images, draws)
    rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    mass = moved.sum((1, 2, 3))
    y, x = ((moved[:, 0] * grid).sum((1, 2)) / mass - 16 for grid in (rows, columns))
    assert max(x.abs().max(), y.abs().max()) <= 3.3 + 1e-3
    assert x.abs().max() > 2 and y.abs().max() > 2


def test_flip_mirrors_as_often_as_it_says() -> None:
    images = torch.rand(1000, 1, 2, 4)
    flipped = Augment("affine", RGB, rotate=0, shift=0, zoom=0, flip=0.25).batch(images, torch.rand(1000, DRAWS))
    mirrored = (flipped - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-4
    kept = (flipped - images).abs().amax((1, 2, 3)) < 1e-4
    assert (mirrored | kept).all()
    assert 180 < mirrored.sum() < 320


def test_crop_stays_inside_and_has_the_final_size() -> None:
    augment = Augment("crop", Preprocess(size=(6, 10)), crop_area=0.1)
    ramp = torch.arange(30, dtype=torch.uint8).repeat(3, 20, 1) * 8
    for draws in torch.rand(50, DRAWS):
        crop = augment.item(ramp, draws)
        assert crop.shape == (3, 6, 10)
        assert (crop[0, 0].diff() >= 0).all()  # not mirrored, not padded
    assert augment.item(torch.zeros(3, 1, 50, dtype=torch.uint8), torch.ones(DRAWS) * 0.99).shape == (3, 6, 10)


def test_options_out_of_range() -> None:
    with pytest.raises(SrattnError, match="augment must be one of none, affine, crop"):
        Augment("melt", RGB)
    with pytest.raises(SrattnError, match="zoom"):
        Augment("affine", RGB, zoom=1.0)
    with pytest.raises(SrattnError, match="crop_area"):
        Augment("crop", RGB, crop_area=0.0)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_ahead_keeps_order_and_stops_early(workers: int) -> None:
    assert list(ahead(lambda n: n * n, range(20), workers)) == [n * n for n in range(20)]
    seen = []
    for value in ahead(lambda n: seen.append(n) or n, range(1000), workers):
        if value == 3:
            break
    assert len(seen) < 20

    def third_fails(n: int) -> int:
        if n == 3:
            raise SrattnError("third")
        return n

    results = ahead(third_fails, range(10), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SrattnError, match="third"):
        next(results)


def test_batches_for_a_gpu_are_laid_into_page_locked_memory(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    augment = Augment("none", digits_preprocess(8))
    for pin in (False, True):
        batch = next(Loader(digits, augment, 8, 0, pin=pin).train(0))
        assert [id(t) for t in pinned] == ([id(batch.inputs), id(batch.labels)] if pin else [])


def test_what_is_left_lying_about_is_closed_without_waiting() -> None:
    """By whoever tidies memory, who may hold what a worker waits for."""
    lock, begun = threading.Lock(), threading.Event()

    def slow(number: int) -> int:
        if number:
            begun.set()
            with lock:
                return number
        return number

    with lock:
        found = ahead(slow, range(9), 2)
        assert next(found) == 0 and begun.wait(10)
        closing = threading.Thread(target=found.close, daemon=True)  # type: ignore[attr-defined]
        closing.start()
        closing.join(10)
        assert not closing.is_alive()
