"""Depth files and folders of them: numbers as they were saved, and what cannot be used by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srattn.data.decode import BadImage
from srattn.data.dense import Target, parse_joint
from srattn.data.dense.depths import open_depths
from srattn.data.dense.loader import SceneLoader
from srattn.data.dense.pairs import index_pairs
from srattn.data.dense.read import load_scenes
from srattn.data.dense.target import nothing, stacked
from srattn.data.depth_files import read_depth, write_depth
from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def ramp(size: tuple[int, int] = (12, 15), near: int = 500, step: int = 40) -> np.ndarray:
    """Millimetres that rise from pixel to pixel."""
    return (near + step * np.arange(size[0] * size[1]).reshape(size)).astype(np.uint16)


def save_pair(root: Path, name: str, depth: np.ndarray, part: str = "", folder: str = "depths") -> None:
    """An image whose red says the depth in parts of 10 metres, and the depth."""
    image = np.zeros((*depth.shape, 3), np.uint8)
    image[..., 0] = np.clip(np.nan_to_num(depth.astype(np.float64)) / 10000 * 255, 0, 255).round()
    save(root / "images" / part / f"{name}.png", image)
    save(root / folder / part / f"{name}.png", depth)


@pytest.mark.parametrize("scale", [0.001, 1 / 256])
def test_written_and_read_back(scale: float, tmp_path: Path) -> None:
    depth = torch.rand(5, 7) * 60 + 1e-9
    depth[0, :4] = torch.tensor([0.0, -1.0, torch.nan, torch.inf])
    write_depth(tmp_path / "d.png", depth.mT.contiguous().mT, scale)
    again = read_depth(tmp_path / "d.png", scale)
    assert again.shape == (5, 7) and again.dtype == torch.float32 and not again[0, :4].any()
    # half a unit of rounding, and that of float32
    assert (again - depth)[1:].abs().max() <= scale / 2 + 60 * torch.finfo(torch.float32).eps
    with Image.open(tmp_path / "d.png") as opened:
        assert opened.mode.startswith("I")
    write_depth(tmp_path / "near.png", torch.tensor([[scale / 10, 0.0]]), scale)
    assert read_depth(tmp_path / "near.png", scale)[0].tolist() == pytest.approx([scale, 0])  # known stays known
    with pytest.raises(SrattnError, match="take a larger scale"):
        write_depth(tmp_path / "far.png", torch.full((1, 1), 70000 * scale), scale)
    with pytest.raises(SrattnError, match="exists and is not overwritten"):
        write_depth(tmp_path / "near.png", depth, scale)
    write_depth(tmp_path / "near.png", depth, scale, overwrite=True)
    assert torch.equal(read_depth(tmp_path / "near.png", scale), again)
    for bad, words in (
        (torch.ones(2, 2, 2), "floating-point"),
        (torch.ones(2, 2, dtype=torch.int64), "floating-point"),
    ):
        with pytest.raises(SrattnError, match=words):
            write_depth(tmp_path / "bad.png", bad)
    with pytest.raises(SrattnError, match=r"\.png"):
        write_depth(tmp_path / "d.tif", depth)


def test_every_kind_of_file_holds_its_numbers(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 200], [7, 255, 3]])
    for dtype, name in ((np.uint8, "a.png"), (np.uint16, "b.png"), (np.int32, "c.tif"), (np.float32, "d.tif")):
        depth = read_depth(save(tmp_path / name, levels.astype(dtype)), 0.5)
        assert torch.equal(depth, torch.tensor(levels) * 0.5), name
    odd = np.array([[np.nan, np.inf, -np.inf], [-3.0, 2.5, 0.0]], np.float32)
    assert read_depth(save(tmp_path / "e.tif", odd), 1.0).tolist() == [[0, 0, 0], [0, 2.5, 0]]
    with pytest.raises(BadImage, match="JPEG changes numbers"):
        read_depth(save(tmp_path / "f.jpg", levels.astype(np.uint8)))
    with pytest.raises(BadImage, match="mode RGB holds no depths"):
        read_depth(save(tmp_path / "g.png", np.zeros((2, 2, 3), np.uint8)))
    with pytest.raises(BadImage, match="no such file"):
        read_depth(tmp_path / "nothing.png")
    (tmp_path / "h.png").write_bytes(b"no picture")
    with pytest.raises(BadImage, match="not an image"):
        read_depth(tmp_path / "h.png")
    (tmp_path / "i.png").write_bytes((tmp_path / "b.png").read_bytes()[:50])
    with pytest.raises(BadImage, match="unreadable"):
        read_depth(tmp_path / "i.png")
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SrattnError, match="depth_scale"):
            read_depth(tmp_path / "b.png", scale)


@pytest.mark.parametrize("folder", ["depths", "depth", "Depth_Maps"])
def test_folders_pair_as_masks_do(folder: str, tmp_path: Path) -> None:
    for part, count in (("train", 2), ("val", 1)):
        for number in range(count):
            save_pair(tmp_path, f"{number}", ramp(), part, folder)
    found = open_depths(str(tmp_path)).found()
    assert {part: [one.name for one in items] for part, items in found.parts.items()} == {
        "train": ["images/train/0.png", "images/train/1.png"],
        "val": ["images/val/0.png"],
    }
    assert found.classes == ["depth"] and not found.problems
    # they are no masks
    with pytest.raises(SrattnError, match="no images with masks"):
        index_pairs(tmp_path)


def test_without_depths_the_way_out_is_named(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(SrattnError, match=r"no images with depths: put them in .*images and .*depths"):
        open_depths(str(tmp_path))
    save_pair(tmp_path, "a", np.zeros((4, 4), np.uint16))
    with pytest.raises(SrattnError, match=r"no depth of .* can be used; the first of 1: .*every pixel is 0"):
        open_depths(str(tmp_path))


def test_what_cannot_be_used_is_named_and_what_is_far_is_counted(tmp_path: Path) -> None:
    save_pair(tmp_path, "good", ramp())  # up to 0.5 + 179 * 0.04 = 7.66 metres
    save_pair(tmp_path, "unknown", np.zeros((12, 15), np.uint16))
    save_pair(tmp_path, "far", ramp(near=20000))
    half = ramp()
    half[:6], half[6:, :3] = 12000, 0
    save_pair(tmp_path, "half", half)
    save(tmp_path / "images" / "alone.png", np.zeros((4, 4, 3), np.uint8))
    save_pair(tmp_path, "small", ramp((4, 4)))
    save(tmp_path / "images" / "small.png", np.zeros((4, 5, 3), np.uint8))
    found = open_depths(str(tmp_path), max_depth=10.0, workers=2)
    assert [pair.name for pair in found.pairs["train"]] == ["images/good.png", "images/half.png", "images/small.png"]
    assert (found.pixels, found.known, found.beyond) == (2 * 180 + 16, 180 + 162 + 16, 90)
    text = "\n".join(found.problems)
    assert "alone.png has no depth" in text and "unknown.png knows no depth: every pixel is 0" in text
    assert "far.png knows no depth up to 10 metres, its nearest is 20: is --depth_scale 0.001" in text
    assert any("90 of the 358 known are beyond 10 metres" in note for note in found.notes())
    augment = parse_joint("none", Preprocess(size=(8, 8), fit="shorter"))
    data = load_scenes(found.found(), augment, augment.preprocess, val_fraction=0.4, split_seed=1)
    assert any("small.png is 4x4 pixels, but its image" in line for line in data.skipped)
    assert len(data.train) == len(data.val) == 1 and data.notes == found.notes()
    with pytest.raises(BadImage, match=r"alone.png has no depth"):
        load_scenes(found.found(), augment, augment.preprocess, on_bad_image="error")


def test_any_other_number_is_another_fingerprint(tmp_path: Path) -> None:
    save_pair(tmp_path, "a", ramp())
    before = open_depths(str(tmp_path)).facts
    assert open_depths(str(tmp_path)).facts == before != open_depths(str(tmp_path), 0.002).facts
    other = ramp()
    other[3, 4] += 1
    save_pair(tmp_path, "a", other)
    assert open_depths(str(tmp_path)).facts != before


def test_depths_move_with_the_image_and_keep_their_metres() -> None:
    depth = torch.rand(9, 11) * 5 + 1
    depth[2, 3] = 0
    target = Target(depth=depth)
    mirror = torch.tensor([[-1.0, 0, 11], [0, 1, 0]], dtype=torch.float64)
    assert torch.equal(target.moved(mirror, (9, 11)).depth, depth.flip(1))
    double = torch.tensor([[2.0, 0, 0], [0, 2, 0]], dtype=torch.float64)
    assert torch.equal(target.moved(double, (18, 22)).depth, depth.repeat_interleave(2, 0).repeat_interleave(2, 1))
    shift = torch.tensor([[1.0, 0, 4], [0, 1, -2]], dtype=torch.float64)
    moved = target.moved(shift, (9, 11)).depth
    assert torch.equal(moved[:7, 4:], depth[2:, :7]) and not moved[7:].any() and not moved[:, :4].any()
    turned = target.moved(torch.tensor([[0.8, -0.6, 3], [0.6, 0.8, -2]], dtype=torch.float64), (9, 11)).depth
    assert set(turned.flatten().tolist()) <= {0.0, *depth.flatten().tolist()}  # no number that was not there
    assert stacked([target, target]).shape == (2, 9, 11) and stacked([target]).dtype == torch.float32
    assert nothing(target.emptied(), (4, 6)).shape == (0, 4, 6)
    assert target.grid == (9, 11) and target.bytes() == 9 * 11 * 4


def test_the_loader_gives_windows_and_whole_depths(tmp_path: Path) -> None:
    for number in range(5):
        save_pair(tmp_path, f"{number}", ramp((12, 15), 500 + 300 * number))
    augment = parse_joint(
        "scale=0.5-2,flip,rotate=20", Preprocess(size=(8, 8), fit="shorter", mean=(0, 0, 0), std=(1, 1, 1))
    )
    data = load_scenes(open_depths(str(tmp_path)).found(), augment, augment.preprocess)
    loader = SceneLoader(data, augment, 4, 0)
    (batch,) = loader.train(0)
    assert batch.inputs.shape == (4, 3, 8, 8) and batch.labels.shape == (4, 8, 8)
    # image and depth are still of one another: red is the depth, up to bilinear mixing and 8 bits, away from edges
    known = (batch.labels > 0) & (batch.inputs[:, 0] > 0)
    assert known.float().mean() > 0.3
    apart = (batch.inputs[:, 0] * 10 - batch.labels)[known].abs()
    # Neighbours along a row are 0.04 metres apart, rows 0.6; a window of half the size mixes two rows.
    assert apart.median() < 0.7
    (whole,) = loader.val()
    assert whole.inputs.shape == (1, 3, 8, 10) and whole.labels.shape == (1, 12, 15)
    assert SceneLoader(data, augment, 5, 0, rank=4, world=5)._train_batch(torch.zeros(0), 0).labels.shape == (0, 8, 8)
