"""Scenes: read once, varied by their keys alone, measured as they are; files that go bad; real data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from srattn.data.decode import BadImage
from srattn.data.dense import JointAugment, SceneData, SceneLoader, Scenes, parse_joint
from srattn.data.dense.boxes import box_classes, is_coco, is_voc, open_boxes
from srattn.data.dense.joint import DRAWS, TOKENS
from srattn.data.dense.loader import alike
from srattn.data.dense.masks import open_masks
from srattn.data.dense.pairs import has_pairs
from srattn.data.dense.read import divide_scenes, load_scenes
from srattn.data.dense.target import VOID, Target
from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError

Maker = Callable[..., Path]
SHORTER, INSIDE = Preprocess(size=(12, 12), fit="shorter"), Preprocess(size=(16, 16), fit="inside")
SPEC = "scale=0.5-2,flip,flipv,rotate=20,jitter"


def masks_of(root: Path, spec: str = SPEC, preprocess: Preprocess = SHORTER, **options: object) -> SceneData:
    return load_scenes(open_masks(str(root)).found(), parse_joint(spec, preprocess), preprocess, **options)  # type: ignore[arg-type]


def boxes_of(root: Path, spec: str = SPEC, preprocess: Preprocess = INSIDE, **options: object) -> SceneData:
    return load_scenes(open_boxes(str(root))[0], parse_joint(spec, preprocess), preprocess, **options)  # type: ignore[arg-type]


def loader(data: SceneData, spec: str = SPEC, batch_size: int = 3, **options: int) -> SceneLoader:
    return SceneLoader(data, parse_joint(spec, data.preprocess), batch_size, 5, **options)  # type: ignore[arg-type]


def by_index(loaders: list[SceneLoader], epoch: int = 1) -> dict[int, tuple[Tensor, Tensor]]:
    """What each image becomes: inputs and labels without rows that fill up."""
    found = {}
    for one in loaders:
        for batch in one.train(epoch):
            for index, image, label in zip(batch.indices.tolist(), batch.inputs, batch.labels, strict=True):
                assert index not in found
                found[index] = image, label if label.dtype == torch.int64 else label[label[:, 4] >= 0]
    return found


# -- the matrix -------------------------------------------------------------------------------------------------------


def test_without_change_the_window_is_the_middle() -> None:
    augment = parse_joint("none", Preprocess(size=(8, 8), fit="shorter"))
    image = torch.randint(0, 256, (3, 8, 14), dtype=torch.uint8)
    mask = torch.randint(0, 5, (8, 14), dtype=torch.uint8)
    for draws in torch.rand(3, DRAWS, dtype=torch.float64):
        window, target = augment.scene(image, Target(mask=mask), draws)
        assert target.mask is not None and torch.equal(target.mask, mask[:, 3:11])
        assert torch.equal((255 * window).round().byte(), image[:, :, 3:11])


def test_letterbox_forth_and_back() -> None:
    """Within the window in its middle, the rest filled with the mean; the inverse brings boxes back."""
    preprocess = Preprocess(size=(20, 20), fit="inside", mean=(0.2, 0.4, 0.6))
    image = torch.full((3, 10, 40), 255, dtype=torch.uint8)
    box = torch.tensor([[4.0, 2, 20, 8, 1]])
    augment = parse_joint("none", preprocess)
    window, target = augment.scene(image, Target(boxes=box), torch.zeros(DRAWS, dtype=torch.float64))
    inside = torch.zeros(20, 20, dtype=torch.bool)
    inside[7:13] = True  # 5 rows around the middle, 7.5 to 12.5: whole pixels within, halves at the border
    assert (window[:, 8:12] > 0.999).all()
    assert torch.allclose(window[:, ~inside], torch.tensor(preprocess.mean)[:, None], atol=1e-6)
    assert target.boxes is not None and target.boxes.tolist() == [[2, 8.5, 10, 11.5, 1]]
    matrix = augment.matrix((10, 40), [0.0] * DRAWS)
    square = torch.cat([matrix, torch.tensor([[0.0, 0, 1]], dtype=torch.float64)])
    back = target.moved(torch.linalg.inv(square)[:2], (10, 40))
    assert back.boxes is not None and torch.allclose(back.boxes, box, atol=1e-5)


@pytest.mark.parametrize("fit", ["shorter", "inside"])
@pytest.mark.parametrize("size", [(30, 17), (9, 40), (20, 20)])
def test_windows_lie_within_the_image_or_hold_all_of_it(fit: str, size: tuple[int, int]) -> None:
    augment = parse_joint("scale=0.5-2,flip,flipv", Preprocess(size=(16, 24), fit=fit))
    factors = []
    for draws in torch.rand(200, DRAWS, dtype=torch.float64).tolist():
        matrix = augment.matrix(size, draws)
        factor = float(torch.linalg.det(matrix[:, :2]).abs().sqrt())
        factors.append(factor / augment.preprocess.factor(*size))
        corners = torch.tensor([[0.0, 0, 1], [size[1], size[0], 1]], dtype=torch.float64) @ matrix.T
        low, high = corners.amin(0), corners.amax(0)
        for start, end, window in zip(low.tolist(), high.tolist(), (24, 16), strict=True):
            if end - start > window:
                assert start <= 1e-9 and end >= window - 1e-9
            else:
                assert start >= -1e-9 and end <= window + 1e-9
    assert 0.5 <= min(factors) < 0.55 and 1.8 < max(factors) <= 2
    assert 0.4 < sum(factor < 1 for factor in factors) / 200 < 0.6  # as often smaller as larger


def test_flips_come_as_often_as_they_say() -> None:
    augment = parse_joint("flip=0.25,flipv=0.75", Preprocess(size=(8, 8), fit="shorter"))
    matrices = torch.stack([augment.matrix((8, 8), draws) for draws in torch.rand(400, DRAWS).tolist()])
    assert 60 < (matrices[:, 0, 0] < 0).sum() < 140 and 260 < (matrices[:, 1, 1] < 0).sum() < 340


def test_a_mirror_image_has_the_mask_and_the_boxes_mirrored() -> None:
    augment = JointAugment(Preprocess(size=(6, 9), fit="shorter"), flip=1, flipv=1)
    image = torch.randint(0, 256, (3, 6, 9), dtype=torch.uint8)
    mask = torch.randint(0, 5, (6, 9), dtype=torch.uint8)
    box = torch.tensor([[1.0, 2, 4, 6, 3]])
    window, target = augment.scene(image, Target(mask, box), torch.full((DRAWS,), 0.5, dtype=torch.float64))
    assert target.mask is not None and torch.equal(target.mask, mask.flip(0, 1))
    assert target.boxes is not None and target.boxes.tolist() == [[5, 0, 8, 4, 3]]
    assert torch.equal((255 * window).round().byte(), image.flip(1, 2))


def test_jitter_leaves_the_target_alone() -> None:
    plain, lively = (JointAugment(SHORTER, flip=0.5, jitter=most) for most in (0.0, 0.5))
    image, target = torch.randint(50, 200, (3, 20, 30), dtype=torch.uint8), Target(mask=torch.ones(20, 30).byte())
    draws = torch.rand(DRAWS, dtype=torch.float64)
    one, other = plain.scene(image, target, draws), lively.scene(image, target, draws)
    assert not torch.allclose(one[0], other[0], atol=0.01)
    assert one[1].mask is not None and other[1].mask is not None and torch.equal(one[1].mask, other[1].mask)


def test_short_strings_and_what_is_wrong_with_them() -> None:
    assert parse_joint("", SHORTER) == parse_joint("none", SHORTER) == JointAugment(SHORTER)
    assert parse_joint("scale, flip,flipv,rotate,jitter", SHORTER) == JointAugment(
        SHORTER, (0.5, 2.0), 0.5, 0.5, 10.0, 0.4
    )
    assert parse_joint("scale=0.75,flip=1", SHORTER) == JointAugment(SHORTER, (0.75, 0.75), 1.0)
    assert not JointAugment(SHORTER).mixes and set(TOKENS) >= {"none", "scale", "flip", "rotate"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("crop", "unknown 'crop' .*; known are none, scale"),
        ("flp", "did you mean 'flip'"),
        ("flip,flip", "flip stands twice in 'flip,flip'; leave one"),
        ("none,flip", "none stands alone"),
        ("none=1", "none takes no value"),
        ("flip=2", "flip must be from 0 to 1, got 2"),
        ("rotate=-1", "rotate must be from 0 to 180"),
        ("jitter=x", "jitter takes a number, got 'x'"),
        ("jitter=nan", "jitter takes a number"),
        ("scale=2-0.5", "two rising numbers from 0.05 to 20, got 2-0.5"),
        ("scale=0-1", "two rising numbers"),
        ("scale=-1", "scale takes a number, got ''"),
        ("scale=1-", None),
    ],
)
def test_strings_that_are_refused(spec: str, message: str | None) -> None:
    if message is None:
        assert parse_joint(spec, SHORTER).scale == (1.0, 1.0)
        return
    with pytest.raises(SrattnError, match=message):
        parse_joint(spec, SHORTER)


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_a_draw_depends_on_seed_epoch_and_index_alone(save_pairs: Maker, save_voc: Maker, kind: str) -> None:
    if kind == "masks":
        data = masks_of(save_pairs({"train": 7, "val": 2}))
    else:
        data = boxes_of(save_voc({"train": 7, "val": 2}))
    whole = by_index([loader(data, batch_size=7)])
    assert sorted(whole) == list(range(7))
    others = {
        "batches": [loader(data, batch_size=2)],
        "threads": [loader(data, batch_size=3, workers=3)],
        "processes": [loader(data, batch_size=4, rank=rank, world=3) for rank in range(3)],
    }
    for loaders in others.values():
        again = by_index(loaders)
        assert sorted(again) == list(range(7))
        for index, (image, label) in whole.items():
            assert torch.equal(image, again[index][0]) and torch.equal(label, again[index][1])
    later = by_index([loader(data, batch_size=7)], epoch=2)
    assert all(not torch.equal(whole[index][0], later[index][0]) for index in whole)


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_processes_see_together_what_one_sees(save_pairs: Maker, save_voc: Maker, kind: str) -> None:
    make = (lambda: masks_of(save_pairs({"train": 7, "val": 5}))) if kind == "masks" else None
    data = make() if make else boxes_of(save_voc({"train": 7, "val": 5}))
    whole = list(loader(data, batch_size=6).train(0))
    pieces = [list(loader(data, batch_size=6, rank=rank, world=2).train(0)) for rank in range(2)]
    for step, batch in enumerate(whole):
        for name in ("indices", "inputs"):
            together = torch.cat([getattr(batches[step], name) for batches in pieces])
            assert torch.equal(together, getattr(batch, name))
    last = [batches[-1] for batches in pieces]  # one image for two processes
    assert sorted(len(batch.indices) for batch in last) == [0, 1]
    empty = next(batch for batch in last if not len(batch.indices))
    other = next(batch for batch in last if len(batch.indices))
    assert empty.labels.dtype == other.labels.dtype and empty.inputs.shape[1:] == other.inputs.shape[1:]
    if kind == "masks":
        assert empty.labels.shape[1:] == other.labels.shape[1:] == SHORTER.size
    held = torch.cat([b.indices for rank in range(2) for b in loader(data, rank=rank, world=2, batch_size=4).val()])
    assert held.sort().values.tolist() == list(range(5))
    assert [batch.indices.tolist() for batch in loader(data, batch_size=6, workers=2).train(0, first_step=1)] == [
        whole[1].indices.tolist()
    ]


# -- measured ---------------------------------------------------------------------------------------------------------


def test_validation_masks_keep_their_own_pixels(save_pairs: Maker) -> None:
    root = save_pairs({"train": 2, "val": 3})
    data = masks_of(root)
    batches = list(loader(data, batch_size=2).val())
    assert [batch.indices.tolist() for batch in batches] == [[0, 1], [2]]
    assert batches[0].inputs.shape == (2, 3, 12, 15) and batches[0].labels.shape == (2, 14, 18)
    for number in range(3):
        scene = loader(data).val_scene(number)
        assert scene is not None and scene[1].mask is not None
        expected = torch.from_numpy(np.array(Image.open(root / "masks" / "val" / f"{number}.png")))
        assert torch.equal(scene[1].mask, expected) and scene[0].shape == (3, 12, 15)


def test_validation_boxes_move_with_the_picture_and_none_is_lost(save_voc: Maker) -> None:
    root = save_voc({"train": 2, "val": 1}, size=(20, 40))
    text = (root / "Annotations" / "val0.xml").read_text()
    tiny = "<object><name>dog</name><bndbox><xmin>7</xmin><ymin>7</ymin><xmax>8</xmax><ymax>8</ymax></bndbox></object>"
    (root / "Annotations" / "val0.xml").write_text(text.replace("</annotation>", tiny + "</annotation>"))
    _, index = open_boxes(str(root))
    data = boxes_of(root)  # 20 x 40 to 8 x 16, from row 4 on
    (batch,) = list(loader(data).val())
    assert batch.inputs.shape == (1, 3, 16, 16) and batch.labels.shape == (1, 2, 5)
    expected = index.parts["val"][0].boxes * 0.4 + torch.tensor([0, 4, 0, 4])
    assert torch.allclose(batch.labels[0, :, :4], expected, atol=1e-5)
    assert expected[1, 2] - expected[1, 0] < 1  # which training would leave out


def test_neighbours_of_one_size_come_together() -> None:
    samples = Scenes.of([], 3, lambda image, target: (torch.zeros(0), target), "skip")
    samples.shapes = {0: (4, 4), 1: (4, 4), 2: (4, 5), 3: (4, 4), 4: (4, 4), 5: (4, 4)}
    assert alike(range(6), samples, 2) == [[0, 1], [2], [3, 4], [5]]
    assert alike([0, 3, 4], samples, 8) == [[0, 3, 4]] and alike([], samples, 3) == []
    del samples.shapes[3]  # not read: alone
    assert alike([0, 3, 4], samples, 8) == [[0], [3], [4]]


def test_grey_images(save_pairs: Maker) -> None:
    grey = Preprocess(1, (12, 12), (0.4,), (0.2,), fit="shorter")
    data = masks_of(save_pairs({"train": 3, "val": 1}), preprocess=grey)
    (batch,) = list(loader(data).train(0))
    assert batch.inputs.shape == (3, 1, 12, 12) and batch.labels.shape == (3, 12, 12)
    outside = batch.inputs[:, 0][batch.labels == VOID]
    assert len(outside) and batch.inputs.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1)])
def test_one_pixel_images(save_pairs: Maker, size: tuple[int, int]) -> None:
    root = save_pairs({"train": 2, "val": 1}, size=size, classes=2)
    Image.new("L", size[::-1], 1).save(root / "masks" / "train" / "0.png")
    data = masks_of(root)
    (batch,) = list(loader(data).train(0))
    assert batch.inputs.isfinite().all() and (batch.labels != VOID).any()
    (held,) = list(loader(data).val())
    assert held.labels.shape == (1, *size) and min(held.inputs.shape[2:]) == 12


def test_a_line_of_pixels_is_refused_by_name(save_pairs: Maker) -> None:
    root = save_pairs({"train": 2, "val": 2})
    for folder in ("images", "masks"):
        Image.new("L", (9000, 1)).save(root / folder / "val" / "0.png")
    wide = Preprocess(size=(512, 512), fit="shorter")
    data = masks_of(root, preprocess=wide)
    (line,) = data.skipped
    assert line.startswith(str(root / "images" / "val" / "0.png")) and "9000x1 would become 288000x32" in line


# -- read -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_held_or_decoded_again_are_the_same(save_pairs: Maker, save_voc: Maker, kind: str) -> None:
    root = save_pairs({"train": 4, "val": 3}, size=(40, 50)) if kind == "masks" else save_voc({"train": 4, "val": 3})
    read = masks_of if kind == "masks" else boxes_of
    every, some, none = (read(root, hold_bytes=size) for size in (1 << 20, 9000, 0))
    kept = [len(cast(Scenes, data.train).kept) + len(cast(Scenes, data.val).kept) for data in (every, some, none)]
    assert kept[0] == 7 and 0 < kept[1] < 7 and kept[2] == 0
    for other in (some, none):
        assert other.fingerprint() == every.fingerprint()
        for name in ("train", "val"):
            ones = loader(every).train(0) if name == "train" else loader(every).val()
            others = loader(other).train(0) if name == "train" else loader(other).val()
            for one, two in zip(ones, others, strict=True):
                assert torch.equal(one.inputs, two.inputs) and torch.equal(one.labels, two.labels)


def test_large_training_images_are_kept_no_larger_than_they_are_shown(save_pairs: Maker) -> None:
    root = save_pairs({"train": 2, "val": 1}, size=(120, 150))
    pixels, target = cast(Scenes, masks_of(root, "scale=0.5-1").train).scene(0)
    assert pixels.shape == (3, 12, 15) and target.mask is not None and target.mask.shape == (12, 15)
    pixels, _ = cast(Scenes, masks_of(root, "scale=0.5-9").train).scene(0)
    assert pixels.shape == (3, 120, 150)  # nine tenths are not worth it


def test_the_fingerprint_is_of_masks_and_boxes_too(save_pairs: Maker, save_voc: Maker) -> None:
    root = save_pairs({"train": 3, "val": 1})
    before = masks_of(root).fingerprint()
    assert masks_of(root, "none", hold_bytes=0).fingerprint() == before
    mask = np.array(Image.open(root / "masks" / "train" / "1.png"))
    Image.fromarray(mask[:, ::-1]).save(root / "masks" / "train" / "1.png")  # as many pixels of each class
    assert masks_of(root).fingerprint() != before
    root = save_voc({"train": 3, "val": 1})
    before = boxes_of(root).fingerprint()
    assert boxes_of(root, "none").fingerprint() == before
    path = root / "Annotations" / "train1.xml"
    for old, new in (("dog", "cat"), ("<xmin>", "<xmin>0")):
        text = path.read_text()
        path.write_text(text.replace(old, new))
        assert (boxes_of(root).fingerprint() != before) == (old == "dog")
        path.write_text(text)


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_what_is_in_the_files_is_the_same_wherever_they_lie(
    save_pairs: Maker, save_voc: Maker, tmp_path: Path, kind: str
) -> None:
    root = save_pairs({"train": 4, "val": 3}) if kind == "masks" else save_voc({"train": 4, "val": 3})
    read = masks_of if kind == "masks" else boxes_of
    before = read(root, hold_bytes=0)
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(root, moved)
    after = read(moved)
    assert (after.fingerprint(), after.contents()) == (before.fingerprint(), before.contents())
    image = next(path for path in sorted(moved.rglob("*1.*")) if "mask" not in str(path) and path.suffix != ".xml")
    with Image.open(image) as opened:
        pixels = np.array(opened)
    pixels[0, 0] = 255 - pixels[0, 0]
    Image.fromarray(pixels).save(image)
    after = read(moved)
    assert after.fingerprint() == before.fingerprint() and after.contents() != before.contents()


def spoil(root: Path) -> list[str]:
    """An unreadable image, an unreadable mask, a mask of another size and one without an image."""
    (root / "images" / "train" / "0.png").write_bytes(b"no image")
    (root / "masks" / "train" / "1.png").write_bytes(b"no mask")
    Image.new("L", (3, 3)).save(root / "masks" / "train" / "2.png")
    Image.new("L", (3, 3)).save(root / "masks" / "train" / "alone.png")
    return ["images/train/0.png", "masks/train/1.png", "masks/train/2.png", "masks/train/alone.png"]


def test_what_cannot_be_used_is_left_out_and_named_or_refused(save_pairs: Maker) -> None:
    root = save_pairs({"train": 6, "val": 2})
    wrong = spoil(root)
    calls: list[tuple[int, int]] = []
    data = masks_of(root, workers=2, notify=lambda done, total: calls.append((done, total)))
    assert data.train.names == [f"images/train/{number}.png" for number in (3, 4, 5)]
    assert len(data.skipped) == 4
    assert all(any(name in line for line in data.skipped) for name in wrong) and all(
        "\n" not in x for x in data.skipped
    )
    assert calls[-1] == (len(calls), len(calls)) == (7, 7)
    with pytest.raises(BadImage, match=r"alone\.png has no image"):
        masks_of(root, on_bad_image="error")
    (root / "masks" / "train" / "alone.png").unlink()
    with pytest.raises(BadImage, match=r"1\.png"):
        masks_of(root, on_bad_image="error")


def test_nothing_that_can_be_used(save_pairs: Maker) -> None:
    root = save_pairs({"train": 2, "val": 1})
    (root / "images" / "val" / "0.png").write_bytes(b"")
    with pytest.raises(SrattnError, match=r"no usable image for validation; the first of 1 .*val/0\.png"):
        masks_of(root)


def test_files_that_go_bad_during_the_run(save_pairs: Maker) -> None:
    root = save_pairs({"train": 5, "val": 3})
    data = masks_of(root, hold_bytes=0)
    one = loader(data, batch_size=5)
    (before,) = list(one.train(0))
    (root / "masks" / "train" / "1.png").write_bytes(b"gone")
    (root / "images" / "val" / "0.png").unlink()
    for folder in ("images", "masks"):  # whole, but of another size
        Image.new("L", (9, 9)).save(root / folder / "val" / "1.png")
    (after,) = list(one.train(0))
    assert after.indices.tolist() == [2 if index == 1 else index for index in before.indices.tolist()]
    same = before.indices != 1
    assert torch.equal(after.inputs[same], before.inputs[same])
    assert [batch.indices.tolist() for batch in one.val()] == [[2]] and one.val_scene(0) is None
    assert len(one.lost) == 3 and any("of another size than when the run began" in line for line in one.lost)
    data.train.on_bad_image = "error"
    with pytest.raises(BadImage, match=r"1\.png"):
        list(one.train(0))
    for path in (root / "images" / "train").iterdir():
        path.unlink()
    data.train.on_bad_image = "skip"
    with pytest.raises(BadImage, match="nor can any of the ten images after it"):
        list(one.train(0))


def test_parts_are_divided() -> None:
    parts = {"train": list(range(10)), "val": [10], "test": [11]}
    assert divide_scenes(parts, None, 0.2, 0)[1] == [10] and divide_scenes(parts, "test", 0.2, 0)[1] == [11]
    assert divide_scenes({**parts, "val": []}, None, 0.2, 0)[1] == [11]
    train, held = divide_scenes(parts, "split", 0.3, 0)
    assert sorted(train + held) == list(range(10)) and len(held) == 3
    assert divide_scenes(parts, "split", 0.3, 0) == (train, held) != divide_scenes(parts, "split", 0.3, 1)
    for given, val, fraction, message in (
        ({"val": [1]}, None, 0.2, "no training part, only val; call the part to learn from train"),
        ({}, None, 0.2, "no training part, no image that can be used"),
        ({"train": [1, 2]}, "test", 0.2, "val is 'test', but can be split"),
        ({"train": [1, 2]}, "elsewhere", 0.2, "val is 'elsewhere', but can be split"),
        ({"train": [1, 2], "test": [3]}, "train", 0.2, "val is 'train', but can be test or split"),
        ({"train": [1, 2]}, None, 1.0, "val_fraction must be above 0 and below 1, got 1.0"),
        ({"train": [1]}, None, 0.2, r"one image only; a split needs at least two: add some, or a part val/"),
    ):
        with pytest.raises(SrattnError, match=message):
            divide_scenes(given, val, fraction, 0)


# -- boxes ------------------------------------------------------------------------------------------------------------


def test_boxes_stay_on_their_objects(save_voc: Maker) -> None:
    """What lies in a box, well within, is bright; what lies outside of all boxes, well without, is dark."""
    data = boxes_of(
        save_voc({"train": 8, "val": 1}), "scale=0.8-1.6,flip,flipv", Preprocess(size=(48, 48), fit="inside")
    )
    seen = 0
    for batch in loader(data, "scale=0.8-1.6,flip,flipv", 8).train(0):
        levels = batch.inputs * torch.tensor(data.preprocess.std).view(3, 1, 1) + torch.tensor(
            data.preprocess.mean
        ).view(3, 1, 1)
        for image, rows in zip(levels.mean(1), batch.labels, strict=True):
            for x1, y1, x2, y2, label in rows.tolist():
                if label < 0:
                    continue
                seen += 1
                held = image[round(y1) + 3 : round(y2) - 3, round(x1) + 3 : round(x2) - 3]
                assert not held.numel() or held.min() > 0.8
    assert seen >= 6


def test_classes_of_boxes(save_voc: Maker, tmp_path: Path) -> None:
    root = save_voc({"train": 4, "val": 1})
    found, index = open_boxes(str(root))
    assert found.classes == index.classes == ["cat", "dog"] and is_voc(root) and not is_coco(root)
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    assert open_boxes(str(root), "dog, cat")[0].classes == ["dog", "cat"]
    other, _ = open_boxes(str(root), str(tmp_path / "names.txt"))
    assert other.classes == ["dog", "cat"] and other.facts != found.facts
    only, _ = open_boxes(str(root), "dog")
    assert only.classes == ["dog"] and all("of no known class" in line for line in only.refused)
    target = only.parts["train"][0].target((24, 30))
    assert target.boxes is not None and target.boxes.shape == (0, 5) and target.mask is None
    assert box_classes(None) is None and box_classes("x" * 5000) == ["x" * 5000]
    for given in ("a,,b", "a,a", ""):
        with pytest.raises(SrattnError, match="neither a file nor different names"):
            box_classes(given)
    with pytest.raises(SrattnError, match=r"no boxes in a known form: Pascal VOC .* or COCO"):
        open_boxes(str(tmp_path))


def test_coco_boxes_of_some_classes(tmp_path: Path) -> None:
    import json

    boxes = [
        {"id": n, "image_id": 1, "category_id": c, "bbox": [n, 2, 3, 4], "iscrowd": 0} for n, c in ((1, 7), (2, 3))
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "annotations": boxes,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    (tmp_path / "train").mkdir()
    Image.new("L", (20, 10)).save(tmp_path / "train" / "a.png")
    assert is_coco(tmp_path) and not is_voc(tmp_path) and not has_pairs(tmp_path)
    found, _ = open_boxes(str(tmp_path))
    target = found.parts["train"][0].target((10, 20))
    assert found.classes == ["cat", "dog"] and target.boxes is not None
    assert target.boxes.tolist() == [[1, 2, 4, 6, 1], [2, 2, 5, 6, 0]]
    dogs, index = open_boxes(str(tmp_path), "dog")
    assert dogs.classes == ["dog"] and index.category_ids == [7] and len(index.parts["train"][0].boxes) == 1


# -- real data --------------------------------------------------------------------------------------------------------


def test_streets(shared: Path) -> None:
    root = shared / "data" / "camvid"
    if not root.is_dir():
        pytest.skip("needs data/camvid")
    masks = open_masks(str(root), void=[11], only=["val"])
    assert masks.classes.names == [str(number) for number in range(11)] and len(masks.pairs["val"]) == 101
    assert masks.problems == [] and sum(masks.counts.values()) == 101 * 360 * 480
    assert int(masks.read(masks.pairs["val"][0]).max()) == 255


def test_polyps(shared: Path) -> None:
    root = shared / "data" / "polyps"
    if not root.is_dir():
        pytest.skip("needs data/polyps")
    data = masks_of(root, val_fraction=0.25, preprocess=Preprocess(size=(64, 64), fit="shorter"))
    assert data.classes == ["background", "object"] and (len(data.train), len(data.val)) == (15, 5)
    assert data.skipped == []
    for _, target in (cast(Scenes, data.val).scene(index) for index in range(5)):
        assert target.mask is not None and set(target.mask.unique().tolist()) == {0, 1}


def test_blood_cells(shared: Path) -> None:
    root = shared / "data" / "bccd"
    if not root.is_dir():
        pytest.skip("needs data/bccd")
    found, index = open_boxes(str(root))
    found.parts = {part: items[:6] for part, items in found.parts.items()}
    augment = parse_joint("scale=0.75-1.5,flip", Preprocess(size=(96, 96), fit="inside"))
    data = load_scenes(found, augment, augment.preprocess)
    assert data.classes == ["Platelets", "RBC", "WBC"] and data.skipped == []
    assert len(found.refused) == 2 and found.notes_of(found.parts)[0].startswith("boxes: 2 ")
    for place, item in enumerate(index.parts["val"][:6]):
        scene = loader(data).val_scene(place)
        assert scene is not None and scene[1].boxes is not None and len(scene[1].boxes) == len(item.boxes)
        shrunk = 96 / max(item.size)
        sides = scene[1].boxes[:, 2:4] - scene[1].boxes[:, :2]
        assert torch.allclose(sides, (item.boxes[:, 2:] - item.boxes[:, :2]) * shrunk, atol=1e-3)
