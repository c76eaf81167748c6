"""What a .pt2 archive holds, looked at without running anything, and what in it would run code."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from srattn.errors import SrattnError
from srattn.export.formats import STAMP

_NATIVE = "data/aotinductor/"
_TENSOR = re.compile(r"/(weight|tensor)_\d+$")
# Sizes are written as formulas, which torch hands to a parser that evaluates: names of sizes, numbers, operators.
_FORMULA = re.compile(
    r"(?:Symbol\('[su]\d+'(?:, (?:positive|nonnegative|integer)=True)*\)|\b[su]\d+\b|-?\d+"
    r"|\b(?:Add|Mul|Pow|Integer|Rational|Max|Min|Mod|FloorDiv|CeilDiv|CleanDiv|PythonMod|ModularIndexing|Eq|Ne"
    r"|Equality|Unequality|LessThan|GreaterThan|StrictLessThan|StrictGreaterThan|Relational|int_oo|oo|true|false)\b"
    r"|[-+*/%(),\s<>=])*"
)


def names_in(path: Path) -> list[str]:
    """The entries without the archive's own folder.

    Raises:
        SrattnError: the file is no archive.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return [name.partition("/")[2] for name in file.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise SrattnError(f"{path} is no whole .pt2 archive ({error})") from None


def is_compiled(path: Path) -> bool:
    """Whether it holds machine code (AOTInductor)."""
    return any(name.startswith(_NATIVE) for name in names_in(path))


def read_stamp(path: Path) -> str | None:
    names = names_in(path)
    with zipfile.ZipFile(path) as file:
        for whole, name in zip(file.namelist(), names, strict=True):
            if name == f"extra/{STAMP}" or whole == STAMP:
                return file.read(whole).decode("utf-8", "replace")
    return None


def stamp(path: str, text: str) -> None:
    """Adds the stamp beside the archive's own entries."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as file:
        root = file.namelist()[0].partition("/")[0]
        file.writestr(f"{root}/extra/{STAMP}", text)


def refuse_code(path: Path) -> None:
    """Refuses a program in which something would run as code when torch loads it: a pickle, a script, a formula.

    Raises:
        SrattnError: which.
    """
    with zipfile.ZipFile(path) as file:
        for whole, name in zip(file.namelist(), names_in(path), strict=True):
            if name.endswith(("_config.json", ".json")) and name.startswith(("data/", "models/")):
                _check_json(path, name, json.loads(file.read(whole)))
            elif name.startswith("data/sample_inputs/"):
                try:
                    data = file.read(whole)
                    if data:
                        torch.load(io.BytesIO(data), weights_only=True)
                except Exception:
                    raise SrattnError(f"{path}: {name} is a pickle that would run code; it is not loaded") from None
            elif name.startswith(("data/weights/", "data/constants/")) and not re.search(
                r"/(weight|tensor)_\d+$", name
            ):
                raise SrattnError(f"{path}: {name} could run code; it is not loaded")


def _check_json(path: Path, name: str, found: Any) -> None:
    if isinstance(found, dict):
        if found.get("use_pickle"):
            raise SrattnError(f"{path}: {name} names a pickle, which could run code; it is not loaded")
        formula = found.get("expr_str")
        if formula is not None and not (isinstance(formula, str) and _FORMULA.fullmatch(formula)):
            raise SrattnError(f"{path}: {name} holds {formula!r}, which is no formula of sizes; it is not loaded")
    for each in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        _check_json(path, name, each)
