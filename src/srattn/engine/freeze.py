"""Leaving parts of a model out of training."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from types import MethodType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from srattn.errors import SrattnError, nearest
from srattn.models.backbone import Backbone


@dataclasses.dataclass(frozen=True)
class FreezeReport:
    """What `freeze` did.

    Attributes:
        frozen: names of the parameters that are frozen now, by earlier calls too.
        frozen_values, trained_values: how many numbers these hold, and those that are still trained.
        held: names of the batch norms whose running statistics stay as they are.
    """

    frozen: tuple[str, ...]
    frozen_values: int
    trained_values: int
    held: tuple[str, ...]

    def __str__(self) -> str:
        total = self.frozen_values + self.trained_values
        share = 100 * self.trained_values / max(total, 1)
        held = f"; {len(self.held)} batch norms keep their statistics" if self.held else ""
        return f"{self.trained_values:,} of {total:,} parameters are trained ({share:.1f}%){held}"


def freeze(model: nn.Module, patterns: Sequence[str]) -> FreezeReport:
    """Takes the gradients from the parameters that `patterns` name.

    A batch norm whose parameters are all frozen stays in eval mode, whatever `model.train()` says.

    Args:
        patterns: a module or parameter ("stages.0", "stages.1.patch_embed"), a shell-style pattern of their names
            ("stages.*.norm*"), or "backbone": all but the classifier or the dense head.

    Raises:
        SrattnError: a pattern that names nothing, with near matches, or one that leaves nothing to train.
    """
    parameters = dict(model.named_parameters())
    modules = [name for name, _ in model.named_modules() if name]
    chosen: set[str] = set()
    for pattern in patterns:
        chosen |= _matches(model, pattern, list(parameters), modules)
    if not any(p.requires_grad for name, p in parameters.items() if name not in chosen):
        raise SrattnError(f"freezing {', '.join(patterns)} leaves no parameter to train")
    for name in chosen:
        parameters[name].requires_grad_(False)
    return _report(parameters, hold_norms(model))


def hold_norms(model: nn.Module) -> list[str]:
    """Keeps every batch norm whose parameters are all frozen in eval mode; returns their names."""
    held = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and _is_frozen(module):
            module.eval()
            # A bound method, which a deep copy of the model binds to the copy.
            module.train = MethodType(_stays, module)  # type: ignore[method-assign]
            held.append(name)
    return held


def unfreeze(model: nn.Module) -> None:
    """Undoes every `freeze`: all parameters are trained, and batch norms follow `model.train()` again."""
    model.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.__dict__.pop("train", None) is not None:
            module.train(model.training)


def _stays(self: nn.Module, mode: bool = True) -> nn.Module:
    return self


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(p.requires_grad for p in own)


def _matches(model: nn.Module, pattern: str, parameters: list[str], modules: list[str]) -> set[str]:
    if pattern == "backbone" and isinstance(model, Backbone):
        return {name for name in parameters if not name.startswith("head.")}
    names = [name for name in (*modules, *parameters) if fnmatch.fnmatchcase(name, pattern)]
    found = {p for p in parameters for name in names if p == name or p.startswith(f"{name}.")}
    if found:
        return found
    if names:
        raise SrattnError(f"freeze: {pattern!r} has no parameters")
    raise SrattnError(f"freeze: nothing in the model is called {pattern!r}{_near(pattern, [*modules, *parameters])}")


def _near(pattern: str, names: list[str]) -> str:
    """The nearest name, and what stands below the longest part of the pattern that exists."""
    hint = nearest(pattern, names)
    parts = pattern.split(".")
    for count in range(len(parts) - 1, -1, -1):
        prefix = ".".join(parts[:count])
        start = f"{prefix}." if prefix else ""
        below = dict.fromkeys(n.removeprefix(start).partition(".")[0] for n in names if n.startswith(start))
        if below:
            return f"{hint}; {prefix or 'the model'} has {', '.join(below)}"
    return hint


def _report(parameters: dict[str, nn.Parameter], held: list[str]) -> FreezeReport:
    frozen = {name: p.numel() for name, p in parameters.items() if not p.requires_grad}
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    return FreezeReport(tuple(frozen), sum(frozen.values()), trained, tuple(held))
