"""The page of a run on masks or boxes stands alone, escapes what strangers wrote, and shows what was measured."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_page import HISTORY, HOSTILE, Body, check
from torch import Tensor, nn

from srattn.data.dense import Target
from srattn.data.palette import Palette, standard_palette
from srattn.errors import SrattnError
from srattn.explain import scene_cases, scene_pictures, scene_scores, scenes_figures, scenes_report
from srattn.explain.scene_pictures import Objects
from srattn.explain.scenes_report import SceneReportInputs
from srattn.ops.boxes import ignored_class
from srattn.ops.run_lengths import encode_runs
from srattn.tasks.detection.metrics import average_precision
from srattn.tasks.registry import make_task

HEIGHT, WIDTH = 32, 40


class Decoded:
    """A task whose outputs are detections."""

    name, headline = "detection", "map50"

    def postprocess(self, outputs: Tensor) -> Tensor:
        return outputs


def mask_of(number: int) -> Tensor:
    """Class 1 in the first columns, as many as `number`; a void pixel in the corner."""
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    mask[:, :number] = 1
    mask[-1, -1] = 255
    return mask


@pytest.fixture
def masks(make_model: Callable[..., nn.Module]) -> Callable[..., SceneReportInputs]:
    def make(classes: tuple[str, ...] = ("sky", "sea"), images: int = 12, **changes: Any) -> SceneReportInputs:
        count = len(classes)
        logits = torch.zeros(1, count, HEIGHT, WIDTH)
        logits[:, 0, :, 10:] = logits[:, 1, :, :10] = 1
        per_image = [scene_cases.image_iou(mask_of(n + 1), logits.argmax(1)[0]) for n in range(images)]
        confusion = [[0] * count for _ in classes]
        confusion[0][:2], confusion[1][:2] = [900, 100], [1, 49]
        result = {"task": "segmentation", "headline": "miou", "miou": 0.5321, "dice": 0.7, "val_images": images}
        result |= {f"per_class_{name}": dict.fromkeys(classes, 0.25) for name in ("iou", "dice", "accuracy")}
        result |= {"support": dict(zip(classes, [1000, 50], strict=False)), "confusion": confusion}
        result |= {"per_image": per_image, "machine": {"processor": "a processor", "cores": 2}}
        fields: dict[str, Any] = {
            "title": "A run", "task": make_task("segmentation", list(classes)), "history": HISTORY,
            "classes": list(classes), "palette": None, "names": [f"image {n}" for n in range(images)],
            "scene": lambda n: (torch.full((3, 16, 20), n / images), Target(mask=mask_of(n + 1))),
            "normalise": lambda x: x - 0.5, "model": Body(make_model(img_size=32), lambda x: logits),
            "size": (32, 32), "config_yaml": "task: segmentation\n", "result": result, "skipped": [],
        }  # fmt: skip
        return SceneReportInputs(**(fields | changes))

    return make


BOXES = torch.tensor([[2.0, 2, 12, 12, 0], [20, 10, 36, 28, 1]])


def answers_of(images: int) -> Tensor:
    """Image n: both objects, the second moved by n pixels, and padding."""
    found = torch.full((images, 3, 6), -1.0)
    found[:, :2, :4], found[:, :2, 5] = BOXES[:, :4], BOXES[:, 4]
    found[:, 1, [0, 2]] += torch.arange(images).float().unsqueeze(1)
    found[:, 0, 4], found[:, 1, 4] = 0.5, 0.75
    return found


@pytest.fixture
def boxes(make_model: Callable[..., nn.Module]) -> Callable[..., SceneReportInputs]:
    def make(classes: tuple[str, ...] = ("cat", "dog"), images: int = 12, **changes: Any) -> SceneReportInputs:
        answers = answers_of(images)
        result = {"task": "detection", "headline": "map50", "map50": 0.4, "map": 0.2, "val_images": images}
        result |= {"per_class_map50": {classes[0]: 0.8}, "support": dict(zip(classes, [images, 0], strict=False))}
        result |= {"curves": {classes[0]: [1.0] * 80 + [0.0] * 21}}

        def answer(inputs: Tensor) -> Tensor:
            return answers[int(inputs[0, 0, 0, 0].add(0.5).mul(images).round())].unsqueeze(0)

        fields: dict[str, Any] = {
            "title": "A run", "task": Decoded(), "history": HISTORY, "classes": list(classes), "palette": None,
            "names": [f"image {n}" for n in range(images)],
            "scene": lambda n: (torch.full((3, HEIGHT, WIDTH), n / images), Target(boxes=BOXES)),
            "normalise": lambda x: x - 0.5, "model": Body(make_model(img_size=32), answer), "size": (32, 32),
            "config_yaml": "task: detection\n", "result": result, "skipped": [], "answers": answers,
        }  # fmt: skip
        return SceneReportInputs(**(fields | changes))

    return make


def test_masks_from_head_to_foot(masks: Callable[..., SceneReportInputs], tmp_path: Path) -> None:
    inputs = masks()
    scenes_report.write_scene_report(tmp_path / "report.html", inputs)
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    seen = check((tmp_path / "report.html").read_text("utf-8"))
    expected = ["curves", "classes", "confusion", "cases", "plan", "config", "skipped"]
    assert [a["id"] for a in seen.all("section")] == expected and len(seen.all("h1")) == 1
    assert "53.2 % mean intersection over union of 2 classes on 12 validation images" in seen.text
    assert "sea sky 2.00 %" in seen.text and "sky sea 10.00 %" in seen.text
    assert "95.2 %" in seen.text  # of all pixels are sky
    assert len(seen.all("img")) == 8 * 4 and len(seen.all("svg")) == 4
    assert isinstance(inputs.model, Body) and inputs.model.calls == 8  # the model is run on just these
    # Ten columns are said to be of the second class: least is right where least is true, most where all is.
    names = re.findall(r"IoU [\d.]+ % (image \d+)", seen.text)
    assert names[0] == "image 0" and names[4] == "image 9"
    assert "None: every file was read." in seen.text and "kept in" not in seen.text
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    with pytest.raises(SrattnError, match="exists"):
        scenes_report.write_scene_report(tmp_path / "report.html", inputs)
    scenes_report.write_scene_report(tmp_path / "report.html", inputs, overwrite=True)


def test_boxes_from_head_to_foot(boxes: Callable[..., SceneReportInputs]) -> None:
    inputs = boxes()
    seen = check(scenes_report.render(inputs))
    expected = ["curves", "classes", "precision", "cases", "plan", "config", "skipped"]
    assert [a["id"] for a in seen.all("section")] == expected
    assert "40 % mean average precision of 2 classes on 12 validation images" in seen.text.replace("40.0", "40")
    assert len(seen.all("img")) == 8 * 2 and len(seen.all("svg")) == 4
    assert isinstance(inputs.model, Body) and inputs.model.calls == 8
    # Moved by 5 of its 16 pixels a box still overlaps 11 / 21 of both together, by 6 no more than 10 / 22.
    assert "Boxes are drawn from a score of 0.5 on" in seen.text
    assert seen.text.count("1 of 2 objects found, 1 wrong box ") == 4
    assert seen.text.count("2 of 2 objects found, 0 wrong boxes ") == 4
    assert "aria-label" in seen.all("svg")[2] and "cat 79.2" in seen.all("svg")[2]["aria-label"]


def test_names_of_strangers_are_only_text(
    masks: Callable[..., SceneReportInputs], boxes: Callable[..., SceneReportInputs]
) -> None:
    for make in (masks, boxes):
        changes = {"title": HOSTILE, "names": [HOSTILE + "nul\x00"] * 3, "config_yaml": HOSTILE}
        inputs = make((HOSTILE, "b"), 3, **changes, skipped=[HOSTILE, "bad\udcff.png", "nul\x00.png"])
        inputs.result |= {"machine": HOSTILE, HOSTILE: HOSTILE, "list": [HOSTILE]}
        page = scenes_report.render(inputs)
        seen = check(page)
        assert "<script" not in page and "\x00" not in page
        assert seen.text.count("{{ 7*7 }}") >= 8
        assert "3 files were unreadable" in seen.text


def test_without_what_ranks_them_an_even_selection(
    masks: Callable[..., SceneReportInputs], boxes: Callable[..., SceneReportInputs]
) -> None:
    inputs = masks(images=30)
    del inputs.result["per_image"]
    for each in (inputs, boxes(images=30, answers=None)):
        seen = check(scenes_report.render(each))
        assert "An even selection of the validation images" in seen.text and "The worst" not in seen.text
        names = re.findall(r"image (\d+):", " ".join(a["alt"] for a in seen.all("img")))
        assert sorted({*map(int, names)}) == [0, 4, 8, 12, 17, 21, 25, 29]


def test_next_to_nothing(masks: Callable[..., SceneReportInputs], boxes: Callable[..., SceneReportInputs]) -> None:
    bare: dict[str, Any] = {"history": [], "result": {}, "scene": lambda n: None}
    for make in (masks, boxes):
        seen = check(scenes_report.render(make(images=1, **bare)))
        assert "No epoch was recorded." in seen.text and "No image could be read again." in seen.text
    nothing = {"scene": lambda n: (torch.rand(3, HEIGHT, WIDTH), Target(boxes=torch.zeros(0, 5)))}
    seen = check(scenes_report.render(boxes(images=2, **nothing, answers=torch.full((2, 3, 6), -1.0))))
    assert "No box is right" in seen.text and "0 of 0 objects found" in seen.text
    only = masks(images=1, scene=lambda n: (torch.rand(1, 9, 9), Target(mask=torch.full((7, 5), 255).byte())))
    only.result["per_image"] = [None]
    assert "IoU unknown" in check(scenes_report.render(only)).text


def test_very_many_classes(boxes: Callable[..., SceneReportInputs]) -> None:
    classes = tuple(f"kind {n}" for n in range(300))
    inputs = boxes(classes)
    inputs.result |= {"curves": {name: [0.5] * 101 for name in classes}}
    seen = check(scenes_report.render(inputs))
    assert seen.all("img")  # in colours that begin again after 256 classes
    assert "260 more classes" in seen.text and "Each thin line is one of 300 classes" in seen.text


def test_what_does_not_fit(boxes: Callable[..., SceneReportInputs], tmp_path: Path) -> None:
    for changes, words in [
        ({"names": []}, "at least one validation image"),
        ({"answers": torch.zeros(3, 2, 6)}, r"answers must be \(12, D, 6\)"),
        ({"task": make_task("classification", ["a", "b"])}, "not of 'classification'"),
    ]:
        with pytest.raises(SrattnError, match=words):
            scenes_report.write_scene_report(tmp_path / "report.html", boxes(**changes))
    assert not list(tmp_path.iterdir())


def picture_of(panel: scene_pictures.Panel) -> np.ndarray:
    kind, data = panel.source.split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_mask_panels_show_what_is_wrong() -> None:
    truth = torch.zeros(40, 60, dtype=torch.uint8)
    truth[:, 30:] = 1
    truth[:20, :10] = 255
    prediction = torch.zeros_like(truth)
    palette = Palette(("a", "b"), ((0, 0, 0), (240, 240, 0)))
    panels = scene_pictures.mask_panels(torch.full((1, 20, 30), 0.4), truth, prediction, palette)
    assert [panel.caption for panel in panels] == ["image", "truth", "prediction", f"wrong: {100 * 1200 / 2200:.1f} %"]
    image, true, said, wrong = map(picture_of, panels)
    assert image.shape == (40, 60, 3) and np.abs(image - 102).max() <= 4
    assert np.abs(true[8:12, 45] - (171, 171, 51)).max() <= 8 and np.abs(true[8:12, 4] - 102).max() <= 8
    assert np.abs(said[20, 10:50] - 51).max() <= 8
    assert wrong[20, 45, 0] - wrong[20, 45, 2] > 100 and np.ptp(wrong[20, 15]) < 12


def test_large_and_small_pictures_are_bounded() -> None:
    truth = torch.zeros(900, 1800, dtype=torch.uint8)
    panels = scene_pictures.mask_panels(torch.rand(3, 64, 128), truth, truth, standard_palette(2))
    assert picture_of(panels[0]).shape == (180, 360, 3)
    for size, expected in [((700, 1400), (280, 560, 3)), ((1, 3), (134, 402, 3)), ((420, 300), (420, 300, 3))]:
        truth, found = Objects(torch.zeros(0, 5)), Objects(torch.zeros(0, 6))
        panels = scene_pictures.box_panels(torch.rand(3, *size), truth, found, TWO)
        assert [picture_of(panel).shape for panel in panels] == [expected] * 2


TWO = Palette(("a", "b"), ((250, 0, 0), (0, 0, 250)))


def test_boxes_move_with_their_picture() -> None:
    truth, found = torch.tensor([[10.0, 20, 40, 60, 1]]), torch.tensor([[50.0, 20, 90, 60, 0.9, 0]])
    padding = torch.full((1, 6), -1.0)
    objects = Objects(torch.cat([truth, padding[:, :5]])), Objects(torch.cat([found, padding]))
    drawn = scene_pictures.box_panels(torch.zeros(3, 80, 100), *objects, TWO)
    left, right = map(picture_of, drawn)  # four times as large
    assert left.shape == (320, 400, 3)
    columns = np.flatnonzero(left[120, :, 2] > 128)
    assert {int(columns[0]), int(columns[-1])} == {40, 159} and left[120, 100].max() < 60
    columns = np.flatnonzero(right[120, :, 0] > 128)
    assert {int(columns[0]), int(columns[-1])} == {200, 359}


def rectangle(top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(80, 100, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return encode_runs(mask)


def test_masks_of_objects_lie_under_their_boxes() -> None:
    truth = Objects(
        torch.tensor([[10.0, 20, 40, 60, 1], [50, 20, 90, 60, 0], [60, 70, 70, 78, 0]]),
        [rectangle(20, 10, 40, 40), rectangle(20, 50, 60, 90), torch.zeros(0)],  # the last is not known
        torch.tensor([False, True, False]),
    )
    found = Objects(
        torch.tensor([[50.0, 20, 90, 60, 0.9, 0], [-1, -1, -1, -1, -1, -1]]), [rectangle(20, 50, 60, 70)] * 2
    )
    left, right = map(picture_of, scene_pictures.box_panels(torch.zeros(3, 80, 100), truth, found, TWO))
    assert left[120, 100, 2] > 80 and left[200, 100].max() < 20  # the upper half of its box is the object
    assert left[200, 280].min() > 20 and np.ptp(left[200, 280]) < 12 and left[294, 260].max() < 20  # grey; nothing
    assert right[200, 240, 0] > 80 and right[200, 320].max() < 20


def test_what_is_ignored_is_neither_right_nor_wrong(boxes: Callable[..., SceneReportInputs]) -> None:
    objects = torch.tensor([[0.0, 0, 10, 10, 0], [0, 0, 40, 40, 0], [-1, -1, -1, -1, -1]])
    out = torch.tensor([False, True, False])
    found = torch.tensor([
        [0.0, 0, 10, 10, 0.9, 0],  # the object
        [20, 20, 30, 30, 0.8, 0],  # within the crowd, of which it is a small part
        [25, 25, 35, 35, 0.7, 0],  # likewise: a crowd has room for several
        [36, 36, 46, 46, 0.6, 0],  # hardly within
        [20, 20, 30, 30, 0.5, 1],  # of another class
    ])  # fmt: skip
    mine = scene_scores.match(objects, found, out)
    assert mine.scores.tolist() == pytest.approx([0.9, 0.6, 0.5]) and mine.hits.tolist() == [True, False, False]
    assert mine.objects == 1 and mine.precision() == 1
    image = torch.zeros(5, 1)
    told = objects.clone()
    told[1, 4] = ignored_class(told[1, 4])
    measured = average_precision(torch.cat([image[:2], told[:2]], 1), torch.cat([image, found], 1), 1, ["a", "b"])
    assert measured["per_class_map50"]["a"] == pytest.approx(1)
    crowd = {"scene": lambda n: (torch.full((3, HEIGHT, WIDTH), n / 12), Target(boxes=BOXES, ignored=out[:2]))}
    page = scenes_report.render(boxes(**crowd))
    seen = check(page)
    # Moved by more than half of its width a box is no longer within the object that does not count.
    assert seen.text.count("1 of 1 object found, 0 wrong boxes, 1 ignored") == 5
    assert seen.text.count("1 of 1 object found, 1 wrong box, 1 ignored") == 3
    assert "ignored: neither learnt nor counted" in seen.text
    assert "ignored" not in check(scenes_report.render(boxes())).text


@pytest.mark.parametrize("seed", range(6))
def test_matches_are_those_of_coco(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(7, 2, generator=generator) * 40
    objects = torch.cat([corner, corner + 8 + 20 * torch.rand(7, 2, generator=generator), torch.zeros(7, 1)], 1)
    found = objects[torch.randint(7, (15,), generator=generator)]
    found[:, :4] += 3 * torch.randn(15, 4, generator=generator)
    found = torch.cat([found[:, :4], torch.rand(15, 1, generator=generator), found[:, 4:]], 1)
    mine = scene_scores.match(objects, torch.cat([found, torch.full((3, 6), -1.0)]))
    image = torch.zeros(15, 1)
    measured = average_precision(torch.cat([image[:7], objects], 1), torch.cat([image, found], 1), 1, ["only"])
    # Theirs is a mean over 101 recalls, mine the area: each of the 7 steps of recall is off by at most one of them.
    precision = mine.precision()
    assert precision is not None and abs(precision - measured["map50"]) <= 7 / 101
    assert mine.objects == 7 and mine.above(2.0) == (0, 0)
    recall = sum(value > 0 for value in measured["curves"]["only"]) - 1
    assert math.floor(100 * int(mine.hits.sum()) / 7 + 1e-9) == recall


def test_matching_by_hand() -> None:
    objects = torch.tensor([[0.0, 0, 10, 10, 0], [20, 0, 30, 10, 1], [-1, -1, -1, -1, -1]])
    found = torch.tensor([
        [0.0, 0, 10, 10, 0.5, 0],  # comes second: its object is taken
        [1.0, 0, 10, 10, 0.9, 0],
        [20.0, 0, 30, 10, 0.8, 0],  # of another class
        [20.0, 0, 30, 5, 0.3, 1],  # exactly half
    ])  # fmt: skip
    mine = scene_scores.match(objects, found)
    assert mine.scores.tolist() == pytest.approx([0.9, 0.8, 0.5, 0.3]) and mine.hits.tolist() == [
        True,
        False,
        False,
        True,
    ]
    assert mine.precision() == pytest.approx((1 + 2 / 4) / 2)
    assert mine.above(0.5) == (1, 2)
    nothing = scene_scores.match(torch.zeros(0, 5), found)
    assert nothing.precision() is None and not nothing.hits.any()
    assert scene_scores.match(objects, torch.zeros(0, 6)).precision() == 0


def test_the_score_of_best_balance() -> None:
    def of(scores: list[float], hits: list[bool], objects: int) -> scene_scores.Matches:
        return scene_scores.Matches(torch.tensor(scores, dtype=torch.float64), torch.tensor(hits), objects)

    images = [of([0.9, 0.6, 0.2], [True, False, False], 1), of([0.6, 0.4], [True, True], 3)]
    scores = sorted({score for each in images for score in each.scores.tolist()})
    balance = {}
    for score in scores:
        right, wrong = (sum(pair) for pair in zip(*(each.above(score) for each in images), strict=True))
        balance[score] = 2 * right / (right + wrong + 4)
    assert scene_scores.best_score(images) == max(scores, key=lambda score: balance[score]) == 0.4
    # Of equal scores all are taken, in whatever order they stand.
    assert scene_scores.best_score([of([0.5, 0.5, 0.4], [True, False, True], 2)]) == 0.4
    assert scene_scores.best_score([of([0.5], [False], 1)]) is None and scene_scores.best_score([]) is None


def test_worst_and_best_do_not_overlap() -> None:
    assert scene_scores.extremes([0.5, None, 0.1, 0.9, 0.3], 4) == ([2, 4], [3, 0])
    assert scene_scores.extremes([0.5], 4) == ([0], []) and scene_scores.extremes([None], 4) == ([], [])
    assert scene_scores.extremes([n / 20 for n in range(20)], 2) == ([0, 1], [19, 18])
    assert scene_scores.evenly(3, 8) == [0, 1, 2] and scene_scores.evenly(101, 3) == [0, 50, 100]


def test_iou_of_one_image_is_that_of_the_measures() -> None:
    task = make_task("segmentation", ["a", "b", "c", "d"])
    generator = torch.Generator().manual_seed(3)
    truth = torch.randint(0, 3, (9, 11), generator=generator)
    truth[0, :4] = 255
    logits = torch.randn(1, 4, 9, 11, generator=generator)
    logits[:, 3] -= 100
    metrics = task.metrics()
    metrics.update(logits, truth.unsqueeze(0))
    found = scene_cases.image_iou(truth.byte(), logits.argmax(1)[0].byte())
    assert found == pytest.approx(metrics.details()["per_image"][0], abs=1e-12)


def test_shares_in_the_matrix() -> None:
    words = [scenes_figures.share_text(part) for part in (0.0, 1.0, 0.0004, 0.9996, 0.5321)]
    assert words == ["0", "100", "<0.1", ">99.9", "53.2"]
    svg = scenes_figures.confusion_shares(np.array([[99999, 1], [0, 0]]), ["a<b", "c"])
    assert "&gt;99.9" in svg and "&lt;0.1" in svg and "a&lt;b" in svg and "c" in svg
    assert "on the diagonal 100.0 %" in svg
    assert "on the diagonal no pixel" in scenes_figures.confusion_shares(np.zeros((2, 2)), ["a", "b"])
