"""Tables for people, and for what they are piped into."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_MOST = 600


def console_for(*tables: Table) -> Console:
    """Standard output; without a terminal as wide as the tables need, so that no cell is cut or broken: somebody will
    search it."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        wide = Console(width=_MOST, highlight=False)
        console.width = max(console.width, *(wide.measure(table).maximum for table in tables))
    return console
