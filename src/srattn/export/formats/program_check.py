"""What a program of torch.export may say in its JSON: torch makes code of some texts, and calls what it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from srattn.errors import SrattnError

_DROPPED = ("metadata", "guards_code")
"""Notes for whoever debugs, and conditions that torch would run as code; loading needs neither."""
# Sizes are written as formulas, which torch hands to a parser that evaluates: names of sizes, numbers, operators.
_FORMULA = (
    r"(?:Symbol\('[su]\d+'(?:, (?:positive|nonnegative|integer)=True)*\)|\b[su]\d+\b|\d+(?!\d)"
    r"|\b(?:Add|Mul|Pow|Integer|Rational|Max|Min|Mod|FloorDiv|CeilDiv|CleanDiv|PythonMod|ModularIndexing|Eq|Ne"
    r"|Equality|Unequality|LessThan|GreaterThan|StrictLessThan|StrictGreaterThan|Relational|int_oo|oo|true|false)\b"
    r"|[-+*/%(),\s<>=])*"
)
_OPERATOR = (
    r"torch\.ops\.aten\.(?!(?:from_file|save|set_|set_data|warn)\.)"  # files, and what lies under a tensor
    r"(?:[a-z]\w*|__(?:and|or|xor|lshift|rshift)__|_assert_\w+|_scaled_dot_product_\w+|_upsample_\w+_aa"
    r"|_native_batch_norm_legit_no_training|_softmax|_log_softmax|_to_copy|_unsafe_view)\.[A-Za-z]\w*"
    r"|_operator\.(?:getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|ge|gt|le|lt|and_|or_)"
    r"|math\.(?:ceil|floor|trunc)|torch\.sym_(?:float|int|ite|max|min|not|sum)"
)
_TREE = r'(?:[][{}:, \d]|null|"(?:type|context|children_spec|builtins\.(?:tuple|list|dict)|null|\[\])")*'
_WORDS = r"[\w ,.>+-]*"
_PATTERNS = {
    "expr_str": ("formula of sizes", _FORMULA),
    "target": ("operator that srattn export writes", _OPERATOR),
    "as_operator": ("operator that srattn export writes", _OPERATOR),
    "in_spec": ("tuple or list", _TREE),
    "out_spec": ("tuple or list", _TREE),
    "as_string": ("word", _WORDS),
    "as_strings": ("word", _WORDS),
    "torch_version": ("version", _WORDS),
    "path_name": ("name of a tensor", r"(?:weight|tensor)_\d+"),
}
_NAME = ("name", r"[\w.]*")
_COMPILED = {key: (what, re.compile(pattern, re.ASCII)) for key, (what, pattern) in {**_PATTERNS, "": _NAME}.items()}


def checked(path: Path, entry: str, found: Any, key: str = "") -> Any:
    """The JSON of an entry, of which every text is of the form that its place asks for.

    Args:
        key: under which `found` stands.

    Raises:
        SrattnError: the text that is not.
    """
    if isinstance(found, dict):
        if found.get("use_pickle"):
            raise SrattnError(f"{path}: {entry} names a pickle, which could run code; it is not loaded")
        for name in found:
            _match(path, entry, "", name)
        return {
            name: type(value)() if name in _DROPPED else checked(path, entry, value, name)
            for name, value in found.items()
        }
    if isinstance(found, list):
        return [checked(path, entry, value, key) for value in found]
    if isinstance(found, str):
        _match(path, entry, key, found)
    return found


def _match(path: Path, entry: str, key: str, text: str) -> None:
    what, pattern = _COMPILED.get(key, _COMPILED[""])
    if not pattern.fullmatch(text):
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise SrattnError(f"{path}: {entry} holds {shown!r}, which is no {what}; it is not loaded")
