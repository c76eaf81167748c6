"""Heads for semantic segmentation by name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from srattn.errors import SrattnError, nearest
from srattn.heads.segformer import SegFormerHead
from srattn.heads.semantic_fpn import SemanticFPNHead
from srattn.heads.unet import UNetHead
from srattn.heads.upernet import UPerNetHead

_PLACE = ("device", "dtype")
_heads: dict[str, type[nn.Module]] = {cls.kind: cls for cls in (SegFormerHead, SemanticFPNHead, UPerNetHead, UNetHead)}


def list_heads() -> list[str]:
    """Every name that `make_head` takes."""
    return list(_heads)


def head_options(kind: str) -> dict[str, Any]:
    """The options of a head and their defaults."""
    parameters = inspect.signature(head_class(kind)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _PLACE}


def make_head(kind: str, channels: Sequence[int], num_classes: int, **options: Any) -> nn.Module:
    """A head with fresh weights: from maps [(B, C_n, H_n, W_n)], finest first, to logits (B, num_classes, H_0, W_0).

    Args:
        kind: one of `list_heads()`.
        channels: of the feature maps, finest first.
        num_classes: channels of the logits.
        options: of the head, see its class; `device` and `dtype` too.

    Raises:
        SrattnError: an unknown kind or option (with the nearest), or numbers that make no head.
    """
    cls, known = head_class(kind), head_options(kind)
    for name in options.keys() - known.keys() - set(_PLACE):
        raise SrattnError(f"a {kind} head has no option {name!r}{nearest(name, known)}; it has: {', '.join(known)}")
    return cls(channels, num_classes, **options)


def head_class(kind: str) -> type[nn.Module]:
    """The class of a head.

    Raises:
        SrattnError: an unknown kind (with the nearest).
    """
    if kind not in _heads:
        raise SrattnError(f"no head {kind!r}{nearest(kind, _heads)}; there are: {', '.join(_heads)}")
    return _heads[kind]
