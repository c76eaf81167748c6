"""Common corruptions of images at five severities, the same for an image on every run and in every batch.

Kinds and strengths follow ImageNet-C and, below 96 pixels, CIFAR-10-C (Hendrycks and Dietterich, arXiv:1903.12261);
the code is ours and fog has another texture, so accuracies are near theirs and not equal. Blurs are in pixels of
a picture of 224, and scale with the side of larger and smaller ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.data.keyed import seed_of
from srattn.data.preprocess import to_image, to_tensor
from srattn.errors import SrattnError, missing_extra, nearest

SEVERITIES = (1, 3, 5)
_SMALL, _USUAL = 96, 224  # pixels
_SEED = 20190328  # of all draws; a constant, so that figures of two runs compare

Generators = list[torch.Generator]
Strength = tuple[float, ...]


def corrupt(images: Tensor, kind: str, severity: int, indices: Iterable[int]) -> Tensor:
    """Images (B, C, H, W) in [0, 1], corrupted and rounded to 8 bits.

    Args:
        kind: one of `CORRUPTIONS`.
        severity: 1 to 5.
        indices: the number of each image in its data set; chooses what is drawn for it, with the kind alone.

    Raises:
        SrattnError: an unknown kind or severity, or kornia is not installed.
    """
    if kind not in CORRUPTIONS:
        raise SrattnError(f"no corruption {kind!r}{nearest(kind, CORRUPTIONS)}; there are {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise SrattnError(f"severity is 1 to 5, got {severity}")
    apply, large, small = CORRUPTIONS[kind]
    side = min(images.shape[-2:])
    strengths = small if side < _SMALL else large
    number = list(CORRUPTIONS).index(kind)
    generators = [torch.Generator().manual_seed(seed_of(_SEED, number, int(index))) for index in indices]
    if len(generators) != len(images):
        raise SrattnError(f"{len(images)} images need as many indices, got {len(generators)}")
    scale = 1.0 if side < _SMALL else side / _USUAL
    corrupted = apply(images.cpu().float(), strengths[severity - 1], scale, generators)
    return ((corrupted.clamp(0, 1) * 255).round() / 255).to(images)


def gaussian_noise(images: Tensor, strength: Strength, scale: float, generators: Generators) -> Tensor:
    """Normal noise of a standard deviation, the same at every level."""
    return images + strength[0] * _normal(images, generators)


def shot_noise(images: Tensor, strength: Strength, scale: float, generators: Generators) -> Tensor:
    """The noise of counting photons: Poisson with `strength` counts at full level."""
    counts = [torch.poisson(x * strength[0], g) for x, g in zip(images, generators, strict=True)]
    return torch.stack(counts) / strength[0]


def gaussian_blur(images: Tensor, strength: Strength, scale: float, generators: Generators) -> Tensor:
    return _blurred(images, strength[0] * scale)


def defocus_blur(images: Tensor, strength: Strength, scale: float, generators: Generators) -> Tensor:
    """A disc of a radius, softened by a Gaussian."""
    radius, soft = strength[0] * scale, strength[1]
    reach = math.ceil(radius + 3 * soft)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32)
    # A pixel at the rim counts by about the part of it that lies inside.
    disc = (radius + 0.5 - (axis[:, None] ** 2 + axis[None] ** 2).sqrt()).clamp(0, 1)
    kernel = _blurred(disc[None, None], soft)[0]
    return _filters().filter2d(images, kernel / kernel.sum(), border_type="replicate")


def motion_blur(images: Tensor, strength: Strength, scale: float, generators: Generators) -> Tensor:
    """A streak that fades along a direction within 45 degrees of the horizontal, another for each image."""
    radius, sigma = strength[0] * scale, strength[1] * scale
    reach = math.ceil(radius)
    angles = torch.stack([(torch.rand((), generator=g) - 0.5) * (math.pi / 2) for g in generators])
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cosine, sine = angles.cos().view(-1, 1, 1), angles.sin().view(-1, 1, 1)
    along, across = x * cosine + y * sine, y * cosine - x * sine
    fade = torch.exp(-(along**2) / (2 * max(sigma, 1e-3) ** 2)) * (along >= -0.5) * (along <= radius + 0.5)
    kernels = fade * (1 - across.abs()).clamp(min=0)  # a line one pixel wide
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    return _filters().filter2d(images, kernels, border_type="replicate")


def jpeg(images: Tensor, strength: Strength, scale: float, generators: Generators) -> Tensor:
    """Saved as JPEG of a quality and read again."""
    import io

    from PIL import Image

    read = []
    for pixels in (images.clamp(0, 1) * 255).round().byte():
        file = io.BytesIO()
        to_image(pixels).save(file, "JPEG", quality=int(strength[0]))
        with Image.open(file) as picture:
            read.append(to_tensor(picture))
    return torch.stack(read).float() / 255


def contrast(images: Tensor, strength: Strength, scale: float, generators: Generators) -> Tensor:
    """Each channel drawn towards its mean."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + (images - mean) * strength[0]


