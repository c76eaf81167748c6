"""The page on fine-tuning is what its script makes of the committed figures, and the script runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from srattn.data.preprocess import Preprocess
from srattn.engine.weights import save_weights
from srattn.models import build_model
from tests.pages import load_script

CELL = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>4</ymin><xmax>{}</xmax><ymax>30</ymax></bndbox></object>"


@pytest.fixture
def page() -> ModuleType:
    return load_script("finetuning")


def test_the_page_is_up_to_date(page: ModuleType) -> None:
    figures = json.loads(page.FIGURES.read_text()) if page.FIGURES.is_file() else None
    assert page.render(figures) == page.PAGE.read_text(encoding="utf-8")
    assert page.PICTURE.is_file() == (figures is not None)


def cells(folder: Path) -> Path:
    """Six photos with two cells each, a red one on the left."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for number in range(6):
        image = Image.new("RGB", (96, 48), (230, 220, 200))
        image.paste((200, 30, 30), (10, 4, 40, 30))
        image.paste((40, 40, 160), (60, 4, 90, 30))
        image.save(folder / "JPEGImages" / f"{number}.jpg")
        boxes = CELL.format("red", 10, 40) + CELL.format("blue", 60, 90)
        (folder / "Annotations" / f"{number}.xml").write_text(f"<annotation>{boxes}</annotation>")
    (folder / "ImageSets/Main/train.txt").write_text("0\n1\n2\n3\n")
    (folder / "ImageSets/Main/val.txt").write_text("4\n5\n")
    return folder


def test_one_command(page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_model(
        "pvt_v2_b0", num_classes=3, img_size=16, stem_stride=2, embed_dims=(8, 8), depths=(1, 1), num_heads=(1, 1),
        mlp_ratios=(1, 1), sr_ratios=(2, 1),
    )  # fmt: skip
    (tmp_path / "weights").mkdir()
    preprocess = Preprocess(size=(16, 16))
    save_weights(tmp_path / "weights" / "cifar10-small.safetensors", model, ["a", "b", "c"], preprocess, torch.float16)  # type: ignore[arg-type]
    monkeypatch.setattr("srattn.engine.open_model.files", lambda name: tmp_path)
    source = cells(tmp_path / "bccd")
    page.cut_cells(source, tmp_path / "photos", 3)
    made = sorted(path.relative_to(tmp_path / "photos").as_posix() for path in (tmp_path / "photos").rglob("*.png"))
    assert made == sorted(
        [f"train/{kind}/{i}-{k}.png" for k, kind in enumerate(("red", "blue")) for i in range(3)]
        + [f"val/{kind}/{i}-{k}.png" for k, kind in enumerate(("red", "blue")) for i in (4, 5)]
    )
    with Image.open(tmp_path / "photos/train/red/0-0.png") as crop:
        assert crop.size == (46, 38)  # the margin ends at the border of the photo

    places = {name: tmp_path / name for name in ("figures", "picture", "page")}
    words = [f"--{name}={path}{'.png' if name == 'picture' else ''}" for name, path in places.items()]
    options = ["--per_class", "3", "--epochs", "2", "--seeds", "0", "1", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["finetuning.py", "--cells", str(source), *options, *words])
    page.main()
    figures = json.loads(places["figures"].read_text())
    assert [(row["way"], row["seed"]) for row in figures["runs"]] == [(way, s) for s in (0, 1) for way in page.WAYS]
    assert all(row["classes"] == ["blue", "red"] and row["train_images"] == 6 for row in figures["runs"])
    text = places["page"].read_text()
    assert "from box-small, head alone | 2 |" in text and "6 photos for training and 4 held out" in text
    assert (tmp_path / "picture.png").stat().st_size > 5000
