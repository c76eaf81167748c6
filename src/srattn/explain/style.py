"""The look that all drawings have in common, as settings of matplotlib."""

from __future__ import annotations

from typing import Any


def style(ink: str, muted: str, line: str) -> dict[Any, Any]:
    """Settings with these colours for text, for labels, and for lines that stand behind what is drawn."""
    return {
        "font.size": 9.0,
        "axes.titlesize": 10.0,
        "axes.labelsize": 9.0,
        "axes.titlelocation": "left",
        "axes.titlepad": 9.0,
        "axes.edgecolor": line,
        "axes.labelcolor": muted,
        "axes.titlecolor": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "text.color": ink,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "text.parse_math": False,  # class names are strangers' text: a "$" in them is a dollar
    }
