"""Made-up images with masks and boxes: a square and a disc on noise, each of its own colour."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from srattn.ops.run_lengths import encode_runs, write_runs

CLASSES = ("background", "square", "disc")
COLOURS = ((40, 40, 40), (220, 60, 40), (50, 90, 230))
TRAIN, VAL = 12, 4
HEIGHT, WIDTH = 40, 56
Box = tuple[int, int, int, int, int]
SMALL: dict[str, Any] = {
    "model": "pvt_v2_b0",
    "model_options": {
        "stem_stride": 4,
        "embed_dims": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "mlp_ratios": [2, 2, 2, 2],
        "sr_ratios": [2, 1, 1, 1],
    },
    "size": 32,
    "batch_size": 4,
    "threads": 1,
    "num_workers": 0,
    "epochs": 2,
    "device": "cpu",
}
"""Options of a run that takes a second."""


def shapes(count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, list[Box]]]:
    """Image uint8 (H, W, 3), mask uint8 (H, W) and boxes (x1, y1, x2, y2, class) with edges in pixels."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(count):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        boxes: list[Box] = []
        for label, left in ((1, 0), (2, WIDTH // 2)):
            side = int(random.integers(12, 20))
            x, y = left + int(random.integers(0, WIDTH // 2 - side)), int(random.integers(0, HEIGHT - side))
            inside = (columns >= x) & (columns < x + side) & (rows >= y) & (rows < y + side)
            if label == 2:
                inside &= (columns + 0.5 - x - side / 2) ** 2 + (rows + 0.5 - y - side / 2) ** 2 <= side**2 / 4
            mask[inside] = label
            boxes.append((x, y, x + side, y + side, label))
        image = np.array(COLOURS)[mask] + random.integers(-20, 20, (HEIGHT, WIDTH, 3))
        yield image.clip(0, 255).astype(np.uint8), mask, boxes


def write_masks(root: Path) -> Path:
    """images/{train,val} beside masks/{train,val}, with classes.txt."""
    for part, count, seed in (("train", TRAIN, 0), ("val", VAL, 1)):
        for folder in ("images", "masks"):
            (root / folder / part).mkdir(parents=True)
        for number, (image, mask, _) in enumerate(shapes(count, seed)):
            Image.fromarray(image).save(root / "images" / part / f"{number:02}.png")
            Image.fromarray(mask).save(root / "masks" / part / f"{number:02}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def write_boxes(root: Path) -> Path:
    """Annotations/, JPEGImages/ and ImageSets/Main/."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part, count, seed in (("train", TRAIN, 0), ("val", VAL, 1)):
        names = [f"{part}{number:02}" for number in range(count)]
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name, (image, _, boxes) in zip(names, shapes(count, seed), strict=True):
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
            (root / "Annotations" / f"{name}.xml").write_text(_xml(name, boxes))
    return root


def write_coco(root: Path) -> Path:
    """train/ and val/ beside annotations/instances_{train,val}.json; squares are polygons, discs runs."""
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 10 * number, "name": CLASSES[number]} for number in (1, 2)]
    for part, count, seed in (("train", TRAIN, 0), ("val", VAL, 1)):
        (root / part).mkdir()
        images, annotations = [], []
        for number, (image, mask, boxes) in enumerate(shapes(count, seed), 1):
            Image.fromarray(image).save(root / part / f"{number:02}.png")
            images.append({"id": number, "file_name": f"{number:02}.png", "width": WIDTH, "height": HEIGHT})
            for x1, y1, x2, y2, label in boxes:
                runs = encode_runs(torch.from_numpy(mask == label)).tolist()
                told: Any = {"size": [HEIGHT, WIDTH], "counts": write_runs(runs) if number % 2 else runs}
                if label == 1:
                    told = [[x1, y1, x2, y1, x2, y2, x1, y2]]
                entry: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number, "category_id": 10 * label}
                entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0, "segmentation": told}
                annotations.append(entry)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def _xml(name: str, boxes: list[Box]) -> str:
    objects = "".join(
        f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for x1, y1, x2, y2, label in boxes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"
