"""Values of a file from a stranger: which of them are numbers, and how messages show them."""

from __future__ import annotations

import sys
from typing import Any


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can be."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) <= sys.float_info.max  # compared exactly, also with integers of any length


def short(value: Any, most: int = 80) -> str:
    """What a message shows of a value."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits or a deeper nesting than Python writes
        text = type(value).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."
