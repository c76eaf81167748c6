"""Losses by name: sums such as "ce+dice" or "0.5*ce+lovasz"."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

from torch import Tensor

from srattn.errors import SrattnError, nearest
from srattn.tasks.losses.boundary import boundary
from srattn.tasks.losses.common import VOID, matched
from srattn.tasks.losses.pixels import cross_entropy, focal
from srattn.tasks.losses.regions import dice, lovasz
from srattn.tasks.losses.structure import structure

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "boundary": boundary,
    "structure": structure,
}
_WEIGHTED = ("ce", "focal")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TERM = re.compile(rf"\s*(?:({_NUMBER})\s*\*)?\s*([A-Za-z_]\w*)\s*(\+|$)")


def list_losses() -> list[str]:
    """Every name that `parse_loss` knows."""
    return list(_LOSSES)


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A weighted sum of losses.

    Attributes:
        name: the sum as text, which `parse_loss` reads again.
        terms: factor and name of each.
        weight: (K,), of the classes, for the terms "ce" and "focal".
        label_smoothing: of the term "ce"; the others have nothing to smooth.
        ignore_index: the class of pixels that count nowhere.
    """

    terms: tuple[tuple[float, str], ...]
    weight: Tensor | None = None
    label_smoothing: float = 0.0
    ignore_index: int = VOID

    @property
    def name(self) -> str:
        return "+".join(name if factor == 1 else f"{factor:g}*{name}" for factor, name in self.terms)

    @property
    def smooths(self) -> bool:
        """Whether the label smoothing makes a difference."""
        return self.label_smoothing > 0 and any(name == "ce" for _, name in self.terms)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """`logits` (B, K, h, w), `target` (B, H, W), int64. Returns a scalar."""
        logits = matched(logits, target)  # once for all terms
        total = None
        for factor, name in self.terms:
            options = {"ignore_index": self.ignore_index}
            options |= {"weight": self.weight} if name in _WEIGHTED else {}
            options |= {"label_smoothing": self.label_smoothing} if name == "ce" else {}
            value = factor * _LOSSES[name](logits, target, **options)
            total = value if total is None else total + value
        assert total is not None
        return total


def parse_loss(
    text: str, *, weight: Tensor | None = None, label_smoothing: float = 0.0, ignore_index: int = VOID
) -> Loss:
    """The loss that `text` names: terms joined by "+", each a name or a factor, "*" and a name.

    Raises:
        SrattnError: an unknown name (with the nearest), text that is no such sum, or a factor that is not above 0.
    """
    terms, place, joined = [], 0, True
    while joined:
        match = _TERM.match(text, place)
        if match is None:
            raise SrattnError(f"no loss can be read from {text!r}; write it as in ce, ce+dice or 0.5*ce+lovasz")
        factor, name = float(match[1] or 1), match[2]
        if name not in _LOSSES:
            raise SrattnError(f"no loss {name!r}{nearest(name, _LOSSES)}; there are: {', '.join(_LOSSES)}")
        if not 0 < factor < math.inf:
            raise SrattnError(f"the factor of {name} must be above 0, got {factor:g} in {text!r}")
        terms.append((factor, name))
        place, joined = match.end(), match[3] == "+"
    if not 0 <= label_smoothing < 1:
        raise SrattnError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
    return Loss(tuple(terms), weight, label_smoothing, ignore_index)
