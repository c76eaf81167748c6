"""How windows lie on an image, and how their answers become one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from srattn.errors import SrattnError, nearest

_CHOICES = {
    "weighting": ("cosine", "linear", "uniform"),
    "padding": ("reflect", "edge"),
    "average": ("probabilities", "logits"),
}
_LARGEST, _SMALLEST_SCALE, _LARGEST_SCALE = 8192, 1 / 16, 16.0


@dataclasses.dataclass(frozen=True)
class Sliding:
    """Options of `slide`.

    Attributes:
        window: height and width of every input of the model. By default the model's `img_size`, and the whole image
            at once where that has at most twice as many pixels, filled up to `multiple`.
        overlap: share of a window that its neighbour sees too, at least.
        weighting: how the answers of a window fade towards its border where others overlap it.
        padding: what continues an image beyond its right and lower border, where a window reaches there.
        multiple: windows of scale 1 start at multiples of so many pixels (as far as they overlap so little), so that
            the grids of their maps meet; the stride of the coarsest map.
        scales: the image is seen at all of these sizes, 1 is its own, and the answers are averaged.
        flips: average with the answer for the mirrored window, left and right exchanged.
        batch_size: windows that the model takes at once.
        average: what is averaged over windows, flips and scales.
    """

    window: tuple[int, int] | None = None
    overlap: float = 0.25
    weighting: str = "cosine"
    padding: str = "reflect"
    multiple: int = 32
    scales: tuple[float, ...] = (1.0,)
    flips: bool = False
    batch_size: int = 1
    average: str = "probabilities"

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise SrattnError(f"sliding: {field} must be one of {choices}, got {getattr(self, field)!r}")
        if self.window is not None:
            object.__setattr__(self, "window", _sides(self.window))
        if not isinstance(self.scales, list | tuple):
            raise SrattnError(f"sliding: scales must be a list of numbers, got {self.scales!r}")
        object.__setattr__(self, "scales", tuple(self.scales))
        if not 0 <= self.overlap <= 0.9:
            raise SrattnError(f"sliding: overlap must be a share from 0 to 0.9, got {self.overlap!r}")
        if self.multiple < 1 or self.batch_size < 1:
            raise SrattnError(
                f"sliding: multiple and batch_size must be at least 1, got {self.multiple} and {self.batch_size}"
            )
        good = [math.isfinite(s) and _SMALLEST_SCALE <= s <= _LARGEST_SCALE for s in self.scales]
        if not good or not all(good):
            raise SrattnError(f"sliding: scales must be one or more numbers from 1/16 to 16, got {self.scales}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Sliding:
        """From keyword arguments, unknown ones refused with the nearest name."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise SrattnError(f"sliding: no option {name!r}{nearest(name, names)}; options: {', '.join(names)}")
        return cls(**values)


def training_window(model: object) -> tuple[int, int]:
    """The size that a model, or the backbone in it, says it was made for.

    Raises:
        SrattnError: it says none.
    """
    for owner in (model, getattr(model, "backbone", None)):
        size = getattr(owner, "img_size", None)
        if size is not None:
            return _sides((size, size) if isinstance(size, int) else size)
    raise SrattnError(f"{type(model).__name__} has no `img_size` to take the window from: give window=(height, width)")


def _sides(window: Any) -> tuple[int, int]:
    sides = tuple(window) if isinstance(window, list | tuple) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= _LARGEST for side in sides):
        raise SrattnError(f"sliding: window must be two numbers of pixels from 1 to {_LARGEST}, got {window!r}")
    return sides
