"""Models by name: a variant is a name and its numbers."""

import fnmatch
import inspect
import pprint
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import nn

from srattn.errors import SrattnError, nearest
from srattn.models.backbone import Backbone
from srattn.models.features import PyramidFeatures
from srattn.models.numbers import plain, whole
from srattn.models.weights import model_of, without_tag

FAMILIES = ("pvt", "pvt_v2", "twins", "mit", "cmt", "p2t", "shunted", "cvt", "mvitv2", "segformer3d")

COUNTS = ("num_classes", "in_chans", "img_size", "stem_stride")
"""Options that are whole numbers, in every family that has them."""


class Variant(NamedTuple):
    """A family's class and the numbers of one of its sizes."""

    family: Callable[..., Backbone]
    numbers: dict[str, Any]


_variants: dict[str, Variant] = {}
_loaded = False


def register_model(name: str, family: Callable[..., Backbone], **numbers: Any) -> None:
    """Adds a model to the registry: `family(**numbers, **what the user overrides)` builds it.

    Another package adds its own through the entry-point group `srattn.models`: modules that call this.
    """
    if name in _variants:
        raise SrattnError(f"model {name!r} is registered already; choose another name")
    _variants[name] = Variant(family, numbers)


def _all() -> dict[str, Variant]:
    global _loaded
    if not _loaded:
        _loaded = True
        for family in FAMILIES:
            import_module(f"srattn.models.{family}")
        for entry in entry_points(group="srattn.models"):
            entry.load()
    return _variants


def list_models(pattern: str | Sequence[str] = "*", *, dimensions: int | None = None) -> list[str]:
    """Registered names that match a shell-style pattern (or any of several), in natural order; a shell shows columns.

    `dimensions` is 2 for the models of images alone, 3 for those of volumes.
    """
    patterns = [pattern] if isinstance(pattern, str) else pattern
    names = [name for name in _all() if any(fnmatch.fnmatch(name, p) for p in patterns)]
    return _Names(name for name in names if dimensions in (None, getattr(_variants[name].family, "dimensions", 2)))


class _Names(list[str]):
    """A list that fills the lines of an interactive shell, and is Python as any other."""

    def __repr__(self) -> str:
        return pprint.pformat(list(self), width=100, compact=True)


def find_name(name: str) -> str | None:
    """The registered name that `name` means: itself, or that of the published weights that it calls (see `model_of`).

    Raises:
        SrattnError: a name of weights that there are not.
    """
    return name if name in _all() else model_of(name)


def registered_name(name: str) -> str:
    """As `find_name`; an unknown one is refused with the nearest."""
    found = find_name(name)
    if found is None:
        raise SrattnError(f"no model {name!r}{nearest(without_tag(name), _all())}; srattn.list_models() names all")
    return found


def variant(name: str) -> Variant:
    """The variant of this name, by `registered_name`."""
    return _all()[registered_name(name)]


def model_options(name: str) -> dict[str, Any]:
    """Every option of a model by name, with this variant's default."""
    family, numbers = variant(name)
    parameters = inspect.signature(family).parameters.values()
    return {p.name: numbers.get(p.name, p.default) for p in parameters}


@overload
def build_model(name: str, *, features_only: Literal[True], **options: Any) -> PyramidFeatures: ...
@overload
def build_model(name: str, *, features_only: Literal[False] = False, **options: Any) -> Backbone: ...
@overload
def build_model(name: str, *, features_only: bool = False, **options: Any) -> Backbone | PyramidFeatures: ...
def build_model(
    name: str,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    global_pool: str | None = None,
    **options: Any,
) -> Backbone | PyramidFeatures:
    """A model with fresh weights; `srattn.create_model` is this with published ones.

    Args:
        name: one of `list_models()`, or of published weights (see `model_of`), which are not loaded here.
        features_only: return a model whose forward gives the pyramid of feature maps.
        out_indices: the stages whose maps are returned, with `features_only`.
        device, dtype: where and in which floating type the parameters lie.
        global_pool: what the model pools by ("avg", or "token" with a class token), which is no setting; or None.
        options: num_classes, in_chans, img_size, drop_rate, drop_path_rate and the overrides of the family.

    Raises:
        SrattnError: an unknown name or option (with the nearest match), or numbers that do not fit together.
    """
    name = registered_name(name)
    family, _ = variant(name)
    resolved = model_options(name)
    if features_only:
        resolved |= getattr(family, "features_defaults", {})
    elif out_indices is not None:
        raise SrattnError("out_indices choose the maps of a pyramid: set features_only=True as well")
    for option, value in options.items():
        if option not in resolved:
            raise SrattnError(
                f"{name} has no option {option!r}{nearest(option, resolved)}; options are {', '.join(resolved)}"
            )
        if value is not None:
            resolved[option] = _in_numbers(option, value)
    with torch.device(device) if device is not None else _nowhere():
        model = family(**resolved)
    model.check_global_pool(global_pool)
    model.config = {"name": name} | {key: plain(value) for key, value in resolved.items()}
    if dtype is not None:
        model.to(dtype)
    return PyramidFeatures(model, out_indices) if features_only else model


class _nowhere:
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def _in_numbers(option: str, value: Any) -> Any:
    """What is given for an option, in Python's own numbers; counts are whole ones."""
    if option in COUNTS:
        return tuple(whole(v, option) for v in value) if isinstance(value, tuple | list) else whole(value, option)
    return tuple(plain(value)) if isinstance(value, tuple) else plain(value)


def count_parameters(model: nn.Module) -> int:
    """Number of parameter values."""
    return sum(p.numel() for p in model.parameters())
