"""Adapters as small files, with what else was trained beside them (a new classifier, say)."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from srattn.convert.source import read_file
from srattn.convert.tensor_file import write_tensors
from srattn.engine.lora import load_lora, lora_state
from srattn.errors import SrattnError
from srattn.files import atomic_path
from srattn.version import __version__

_ADAPTER, _BESIDE = "lora.", "beside."


def save_lora(path: str | os.PathLike[str], model: nn.Module, also: Sequence[str] = (), overwrite: bool = False) -> int:
    """Writes the adapters of `model` as safetensors.

    Args:
        also: patterns of further tensors of the state dict that were trained, as "head.*".

    Returns:
        The bytes of the file.

    Raises:
        SrattnError: no adapters, a pattern without a tensor, another suffix than .safetensors, or an existing file.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise SrattnError(f"adapters are written as .safetensors, got {path.name!r}")
    state = {_ADAPTER + name: tensor for name, tensor in lora_state(model).items()}
    own = _without_adapters(model)
    for pattern in also:
        names = fnmatch.filter(own, pattern)
        if not names:
            raise SrattnError(f"no tensor of the model matches {pattern!r}")
        state |= {_BESIDE + name: own[name].detach() for name in names}
    facts = {"model": getattr(model, "config", None), "version": __version__}
    with atomic_path(path, overwrite) as aside:
        write_tensors(aside, state, {"format": "pt", "srattn_lora": json.dumps(facts)})
        return aside.stat().st_size


def read_lora(path: str | os.PathLike[str], model: nn.Module) -> list[nn.Parameter]:
    """Loads a file of `save_lora` into `model`, which has the same adapters, or none yet.

    Returns:
        The adapters' parameters.

    Raises:
        SrattnError: no such file, or tensors that do not fit the model, which then is unchanged.
    """
    read, _ = read_file(Path(path))
    tensors = {name: tensor for name, tensor in read.items() if isinstance(tensor, Tensor)}
    own, beside, adapters = _without_adapters(model), {}, {}
    for name, tensor in tensors.items():
        if name.startswith(_ADAPTER):
            adapters[name.removeprefix(_ADAPTER)] = tensor
            continue
        inner = name.removeprefix(_BESIDE)
        if inner == name or inner not in own:
            raise SrattnError(f"{path}: {name!r} is no adapter, and no tensor of this model")
        if own[inner].shape != tensor.shape or own[inner].is_floating_point() != tensor.is_floating_point():
            raise SrattnError(f"{path}: {inner} is {tuple(tensor.shape)}, the model's {tuple(own[inner].shape)}")
        beside[inner] = tensor
    try:
        parameters = load_lora(model, adapters)
    except SrattnError as error:
        raise SrattnError(f"{path}: {error}") from None
    with torch.no_grad():
        for name, tensor in beside.items():
            own[name].copy_(tensor)
    return parameters


def beside_adapters(model: nn.Module, name: str) -> bool:
    """Whether a run with adapters trains the parameter `name` of `model` as well: the head, or, of a model of another
    task than classes, all that is behind its backbone."""
    config: dict[str, object] = model.config  # type: ignore[assignment]
    return not name.startswith("backbone.") if "backbone" in config else name.startswith("head.")


def _without_adapters(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are no part of an adapted weight."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".parametrizations." not in name}
