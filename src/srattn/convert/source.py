"""Reading checkpoints from files that strangers made: tensors only, bounded, every failure named with its file."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from srattn.errors import SrattnError

MAX_BYTES = 8 * 2**30
_MAX_TENSORS = 100_000
_MAX_JSON_BYTES = 8 * 2**20
_SAFETENSORS, _PICKLED = (".safetensors",), (".pth", ".pt", ".bin", ".ckpt", ".tar")
# How torch's restricted unpickler says that it met something other than tensors and plain containers.
_CODE_SIGNS = ("nsupported global", "nsupported GLOBAL", "unrecognized function", "Can only create", "Can only build")
# What a transformers folder may hold, in the order of preference.
_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Source:
    """A checkpoint as it was read: nested mappings of tensors, and what stood beside them."""

    state: Mapping[str, Any]
    origin: str
    metadata: Mapping[str, Any] = field(default_factory=dict)  # of our own files
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json of a transformers folder


def read_source(source: Mapping[str, Any] | str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Source:
    """Reads a state dict, a .safetensors, .pth, .pt or .bin file, or a transformers folder.

    Raises:
        SrattnError: the file is absent, broken, too large, of another kind, or a pickle that holds code.
    """
    if isinstance(source, Mapping):
        _check_tensors(source, "state dict", max_bytes)
        return Source(source, "state dict")
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, max_bytes)
    config = _config_beside(path)
    state, metadata = read_file(path, max_bytes)
    return Source(state, str(path), metadata, config)


def read_file(path: Path, max_bytes: int = MAX_BYTES) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The tensors of one file and, from our own files, its metadata."""
    if not path.is_file():
        raise SrattnError(f"{path}: no such file")
    if path.suffix not in _SAFETENSORS + _PICKLED:
        kinds = ", ".join(_SAFETENSORS + _PICKLED)
        raise SrattnError(
            f"{path}: unknown kind of checkpoint {path.suffix!r}; known: {kinds}, or a transformers folder"
        )
    if path.stat().st_size > max_bytes:
        raise SrattnError(f"{path}: {path.stat().st_size:,} bytes, refused above {max_bytes:,}")
    state, text = _read_safetensors(path) if path.suffix in _SAFETENSORS else _read_pickled(path, max_bytes)
    _check_tensors(state, str(path), max_bytes)
    return state, _metadata(path, text)


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, ValueError) as error:
        raise SrattnError(f"{path}: not a whole safetensors file ({_brief(error)})") from error
    return state, metadata.get("srattn")


def _metadata(path: Path, text: str | None) -> Mapping[str, Any]:
    """What our own files say of their model."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SrattnError(f"{path}: its srattn metadata is not JSON ({_brief(error)})") from error
    if not isinstance(value, dict):
        raise SrattnError(f"{path}: its srattn metadata is not a JSON object")
    return value


def _read_pickled(path: Path, max_bytes: int) -> tuple[Mapping[str, Any], str | None]:
    if zipfile.is_zipfile(path):
        # torch stores without compression; a compressed entry can be any size once it is unpacked.
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > max_bytes:
            raise SrattnError(f"{path}: unpacks to {unpacked:,} bytes, refused above {max_bytes:,}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in _CODE_SIGNS):
            raise SrattnError(
                f"{path}: holds pickled objects beside tensors, which could run code and are refused; "
                "save its state dict alone, best as .safetensors"
            ) from error
        raise SrattnError(f"{path}: not a whole PyTorch file ({_brief(error)})") from error
    except Exception as error:  # torch raises many kinds on a broken file
        raise SrattnError(f"{path}: not a whole PyTorch file ({_brief(error)})") from error
    if not isinstance(state, Mapping):
        raise SrattnError(f"{path}: holds a {type(state).__name__}, not a state dict")
    text = state.get("srattn")
    return state, text if isinstance(text, str) else None


def _read_folder(folder: Path, max_bytes: int) -> Source:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    for name in _FOLDER_FILES:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix == ".json":
            return Source(_read_shards(path, max_bytes), str(folder), config=config)
        state, metadata = read_file(path, max_bytes)
        return Source(state, str(folder), metadata, config)
    raise SrattnError(f"{folder}: holds none of {', '.join(_FOLDER_FILES)}")


def _read_shards(index: Path, max_bytes: int) -> dict[str, Any]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise SrattnError(f"{index}: has no weight_map")
    state: dict[str, Any] = {}
    left = max_bytes
    for name in dict.fromkeys(where.values()):
        if not isinstance(name, str) or Path(name).name != name:
            raise SrattnError(f"{index}: names the file {name!r}, which is not in its own folder")
        shard, _ = read_file(index.parent / name, left)
        left -= sum(tensor.nbytes for tensor in shard.values() if isinstance(tensor, torch.Tensor))
        state.update(shard)
    absent = next((key for key in where if key not in state), None)
    if absent is not None:
        raise SrattnError(f"{index}: {absent!r} is in none of its files")
    return state


def _config_beside(path: Path) -> Mapping[str, Any]:
    """The config.json of a transformers folder whose weights file was given itself."""
    config = path.parent / "config.json"
    return read_json(config) if path.name in _FOLDER_FILES and config.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object from a file."""
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise SrattnError(f"{path}: {path.stat().st_size:,} bytes, refused above {_MAX_JSON_BYTES:,}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SrattnError(f"{path}: not JSON ({_brief(error)})") from error
    if not isinstance(value, dict):
        raise SrattnError(f"{path}: not a JSON object")
    return value


def _check_tensors(state: Mapping[str, Any], origin: str, max_bytes: int) -> None:
    """Refuses what could not be converted, before anything is allocated for it.

    A tensor's shape may be far larger than the bytes in its file (stride 0), so the size is counted by shapes.
    """
    total, count = 0, 0
    seen: set[int] = set()  # a hostile pickle may hold a mapping in itself
    pending: list[tuple[str, Any, int]] = [(str(key), value, 0) for key, value in state.items()]
    while pending:
        key, value, depth = pending.pop()
        if isinstance(value, Mapping) and depth < 5 and id(value) not in seen:
            seen.add(id(value))
            pending += [(f"{key}.{inner}", item, depth + 1) for inner, item in value.items()]
        if not isinstance(value, torch.Tensor):
            continue
        if value.layout != torch.strided or value.is_quantized:
            raise SrattnError(f"{origin}: {key!r} is not a dense tensor ({value.layout}, {value.dtype})")
        count += 1
        if count > _MAX_TENSORS:
            raise SrattnError(f"{origin}: holds more than {_MAX_TENSORS:,} tensors, which is no model known here")
        total += value.numel() * value.element_size()
        if total > max_bytes:
            raise SrattnError(f"{origin}: its tensors are above {max_bytes:,} bytes at {key!r} {tuple(value.shape)}")


def _brief(error: BaseException) -> str:
    # torch puts advice before the reason, which we would not give.
    line = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())
    line = line.partition(" Please file an issue")[0].partition(" Check the documentation")[0]
    return line[:160] or type(error).__name__
