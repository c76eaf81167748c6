"""The tables that ``srattn data check`` prints of images with masks, boxes, depths or joints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srattn.data.dense.survey import SceneReport

Cells = tuple[list[str], list[list[str]]]
"""Heads and rows."""


def parts_of(report: SceneReport) -> Cells:
    """A row a part."""
    return _depths(report) if report.kind == "depths" else _counts(report)


def classes_of(report: SceneReport) -> Cells:
    """A row a class or joint."""
    joints = report.kind == "joints"
    heads = ["joint" if joints else "class"]
    for part in report.images:
        heads += [f"{part}: {'labelled' if joints else report.unit}", "visible" if joints else "images"]
    heads += ["sides: least, median, most"] * (report.kind == "boxes")
    rows = []
    for number, name in enumerate(report.classes):
        row = [name[:32]]
        for part, amounts in report.amounts.items():
            share = 100 * amounts[number] / max(1, sum(amounts))
            row.append(f"{share:.2f} %" if report.kind == "masks" else f"{amounts[number]:,}")
            row.append(f"{report.present[part][number]:,}")
        if report.kind == "boxes":
            sides = sorted(report.box_sides[number])
            row.append(f"{sides[0]:.0f}  {sides[len(sides) // 2]:.0f}  {sides[-1]:.0f}" if sides else "")
        rows.append(row)
    return heads, rows


def _counts(report: SceneReport) -> Cells:
    joints = report.kind == "joints"
    heads = ["part", *(("people", "none visible") if joints else ("images", "without objects")), "repeated"]
    ignored = any(report.ignored.values())
    heads += [report.unit, *(["of no class"] * bool(report.void)), *(["ignored"] * ignored)]
    rows = []
    for part, count in report.images.items():
        without = sum(one == part for one, _ in report.without)
        amount, void = sum(report.amounts[part]), report.void.get(part, 0)
        share = [f"{100 * void / max(1, amount + void):.1f} %"] * bool(report.void)
        share += [f"{report.ignored.get(part, 0):,}"] * ignored
        rows.append([part, f"{count:,}", f"{without:,}", f"{report.repeated.get(part, 0):,}", f"{amount:,}", *share])
    return heads, rows


def _depths(report: SceneReport) -> Cells:
    most = max((count.max_depth for count in report.depths.values()), default=0.0)
    heads = ["part", "images", "repeated", "known", f"beyond {most:g} m", "nearest", "median", "farthest"]
    rows = []
    for part, images in report.images.items():
        count = report.depths[part]
        known = 100 * count.known / max(1, count.pixels)
        beyond = 100 * count.beyond / max(1, count.known)
        middle = count.at(0.5)
        metres = (count.nearest, middle, count.farthest) if count.known and middle is not None else ()
        rows.append(
            [
                part,
                f"{images:,}",
                f"{report.repeated.get(part, 0):,}",
                f"{known:.1f} %",
                f"{beyond:.1f} %",
                *(f"{value:.2f} m" for value in metres),
                *(["–"] * (3 - len(metres))),
            ]
        )
    return heads, rows
