"""Values of options as people write them, against the types that a signature says."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from srattn.errors import SrattnError
from srattn.models.numbers import plain

_FROM_ZERO = ("auxiliary", "conv_depth", "convs", "fc_dim", "first", "mask_convs", "num_conv", "offset", "stem_depth")
"""Options that may be 0, as rates may."""


def check_values(option: str, maker: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuses values that are not of the types that the parameters of `maker` have, or are below what makes sense.

    Names that `maker` does not have, and None, which stands for the default, are passed over.

    Args:
        option: of the command line, such as "--model_options".

    Raises:
        SrattnError: it names the option, the value, and what it takes.
    """
    try:
        hints = get_type_hints(maker.__init__ if inspect.isclass(maker) else maker)
    except NameError:  # of another package, which names types that are not there when it runs
        return
    for name, value in given.items():
        hint = hints.get(name)
        if hint is None or value is None:
            continue
        words = _taken(name, hint)
        if words is not None and not _fits(plain(value), hint, name):
            raise SrattnError(f"{option}.{name} takes {words}, got {value!r}")


def _fits(value: Any, hint: Any, name: str) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, one, name) for one in get_args(hint))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if not isinstance(value, list) or len(value) != len(parts):
            return False
        return all(_fits(one, part, name) for one, part in zip(value, parts, strict=True))
    if get_origin(hint) is Sequence:
        return isinstance(value, list) and bool(value) and all(_fits(one, get_args(hint)[0], name) for one in value)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if isinstance(value, bool) or not isinstance(value, int | (float if hint is float else int)):
        return False
    if name.endswith("_rate"):
        return 0 <= value < 1
    return 0 <= value < math.inf if name in _FROM_ZERO else 0 < value < math.inf


def _taken(name: str, hint: Any) -> str | None:
    """What a parameter takes, in words; None for a type that is not known here."""
    if get_origin(hint) in (Union, types.UnionType):
        ways = [_taken(name, one) for one in get_args(hint) if one is not type(None)]
        return None if None in ways else " or ".join(map(str, ways))
    if get_origin(hint) is tuple:
        return f"a list of {len(get_args(hint))} whole numbers" if set(get_args(hint)) == {int} else None
    if get_origin(hint) is Sequence:
        each = _taken(name, get_args(hint)[0])
        return None if each is None else f"a list of which each is {each}"
    least = "from 0 to below 1" if name.endswith("_rate") else "from 0 up" if name in _FROM_ZERO else "above 0"
    return {bool: "true or false", str: "a name", int: f"a whole number {least}", float: f"a number {least}"}.get(hint)
