"""Pictures of a data set: what a check found, and what augmentation makes of some images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from srattn.data.augment import DRAWS, Augment
from srattn.data.check import Report
from srattn.data.keyed import hashed, permutation, uniform
from srattn.data.loader import AUGMENT_KEY
from srattn.data.samples import ImageData
from srattn.errors import missing_extra
from srattn.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"train": "#4477aa", "val": "#ee6677", "test": "#ccbb44"}
_MOST_CLASSES = 40  # bars with names; more become a curve


def draw_report(report: Report, path: Path, overwrite: bool = False) -> None:
    """Class balance, sizes and a sheet of examples, written to `path` (.png, .svg or .pdf).

    Raises:
        SrattnError: matplotlib is missing, or `path` exists.
    """
    figure = _figure((11, 8.5))
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15), squeeze=False).flat
    balance, sizes = above.subplots(1, 2, width_ratios=(1.7, 1))
    _draw_balance(balance, report)
    _draw_sizes(sizes, report)
    total = sum(report.sizes.values())
    bad = len(report.unreadable) + len(report.left_out)
    figure.suptitle(
        f"{Path(report.data).name or report.data}: {total:,} images, {len(report.classes)} classes"
        f"{f', {bad:,} that cannot be used' if bad else ''}",
        fontsize=13,
    )
    _draw_examples(below, report)
    with atomic_path(path, overwrite) as aside:
        figure.savefig(aside, dpi=110)


def draw_preview(
    data: ImageData,
    augment: Augment,
    path: Path,
    images: int = 8,
    draws: int = 7,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Some training images in rows: as it is measured on the left, then what the first epochs make of it.

    Raises:
        SrattnError: matplotlib is missing, or `path` exists.
    """
    chosen = permutation(len(data.train), seed)[:images].sort().values
    pixels, chosen = data.train.gather(chosen)
    plain = _plain(pixels, augment)
    columns: list[tuple[Tensor, Tensor | None]] = [(plain, None)]
    for epoch in range(draws):
        drawn = uniform(DRAWS, hashed(seed, AUGMENT_KEY, epoch, chosen))
        changed, shares = augment.images(pixels, drawn), None
        if augment.mixes:
            changed, shares = augment.mix(changed, data.train.labels[chosen], drawn, len(data.classes))
        columns.append((changed, shares))
    rows = len(chosen)
    figure = _figure((1.35 * len(columns) + 0.3, 1.6 * rows + 0.6))
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (changed, shares) in enumerate(columns):
        for row in range(rows):
            _show(axes[row][column], changed[row])
            text = data.classes[int(data.train.labels[chosen[row]])] if column == 0 else ""
            if shares is not None:
                text = _shares(shares[row], data.classes)
            axes[row][column].set_title(_short(text, 22), fontsize=7 if shares is not None else 8, pad=2)
        if column == 0 or column == 1:
            axes[0][column].annotate(
                "as measured" if column == 0 else "epochs 1, 2, 3, ...",
                (0, 1.22), xycoords="axes fraction", fontsize=9, weight="bold",
            )  # fmt: skip
    with atomic_path(path, overwrite) as aside:
        figure.savefig(aside, dpi=110)


def _draw_balance(axes: Any, report: Report) -> None:
    parts = list(report.counts)
    order = range(len(report.classes))
    if len(report.classes) <= _MOST_CLASSES:
        width = 0.8 / max(1, len(parts))
        for number, part in enumerate(parts):
            places = [place + (number - (len(parts) - 1) / 2) * width for place in order]
            axes.bar(places, report.counts[part], width, label=part, color=_COLOURS.get(part))
        turned = sum(len(_short(name, 16)) for name in report.classes) > 55
        names = [_short(name, 16) for name in report.classes]
        axes.set_xticks(
            list(order), names, rotation=45 if turned else 0, ha="right" if turned else "center", fontsize=8
        )
    else:
        for part in parts:
            axes.plot(sorted(report.counts[part], reverse=True), label=part, color=_COLOURS.get(part))
        axes.set_xlabel("classes, the largest first")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("images")
    axes.set_title("Images of each class", fontsize=10, loc="left")
    if parts:
        axes.legend(frameon=False, fontsize=8, ncols=len(parts), loc="lower right", bbox_to_anchor=(1, 1))


def _draw_sizes(axes: Any, report: Report) -> None:
    axes.set_title("Shorter side in pixels", fontsize=10, loc="left")
    axes.set_ylabel("images")
    sides = [min(size) for size in report.sizes]
    counts = [report.sizes[size] for size in report.sizes]
    if not sides:
        return
    if len(set(report.sizes)) == 1:
        (width, height), count = next(iter(report.sizes.items()))
        axes.bar([0], [count], 0.5, color="#888888")
        axes.set_xticks([0], [f"all {width} x {height}"])
        axes.set_xlim(-1, 1)
        return
    axes.hist(sides, bins=min(40, max(5, len(set(sides)))), weights=counts, color="#888888")
    if max(sides) > 20 * min(sides):
        axes.set_xscale("log")


def _draw_examples(figure: Any, report: Report) -> None:
    if not report.examples:
        return
    columns = min(12, max(6, math.ceil(math.sqrt(2.6 * len(report.examples)))))
    examples = sorted(report.examples, key=lambda example: example[0])[: columns * 6]
    rows = math.ceil(len(examples) / columns)
    axes = figure.subplots(rows, columns, squeeze=False)
    for number, one in enumerate(axes.flat):
        one.axis("off")
        if number < len(examples):
            label, picture = examples[number]
            one.imshow(picture, interpolation="nearest" if max(picture.size) < 48 else None)
            one.set_title(_short(report.classes[label], 14), fontsize=7, pad=2)


def _plain(pixels: Tensor | list[Tensor], augment: Augment) -> Tensor:
    """The pictures as they are measured, (B, C, H, W) in [0, 1]."""
    from srattn.data.preprocess import to_image

    if augment.kind != "crop":
        return (pixels if isinstance(pixels, Tensor) else torch.stack(pixels)).float() / 255
    return torch.stack([augment.preprocess.pixels(to_image(picture)) for picture in pixels]).float() / 255


def _show(axes: Any, image: Tensor) -> None:
    axes.axis("off")
    levels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    smooth = "nearest" if max(image.shape[1:]) < 64 else None
    if image.shape[0] == 1:
        axes.imshow(levels[..., 0], cmap="gray", vmin=0, vmax=1, interpolation=smooth)
    else:
        axes.imshow(levels, interpolation=smooth)


def _shares(shares: Tensor, classes: list[str]) -> str:
    values, labels = shares.topk(min(2, len(shares)))
    known = [(float(value), classes[int(label)]) for value, label in zip(values, labels, strict=True) if value > 0.005]
    return (
        known[0][1] if len(known) == 1 else " ".join(f"{_short(name, 7)} {100 * value:.0f}%" for value, name in known)
    )


def _short(text: str, most: int) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in text).replace("$", r"\$")
    return text if len(text) <= most else text[: most - 1] + "…"


def _figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "train") from None
    figure = Figure(figsize=size, layout="constrained")  # no window, no global state
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr]
    return figure
