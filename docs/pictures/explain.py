"""Draws the picture of docs/explain.md: explain.png beside this file.

    python docs/pictures/explain.py

A ship made of formulas, and what the small model in the box makes of it: attention of one point, rollout, Grad-CAM,
the receptive fields, and what one key is made from. Each panel is what `srattn.explain` returns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srattn.engine.open_model import open_model
from srattn.explain import maps
from srattn.explain.overlay import panels
from srattn.explain.pictures import heat_over, with_ring

SIDE = 240
POINT = (15, 20)  # x, y: on the hull


def ship(side: int = 256) -> Image.Image:
    """Sky, sea, a hull with a cabin and a funnel."""
    y, x = np.mgrid[0:side, 0:side] / side
    image = np.empty((side, side, 3))
    for channel, (top, bottom) in enumerate(((0.45, 0.86), (0.62, 0.90), (0.80, 0.94))):
        image[..., channel] = top + (bottom - top) * (y / 0.6).clip(0, 1)
    sea = y > 0.62 + 0.008 * np.sin(40 * x)
    image[sea] = np.array([0.12, 0.30, 0.45]) * (0.85 + 0.25 * np.sin(60 * y + 9 * np.sin(12 * x)))[sea, None] ** 2
    hull = (y > 0.52) & (y < 0.72) & (x > 0.12 + 0.45 * (y - 0.52)) & (x < 0.90 - 0.7 * (y - 0.52))
    image[hull] = np.where((y > 0.66)[hull, None], [0.55, 0.13, 0.11], [0.13, 0.15, 0.20])
    cabin = (y > 0.40) & (y <= 0.52) & (x > 0.24) & (x < 0.66)
    image[cabin] = [0.93, 0.93, 0.90]
    image[cabin & (y > 0.44) & (y < 0.47) & (np.mod(x, 0.07) < 0.04)] = [0.20, 0.27, 0.35]
    image[(y > 0.26) & (y <= 0.40) & (x > 0.40) & (x < 0.50)] = [0.80, 0.25, 0.16]
    image[(y > 0.26) & (y <= 0.30) & (x > 0.40) & (x < 0.50)] = [0.10, 0.10, 0.12]
    noise = np.random.default_rng(0).normal(0, 0.015, image.shape)
    return Image.fromarray(((image + noise).clip(0, 1) * 255).round().astype(np.uint8))


def boxed(pixels: Tensor, support: maps.KeySupport, key: int) -> Tensor:
    """The picture, dimmed but for the pixels that make one key."""
    return torch.where(support.mask(key), pixels, pixels * 0.3)


def draw() -> Image.Image:
    run = open_model("box-small")
    pixels = run.preprocess.pixels(ship()).float() / 255
    image = run.preprocess.normalise(pixels[None])[0]
    with torch.no_grad():
        shares = run.model(image[None])[0].softmax(0)
    number = int(shares.argmax())
    where = (POINT[1], POINT[0])
    size = (pixels.shape[1], pixels.shape[2])

    def over(heat: Tensor, ring: bool = False) -> Image.Image:
        return heat_over(pixels, heat, where if ring else None, SIDE)

    black = torch.zeros_like(pixels)
    support = maps.reduction_support(run.model, size, 0)
    field = maps.effective_receptive_field(run.model, size, 0, image[None], probes=32)
    first = maps.attention_map(run.model, image, POINT, 0)
    upper = panels(
        [
            (f"{run.classes[number]}, {100 * float(shares[number]):.0f} %", with_ring(pixels, where, SIDE)),
            ("attention: stage 1, mean", over(first.mean(0), True)),
            ("stage 1, head 1", over(first[0], True)),
            ("stage 2, mean", over(maps.attention_map(run.model, image, POINT, 1).mean(0), True)),
        ]
    )
    lower = panels(
        [
            ("rollout", over(maps.rollout(run.model, image))),
            ("Grad-CAM, stage 2", over(maps.grad_cam(run.model, image, number))),
            ("receptive field, stage 1", heat_over(black, field.sqrt(), None, SIDE)),
            ("what makes one key of stage 1", with_ring(boxed(pixels, support, 5), None, SIDE)),
        ]
    )
    sheet = Image.new("RGB", (upper.width, upper.height + lower.height), "white")
    sheet.paste(upper, (0, 0))
    sheet.paste(lower, (0, upper.height))
    return sheet


def main() -> None:
    draw().save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
