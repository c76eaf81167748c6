"""Recipes: options of `srattn train` in YAML, each with its command, cost, result and source.

A file holds two keys: `about` (see `About`) and `config`, the options that differ from the defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from srattn.errors import SrattnError, nearest

_FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class About:
    """What a recipe says of itself.

    Attributes:
        title: what it trains, in a line.
        command: what to type.
        cost: time and machine.
        result: what comes out; for a published recipe what its authors report.
        source: where the figures come from.
        run_here: whether the result was measured with this package.
        notes: what else to know, above all where this package differs from the published code.
        sizes: other sizes of the same model with their published result and the options that differ; "model" and
            "top1" (per cent) in each.
    """

    title: str
    command: str
    cost: str
    result: str
    source: str
    run_here: bool
    notes: tuple[str, ...] = ()
    sizes: tuple[Mapping[str, Any], ...] = ()


def names() -> list[str]:
    """The recipes that come with the package, ascending."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def path(name: str) -> Path:
    """The file of a recipe.

    Raises:
        SrattnError: no such recipe.
    """
    # A name, never a path: it comes from a command line and is joined to a folder.
    if name not in names():
        hint = nearest(name, names()) or f"; there are {', '.join(names())}"
        raise SrattnError(f"no recipe {name!r}{hint}")
    return _FOLDER / f"{name}.yaml"


def text(name: str) -> str:
    """The YAML of a recipe.

    Raises:
        SrattnError: no such recipe.
    """
    return path(name).read_text(encoding="utf-8")


def describe(name: str) -> About:
    """What a recipe says of itself.

    Raises:
        SrattnError: no such recipe, or a file that does not say it.
    """
    about = dict(_content(name)["about"])
    try:
        about["notes"], about["sizes"] = tuple(about.get("notes", ())), tuple(about.get("sizes", ()))
        return About(**about)
    except TypeError as error:
        raise SrattnError(f"recipe {name}: {error}") from None


def load(name: str) -> dict[str, Any]:
    """The options of a recipe, as `TrainConfig` takes them.

    Raises:
        SrattnError: no such recipe.
    """
    return dict(_content(name)["config"])


def _content(name: str) -> dict[str, Any]:
    content = yaml.safe_load(text(name))
    if not isinstance(content, dict) or set(content) != {"about", "config"}:
        raise SrattnError(f"recipe {name}: expected the keys about and config")
    return content
