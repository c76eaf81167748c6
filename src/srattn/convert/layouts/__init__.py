"""The layouts by name. A rule table is chosen by (layout, family); a family adds a table to each layout's file."""

from __future__ import annotations

from srattn.convert.layouts.base import Layout
from srattn.convert.layouts.mmdet import MMDET
from srattn.convert.layouts.mmseg import MMSEG
from srattn.convert.layouts.official import OFFICIAL
from srattn.convert.layouts.own import SRATTN
from srattn.convert.layouts.timm import TIMM
from srattn.convert.layouts.transformers import TRANSFORMERS
from srattn.errors import SrattnError, nearest

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (SRATTN, OFFICIAL, TIMM, TRANSFORMERS, MMDET, MMSEG)}


def families() -> list[str]:
    """Every family that some layout has, in the order of the tables."""
    return list(dict.fromkeys(family for layout in LAYOUTS.values() for family in layout.rules))


def get_layout(name: str, family: str | None = None) -> Layout:
    """The layout called `name`.

    Raises:
        SrattnError: there is none of that name, or it has no table for `family`.
    """
    if name not in LAYOUTS:
        raise SrattnError(f"unknown layout {name!r}; there are {', '.join(LAYOUTS)}{nearest(name, LAYOUTS)}")
    layout = LAYOUTS[name]
    if family is not None and family not in layout.rules:
        known = [other.name for other in LAYOUTS.values() if family in other.rules]
        raise SrattnError(f"the {name} layout has no {family}; layouts with {family}: {', '.join(known) or 'none'}")
    return layout
