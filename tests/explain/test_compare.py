"""The page that compares runs stands alone, escapes what strangers wrote, and tells the truth."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_page import HOSTILE, Page

from srattn.errors import SrattnError
from srattn.explain import compare
from srattn.explain import compare_sections as sections
from srattn.explain.headlines import ACCURACY


def make_run(folder: Path, accuracy: float | None = 0.9, epochs: int = 4, classes: str = "abc", **config: Any) -> Path:
    folder.mkdir(parents=True)
    options = {"model": "pvt_v2_b0", "model_options": {"depths": [1, 1]}, "lr": 1e-3, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    history = [
        {"epoch": e, "step": 10 * e, "train_loss": 2 / e, "train_accuracy": 1 - 0.5 / e, "val_loss": 2.2 / e}
        | {"val_accuracy": 1 - 0.6 / e, "learning_rate": 1e-3 / e, "images_per_second": 900.0, "seconds": 30.0}
        for e in range(1, epochs + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    if accuracy is not None:
        per_class = {name: accuracy - 0.1 * place for place, name in enumerate(classes)}
        result = {"accuracy": accuracy, "val_images": 1000, "model": "pvt_v2_b0", "parameters": 1_234_567}
        result |= {
            "seconds": 120.0,
            "per_class_accuracy": per_class,
            "machine": {"cores": 2},
            "versions": {"torch": "2"},
        }
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def check(page: str) -> Page:
    """No script, nothing from outside, one of each id, every drawing and scroller with words for it."""
    seen = Page(page)
    assert not {tag for tag, _ in seen.elements} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "img",
    }
    for _, attributes in seen.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(a.get("aria-label") for _, a in seen.elements if a.get("role") in ("img", "region"))
    assert all(a.get("tabindex") == "0" for _, a in seen.elements if a.get("role") == "region")
    return seen


def test_runs_over_each_other(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / "a", 0.9),
        make_run(tmp_path / "b", 0.95, lr=2e-3),
        make_run(tmp_path / "c", None, 2),
    ]
    out = tmp_path / "report.html"
    compare.write_comparison(out, compare.read_runs(folders))
    seen = check(out.read_text("utf-8"))
    assert "95.0 % of the validation images by the best of them, b ." in seen.text
    assert "The 95 % intervals of the two do not overlap." in seen.text
    assert "c not finished" in seen.text and "1.23 M" in seen.text
    assert [a["id"] for a in seen.all("section")] == ["results", "curves", "settings", "classes", "circumstances"]
    figures = [attributes for attributes in seen.all("svg") if attributes.get("role") == "img"]
    assert len(figures) == 7
    # A checkbox for each run, and in every curve a group of it that the checkbox's rule finds.
    assert [a["id"] for a in seen.all("input") if a["type"] == "checkbox"] == ["show-0", "show-1", "show-2"]
    for number in range(3):
        groups = [a["id"] for a in seen.all("g") if a.get("id", "").endswith(f"-run-{number}")]
        assert len(groups) == (7 if number < 2 else 6)
        assert f':root:has(#show-{number}:not(:checked)) [id$="-run-{number}"]' in out.read_text("utf-8")
    assert not re.search(r"#0\d0b0c", out.read_text("utf-8"))  # no stand-in colour is left
    assert "--run-2" in out.read_text("utf-8").partition("prefers-color-scheme: dark")[2]


def test_one_run_alone_is_not_compared(tmp_path: Path) -> None:
    seen = check(compare.render(compare.read_runs([make_run(tmp_path / "a", 0.9)])))
    assert "90.0 % of the validation images. " in seen.text and "Final figures on the validation images." in seen.text
    for words in ("best of them", "compare", "that differ", "that are the same", "all runs", "boxes above"):
        assert words not in seen.text
    assert not [a for a in seen.all("td") if "best" in a.get("class", "").split()]


def test_what_cannot_be_told_apart(tmp_path: Path) -> None:
    runs = compare.read_runs([make_run(tmp_path / "a", 0.9), make_run(tmp_path / "b", 0.905)])
    assert "this many images do not tell the two apart for certain" in check(compare.render(runs)).text


def test_other_images_are_no_contest(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 0.9, data="digits"), make_run(tmp_path / "b", 0.95, data="photos")]
    runs.append(make_run(tmp_path / "c", None, data="digits"))
    seen = check(compare.render(compare.read_runs(runs)))
    assert "by the best of them" not in seen.text
    assert "measured on different images, so that their figures do not compare" in seen.text
    assert not [a for a in seen.all("td") if "best" in a.get("class", "").split()]
    same = check(compare.render(compare.read_runs([runs[0], runs[2]])))
    assert "90.0 % of the validation images by the best of them, a ." in same.text


def test_settings_that_differ(tmp_path: Path) -> None:
    runs = compare.read_runs(
        [
            make_run(tmp_path / "a", model_options={"depths": [1, 1], "edge": "pad"}),
            make_run(tmp_path / "b", model_options={"depths": [1, 2]}, lr=2e-3, out="elsewhere"),
        ]
    )
    found = sections.settings(runs)
    assert dict(found["differ"]) == {
        "lr": ["0.001", "0.002"],
        "model_options.depths": ["1, 1", "1, 2"],
        "model_options.edge": ["pad", "–"],
    }
    assert found["same"] == [("model", "pvt_v2_b0")]
    again = compare.read_runs([make_run(tmp_path / "c"), make_run(tmp_path / "d")])
    assert "None: all runs have the same options." in check(compare.render(again)).text


def test_classes(tmp_path: Path) -> None:
    runs = compare.read_runs(
        [make_run(tmp_path / "a"), make_run(tmp_path / "b", 0.8), make_run(tmp_path / "c", classes="xyz")]
    )
    found = sections.classes(runs)
    assert found is not None and found["left_out"] == ["c"] and found["runs"] == [(0, "a"), (1, "b")]
    assert [row["spread"] for row in found["rows"]] == pytest.approx([0.1] * 3)
    assert "Without c , which has other classes or no result." in check(compare.render(runs)).text
    assert sections.classes(runs[1:]) is None
    many = [make_run(tmp_path / name, classes="".join(map(chr, range(200, 300)))) for name in ("m", "n")]
    assert "40 of 100 classes" in check(compare.render(compare.read_runs(many))).text


def test_curves_by_epoch_and_by_time(tmp_path: Path) -> None:
    (run, _) = compare.read_runs([make_run(tmp_path / "a", epochs=3), make_run(tmp_path / "b")])
    assert sections.points(run.history, "val_accuracy", 100, by_time=False) == (
        [1, 2, 3],
        pytest.approx([40, 70, 80]),
    )
    assert sections.points(run.history, "val_accuracy", 100, by_time=True)[0] == [0.5, 1.0, 1.5]
    run.history[1]["val_accuracy"] = float("nan")
    assert sections.points(run.history, "val_accuracy", 100, by_time=True)[0] == [0.5, 1.5]
    assert sections.best_epoch(run) == (pytest.approx(0.8), 3)


def test_names_of_strangers_are_only_text(tmp_path: Path) -> None:
    runs = [
        compare.Run(HOSTILE + str(i), {HOSTILE: HOSTILE + str(i)}, [{"epoch": 1, "val_loss": 1.0}], result)
        for i, result in enumerate(
            [
                {"accuracy": 0.5, "val_images": 4, "model": HOSTILE, "machine": {HOSTILE: HOSTILE},
                 "per_class_accuracy": {HOSTILE: 0.5, "nul\x00": None}},
                {"accuracy": HOSTILE, "per_class_accuracy": {HOSTILE: 0.4, "nul\x00": 1e999}, "versions": [HOSTILE]},
            ]
        )
    ]  # fmt: skip
    page = compare.render(runs)
    seen = check(page)
    assert "<script" not in page and "\x00" not in page
    assert seen.text.count("{{ 7*7 }}") >= 5


def test_many_runs_have_strokes_of_their_own(tmp_path: Path) -> None:
    palette = sections.palette(32)
    assert len({(run["colour"], run["dash"]) for run in palette}) == 32
    runs = [compare.Run(f"r{i}", {"seed": i}, [{"epoch": 1, "val_loss": i / 10}], {}) for i in range(12)]
    assert "12 runs compared" in check(compare.render(runs)).text


def test_nothing_recorded() -> None:
    runs = [compare.Run(name, {}, [], {}) for name in "ab"]
    seen = check(compare.render(runs))
    assert "No epoch was recorded." in seen.text and [a["id"] for a in seen.all("section")] == [
        "results", "curves", "settings",
    ]  # fmt: skip


def test_names_are_the_shortest_that_differ(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run")]
    assert [run.name for run in compare.read_runs(folders)] == ["x/run", "y/run"]


def test_what_is_no_run(tmp_path: Path) -> None:
    good, other = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    for folders, words in [
        ([], "of 1 to 32 runs, got 0"),
        ([good, good], "is given twice"),
        ([good, tmp_path / "empty"], "is not a run: it has no config.yaml"),
        ([good, tmp_path / "none"], "does not exist"),
    ]:
        with pytest.raises(SrattnError, match=words):
            compare.read_runs(folders)
    for name, text in [("metrics.jsonl", "{"), ("result.json", "[]"), ("config.yaml", "!!python/object:x {}")]:
        before = (other / name).read_text()
        (other / name).write_text(text)
        with pytest.raises(SrattnError, match="is damaged"):
            compare.read_runs([good, other])
        (other / name).write_text(before)
    with open(other / "metrics.jsonl", "wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(SrattnError, match="refused above"):
        compare.read_runs([good, other])


def make_scenes(folder: Path, headline: str, value: float, told: bool = True, **config: Any) -> Path:
    """A run on masks or boxes; with `told` false an unfinished one."""
    task, by_class = {"miou": ("segmentation", "iou"), "map50": ("detection", "map50")}[headline]
    make_run(folder, None, task=task, data="scenes", **config)
    lines = [{"epoch": e, f"val_{headline}": value - 0.1 / e, "val_loss": 1.0, "seconds": 9.0} for e in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    if told:
        result = {"task": task, "headline": headline, headline: value, "val_images": 100, "pixel_accuracy": 0.99}
        # A segmentation has accuracies of classes too; they are not its headline.
        result |= {f"per_class_{by_class}": {"a": value, "b": None}, "per_class_accuracy": {"a": 0.98, "b": 0.97}}
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize(
    ("headline", "words", "of_class"),
    [("miou", "mean IoU", "IoU of each class"), ("map50", "mean AP at IoU 0.5", "AP at IoU 0.5 of each class")],
)
def test_runs_are_compared_by_their_headline(tmp_path: Path, headline: str, words: str, of_class: str) -> None:
    folders = [make_scenes(tmp_path / name, headline, value) for name, value in (("x", 0.61), ("y", 0.72))]
    runs = compare.read_runs([*folders, make_scenes(tmp_path / "z", headline, 0.9, told=False)])
    seen = check(compare.render(runs))
    assert f"72.0 % {words} on the validation images by the best of them, y . The second, x , has 61.0 %." in seen.text
    assert f"run model {words} best epoch" in seen.text and "interval" not in seen.text and "accuracy" not in seen.text
    assert "85.00 % epoch 2" in seen.text  # of the run that is not finished
    labels = [a["aria-label"] for a in seen.all("svg") if a.get("role") == "img"]
    assert labels[0].startswith(f"Validation {words}, %: x ends at 56, y ends at 67, z ends at 85")
    assert labels[1].startswith(f"Validation {words}, % over the time")
    assert of_class[0].upper() + of_class[1:] in seen.text
    assert labels[-1].endswith("a differs most, by 11 points.") and "98.0 %" not in seen.text


def test_the_loss_is_that_of_the_weights_that_were_kept(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name) for name in ("best", "last")]
    file = folders[0] / "result.json"  # of a run with --keep best: not that of its last epoch, 0.55
    file.write_text(json.dumps(json.loads(file.read_text()) | {"loss": 0.7333}))
    rows = sections.table(compare.read_runs(folders))
    assert [row["loss"] for row in rows] == [0.7333, 0.55]


def test_different_tasks_are_no_contest(tmp_path: Path) -> None:
    folders = [make_scenes(tmp_path / "x", "miou", 0.61), make_scenes(tmp_path / "y", "map50", 0.72)]
    folders.append(make_run(tmp_path / "z", 0.9, data="scenes"))  # of before there were tasks: a classifier
    runs = compare.read_runs(folders)
    seen = check(compare.render(runs))
    assert not sections.measured_alike(runs) and sections.best(runs) is None and sections.one_headline(runs) is None
    assert "on different images or by different figures" in seen.text and "by the best of them" not in seen.text
    for text in ("61.00 % mean IoU", "72.00 % mean AP at IoU 0.5", "90.00 % accuracy 88.0 % – 91.7 %"):
        assert text in seen.text
    assert sections.classes(runs) is None


def test_a_headline_that_nobody_knows(tmp_path: Path) -> None:
    runs = [
        compare.Run(
            name, {"task": "pose"}, [{"epoch": 1, "val_near<b>": 3.0}], {"headline": "near<b>", "near<b>": 3.25}
        )
        for name in "ab"
    ]
    runs[1].result["near<b>"] = 4.5
    seen = check(compare.render(runs))
    assert "4.5 near<b> on the validation images by the best of them, b . The second, a , has 3.25." in seen.text
    odd = [compare.Run(name, {"task": ["x"]}, [], {"headline": ["x"], "accuracy": 0.5}) for name in "ab"]
    assert sections.one_headline(odd) is ACCURACY and "50.0 %" in check(compare.render(odd)).text
