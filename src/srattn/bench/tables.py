"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from srattn.bench.compare import BAD, Change

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def models(result: Mapping[str, Any], console: Console) -> None:
    """A table for each case; below it why a candidate has no figure."""
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        cases.setdefault(case_title(row), []).append(row)
    for title, rows in cases.items():
        table = _table(title)
        _columns(table, "candidate", "ms", "spread", "images/s", "x ours", "matrix", "copy", "memory", "error")
        for row in rows:
            seconds, ratio = row["seconds"], row["ratio_to_ours"]
            if seconds is None:
                continue
            table.add_row(
                row["candidate"],
                milliseconds(seconds["median"]),
                spread(seconds),
                f"{row['images_per_second']:.1f}",
                f"{ratio['median']:.2f}" if ratio else "",
                percent(row["matrix_fraction"]),
                percent(row["copy_fraction"]),
                megabytes(row["peak_bytes"]),
                f"{row['error']:.0e}",
            )
        rates = f"matrix rate {rows[0]['matrix_rate'] / 1e9:.0f} GFLOP/s, copy {rows[0]['copy_rate'] / 1e9:.1f} GB/s"
        rounds = min((row["seconds"]["rounds"] for row in rows if row["seconds"]), default=0)
        table.caption = (
            f"{rates}, {result['machine']['threads']} thread(s); medians of {rounds} round(s), "
            "spread is half the distance of the quartiles; x ours: times as long as the first row; memory: peak above "
            "the loaded model; error: against the truth in float64"
        )
        _show(console, table, [f"{row['candidate']}: {row['reason']}" for row in rows if row["reason"]])


def case_title(row: Mapping[str, Any]) -> str:
    height, width = row["size"]
    return f"{row['model']} at {height}x{width}, batch {row['batch']}, {row['dtype']}, {row['mode']}"


def attention(result: Mapping[str, Any], console: Console) -> None:
    """A table for each mode: a line a size, time and memory of each attention."""
    names = list(dict.fromkeys(row["attention"] for row in result["rows"]))
    for mode in dict.fromkeys(row["mode"] for row in result["rows"]):
        table = _table(
            f"{mode}: {result['settings']['dim']} channels, {result['settings']['heads']} head(s), one image"
        )
        _columns(table, "tokens", *(f"{name} {unit}" for name in names for unit in ("ms", "MB")))
        rows = {(row["side"], row["attention"]): row for row in result["rows"] if row["mode"] == mode}
        for side in dict.fromkeys(side for side, _ in rows):
            cells = []
            for name in names:
                row = rows[side, name]
                cells += [
                    milliseconds(row["seconds"]["median"]) if row["seconds"] else "-",
                    megabytes(row["peak_bytes"]),
                ]
            table.add_row(f"{side}x{side}", *cells)
        fits = [fit for fit in result["exponents"] if fit["mode"] == mode]
        cells = []
        for name in names:
            fit = next((fit for fit in fits if fit["attention"] == name), {})
            cells += [power(fit.get("seconds")), power(fit.get("bytes"))]
        table.add_section()
        table.add_row("grows as", *cells)
        table.caption = "N is the number of tokens; the exponent is fitted over the larger half of the sizes measured"
        notes = [f"{n} at {s}x{s}: {row['reason']}" for (s, n), row in rows.items() if row["reason"]]
        _show(console, table, notes)


def changes(found: Sequence[Change], limit: float, console: Console) -> None:
    """A line a row of the two files."""
    table = _table(f"slower means more than {100 * limit:g}% beyond the spread")
    _columns(table, "row", "before ms", "after ms", "ratio", "spread", "memory", "")
    for change in found:
        style = "bold red" if change.verdict in BAD else "green" if change.verdict == "faster" else ""
        table.add_row(
            change.label,
            "" if change.before is None else milliseconds(change.before),
            "" if change.after is None else milliseconds(change.after),
            "" if change.ratio is None else f"{change.ratio:.3f}",
            "" if change.ratio is None else f"{100 * change.spread:.1f}%",
            "" if change.memory is None else f"{change.memory:.2f}x",
            change.verdict,
            style=style,
        )
    _show(console, table, [f"{change.label}: {change.reason}" for change in found if change.reason])


def milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"


def percent(part: float | None) -> str:
    return "" if part is None else f"{100 * part:.0f}%"


def spread(seconds: Mapping[str, float]) -> str:
    return f"±{50 * (seconds['q3'] - seconds['q1']) / seconds['median']:.1f}%"


def power(exponent: float | None) -> str:
    return "" if exponent is None else f"N^{exponent:.2f}"


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", caption_justify="left")


def _columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")


def _show(console: Console, table: Table, notes: Iterable[str]) -> None:
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    console.print()
