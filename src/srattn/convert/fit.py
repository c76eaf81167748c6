"""Fitting converted tensors to a model: what is loaded, adapted, resized, left out. All is decided before a change."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from srattn.convert.infer import first_convolution
from srattn.convert.layouts.base import Layout
from srattn.errors import SrattnError
from srattn.layers.position import resize_grid
from srattn.layers.relative_position import resize_pairs
from srattn.ops.decomposed import stretched

_STAGE = re.compile(r"stages\.(\d+)\.")
_POSITION = re.compile(r"stages\.\d+\.position\.weight|class_position")
_PAIRS = re.compile(r"stages\.\d+\.position_bias\.weight")
_TABLE = re.compile(r"stages\.\d+\.blocks\.\d+\.attn\.position\.(rows|columns)")
_CLASS = ("class_token", "class_position")


@dataclass
class Fit:
    """Tensors for the model by its own keys, and the report's lists."""

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)


class Mismatch(SrattnError):
    """A tensor that the model has no place for, or of another shape; the loader adds which model would fit."""


@dataclass(frozen=True)
class Fitter:
    """The rules of fitting for one load.

    wanted: the model's own state. layout: where the tensors came from. names: our key -> their keys, for messages.
    """

    wanted: Mapping[str, torch.Tensor]
    layout: Layout
    names: Mapping[str, Sequence[str]]
    strict: bool
    keep_head: bool
    features_only: bool

    def fit(self, state: Mapping[str, torch.Tensor]) -> Fit:
        """Checks every tensor of `state` and of the model in turn.

        Raises:
            Mismatch: the first key that does not fit.
        """
        result = Fit()
        for key in self.wanted:
            if key in state:
                self._take(key, state[key], result)
            elif self._may_miss(key):
                result.missing.append(key)
            else:
                raise self._missing(key)
        for key, tensor in state.items():
            if key not in self.wanted:
                self._leave(key, tensor, result)
        return result

    def _take(self, key: str, tensor: torch.Tensor, result: Fit) -> None:
        target = self.wanted[key]
        if key.startswith("head.") and self.keep_head:
            result.unexpected.append(key)
            result.adapted[key] = "the model's own classifier is kept"
            return
        if tensor.shape == target.shape:
            result.values[key] = tensor
        elif key == first_convolution(self.wanted) and _differ_in_channels(tensor, target):
            result.values[key] = adapt_channels(tensor, target.shape[1])
            result.adapted[key] = _describe_channels(tensor.shape[1], target.shape[1])
        elif _POSITION.fullmatch(key) and _differ_in_grid(tensor, target):
            result.values[key] = resize_grid(tensor, target.shape[1], target.shape[2])  # as published
            result.resized[key] = f"{_by(tensor.shape[1:3])} -> {_by(target.shape[1:3])}"
        elif _PAIRS.fullmatch(key) and tensor.ndim == target.ndim == 5 and tensor.shape[0] == target.shape[0]:
            height, width, key_height, key_width = target.shape[1:]
            result.values[key] = resize_pairs(tensor, (height, width), (key_height, key_width)).view(target.shape)
            result.resized[key] = f"{_by(tensor.shape[1:3])} -> {_by(target.shape[1:3])}"
        elif _TABLE.fullmatch(key) and tensor.ndim == 2 and tensor.shape[0] and tensor.shape[1] == target.shape[1]:
            result.values[key] = stretched(tensor, target.shape[0])
            result.resized[key] = f"{tensor.shape[0]} -> {target.shape[0]}"
        elif key.startswith("head.") and not self.strict:
            result.unexpected.append(key)
            result.adapted[key] = f"classifier of another size {tuple(tensor.shape)}; the model's own is kept"
        else:
            raise self._misshapen(key, tensor)

    def _may_miss(self, key: str) -> bool:
        if not self.strict or (self.keep_head and key.startswith("head.")):
            return True
        # A backbone's layout without a final norm can still fill a model that needs no trained classifier.
        no_classifier = self.keep_head or "head.weight" not in self.wanted
        return key.startswith("norm.") and self.layout.has_no_place_for(key) and no_classifier

    def _leave(self, key: str, tensor: torch.Tensor, result: Fit) -> None:
        """A tensor of the checkpoint that the model has no key for."""
        if key in _CLASS:
            reason = "dropped: the model has no class token"
        elif key.startswith("head.") and "head.weight" not in self.wanted:
            reason = "left out: the model has no classifier"
        elif self.features_only and self._beyond(key):
            reason = "left out: the model returns no feature map that needs it"
        elif self.strict:
            raise Mismatch(f"the model has no place for {self._name(key)} {tuple(tensor.shape)}")
        else:
            reason = ""
        result.unexpected.append(key)
        if reason:
            result.adapted[key] = reason

    def _beyond(self, key: str) -> bool:
        stage = _STAGE.match(key)
        stages = {int(found[1]) for name in self.wanted if (found := _STAGE.match(name))}
        return stage is None or int(stage[1]) > max(stages)

    def _missing(self, key: str) -> SrattnError:
        if key in _CLASS:
            return SrattnError(f"these weights have no class token ({key!r}); build the model with class_token=False")
        if self.layout.has_no_place_for(key):
            return SrattnError(
                f"the {self.layout.name} layout has no {key!r}, which a classifier needs; build the model with "
                'num_classes=0 or features_only=True, or keep its own classifier with head="keep"'
            )
        if key.startswith("head."):
            return SrattnError(f'these weights have no classifier ({key!r}); keep the model\'s own with head="keep"')
        return Mismatch(f"these weights have no {key!r} {tuple(self.wanted[key].shape)}")

    def _misshapen(self, key: str, tensor: torch.Tensor) -> SrattnError:
        shapes = f"{self._name(key)} is {tuple(tensor.shape)}, the model's is {tuple(self.wanted[key].shape)}"
        if not key.startswith("head.") or tensor.ndim == 0:
            return Mismatch(shapes)
        return SrattnError(f'{shapes}; build it with num_classes={tensor.shape[0]}, or keep its own with head="keep"')

    def _name(self, key: str) -> str:
        theirs = [name for name in self.names.get(key, ()) if name != key]
        return f"{key!r} (their {', '.join(map(repr, theirs))})" if theirs else repr(key)


def adapt_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A first convolution (C, n, k, k) for images of `channels`, by timm's convention.

    One channel is the sum over the n; any other count repeats them and scales by n / channels. An image whose channels
    are alike gives the same features as before where n divides the count, and nearly those elsewhere.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    known = weight.shape[1]
    repeated = weight.repeat(1, math.ceil(channels / known), 1, 1)[:, :channels]
    return repeated * (known / channels)


def _differ_in_channels(tensor: torch.Tensor, target: torch.Tensor) -> bool:
    return tensor.ndim == 4 and tensor.shape[0] == target.shape[0] and tensor.shape[2:] == target.shape[2:]


def _differ_in_grid(tensor: torch.Tensor, target: torch.Tensor) -> bool:
    return tensor.ndim == target.ndim == 4 and tensor.shape[0] == target.shape[0] and tensor.shape[3] == target.shape[3]


def _describe_channels(known: int, channels: int) -> str:
    if channels == 1:
        return f"summed over {known} channels"
    return f"{known} channels repeated to {channels}, scaled by {known}/{channels}"


def _by(grid: Sequence[int]) -> str:
    return "x".join(map(str, grid))
