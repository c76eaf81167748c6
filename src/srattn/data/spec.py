"""Augmentation written as a short string or as YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from srattn.data.augment import Augment
from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError, nearest

_DIGITS_ALIKE = {"rotate", "move", "zoom"}
TOKENS = {
    "none": "nothing at all, and nothing beside it",
    "affine": "turn, move and scale the whole picture; rotate=10 degrees, move=0.08 of the side, zoom=0.1",
    "crop": "random resized crop that keeps at least this part of the area (0.35)",
    "flip": "mirror image, left for right, with this probability (0.5)",
    "shift": "move by up to so many pixels each way, black coming in: pad and crop (4)",
    "rand": "RandAugment, OPERATIONSxSTRENGTH with a strength of 0 to 10 (2x9)",
    "jitter": "brightness, contrast and saturation by up to this part more or less (0.4)",
    "erase": "a rectangle of 2 to 33 % of the area becomes the mean colour, with this probability (0.25)",
    "mixup": "blend with a neighbour and its label, share from Beta(a, a) (0.2)",
    "cutmix": "a rectangle from a neighbour and its label, area from Beta(a, a) (1.0)",
    "mix": "the part of the images that mixup and cutmix take (1.0)",
    "rotate": "of affine: the largest turn in degrees (10)",
    "move": "of affine: the largest move as a part of the side (0.08)",
    "zoom": "of affine: the largest change of scale (0.1)",
}
"""What each token of `parse_augment` means, with the value that stands for a bare name."""

_FIELDS: dict[str, tuple[str, float, Callable[[str], float]]] = {
    "crop": ("crop_area", 0.35, float),
    "flip": ("flip", 0.5, float),
    "shift": ("pad", 4, int),
    "jitter": ("jitter", 0.4, float),
    "erase": ("erase", 0.25, float),
    "mixup": ("mixup", 0.2, float),
    "cutmix": ("cutmix", 1.0, float),
    "mix": ("mix_part", 1.0, float),
    "rotate": ("rotate", 10.0, float),
    "move": ("shift", 0.08, float),
    "zoom": ("zoom", 0.1, float),
}


def parse_augment(spec: str | Mapping[str, Any], preprocess: Preprocess) -> Augment:
    """An `Augment` from "crop=0.35,flip,rand=2x9,erase=0.25", or from a mapping with the same names.

    Tokens are NAME or NAME=VALUE with commas between; a bare name takes the value in brackets. In a mapping (YAML)
    `true` or null is a bare name and `false` leaves it out. The order of the tokens does not matter; the changes
    happen in this one:

    - `none`: nothing at all.
    - `affine`: turn, move and scale the whole picture, by up to `rotate` (10) degrees, `move` (0.08) of the side and
      `zoom` (0.1).
    - `crop` (0.35): random resized crop that keeps at least this part of the area, shapes from 3:4 to 4:3.
    - `shift` (4): move by up to so many whole pixels each way, black coming in (pad and crop, as for CIFAR).
    - `flip` (0.5): mirror image, left for right, with this probability.
    - `rand` (2x9): RandAugment, that many operations at that strength of 10.
    - `jitter` (0.4): brightness, contrast and saturation by up to this part more or less.
    - `erase` (0.25): with this probability a rectangle of 2 to 33 % of the area becomes the mean colour.
    - `mixup` (0.2), `cutmix` (1.0): blend with a neighbour, or take a rectangle from it, and its label in proportion,
      drawn from Beta(a, a); with both, half of the images each. `mix` (1.0): the part of the images that is mixed.

    Raises:
        SrattnError: an unknown token, a value that is no number or out of range, or tokens that exclude each other.
    """
    tokens = _tokens(spec) if isinstance(spec, str) else _from_mapping(spec)
    for name in tokens:
        if name not in TOKENS:
            hint = nearest(name, TOKENS) or f"; known are {', '.join(TOKENS)}"
            raise SrattnError(f"augment: unknown {name!r}{hint}")
    if "none" in tokens and len(tokens) > 1:
        raise SrattnError(f"augment: none stands alone, got {', '.join(tokens)}")
    if "affine" in tokens and "crop" in tokens:
        raise SrattnError("augment: choose one of affine and crop")
    if (stray := _DIGITS_ALIKE & tokens.keys()) and "affine" not in tokens:
        raise SrattnError(f"augment: {', '.join(sorted(stray))} belong to affine; add affine")
    if tokens.get("affine") is not None:
        raise SrattnError("augment: affine takes no value; give rotate=, move= and zoom= beside it")
    if "mix" in tokens and not {"mixup", "cutmix"} & tokens.keys():
        raise SrattnError("augment: mix is the part of the images that mixup and cutmix take; add one of them")
    kind = next((kind for kind in ("none", "affine", "crop") if kind in tokens), "whole" if tokens else "none")
    values: dict[str, Any] = {}
    for name, text in tokens.items():
        if name == "rand":
            values["rand_ops"], values["rand_magnitude"] = _rand(text)
        elif name in _FIELDS:
            field, default, convert = _FIELDS[name]
            values[field] = default if text is None else _number(name, text, convert)
    return Augment(kind, preprocess, **values)


def _tokens(spec: str) -> dict[str, str | None]:
    tokens: dict[str, str | None] = {}
    for token in filter(None, (part.strip() for part in spec.split(","))):
        name, equals, value = (part.strip() for part in token.partition("="))
        if name in tokens:
            raise SrattnError(f"augment: {name} stands twice in {spec!r}")
        tokens[name] = value if equals else None
    return tokens


def _from_mapping(spec: Mapping[str, Any]) -> dict[str, str | None]:
    return {
        str(name): None if value is None or value is True else str(value)
        for name, value in spec.items()
        if value is not False
    }


def _number(name: str, text: str, convert: Callable[[str], float]) -> float:
    try:
        return convert(text)
    except ValueError:
        kind = "a whole number" if convert is int else "a number"
        raise SrattnError(f"augment: {name} takes {kind}, got {text!r} ({TOKENS[name]})") from None


def _rand(text: str | None) -> tuple[int, float]:
    operations, _, strength = (text or "2x9").partition("x")
    return int(_number("rand", operations, int)), _number("rand", strength or "9", float)
