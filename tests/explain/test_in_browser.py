"""The page of `srattn explain` in a real browser: its sliders, by mouse, by finger and by keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srattn.data.preprocess import Preprocess
from srattn.engine.rows.base import Source
from srattn.engine.weights import LoadedRun
from srattn.explain.explain import explain, write_explanation
from tests.in_browser import shot, watched


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written for two images of a model of five blocks."""
    from srattn.models import build_model
    from tests.explain.conftest import SMALL

    torch.manual_seed(0)
    model = build_model("pvt_v2_b0", num_classes=3, in_chans=1, img_size=32, **SMALL).eval()
    preprocess = Preprocess(channels=1, size=(32, 32), mean=(0.5,), std=(0.5,), fit="squash")
    run = LoadedRun(model, ["ant", "bee", "cat"], preprocess, {}, Path("run"))
    sources = [Source(name, torch.randint(0, 256, (1, 40, 48), dtype=torch.uint8)) for name in ("one", "two")]
    out = tmp_path_factory.mktemp("explained") / "out"
    write_explanation(out, explain(run, sources))
    return out


@pytest.mark.parametrize(("name", "width", "height"), [("desk", 1200, 900), ("phone", 360, 740)])
def test_sliders_choose_what_is_drawn(folder: Path, browser: Any, name: str, width: int, height: int) -> None:
    page, problems = watched(browser, width, height, "file:")
    page.goto((folder / "index.html").as_uri())

    def drawn() -> str:
        return page.evaluate("document.getElementById('canvas').toDataURL()")

    def told(words: str) -> None:
        page.locator("#told").filter(has_text=words).wait_for()

    def slid(label: str, value: int, says: str) -> None:
        """Moves a slider, which changes the picture."""
        before = drawn()
        slider = page.get_by_role("slider", name=label)
        slider.fill(str(value))
        assert page.locator(f"output[for='{slider.get_attribute('id')}']").text_content() == says
        assert slider.get_attribute("aria-valuetext") in (says, None)
        assert drawn() != before

    told("of 4 × 4 over 16 keys")
    assert page.get_by_role("slider", name="Stage").input_value() == "4"
    slid("Stage", 1, "1 of 4")
    told("of 32 × 32 over 16 keys")
    slid("Block", 2, "2 of 2")
    slid("Stage", 3, "3 of 4")
    slid("Head", 2, "2 of 2")
    slid("Overlay", 100, "100 %")
    slider = page.get_by_role("slider", name="Stage")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("output[for='s-stage']").text_content() == "2 of 4"

    stage = page.get_by_role("application")
    box = stage.bounding_box()
    stage.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.1})
    told("Token 2, 15 of 16 × 16")
    page.keyboard.press("ArrowDown")
    told("Token 3, 15 of 16 × 16")
    for view, words in (
        ("Rollout", "followed back through the attention"), ("Grad-CAM", "tage 2"),
        ("Receptive field", "The centre unit of stage 2"), ("Keys", "16 × 16 tokens become 4 × 4 keys"),
    ):  # fmt: skip
        page.get_by_role("radio", name=view).check()
        told(words)
    page.get_by_role("radio", name="Attention").check()
    before = drawn()
    page.get_by_role("button", name="two").click()
    page.locator("#name").filter(has_text="two").wait_for()
    page.wait_for_function("before => document.getElementById('canvas').toDataURL() !== before", arg=before)
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    shot(page, f"explain-{name}")
    assert problems == []
    page.close()
