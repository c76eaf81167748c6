"""Results as pictures. Colours are safe for colour-blind readers and the same everywhere for the same source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from srattn.bench.tables import case_title, milliseconds, power
from srattn.errors import missing_extra
from srattn.files import atomic_path

_INK, _PALE = "#24292f", "#8c959f"
_OURS = "#0072b2"
_COLOURS = {"dense": "#d55e00", "dense, scores kept": "#e69f00", "SRA": _OURS, "linear SRA": "#009e73"}
_MARKS = {"dense": "s", "dense, scores kept": "D", "SRA": "o", "linear SRA": "^"}


def models(result: Mapping[str, Any], path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """A panel for each case, a dot with the quartiles for each candidate, ours in colour; the fastest on top."""
    plt = _pyplot()
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        if row["seconds"]:
            cases.setdefault(case_title(row), []).append(row)
    heights = [0.75 + 0.27 * len(rows) for rows in cases.values()] or [1.0]
    figure, panels = plt.subplots(
        len(heights),
        1,
        figsize=(8, sum(heights) + 0.5),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for panel, (title, rows) in zip(panels[:, 0], cases.items(), strict=False):
        ordered = sorted(rows, key=lambda row: row["seconds"]["median"])
        for place, row in enumerate(ordered):
            seconds = row["seconds"]
            colour = _OURS if row["candidate"].startswith("srattn") else _INK
            low, middle, high = (1e3 * seconds[name] for name in ("q1", "median", "q3"))
            panel.plot([0, middle], [place, place], color=colour, linewidth=1, alpha=0.25)
            panel.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.5, solid_capstyle="butt")
            panel.plot([middle], [place], "o", color=colour, markersize=6)
            ratio = row["ratio_to_ours"]
            words = f"{milliseconds(seconds['median'])} ms" + (f"  {ratio['median']:.2f}x" if ratio else "")
            panel.annotate(words, (high, place), (8, 0), textcoords="offset points", va="center", color=colour)
        panel.set_yticks(range(len(ordered)), [row["candidate"] for row in ordered])
        panel.invert_yaxis()
        panel.margins(y=0.6 / max(1, len(ordered)))
        panel.set_xlim(0, 1.25e3 * max(row["seconds"]["q3"] for row in ordered))
        panel.set_title(title, loc="left", fontsize=10)
        _plain(panel, "x")
    panels[-1, 0].set_xlabel("ms (median and quartiles; x: times as long as ours)")
    figure.suptitle(_machine(result), fontsize=8, color=_PALE, x=0.99, ha="right")
    _save(plt, figure, path, overwrite)


def attention(result: Mapping[str, Any], path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Time and memory over the number of tokens, log-log, a row of panels for each mode; exponents in the legend."""
    plt = _pyplot()
    modes = list(dict.fromkeys(row["mode"] for row in result["rows"]))
    figure, panels = plt.subplots(
        len(modes), 2, figsize=(10, 0.6 + 3.7 * len(modes)), squeeze=False, layout="constrained"
    )
    fits = {(fit["mode"], fit["attention"]): fit for fit in result["exponents"]}
    for line, mode in zip(panels, modes, strict=True):
        for panel, field, unit in zip(line, ("seconds", "bytes"), ("ms", "MB"), strict=True):
            for name in dict.fromkeys(row["attention"] for row in result["rows"]):
                rows = [row for row in result["rows"] if row["mode"] == mode and row["attention"] == name]
                points = [(row["tokens"], _value(row, field)) for row in rows if _value(row, field)]
                if not points:
                    continue
                fitted = power(fits[mode, name][field])
                label = f"{name}  {fitted}" if fitted else name
                style = {"color": _COLOURS.get(name, _INK), "marker": _MARKS.get(name, "x"), "markersize": 5}
                panel.plot(*zip(*points, strict=True), label=label, linewidth=1.6, **style)
            panel.set(xscale="log", yscale="log", ylabel=unit, xlabel="tokens")
            panel.set_title(f"{mode}: {'time' if field == 'seconds' else 'peak memory'}", loc="left", fontsize=10)
            if panel.lines:
                panel.legend(frameon=False, fontsize=8)
            _plain(panel, "both")
    figure.suptitle(_machine(result), fontsize=8, color=_PALE, x=0.99, ha="right")
    _save(plt, figure, path, overwrite)


def _value(row: Mapping[str, Any], field: str) -> float | None:
    if field == "seconds":
        return 1e3 * row["seconds"]["median"] if row["seconds"] else None
    return row["peak_bytes"] / 1e6 if row["peak_bytes"] else None


def _machine(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"{machine['cpu']}, {machine['threads']} thread(s), torch {machine['torch']}, "
        f"srattn {machine['srattn']} ({machine['commit']})"
    )


def _plain(panel: Any, axis: str) -> None:
    panel.grid(axis=axis, color="#d0d7de", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "bench") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, path: str | os.PathLike[str], overwrite: bool) -> None:
    try:
        with atomic_path(path, overwrite) as aside:
            figure.savefig(aside, dpi=150)
    finally:
        plt.close(figure)
