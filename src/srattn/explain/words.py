"""Numbers and names as a person reads them."""

from __future__ import annotations

import math

from srattn.engine.progress import per_cent


def seconds_text(seconds: float) -> str:
    """`0.00123` -> `1.23 ms`, `75` -> `1 min 15 s`."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds >= 59.95:
        whole = round(seconds)
        hours, minutes = divmod(whole // 60, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= 0.9995 * factor or unit == "µs":
            return f"{_three_digits(seconds / factor)} {unit}"
    raise AssertionError("unreachable")


def bytes_text(count: float) -> str:
    """`1500000` -> `1.43 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1023.5 or unit == "GiB":
            return f"{_three_digits(count)} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    raise AssertionError("unreachable")


def count_text(count: float) -> str:
    """`306530` -> `306,530`; from a million on `25.4 M`."""
    for factor, unit in ((1e9, "G"), (1e6, "M")):
        if abs(count) >= factor:
            return f"{_three_digits(count / factor)} {unit}"
    return f"{count:,.0f}"


def percent_text(fraction: float, digits: int = 1) -> str:
    """`0.9944` -> `99.4 %`; 100 is written only where nothing is missing."""
    text = per_cent(fraction, digits)
    return "100 %" if float(text) == 100 else f"{text} %"


def without_controls(text: object) -> str:
    """Control characters other than line ends have no place in HTML."""
    return "".join(char if char.isprintable() or char in "\n\t" or ord(char) >= 128 else "�" for char in str(text))


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    # Rounding may have added a digit: 9.996 -> 10.00.
    return text if len(text.replace(".", "").lstrip("0")) <= 3 or digits == 0 else f"{value:.{digits - 1}f}"
