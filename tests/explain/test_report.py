"""The page stands alone, escapes what strangers wrote, and tells the truth."""

from __future__ import annotations

import re

import pytest
import torch
from report_page import HOSTILE, Page

from srattn.errors import SrattnError
from srattn.explain import report, scaling, sections


def check(page: str) -> Page:
    seen = Page(page)
    tags = {tag for tag, _ in seen.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in seen.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    styles = page[page.index("<style>") : page.index("</style>")] + " ".join(
        a.get("style", "") for _, a in seen.elements
    )
    assert "@import" not in styles
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", styles))
    assert all(image.get("alt") for image in seen.all("img"))
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    return seen


@pytest.mark.parametrize("count", [2, 12])
def test_the_page_stands_alone(make_inputs, tmp_path, count):
    classes = [f"kind {k}" for k in range(count)]
    inputs = make_inputs(classes)
    path = tmp_path / "report.html"
    report.write_report(path, inputs)
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    seen = check(path.read_text("utf-8"))
    right = int((inputs.probabilities.argmax(1) == inputs.labels).sum())
    assert f"{right} of 30" in seen.text
    sections_seen = [attributes.get("id") for attributes in seen.all("section")]
    assert sections_seen == ["curves", "confusion", "predictions", "attention", "plan", "config", "skipped"]
    assert [tag for tag, _ in seen.elements].count("h1") == 1
    assert "None: every file was read." in seen.text
    assert len(seen.all("svg")) == 3
    maps = [image for image in seen.all("img") if image["alt"].startswith("Attention of that point")]
    assert len(maps) == 6 * 4
    assert path.stat().st_size < 1_000_000


def test_names_of_strangers_are_only_text(make_inputs):
    files = [HOSTILE, "bad\udcff.png", "nul\x00.png"]
    result = {"machine": HOSTILE, HOSTILE: HOSTILE, "list": [HOSTILE]}
    inputs = make_inputs([HOSTILE, "b"], title=HOSTILE, skipped=files, config_yaml=HOSTILE, result=result)
    page = report.render(inputs)
    seen = check(page)
    assert "<script" not in page
    assert seen.text.count("{{ 7*7 }}") >= 5
    assert "3 files were unreadable" in seen.text
    assert "\x00" not in page


def test_undecodable_file_names_can_be_written(make_inputs, tmp_path):
    report.write_report(tmp_path / "report.html", make_inputs(["a", "b"], skipped=["bad\udcff.png"]))
    assert "bad\\udcff.png" in (tmp_path / "report.html").read_text("utf-8")


def test_many_skipped_files_are_counted_and_cut(make_inputs):
    seen = check(report.render(make_inputs(["a", "b"], skipped=[f"file-{n}.png" for n in range(1234)])))
    assert "1,234 files were unreadable" in seen.text
    assert "file-499.png" in seen.text and "file-500.png" not in seen.text
    assert "And 734 more." in seen.text


def test_no_history_no_mistake(make_inputs):
    labels = torch.arange(30) % 2
    inputs = make_inputs(["a", "b"], history=[], probabilities=torch.nn.functional.one_hot(labels, 2).float())
    seen = check(report.render(inputs))
    assert "No epoch was recorded." in seen.text
    assert "There is no mistake." in seen.text
    assert "100 %" in seen.text


def test_mistakes_come_first_and_are_marked(make_inputs):
    inputs = make_inputs(["a", "b", "c"], images=60)
    cards = sections.predictions(inputs.images, inputs.labels, inputs.probabilities, inputs.classes)
    wrong = int((inputs.probabilities.argmax(1) != inputs.labels).sum())
    assert 0 < wrong < 28
    flags = [card["wrong"] for card in cards["cards"]]
    assert flags == [True] * wrong + [False] * (40 - wrong)
    sure = [card["probability"] for card in cards["cards"]]
    assert sure[:wrong] == sorted(sure[:wrong], reverse=True)
    assert sure[wrong:] == sorted(sure[wrong:])
    assert all((card["true"] != card["predicted"]) == card["wrong"] for card in cards["cards"])


def test_a_selection_of_images_keeps_the_figures_of_all(make_inputs):
    result = {"accuracy": 0.75, "val_images": 4000, "confusion": [[1500, 500], [500, 1500]]}
    seen = check(report.render(make_inputs(["a", "b"], result=result)))
    assert "75.0 %" in seen.text
    assert "3,000 of 4,000" in seen.text
    assert "an even selection of 30 of them" in seen.text
    assert "1500" in seen.text


def test_the_measurement_is_shown_and_a_red_gate_is_not(make_inputs, monkeypatch):
    tiny = scaling.measure_scaling((4, 8), dim=8, heads=1, ratio=2, budget=60.0, most_rounds=3)
    monkeypatch.setattr(scaling, "measure_scaling", lambda **_: tiny)
    seen = check(report.render(make_inputs(["a", "b"], measure_scaling=True)))
    assert "At 8 × 8 = 64 tokens, attention over 16 reduced keys" in seen.text
    assert len(seen.all("svg")) == 5

    def red(**_):
        raise scaling.MeasurementError("SRA is wrong")

    monkeypatch.setattr(scaling, "measure_scaling", red)
    seen = check(report.render(make_inputs(["a", "b"], measure_scaling=True)))
    assert "Not reported: SRA is wrong." in seen.text
    assert "times faster" not in seen.text


def test_nothing_is_overwritten_or_half_written(make_inputs, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(SrattnError, match="exists"):
        report.write_report(path, make_inputs(["a", "b"]))
    assert path.read_text() == "mine"
    report.write_report(path, make_inputs(["a", "b"]), overwrite=True)
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
    monkeypatch.setattr(sections, "plan_table", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_report(tmp_path / "other.html", make_inputs(["a", "b"]))
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": torch.zeros(29, dtype=torch.long)}, "do not fit together"),
        ({"probabilities": torch.full((30, 3), 1 / 3)}, "do not fit together"),
        ({"probabilities": torch.full((30, 2), float("nan"))}, "not all finite"),
        ({"labels": torch.full((30,), 2)}, "there are 2 classes"),
        ({"labels": torch.zeros(0, dtype=torch.long)}, "at least one"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(make_inputs, tmp_path, change, words):
    with pytest.raises(SrattnError, match=words):
        report.write_report(tmp_path / "report.html", make_inputs(["a", "b"], **change))


def test_interval_of_wilson():
    low, high = sections.wilson_interval(358, 360)
    assert (low, high) == pytest.approx((0.97999, 0.99847), abs=1e-4)
    assert sections.wilson_interval(5, 5)[1] == 1.0
