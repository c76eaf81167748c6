"""Depths as picture files: whole numbers of 16 bits times a scale, or floating-point TIFF. Never resized."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srattn.data.decode import BadImage, opened_image, upright
from srattn.errors import SrattnError
from srattn.files import atomic_path

if TYPE_CHECKING:
    from PIL import Image

MILLIMETRES = 0.001
"""Metres a unit, in most data sets with depths of 16 bits; KITTI's have 1 / 256."""
_MOST = 65535


def read_depth(source: Path | bytes, scale: float = MILLIMETRES, name: str | None = None) -> Tensor:
    """The depths of a file in metres, float32 (H, W), turned upright by its EXIF tag as images are.

    Grey pictures of 8, 16 and 32 bits hold whole numbers, those in floating point (TIFF) any. 0 means unknown there,
    and is what everything becomes that is no depth: negative numbers, NaN and infinity.

    Args:
        scale: metres a unit of the file.
        name: what error messages call it; the path if not given.

    Raises:
        BadImage: unreadable, over `MAX_PIXELS`, or a picture that holds no depths: in colour, or a JPEG, whose numbers
            are not what was saved.
    """
    name = name or (str(source) if isinstance(source, Path) else "the depth")
    check_scale(scale)
    with opened_image(source, name) as opened:
        opened.load()
        if opened.format in ("JPEG", "WEBP"):
            raise BadImage(f"{name}: {opened.format} changes numbers; save depths as PNG with 16 bits")
        return _metres(upright(opened, opened), scale, name)


def _metres(image: Image.Image, scale: float, name: str) -> Tensor:
    import numpy as np

    mode = image.mode
    if not (mode in ("L", "F") or mode.startswith("I")):
        raise BadImage(
            f"{name}: a picture of mode {mode} holds no depths; save one number a pixel, as PNG with 16 bits"
        )
    metres = torch.from_numpy(np.asarray(image).astype(np.float64)) * scale
    metres = metres.to(torch.float32)  # first, since what is too large for it becomes infinite
    return torch.where(torch.isfinite(metres) & (metres > 0), metres, 0.0)


def write_depth(
    path: str | os.PathLike[str], depth: Tensor, scale: float = MILLIMETRES, overwrite: bool = False
) -> None:
    """Writes depths (H, W) in metres as a grey PNG of 16 bits, which `read_depth` reads: rounded to whole units.

    What is unknown (0, negative or no number) becomes 0; a known depth is at least one unit.

    Raises:
        SrattnError: a depth beyond what 16 bits hold, no pixel, a path of other suffix; see `srattn.files.atomic_path`.
    """
    if Path(path).suffix.lower() != ".png":
        raise SrattnError(f"{path}: depths are written as PNG, which changes no number; end the name in .png")
    image = depth_image(depth, scale, str(path))
    with atomic_path(path, overwrite) as aside:
        image.save(aside, "PNG")


def depth_image(depth: Tensor, scale: float = MILLIMETRES, name: str = "the depth") -> Image.Image:
    """Depths (H, W) in metres as a grey picture of 16 bits, as `write_depth` writes it.

    Raises:
        SrattnError: a depth beyond what 16 bits hold, or no pixel.
    """
    import numpy as np
    from PIL import Image

    check_scale(scale)
    if depth.ndim != 2 or not depth.numel() or not depth.is_floating_point():
        raise SrattnError(f"{name}: depths are floating-point (H, W), got {depth.dtype} {tuple(depth.shape)}")
    known = torch.isfinite(depth) & (depth > 0)
    units = (torch.where(known, depth, 0).double().cpu() / scale).round()
    units = torch.where(known.cpu(), units.clamp(min=1), 0)
    if (most := float(units.max())) > _MOST:
        raise SrattnError(
            f"{name}: a depth of {most * scale:g} metres is more than {_MOST} units of {scale:g}; take a larger scale"
        )
    return Image.fromarray(units.numpy().astype(np.uint16))


def unit_for(most: float) -> float:
    """Metres a unit of files that hold depths up to `most` metres: a millimetre, or a power of ten of them."""
    unit = 1  # in millimetres, whole, so that no power of ten is rounded
    while round(most / (unit * MILLIMETRES)) > _MOST:
        unit *= 10
    return unit / 1000


def check_scale(scale: float) -> float:
    """Raises: SrattnError: no length a unit."""
    if not 0 < scale < float("inf"):
        raise SrattnError(f"depth_scale is metres a unit and above 0 (0.001 of millimetres), got {scale}")
    return scale
