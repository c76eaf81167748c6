"""A trained model as one file: weights and all that is needed to use them, without code from the file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from srattn.data.palette import Of255, Palette, standard_palette
from srattn.data.preprocess import Preprocess
from srattn.engine import run_folder
from srattn.errors import SrattnError
from srattn.models.backbone import Backbone
from srattn.tasks.models import backbone_config, backbone_name, rebuild
from srattn.version import __version__

_KEY = "srattn"


@dataclasses.dataclass
class LoadedRun:
    """A model in eval mode with its classes and preprocessing; `config` is the content of config.yaml, or empty, and
    `of_255` what 255 was in the masks that it learnt, where that is known."""

    model: Backbone
    classes: list[str]
    preprocess: Preprocess
    config: dict[str, Any]
    path: Path
    task: str = "classification"
    palette: Palette | None = None
    of_255: Of255 | None = None

    @property
    def name(self) -> str:
        """The registered name of the model, or of its backbone."""
        return backbone_name(self.model.config)


def save_weights(
    path: Path,
    model: Backbone,
    classes: list[str],
    preprocess: Preprocess,
    dtype: torch.dtype | None = None,
    *,
    task: str = "classification",
    palette: Palette | None = None,
    of_255: Of255 | None = None,
) -> None:
    """Writes safetensors in our layout; the metadata holds what `load_run` needs.

    Args:
        dtype: what floating-point values are stored in; by default what they are. `torch.float16` halves the file.

    Raises:
        SrattnError: a value that is beyond `dtype`.
    """
    from safetensors.torch import save

    facts = {
        "model": model.config,
        "norm_eps": model.norm_eps,
        "edge": model.edge,
        "classes": classes,
        "preprocess": preprocess.to_dict(),
        "version": __version__,
        **({} if task == "classification" else {"task": task}),
        **({} if palette is None else {"colours": [list(colour) for colour in palette.colours]}),
        **({} if of_255 is None else {"of_255": of_255}),
    }
    state = {name: _stored(name, tensor, dtype) for name, tensor in model.state_dict().items()}
    # One key of metadata: several are written in an order that changes from file to file.
    run_folder.write_bytes(path, save(state, metadata={_KEY: json.dumps(facts)}))


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if dtype is None or not tensor.is_floating_point():
        return tensor
    stored = tensor.to(dtype)
    if not torch.equal(stored.isfinite(), tensor.isfinite()):
        raise SrattnError(f"{name} holds values beyond the largest of {dtype}: store the weights in float32")
    return stored


def load_run(path: str | Path, device: str | torch.device = "cpu") -> LoadedRun:
    """Loads a run folder, or its model.safetensors alone; weights in half precision become float32.

    Raises:
        SrattnError: no such run, no weights in it yet, a file without our metadata, or weights that do not fit the
            model that the metadata describes.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        file = path / run_folder.WEIGHTS
        if not file.is_file():
            if (path / run_folder.CHECKPOINTS).is_dir():
                raise SrattnError(f"{path} has no {file.name} yet: finish it with srattn train --resume {path}")
            raise SrattnError(f"{path} is not a run: it has no {file.name}")
    elif not path.is_file():
        raise SrattnError(f"{path} does not exist; give a run folder or its {run_folder.WEIGHTS}")
    facts, state = _read(file)
    model = _build(file, facts, state)
    classes = _classes(file, facts, model)
    return LoadedRun(
        model=model.eval().to(device),
        classes=classes,
        preprocess=_preprocess(file, facts),
        config=_config(path),
        path=path,
        task=str(facts.get("task", "classification")),
        palette=_palette(file, facts, classes),
        of_255=known_255(facts),
    )


def _read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    except (SafetensorError, ValueError) as error:
        raise SrattnError(f"{file} is not a whole safetensors file ({error})") from None
    try:
        facts = json.loads(metadata.get(_KEY, "null"))
    except (ValueError, RecursionError):
        facts = None
    wanted = {"model", "norm_eps", "edge", "classes", "preprocess"}
    if not isinstance(facts, dict) or not wanted <= set(facts):
        raise SrattnError(f"{file} was not written by srattn train: its metadata does not describe model and classes")
    return facts, state


def _build(file: Path, facts: dict[str, Any], state: dict[str, torch.Tensor]) -> Backbone:
    config = facts["model"]
    try:
        # A hostile file must not make us allocate: the tensors present bound the blocks, shapes on "meta" the widths.
        depths = backbone_config(config).get("depths") or ()
        if sum(depths) > len(state):
            raise SrattnError(f"it has {len(state)} tensors for {sum(depths)} blocks")
        model = cast(Backbone, rebuild(config, device="meta"))
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise SrattnError(f"{name} is {_shape(found, name)} and must be {_shape(expected, name)}")
        model.load_state_dict(state, assign=True)
        model.set_norm_eps(**{kind: float(eps) for kind, eps in facts["norm_eps"].items()})
        model.set_edge(facts["edge"])
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise SrattnError(f"{file} holds a checkpoint of another model: {error}") from None
    return model


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return "x".join(map(str, shapes[name])) or "a scalar" if name in shapes else "absent"


def _classes(file: Path, facts: dict[str, Any], model: Backbone) -> list[str]:
    classes = facts["classes"]
    if not isinstance(classes, list) or len(classes) != model.num_classes:
        raise SrattnError(f"{file}: the classes do not match the model's {model.num_classes} outputs")
    return [str(name) for name in classes]


def _palette(file: Path, facts: dict[str, Any], classes: list[str]) -> Palette | None:
    """The colours of classes of pixels and boxes; standard ones where the file has none."""
    if "task" not in facts:
        return None
    colours = facts.get("colours")
    if colours is None:
        return standard_palette(classes)
    try:
        return Palette(tuple(classes), tuple(tuple(colour) for colour in colours))
    except (SrattnError, TypeError) as error:
        raise SrattnError(f"{file}: {error}") from None


def known_255(facts: Mapping[str, Any]) -> Of255 | None:
    """What a file says that 255 was in the masks; None where it says nothing of it."""
    said = facts.get("of_255")
    return said if said in ("object", "void") else None


def _preprocess(file: Path, facts: dict[str, Any]) -> Preprocess:
    try:
        preprocess = Preprocess.from_dict(facts["preprocess"])
    except (SrattnError, TypeError) as error:
        raise SrattnError(f"{file}: {error}") from None
    if preprocess.channels != backbone_config(facts["model"]).get("in_chans"):
        raise SrattnError(f"{file}: preprocessing makes {preprocess.channels} channels, the model takes another number")
    return preprocess


def _config(path: Path) -> dict[str, Any]:
    file = path / run_folder.CONFIG
    if not path.is_dir() or not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError):
        raise SrattnError(f"{file} is not valid YAML") from None
    return config if isinstance(config, dict) else {}
