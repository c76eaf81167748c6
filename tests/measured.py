"""Made-up images with depths, and with people whose joints are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ["nose", "left_hand", "right_hand"]
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
DEPTH_SIZE = (24, 30)
PEOPLE_SIZE = (48, 64)


def write_depths(root: Path, parts: dict[str, int], size: tuple[int, int] = DEPTH_SIZE) -> Path:
    """images/PART/N.png beside depths/PART/N.png: 1 to 9 metres as 1,000 to 9,000; red says how far a pixel is, and the
    upper left corner of 3 x 4 pixels is not known."""
    for place, (part, count) in enumerate(parts.items()):
        for number in range(count):
            random = np.random.default_rng(100 * place + number)
            metres = np.clip(random.uniform(2, 8) + random.uniform(-3, 3) * np.mgrid[0 : 1 : size[1] * 1j], 1, 9)
            depth = (1000 * metres[None].repeat(size[0], 0)).round().astype(np.uint16)
            image = np.zeros((*size, 3), np.uint8)
            image[..., 0] = depth // 40
            image[..., 2] = random.integers(0, 60, size)
            depth[:3, :4] = 0
            save(root / "images" / part / f"{number}.png", image)
            save(root / "depths" / part / f"{number}.png", depth)
    return root


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def person(number: int, image: int, joints: Sequence[tuple[float, float, int]], **more: Any) -> dict[str, Any]:
    """An annotation in COCO's form whose box is around the joints."""
    x, y, seen = zip(*joints, strict=True)
    box = [min(x) - 4, min(y) - 4, max(x) - min(x) + 8, max(y) - min(y) + 8]
    return {
        "id": number, "image_id": image, "category_id": 1, "keypoints": [value for joint in joints for value in joint],
        "num_keypoints": sum(value > 0 for value in seen), "bbox": box, "area": box[2] * box[3], "iscrowd": 0, **more,
    }  # fmt: skip


def write_people(root: Path, people: dict[str, list[dict[str, Any]]], images: int = 4) -> Path:
    """annotations/person_keypoints_PART.json and images/PART/N.png: noise with a dot of its own colour a joint."""
    for place, (part, rows) in enumerate(people.items()):
        for number in range(images):
            random = np.random.default_rng(100 * place + number)
            pixels = random.integers(0, 60, (*PEOPLE_SIZE, 3), dtype=np.uint8)
            for row in rows:
                joints = np.array(row["keypoints"]).reshape(-1, 3)
                for colour, (x, y, seen) in zip(COLOURS, joints.tolist(), strict=False):
                    if row["image_id"] == number and seen > 0:
                        pixels[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2] = colour
            save(root / "images" / part / f"{number}.png", pixels)
        content = {
            "images": [
                {"id": n, "file_name": f"{n}.png", "height": PEOPLE_SIZE[0], "width": PEOPLE_SIZE[1]}
                for n in range(images)
            ],
            "annotations": rows,
            "categories": [{"id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"person_keypoints_{part}.json").write_text(json.dumps(content))
    return root


def plain_people(images: int = 4) -> list[dict[str, Any]]:
    """One person an image, and two in the first."""
    place = [(20.0, 10.0, 2), (12.0, 30.0, 2), (28.0, 30.0, 1)]
    rows = [person(n + 1, n, [(x + n, y, seen) for x, y, seen in place]) for n in range(images)]
    return [*rows, person(images + 1, 0, [(x + 26, y + 4, seen) for x, y, seen in place])]
