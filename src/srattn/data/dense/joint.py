"""Random changes to an image and everything that is known of it, drawn from (seed, epoch, index) and nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from srattn.data import randaugment
from srattn.data.dense.target import Target
from srattn.data.dense.warp import warp_image
from srattn.data.geometry import kornia_transform
from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError, nearest

DRAWS = 16
"""Random numbers an image: 0 scale, 1-2 place, 3 flip, 4 angle, 5-7 jitter, 8 upside down."""
TOKENS = {
    "none": "nothing but the cut to the training size, in the middle",
    "scale": "sizes, as parts of the size that is measured with: LOW-HIGH (0.5-2)",
    "flip": "mirror image, left for right, with this probability (0.5)",
    "flipv": "the image upside down with this probability (0.5)",
    "rotate": "turned by up to so many degrees (10)",
    "jitter": "brightness, contrast and saturation by up to this part more or less (0.4)",
}
"""What each token of `parse_joint` means, with the value that stands for a bare name."""


@dataclasses.dataclass(frozen=True)
class JointAugment:
    """A window of `preprocess.size` out of the scaled, turned and mirrored image, and the same of its target.

    Attributes:
        scale: the smallest and the largest size, where 1 is how the image is measured.
        flip, flipv: probabilities of mirror images, left for right and upside down.
        rotate: largest turn in degrees.
        jitter: as in `srattn.data.augment.Augment`.
    """

    preprocess: Preprocess
    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    flipv: float = 0.0
    rotate: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0.05 <= low <= high <= 20:
            raise SrattnError(f"augment: scale must be two rising numbers from 0.05 to 20, got {low:g}-{high:g}")
        for name, most in {"flip": 1, "flipv": 1, "rotate": 180, "jitter": 1}.items():
            if not 0 <= getattr(self, name) <= most:
                raise SrattnError(f"augment: {name} must be from 0 to {most}, got {getattr(self, name):g}")
        kornia_transform()  # missed now, and not at the first batch

    @property
    def mixes(self) -> bool:
        return False

    def matrix(self, size: tuple[int, int], draws: Sequence[float]) -> Tensor:
        """(2, 3) float64, from (x, y) of an image of `size` (height, width) to the window."""
        (height, width), (rows, columns) = size, self.preprocess.size
        low, high = self.scale
        factor = self.preprocess.factor(height, width) * math.exp(
            math.log(low) + draws[0] * (math.log(high) - math.log(low))
        )
        # The window's middle, in the image; where the image is smaller than the window, anywhere that shows all of it.
        middle = []
        for side, window, draw in ((width, columns / factor, draws[1]), (height, rows / factor, draws[2])):
            room = side - window
            middle.append(window / 2 + (draw if self._moves else 0.5) * room)
        angle = math.radians((2 * draws[4] - 1) * self.rotate)
        across = -1.0 if draws[3] < self.flip else 1.0
        down = -1.0 if draws[8] < self.flipv else 1.0
        cos, sin = factor * math.cos(angle), factor * math.sin(angle)
        linear = torch.tensor([[across * cos, -across * sin], [down * sin, down * cos]], dtype=torch.float64)
        offset = torch.tensor([columns / 2, rows / 2], dtype=torch.float64) - linear @ torch.tensor(
            middle, dtype=torch.float64
        )
        return torch.cat([linear, offset.unsqueeze(1)], 1)

    @property
    def _moves(self) -> bool:
        """Whether windows lie anywhere; without any change asked for they lie in the middle."""
        return self.scale != (1.0, 1.0) or bool(self.flip or self.flipv or self.rotate or self.jitter)

    def scene(self, image: Tensor, target: Target, draws: Tensor) -> tuple[Tensor, Target]:
        """uint8 (C, h, w) with its target to float32 (C, H, W) in [0, 1] with the same of the target."""
        values = draws.tolist()
        matrix = self.matrix((image.shape[1], image.shape[2]), values)
        fill = torch.tensor(self.preprocess.mean)
        window = warp_image(image, matrix, self.preprocess.size, fill)
        if self.jitter:
            window = randaugment.jitter(window.unsqueeze(0), draws[5:8].unsqueeze(0), self.jitter)[0]
        return window, target.moved(matrix, self.preprocess.size)


def parse_joint(spec: str, preprocess: Preprocess, kind: type[JointAugment] = JointAugment) -> JointAugment:
    """A `JointAugment`, or another `kind` of it, from "scale=0.5-2,flip,jitter=0.4": NAME or NAME=VALUE of `TOKENS`
    with commas between.

    Raises:
        SrattnError: an unknown token, or a value that is no number or out of range.
    """
    tokens: dict[str, str | None] = {}
    for part in filter(None, (part.strip() for part in spec.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in TOKENS:
            hint = nearest(name, TOKENS) or f"; known are {', '.join(TOKENS)}"
            raise SrattnError(f"augment: unknown {name!r} for scenes{hint}")
        if name in tokens:
            raise SrattnError(f"augment: {name} stands twice in {spec!r}; leave one of them")
        tokens[name] = value if equals else None
    if "none" in tokens and len(tokens) > 1:
        raise SrattnError(f"augment: none stands alone, got {', '.join(tokens)}")
    if tokens.get("none") is not None:
        raise SrattnError(f"augment: none takes no value, got {tokens['none']!r}; leave it out")
    defaults = {"flip": 0.5, "flipv": 0.5, "rotate": 10.0, "jitter": 0.4}
    values = {name: _number(name, tokens[name], defaults[name]) for name in defaults if name in tokens}
    low, high = (tokens["scale"] or "0.5-2").partition("-")[::2] if "scale" in tokens else ("1", "1")
    scale = (_number("scale", low, 1.0), _number("scale", high or low, 1.0))
    return kind(preprocess, scale=scale, **values)


def _number(name: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SrattnError(f"augment: {name} takes a number, got {text!r} ({TOKENS[name]})")
    return value
