"""Each kind of corruption beside its definition in float64, and the published strengths."""

from __future__ import annotations

import colorsys
import io
import math

import pytest
import torch
from PIL import Image
from torch import Tensor

from srattn.engine.corruptions import (
    CORRUPTIONS,
    brightness,
    contrast,
    corrupt,
    defocus_blur,
    fog,
    motion_blur,
    pixelate,
)

# ImageNet-C's and CIFAR-10-C's constants by severity, from make_imagenet_c.py and make_cifar_c.py of
# github.com/hendrycks/robustness.
PUBLISHED = {
    "gaussian_noise": ([0.08, 0.12, 0.18, 0.26, 0.38], [0.04, 0.06, 0.08, 0.09, 0.10]),
    "shot_noise": ([60, 25, 12, 5, 3], [500, 250, 100, 75, 50]),
    "gaussian_blur": ([1, 2, 3, 4, 6], [0.4, 0.6, 0.7, 0.8, 1]),
    "defocus_blur": (
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    ),
    "motion_blur": ([(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)], [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)]),
    "fog": (
        [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    ),
    "brightness": ([0.1, 0.2, 0.3, 0.4, 0.5], [0.05, 0.1, 0.15, 0.2, 0.3]),
    "contrast": ([0.4, 0.3, 0.2, 0.1, 0.05], [0.75, 0.5, 0.4, 0.3, 0.15]),
    "pixelate": ([0.6, 0.5, 0.4, 0.3, 0.25], [0.95, 0.9, 0.85, 0.75, 0.65]),
    "jpeg": ([25, 18, 15, 10, 7], [80, 65, 58, 50, 40]),
}


def _draws(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _levels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)) / 255