def brightness(images: Tensor, strength: Strength, scale: float, generators: Generators) -> Tensor:
    """The value of HSV raised; hue and saturation stay."""
    value = images.amax(1, keepdim=True)
    raised = (value + strength[0]).clamp(max=1)
    return torch.where(value > 0, images * raised / value.clamp(min=1e-6), raised)


def fog(images: Tensor, strength: Strength, scale: float, generators: Generators) -> Tensor:
    """A veil of clouds: noise on grids of 2, 4, 8 ... cells, each finer one weaker by a factor."""
    thick, decay = strength
    height, width = images.shape[2:]
    octaves = max(1, math.ceil(math.log2(max(height, width))) - 1)
    veil = torch.zeros(len(images), 1, height, width)
    for octave in range(octaves):
        cells = 2 ** (octave + 1)
        grid = torch.stack([torch.rand(1, cells, cells, generator=g) for g in generators])
        veil += F.interpolate(grid, (height, width), mode="bicubic", align_corners=True) * decay**-octave
    low, high = veil.amin((2, 3), keepdim=True), veil.amax((2, 3), keepdim=True)
    veil = (veil - low) / (high - low).clamp(min=1e-6)
    most = images.amax((1, 2, 3), keepdim=True)
    return (images + thick * veil) * most / (most + thick).clamp(min=1e-6)


def pixelate(images: Tensor, strength: Strength, scale: float, generators: Generators) -> Tensor:
    """Shrunk to a part of its side by area, and grown again without smoothing."""
    height, width = images.shape[2:]
    small = (max(1, round(height * strength[0])), max(1, round(width * strength[0])))
    return F.interpolate(F.interpolate(images, small, mode="area"), (height, width), mode="nearest")


def _normal(images: Tensor, generators: Generators) -> Tensor:
    return torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators])


def _blurred(images: Tensor, sigma: float) -> Tensor:
    if sigma <= 0:
        return images
    side = 2 * math.ceil(3 * sigma) + 1
    return _filters().gaussian_blur2d(images, (side, side), (sigma, sigma), border_type="replicate")


def _filters() -> ModuleType:
    try:
        from kornia import filters
    except ImportError:
        raise missing_extra("kornia", "train") from None
    return filters


Apply = Callable[[Tensor, Strength, float, Generators], Tensor]
Strengths = tuple[Strength, ...]


def _each(*values: float) -> Strengths:
    return tuple((value,) for value in values)


# kind -> function, and its strengths at severities 1 to 5 for usual and for small images.
CORRUPTIONS: dict[str, tuple[Apply, Strengths, Strengths]] = {
    "gaussian_noise": (gaussian_noise, _each(0.08, 0.12, 0.18, 0.26, 0.38), _each(0.04, 0.06, 0.08, 0.09, 0.1)),
    "shot_noise": (shot_noise, _each(60, 25, 12, 5, 3), _each(500, 250, 100, 75, 50)),
    "gaussian_blur": (gaussian_blur, _each(1, 2, 3, 4, 6), _each(0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": (
        defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "motion_blur": (
        motion_blur,
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "fog": (
        fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": (brightness, _each(0.1, 0.2, 0.3, 0.4, 0.5), _each(0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, _each(0.4, 0.3, 0.2, 0.1, 0.05), _each(0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (pixelate, _each(0.6, 0.5, 0.4, 0.3, 0.25), _each(0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (jpeg, _each(25, 18, 15, 10, 7), _each(80, 65, 58, 50, 40)),
}
