"""The drawings are valid, say what they show, and survive strangers' names."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from srattn.engine.progress import figure_text
from srattn.explain import figures, pictures
from srattn.explain.canvas import shorten
from srattn.explain.words import bytes_text, count_text, percent_text, seconds_text

HOSTILE = '"><script>alert(1)</script>$\\frac{$'


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def check(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.get("aria-label")
    width, height = map(float, root.get("viewBox", "").split()[2:])
    assert width > 100 and height > 100
    assert "http" not in svg
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'(?:url\(#|href="#)([^")]*)', svg):
        assert used in ids
    return root


def test_curves_draw_both_series():
    history = [{"epoch": e, "train_loss": 1 / e, "val_loss": 2 / e, "val_accuracy": 1 - 0.1 / e} for e in (1, 2, 3)]
    root = check(figures.loss_curve(history))
    assert "0.3333" in root.get("aria-label", "") and "0.6667" in root.get("aria-label", "")
    assert {"training", "validation", "Loss"} <= set(texts(figures.loss_curve(history)))
    assert "training" not in texts(figures.accuracy_curve(history))


@pytest.mark.parametrize(
    "history", [[], [{"epoch": 1, "val_loss": 0.4}], [{"val_loss": float("nan")}, {"val_loss": 1}]]
)
def test_curves_of_short_and_broken_histories(history):
    check(figures.loss_curve(history))
    check(figures.accuracy_curve(history))


@pytest.mark.parametrize("size", [2, 10, 30, 41, 200])
def test_confusion_matrix_of_any_size(size):
    counts = figures.confusion_counts(np.arange(3 * size) % size, (np.arange(3 * size) // 2) % size, size)
    assert counts.sum() == 3 * size
    svg = figures.confusion_matrix(counts, [f"class {k}" for k in range(size)])
    root = check(svg)
    data = next(element.get("href", "") for element in root.iter("image"))
    picture = Image.open(io.BytesIO(base64.b64decode(data.split(",", 1)[1])))
    assert picture.size == (size, size)
    assert ("class 0" in texts(svg)) == (size <= 40)
    assert len(svg) < 200_000


def test_confusion_counts_true_by_predicted():
    counts = figures.confusion_counts(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_names_of_strangers_stay_text():
    names = [HOSTILE, "a\x00b\n\u202ec\udc80", "日本語", ""]
    svg = figures.confusion_matrix(np.eye(4, dtype=np.int64), names)
    check(svg)
    assert shorten(HOSTILE, 14) in texts(svg)
    assert shorten(names[1], 14) == "a b c"
    assert shorten("", 14) == "(no name)"
    assert shorten("abcdefghij", 5) == "ab…ij"


def test_scaling_figure_leaves_gaps():
    svg = figures.scaling_figure(
        [196, 784], {"dense": [1.0, 4.0], "kept": [2.0, None], "SRA": [0.5, 1]}, "Time", "seconds"
    )
    root = check(svg)
    assert "SRA: 1.00 s" in root.get("aria-label", "")
    assert {"14", "28", "dense", "kept", "SRA"} <= set(texts(svg))


def decode(url: str) -> Image.Image:
    kind, data = url.split(",", 1)
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB")])
def test_thumbnails_grow_by_whole_factors_and_shrink(channels, mode):
    small = decode(pictures.thumbnail(torch.rand(channels, 8, 8)))
    assert (small.size, small.mode) == ((96, 96), mode)
    assert decode(pictures.thumbnail(torch.rand(channels, 300, 150))).size == (48, 96)


def test_pixels_keep_their_values():
    image = torch.tensor([[[0.0, 1.0], [0.5, float("nan")]]])
    array = np.asarray(decode(pictures.thumbnail(image, 4)))
    assert array[::2, ::2].tolist() == [[0, 255], [128, 0]]


def test_overlay_is_brightest_where_the_heat_is():
    heat = torch.zeros(8, 8)
    heat[:4] = 1
    picture = np.asarray(decode(pictures.overlay(torch.full((1, 8, 8), 0.5), heat, side=64)), dtype=float)
    assert picture.shape == (64, 64, 3)
    assert picture[:32].min() > picture[32:].max()
    ringed = np.asarray(decode(pictures.overlay(torch.full((1, 8, 8), 0.5), heat, (6, 6), side=64)), dtype=float)
    assert np.argwhere((ringed != picture).any(-1)).mean(0) == pytest.approx([52, 52], abs=1)


def test_numbers_in_words():
    assert [seconds_text(s) for s in (1.23e-6, 0.00123, 0.9999, 9.996, 75, 3725)] == [
        "1.23 µs",
        "1.23 ms",
        "1.00 s",
        "10.0 s",
        "1 min 15 s",
        "1 h 2 min",
    ]
    assert [bytes_text(n) for n in (0, 1000, 1500000, 3 * 2**30)] == ["0 B", "1000 B", "1.43 MiB", "3.00 GiB"]
    assert [count_text(n) for n in (306530, 25_362_856)] == ["306,530", "25.4 M"]


def test_a_page_says_what_the_command_line_says() -> None:
    for share in (305 / 359, 2 / 22, 1 / 13, 0.0, 1.0):
        page, line = percent_text(share, 2), figure_text("accuracy", share)
        assert float(page.rstrip(" %")) == float(line.rstrip("%")) == pytest.approx(100 * share, abs=0.0051)
    assert figure_text("accuracy", 0.99996) == "99.99%" and percent_text(0.99996, 0) == "99 %"
    assert (figure_text("accuracy", 305 / 359), percent_text(2 / 22)) == ("84.96%", "9.1 %")