def _moments(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (2,) and the covariance (2, 2), as (x, y), of the mass of a square with its middle at the origin."""
    axis = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    places = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)
    mass = kernel.double().flatten() / kernel.double().sum()
    mean = mass @ places
    return mean, (places - mean).T @ (mass[:, None] * (places - mean))


def _point(side: int) -> Tensor:
    image = torch.zeros(1, 1, side, side)
    image[..., side // 2, side // 2] = 1
    return image


def test_strengths_are_the_published_ones() -> None:
    assert CORRUPTIONS.keys() == PUBLISHED.keys()
    for kind, (_, *ours) in CORRUPTIONS.items():
        for found, expected in zip(ours, PUBLISHED[kind], strict=True):
            assert found == tuple(each if isinstance(each, tuple) else (each,) for each in expected), kind


@pytest.mark.parametrize(
    ("height", "width", "sigma"), [(95, 120, 0.6), (96, 100, 2 * 96 / 224), (130, 112, 1.0), (224, 224, 2.0)]
)
def test_a_blur_goes_by_the_shorter_side(height: int, width: int, sigma: float) -> None:
    images = _levels(1, 1, height, width)
    reach = math.ceil(3 * sigma)
    weights = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    expected = images[0, 0].double()
    for _ in range(2):  # down the columns, then along the rows; beyond the frame its last pixel
        padded = torch.cat([expected[:1].expand(reach, -1), expected, expected[-1:].expand(reach, -1)])
        expected = (padded.unfold(0, 2 * reach + 1, 1) @ (weights / weights.sum())).T
    found = corrupt(images, "gaussian_blur", 2, [0])[0, 0]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.5 / 255 + 1e-5)  # of rounding to 8 bits


@pytest.mark.parametrize("severity", [1, 5])
def test_what_is_drawn_does_not_depend_on_the_severity(severity: int) -> None:
    grey = torch.full((2, 3, 8, 8), 128 / 255)
    strong, weak = (corrupt(grey, "gaussian_noise", each, [3, 4]) - grey for each in (5, severity))
    strength = {1: 0.04, 5: 0.1}[severity]
    torch.testing.assert_close(weak / strength, strong / 0.1, rtol=0, atol=0.5 / 255 / 0.04 + 0.5 / 255 / 0.1 + 1e-4)


def test_contrast_is_drawn_towards_the_mean_of_a_channel() -> None:
    images = _levels(2, 3, 4, 5)
    found = contrast(images, (0.3,), 1.0, [])
    for image, changed in zip(images.double().flatten(0, 1), found.flatten(0, 1), strict=True):
        torch.testing.assert_close(changed.double(), 0.3 * image + 0.7 * image.mean(), rtol=0, atol=1e-6)


def test_brightness_is_the_value_of_colorsys() -> None:
    images = _levels(1, 3, 4, 5)
    images[0, :, 0, 0] = 0
    found = brightness(images, (0.3,), 1.0, [])
    for colour, changed in zip(images.flatten(2)[0].T.tolist(), found.flatten(2)[0].T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        assert changed == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3)), abs=1e-6)


def test_pixels_of_a_coarser_picture_are_means_of_their_squares() -> None:
    images = _levels(2, 3, 8, 12)
    found = pixelate(images, (0.25,), 1.0, [])
    for y in range(8):
        for x in range(12):
            square = images[:, :, y // 4 * 4 : y // 4 * 4 + 4, x // 4 * 4 : x // 4 * 4 + 4].double()
            torch.testing.assert_close(found[:, :, y, x].double(), square.mean((2, 3)), rtol=0, atol=1e-6)
    one = pixelate(images, (0.01,), 1.0, [])
    torch.testing.assert_close(one, images.mean((2, 3), keepdim=True).expand_as(images), rtol=0, atol=1e-6)


def test_jpeg_is_what_pillow_saves() -> None:
    images = _levels(2, 3, 40, 24)
    for image, found in zip(images, corrupt(images, "jpeg", 2, [0, 1]), strict=True):
        file = io.BytesIO()
        pixels = (image * 255).round().byte().permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=65)
        read = torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8).view(40, 24, 3)
        torch.testing.assert_close(found * 255, read.permute(2, 0, 1).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("radius", "soft"), [(6.0, 0.5), (10.0, 0.5), (10.0, 2.0)])
def test_defocus_is_a_disc_softened_by_a_gaussian(radius: float, soft: float) -> None:
    kernel = defocus_blur(_point(61), (2 * radius, soft), 0.5, [])[0, 0]
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)
    mean, spread = _moments(kernel)
    assert mean.abs().max() < 1e-4
    expected = radius**2 / 4 + soft**2  # along an axis: of a disc, and of a Gaussian
    # The disc's rim lies on pixels, which moves its radius by at most a tenth; the Gaussian ends at three deviations.
    assert spread.diagonal().tolist() == pytest.approx([expected, expected], rel=0.03)
    inside = kernel[30 - int(radius / 2) : 31 + int(radius / 2), 30]
    assert inside.tolist() == pytest.approx([1 / (math.pi * radius**2)] * len(inside), rel=0.03)


def test_a_streak_fades_along_its_direction() -> None:
    points = _point(101).expand(64, -1, -1, -1)
    found = motion_blur(points, (80, 20), 0.5, _draws(*range(64)))
    fade = [math.exp(-(d**2) / (2 * 10**2)) for d in range(41)]  # of pixels along it, to the radius 40
    length = sum(d * f for d, f in enumerate(fade)) / sum(fade)
    angles, across = [], []
    for kernel in found[:, 0]:
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)
        (x, y), spread = _moments(kernel)
        angles.append(math.degrees(math.atan(y / x)))
        assert math.hypot(x, y) == pytest.approx(length, abs=0.5)  # the grid lies askew
        across.append(float(torch.linalg.eigvalsh(spread)[0]))
    assert -45.5 < min(angles) < -35 and 35 < max(angles) < 45.5
    # One pixel wide: a triangle from -1 to 1 has the variance 1 / 6, what a grid takes of it between 0 and 1 / 4.
    assert sum(across) / 64 == pytest.approx(1 / 6, abs=0.03) and max(across) < 0.27


@pytest.mark.parametrize("thick", [0.5, 2.0])
def test_fog_is_a_veil_from_nothing_to_its_thickness(thick: float) -> None:
    level = 0.4
    flat = fog(torch.full((3, 3, 24, 16), level), (thick, 1.75), 1.0, _draws(0, 1, 2)).double()
    # (level + thick * veil) * most / (most + thick), where the veil goes from 0 to 1.
    assert flat.amin((2, 3)).flatten().tolist() == pytest.approx([level**2 / (level + thick)] * 9, abs=1e-6)
    assert flat.amax((2, 3)).flatten().tolist() == pytest.approx([level] * 9, abs=1e-6)
    assert torch.equal(flat[:, 0], flat[:, 1]) and not torch.equal(flat[0], flat[1])


def test_finer_clouds_are_weaker() -> None:
    """Of a veil whose finer grids vanish only a grid of four corners is left, of any decay the finest in its share."""
    rough = []
    for decay in (1.0, 2.0, 4.0):
        veil = fog(torch.ones(8, 1, 64, 64), (1e6, decay), 1.0, _draws(*range(8))).double()
        rough.append(float(veil.diff(dim=3).square().mean().sqrt()))
    assert rough[0] > 1.5 * rough[1] > 2 * rough[2]
    corners = fog(torch.ones(1, 1, 33, 33), (1e6, 1e6), 1.0, _draws(0))[0, 0]
    torch.testing.assert_close(corners[16], (corners[0] + corners[32]) / 2, rtol=0, atol=1e-4)
