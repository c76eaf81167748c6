"""The page of a run on depths or joints, and the pictures of what was true beside what was answered."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_page import HISTORY, HOSTILE, Body, check
from torch import Tensor, nn

from srattn.data.dense import Target
from srattn.data.dense.joints import SIDES, Joints, sides_of
from srattn.data.depth_colours import NOTHING, colour_error
from srattn.errors import SrattnError
from srattn.explain import depth_pictures, joint_pictures, scenes_report
from srattn.explain.measured_cases import depth_facts, person_panels
from srattn.explain.overlay import WRONG
from srattn.explain.scenes_report import SceneReportInputs
from srattn.explain.scenes_tables import steps
from srattn.tasks.registry import make_task

NAMES = ["nose", "left_hand", "right_hand"]
HEIGHT, WIDTH = 24, 32
Make = Callable[..., SceneReportInputs]


def depth_of(number: int) -> Tensor:
    """2 metres, and 4 in the last columns, as many as `number`; one row is not known."""
    depth = torch.full((HEIGHT, WIDTH), 2.0)
    depth[:, WIDTH - number :] = 4.0 if number else 2.0
    depth[0] = 0
    return depth


@pytest.fixture
def depths(make_model: Callable[..., nn.Module]) -> Make:
    def make(images: int = 12, **changes: Any) -> SceneReportInputs:
        task = make_task("depth", ["depth"])
        metrics, said = task.metrics(), torch.full((1, HEIGHT, WIDTH), 2.1)
        for number in range(images):
            metrics.update(said, depth_of(number).unsqueeze(0))
        result = {"task": "depth", "headline": "delta1", **metrics.compute(), **metrics.details()}
        result |= {"val_images": images, "machine": {"processor": "a processor", "cores": 2}}
        fields: dict[str, Any] = {
            "title": "A run", "task": task, "history": HISTORY, "classes": ["depth"], "palette": None,
            "names": [f"image {n}" for n in range(images)],
            "scene": lambda n: (torch.full((3, HEIGHT, WIDTH), n / images), Target(depth=depth_of(n))),
            "normalise": lambda x: x - 0.5, "model": Body(make_model(img_size=32), lambda x: said), "size": (32, 32),
            "config_yaml": "task: depth\n", "result": result, "skipped": [],
        }  # fmt: skip
        return SceneReportInputs(**(fields | changes))

    return make


def joints_of(number: int, seen: tuple[int, int, int] = (2, 2, 1)) -> Target:
    """A person in a window of 32 x 32 that shows an image at its own size."""
    place = torch.tensor([[16.0, 6, seen[0]], [8, 24, seen[1]], [24, 24, seen[2]]])
    return Target(joints=Joints.of(place, (32, 32), (number, 400.0, 20.0)))


class Moved:
    """A task whose outputs are joints already."""

    name, headline = "pose", "oks_ap"

    def postprocess(self, outputs: Tensor) -> Tensor:
        return outputs


def answer(off: float) -> Tensor:
    """Joints as parts of the window, the last one off by so many pixels."""
    place = torch.tensor([[[16.0, 6, 0.9], [8, 24, 0.9], [24 - off, 24, 0.9]]])
    return place * torch.tensor([1 / 32, 1 / 32, 1])


@pytest.fixture
def poses(make_model: Callable[..., nn.Module]) -> Make:
    def make(images: int = 12, **changes: Any) -> SceneReportInputs:
        names = changes.pop("classes", NAMES)
        result = {"task": "pose", "headline": "oks_ap", "oks_ap": 0.512, "oks_ap50": 0.9, "oks_ap75": 0.4, "pck": 0.75}
        result |= {"val_images": images, "support": dict.fromkeys(names, images), "people": images}
        result |= {"per_joint_pck": {names[0]: 1.0, names[1]: 0.5}, "per_joint_oks": {names[0]: 0.8}}
        result |= {"curves": {f"{0.5 + 0.05 * n:.2f}": [1.0] * (90 - 8 * n) + [0.0] * (11 + 8 * n) for n in range(10)}}
        result |= {"per_image": [1 - n / images for n in range(images)]}

        def run(inputs: Tensor) -> Tensor:
            return answer(float(inputs[0, 0, 0, 0].add(0.5).mul(images).round()))

        fields: dict[str, Any] = {
            "title": "A run", "task": Moved(), "history": HISTORY, "classes": names, "palette": None,
            "names": [f"image {n} ({n + 1})" for n in range(images)],
            "scene": lambda n: (torch.full((3, 32, 32), n / images), joints_of(n)),
            "normalise": lambda x: x - 0.5, "model": Body(make_model(img_size=32), run), "size": (32, 32),
            "config_yaml": "task: pose\n", "result": result, "skipped": [], "bones": [(0, 1), (0, 2)],
        }  # fmt: skip
        return SceneReportInputs(**(fields | changes))

    return make


def test_depths_from_head_to_foot(depths: Make) -> None:
    inputs = depths()
    seen = check(scenes_report.render(inputs))
    expected = ["curves", "classes", "cases", "plan", "config", "skipped"]
    assert [a["id"] for a in seen.all("section")] == expected and len(seen.all("h1")) == 1
    assert "of the known pixels are within 25 % of their distance, on 12 validation images" in seen.text
    assert "By distance" in seen.text and "RMSE 0.1 m" in seen.text
    # 2 metres are in the step up to 2, and 2.1 are said; 4 in the step up to 4.
    assert re.search(r"1 to 2 m [\d.]+ % 100 % 5\.0 % 0\.1 m", seen.text), seen.text
    assert re.search(r"3 to 4 m [\d.]+ % 0\.0 % 47\.5 % 1\.9 m", seen.text)
    assert re.search(r"4 to 5 m 0\.0 % – – –", seen.text)
    assert len(seen.all("img")) == 8 * 4 and len(seen.all("svg")) == 3 + 2 + 1
    names = re.findall(r"within 25 %, RMSE [\d.]+ m (image \d+)", seen.text)
    assert names[0] == "image 11" and names[4] == "image 0"
    assert "2 m" in seen.text and "50 % too far" in seen.text and "0.5 of" not in seen.text
    scales = [a for tag, a in seen.elements if "gradient" in a.get("style", "")]
    assert len(scales) == 9 and scales[1]["aria-label"] == "colours from 2 m to 4 m"
    assert isinstance(inputs.model, Body) and inputs.model.calls == 8


def test_joints_from_head_to_foot(poses: Make) -> None:
    inputs = poses()
    seen = check(scenes_report.render(inputs))
    expected = ["curves", "classes", "precision", "cases", "plan", "config", "skipped"]
    assert [a["id"] for a in seen.all("section")] == expected
    assert "51.2 % mean average precision of poses on 12 validation people." in seen.text
    assert "nose 12 100 % 80.0 %" in seen.text and "right_hand 12 – –" in seen.text
    assert len(seen.all("img")) == 8 * 3 and len(seen.all("svg")) == 2 + 1 + 1
    figure = next(a for a in seen.all("svg") if "Precision over recall" in a["aria-label"])
    assert "OKS 0.50" in figure["aria-label"] and "OKS 0.90" in figure["aria-label"]
    names = re.findall(r"joints found image (\d+)", seen.text)
    assert names == ["11", "10", "9", "8", "0", "1", "2", "3"]
    assert "2 of 3 joints found image 11" in seen.text and "3 of 3 joints found image 0" in seen.text
    assert "apart: 1 of 3 too far" in seen.text and "left right neither" in seen.text
    assert "The worst and the best people" in seen.text


def test_names_of_strangers_are_only_text(depths: Make, poses: Make) -> None:
    for make in (depths, poses):
        changes = {"title": HOSTILE, "names": [HOSTILE + "nul\x00"] * 3, "config_yaml": HOSTILE, "skipped": [HOSTILE]}
        inputs = make(3, **changes, **({"classes": [HOSTILE, "left", "c"]} if make is poses else {}))
        inputs.result |= {"machine": HOSTILE, HOSTILE: HOSTILE}
        page = scenes_report.render(inputs)
        assert check(page).text.count("{{ 7*7 }}") >= 8 and "<script" not in page and "\x00" not in page


def test_next_to_nothing(depths: Make, poses: Make) -> None:
    for make in (depths, poses):
        seen = check(scenes_report.render(make(1, history=[], result={}, scene=lambda n: None)))
        assert "No epoch was recorded." in seen.text and "No image could be read again." in seen.text
    unknown = depths(1, scene=lambda n: (torch.rand(1, 9, 9), Target(depth=torch.zeros(7, 5))))
    assert "no depth is known" in check(scenes_report.render(unknown)).text
    nobody = poses(1, scene=lambda n: (torch.rand(3, 32, 32), joints_of(0, (0, 0, 0))))
    nobody.result |= {"curves": {}, "per_image": [None]}
    seen = check(scenes_report.render(nobody))
    assert "OKS unknown, 0 of 0 joints found" in seen.text and "No validation person has a labelled joint" in seen.text


def test_without_what_ranks_them_an_even_selection(depths: Make, poses: Make) -> None:
    for make in (depths, poses):
        inputs = make(30)
        del inputs.result["per_image"]
        seen = check(scenes_report.render(inputs))
        assert "An even selection of the validation" in seen.text and "The worst" not in seen.text


def test_damaged_records_of_distance_are_passed_over() -> None:
    whole: dict[str, Any] = {"edges": [0, 1, 2], "pixels": [3, 0], "delta1": [1.0, None], "abs_rel": [0.1, None]}
    assert steps({"by_distance": whole | {"rmse": [0.1, None]}})[0] == [0, 1, 2]
    for broken in (whole, whole | {"rmse": [0.1]}, {"edges": "no"}, [], None):
        assert steps({"by_distance": broken}) == ([], {})


def test_errors_have_signs() -> None:
    truth = torch.tensor([[2.0, 2.0, 2.0, 0.0, torch.nan]])
    blue, white, red, *nothing = np.asarray(colour_error(truth.new_tensor([[1.0, 2, 3, 3, 3]]), truth))[0].tolist()
    assert blue[2] > blue[0] + 60 and red[0] > red[2] + 60 and min(white) > 240
    assert nothing == [list(NOTHING)] * 2
    with pytest.raises(SrattnError, match="of one size"):
        colour_error(truth, truth.T)


def test_depth_panels_share_the_scale_of_the_truth() -> None:
    truth = torch.full((8, 10), 3.0)
    truth[:, 5:] = 7.0
    truth[0] = 30.0  # beyond the largest
    panels, scale = depth_pictures.depth_panels(torch.rand(1, 4, 5), truth, truth, 10.0)
    assert (scale.low, scale.high) == ("3 m", "7 m") and scale.css().count("#") == 9
    assert [panel.caption for panel in panels] == ["image", "truth", "prediction", "AbsRel 0.0 %"]
    true, said = (np.asarray(panel.picture).astype(int) for panel in panels[1:3])
    assert (true[1:] == said[1:]).all() and true[2, 2].sum() > true[2, 8].sum()
    assert true[0].tolist() == [list(NOTHING)] * 10
    strip = np.asarray(depth_pictures.draw_scale(scale, 200))
    assert strip.shape == (20, 200, 3) and strip[10, 60].sum() > strip[10, 140].sum()
    depth_pictures.draw_scale(scale, 10)  # no room for colours


def test_facts_of_one_image() -> None:
    truth = torch.tensor([[1.0, 2, 0, 12]])
    assert depth_facts(truth, torch.tensor([[1.1, 4, 5, 5]]), 10.0) == "50.0 % within 25 %, RMSE 1.42 m"
    assert depth_facts(torch.zeros(2, 2), truth[:, :2].repeat(2, 1), 10.0) == "no depth is known"


def test_sides_by_name() -> None:
    assert sides_of(["nose", "left_eye", "Hand Right", "upleft"]) == ["neither", "left", "right", "neither"]


def near(picture: Image.Image, x: float, y: float, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(np.asarray(picture).astype(int)[round(y), round(x)] - colour) < 40).all())


def test_joints_are_drawn_where_they_are() -> None:
    facts, panels = person_panels(torch.zeros(3, 32, 32), joints_of(0), answer(10), NAMES, [(0, 1)])
    assert facts.endswith("2 of 3 joints found") and facts.startswith("OKS ")
    truth, said, apart = (panel.picture for panel in panels)
    scale = truth.width / 32
    for picture in (truth, said):
        assert near(picture, 16 * scale, 6 * scale, SIDES["neither"])
        assert near(picture, 8 * scale, 24 * scale, SIDES["left"])
        assert near(picture, 12 * scale, 15 * scale, SIDES["neither"])  # the bone
    assert near(said, 14 * scale, 24 * scale, SIDES["right"])
    assert not near(truth, 24 * scale, 24 * scale, SIDES["right"])  # hidden: hollow
    assert near(apart, 14 * scale, 24 * scale, WRONG) and near(apart, 19 * scale, 24 * scale, WRONG)
    assert near(apart, 8 * scale, 24 * scale, (29, 32, 34)) or near(apart, 8 * scale, 24 * scale, joint_pictures.RIGHT)


def test_one_person_has_its_similarity() -> None:
    facts, _ = person_panels(torch.zeros(1, 32, 32), joints_of(0, (2, 0, 0)), answer(9), NAMES, [])
    assert facts == "OKS 100.0 %, 1 of 1 joints found"
