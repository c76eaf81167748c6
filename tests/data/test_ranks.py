"""Batches split over processes, files that go bad, and the loader's share of the time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from srattn.data.decode import BadImage
from srattn.data.digits import digits_preprocess, read_digits
from srattn.data.loader import Loader
from srattn.data.preprocess import Preprocess
from srattn.data.reader import load_data
from srattn.data.spec import parse_augment
from srattn.errors import SrattnError

RGB = Preprocess(size=(8, 8))


@pytest.fixture(scope="module")
def digits():
    return read_digits(8)


@pytest.mark.parametrize("spec", ["flip,erase", "shift=1,mixup,cutmix"])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_see_together_what_one_sees(digits, world: int, spec: str) -> None:
    augment = parse_augment(spec, digits_preprocess(8))
    whole = list(Loader(digits, augment, 120, seed=1).train(3))
    ranks = [Loader(digits, augment, 120, seed=1, rank=r, world=world) for r in range(world)]
    pieces = [list(loader.train(3)) for loader in ranks]
    assert {len(batches) for batches in pieces} == {len(whole)}
    for step, batch in enumerate(whole):
        for name in ("indices", "labels", "inputs"):
            together = torch.cat([getattr(batches[step], name) for batches in pieces])
            assert torch.equal(together, getattr(batch, name))
    assert sum(len(b.indices) for b in list(ranks[0].val())) == len(range(0, len(digits.val), world))
    held = torch.cat([batch.indices for loader in ranks for batch in loader.val()])
    assert torch.equal(held.sort().values, torch.arange(len(digits.val)))


def test_a_last_batch_smaller_than_the_processes(digits) -> None:
    augment = parse_augment("none", digits_preprocess(8))
    size = len(digits.train) - 1
    pieces = [list(Loader(digits, augment, size, 0, rank=r, world=3).train(0))[-1] for r in range(3)]
    assert sorted(len(piece.indices) for piece in pieces) == [0, 0, 1]
    assert all(piece.inputs.shape[1:] == (1, 8, 8) and piece.labels.dtype == torch.int64 for piece in pieces)
    with pytest.raises(SrattnError, match="rank 2 of world 2"):
        Loader(digits, augment, 8, 0, rank=2, world=2)
    with pytest.raises(SrattnError, match="below one image for each of the 3"):
        Loader(digits, augment, 2, 0, rank=0, world=3)


def test_validation_batches_and_waiting(digits) -> None:
    loader = Loader(digits, parse_augment("none", digits_preprocess(8)), 64, 0, rank=1, world=2, eval_batch_size=50)
    sizes = [len(batch.indices) for batch in loader.val()]
    assert sizes == [50, 50, 50, 29]
    waited = loader.seconds_waiting
    assert waited > 0
    next(iter(loader.train(0)))
    assert loader.seconds_waiting > waited


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_goes_bad_during_the_run(make_folder, workers: int) -> None:
    root: Path = make_folder({"cat": 10, "dog": 10})
    augment = parse_augment("crop,flip", RGB)
    data = load_data(str(root), augment, hold_bytes=0)
    loader = Loader(data, augment, 4, seed=0, workers=workers)
    before = list(loader.train(0))
    assert loader.lost == []
    bad = data.train.names.index("cat/1.png") if "cat/1.png" in data.train.names else 0
    (root / data.train.names[bad]).write_bytes(b"gone")
    (root / data.val.names[2]).unlink()
    after, again = list(loader.train(0)), list(loader.train(0))
    for one, other, third in zip(before, after, again, strict=True):
        changed = one.indices == bad
        assert torch.equal(other.indices, torch.where(changed, (bad + 1) % len(data.train), one.indices))
        assert torch.equal(other.labels, data.train.labels[other.indices])
        assert torch.equal(other.inputs, third.inputs)
        assert torch.equal(one.inputs[~changed], other.inputs[~changed])
    held = torch.cat([batch.indices for batch in loader.val()])
    assert held.tolist() == [index for index in range(len(data.val)) if index != 2]
    assert len(loader.lost) == 2 and data.train.names[bad] in loader.lost[0]
    strict = load_data(str(root), augment, hold_bytes=0)
    strict.train.on_bad_image = "error"
    (root / strict.train.names[3]).write_bytes(b"gone")
    with pytest.raises(BadImage, match=strict.train.names[3]):
        list(Loader(strict, augment, 4, seed=0, workers=workers).train(0))


def test_held_and_decoded_again_give_the_same_batches(make_folder) -> None:
    root = str(make_folder({"cat": 6, "dog": 6}))
    for spec in ("crop,flip,rand=1x9", "shift=2,flip"):
        augment = parse_augment(spec, Preprocess(size=(16, 16)))
        held, again = (load_data(root, augment, hold_bytes=size) for size in (1 << 20, 0))
        assert isinstance(held.train.sources, torch.Tensor) and not isinstance(again.train.sources, torch.Tensor)
        for one, other in zip(*(Loader(data, augment, 5, 0).train(0) for data in (held, again)), strict=True):
            assert torch.equal(one.inputs, other.inputs)


def test_large_photos_are_decoded_smaller_where_that_is_enough(tmp_path: Path) -> None:
    from PIL import Image

    from srattn.data.decode import decode

    path = tmp_path / "large.jpg"
    Image.linear_gradient("L").resize((640, 480)).save(path, quality=95)
    assert decode(path, 1, least=100).size == (160, 120)
    assert decode(path, 1, least=241).size == decode(path, 1).size == (640, 480)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(BadImage, match="truncated"):
        decode(path, 1, least=100)
