"""The page in a real browser, at the width of a desk and of a phone, by mouse and by keyboard."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srattn.engine.scene_predict import Looking, predict_objects
from srattn.engine.weights import LoadedRun
from srattn.explain import attention
from srattn.ops.run_lengths import decode_runs
from srattn.serve import Options, make_app
from tests.in_browser import shot, watched

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
TOKEN = "s3cret"


@contextlib.contextmanager
def served(run: LoadedRun, token: str | None = None) -> Iterator[str]:
    """The address of a service in this process."""
    from srattn.serve.server import bind, url_of

    app = make_app(run, Options(max_wait_ms=0, token=token), attention)
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield url_of(bound)
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def url(tiny: LoadedRun) -> Iterator[str]:
    """The service of the tiny model, which asks for a token."""
    with served(tiny, TOKEN) as found:
        yield found


@pytest.mark.parametrize(("name", "width", "height"), [("desk", 1200, 900), ("phone", 360, 740)])
def test_a_visit(
    url: str, browser: Any, picture_of: Callable[..., bytes], tmp_path: Path, name: str, width: int, height: int
) -> None:
    file = tmp_path / "noise.png"
    file.write_bytes(picture_of(size=(300, 200)))
    page, problems = watched(browser, width, height, url)
    page.goto(url)

    page.get_by_label("This service asks for a token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.locator("#model").filter(has_text="pvt_v2_b0").wait_for()
    assert not page.locator("#token").is_visible()

    page.get_by_label("Choose a picture").set_input_files(str(file))
    page.locator("#classes li").nth(4).wait_for()
    shares = [float(text.split()[0]) for text in page.locator("#classes li span:not(.name)").all_text_contents()]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.5)
    assert (
        page.locator("#status").text_content()
        == f"{page.locator('#classes .name').first.text_content()}, {shares[0]:.1f} %"
    )

    def words() -> str:
        return page.locator("#words").text_content()

    view = page.get_by_role("application")
    box = view.bounding_box()
    view.click(position={"x": box["width"] * 0.25, "y": box["height"] * 0.75})
    page.locator("#words").filter(
        has_text="Stage 2, mean of all heads: the point at 25 % from the left and 75 %"
    ).wait_for()
    canvas = page.locator("#map").bounding_box()
    assert canvas["width"] == pytest.approx(0.8 * box["width"], abs=1)  # the crop of the model, in the middle
    page.get_by_label("Head").select_option("2")
    page.locator("#words").filter(has_text="Stage 2, head 2").wait_for()
    page.get_by_label("Stage").select_option("1")  # which has one head
    page.locator("#words").filter(has_text="Stage 1, mean of all heads").wait_for()

    view.focus()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowUp")
    page.locator("#words").filter(has_text="the point at 35 % from the left and 73 % from the top").wait_for()
    page.get_by_label("Show the map").uncheck()
    assert not page.locator("#map").is_visible()
    page.get_by_label("Show the map").check()

    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    shot(page, name)

    other = tmp_path / "other.png"
    other.write_bytes(b"no picture")
    page.get_by_label("Choose a picture").set_input_files(str(other))
    page.get_by_role("alert").filter(has_text="not an image of the formats").wait_for()
    assert problems == []
    page.close()


def test_everything_has_a_name_and_can_be_reached(url: str, browser: Any, picture_of: Callable[..., bytes]) -> None:
    page = browser.new_page()
    page.goto(url)
    page.get_by_label("This service asks for a token").fill(TOKEN)
    page.get_by_role("button", name="Use it").click()
    page.locator("#model").filter(has_text="pvt_v2_b0").wait_for()
    # A picture that is dropped anywhere on the page.
    transfer = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
            return transfer;
        }""",
        list(picture_of("red")),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    page.locator("#classes li").first.wait_for()
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert [each for each in reached if each] == ["file", "view", "stage", "head", "shown"]
    for control in ("Choose a picture", "Stage", "Head", "Show the map", "The picture dropped.png"):
        assert page.get_by_label(control).count() == 1
    page.close()


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_masks_and_boxes(
    task: str, width: int, scenes: dict[str, LoadedRun], browser: Any, picture_of: Callable[..., bytes], tmp_path: Path
) -> None:
    file = tmp_path / "noise.png"
    file.write_bytes(picture_of(size=(120, 80)))
    with served(scenes[task]) as url:
        page, problems = watched(browser, width, 800, url)
        page.goto(url)
        page.locator("#model").filter(has_text="pvt_v2_b0").wait_for()
        page.get_by_label("Choose a picture").set_input_files(str(file))
        page.locator("#classes li").first.wait_for()
        image = page.locator("#image").bounding_box()
        drawn = page.get_by_label("Show the mask" if task == "segmentation" else "Show the boxes")
        shot(page, f"{task}-{width}")
        if task == "segmentation":
            assert page.locator("#mask").bounding_box() == pytest.approx(image, abs=0.5)
            assert page.evaluate("document.getElementById('mask').naturalWidth") == 120
            texts = page.locator("#classes li > span:not(.name)").all_text_contents()
            assert sum(float(text.split()[0]) for text in texts) == pytest.approx(100, abs=0.5)
        else:
            frames = page.locator("#boxes .box")
            before = frames.count()
            assert before == page.locator("#classes li").count() > 0
            first = frames.first.bounding_box()
            assert image["x"] <= first["x"] + 1 and first["x"] + first["width"] <= image["x"] + image["width"] + 1
            page.get_by_label("Least score").fill("0.8")
            assert page.locator("#least-value").text_content() == "0.80"
            assert frames.count() == page.locator("#classes li").count() < before
        drawn.uncheck()
        assert not page.locator("#mask").is_visible() and not page.locator("#boxes .box").first.is_visible()
        drawn.check()
        page.get_by_role("application").click(position={"x": image["width"] / 2, "y": image["height"] / 2})
        page.locator("#words").filter(has_text="mean of all heads").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert problems == []
        page.close()


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("task", ["depth", "pose"])
def test_depths_and_joints(
    task: str, width: int, deep: dict[str, LoadedRun], browser: Any, picture_of: Callable[..., bytes], tmp_path: Path
) -> None:
    pytest.importorskip("kornia", reason="windows around people are kornia's")
    file = tmp_path / "noise.png"
    file.write_bytes(picture_of(size=(120, 80)))
    with served(deep[task]) as url:
        page, problems = watched(browser, width, 800, url)
        page.goto(url)
        page.locator("#model").filter(has_text="pvt_v2_b0").wait_for()
        page.get_by_label("Choose a picture").set_input_files(str(file))
        page.locator("#result").wait_for()
        image = page.locator("#image").bounding_box()
        drawn = page.get_by_label("Show the depths" if task == "depth" else "Show the joints")
        if task == "depth":
            page.locator("#mask").wait_for()
            assert page.locator("#mask").bounding_box() == pytest.approx(image, abs=0.5)
            names = page.locator("#classes .name").all_text_contents()
            assert names == ["nearest", "in the middle", "farthest"]
            far = [float(text.split()[0]) for text in page.locator("#classes li > span:not(.name)").all_text_contents()]
            assert far == sorted(far) and page.locator("#status").text_content().startswith(f"From {far[0]:.2f} m")
            shown = page.locator("#mask")
        else:
            page.get_by_label("Least score").fill("0.05")
            circles = page.locator("#boxes circle")
            assert circles.count() == page.locator("#classes li").count() == 3
            for number, joint in enumerate(page.evaluate("predicted.people[0].joints")):
                box = circles.nth(number).bounding_box()
                middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
                assert middle[0] == pytest.approx(image["x"] + joint["x"] / 120 * image["width"], abs=1)
                assert middle[1] == pytest.approx(image["y"] + joint["y"] / 80 * image["height"], abs=1)
            assert page.locator("#boxes line").count() == 3
            shown = page.locator("#boxes svg")
        shot(page, f"{task}-{width}")
        drawn.uncheck()
        assert not shown.is_visible()
        drawn.check()
        page.get_by_role("application").click(position={"x": image["width"] / 2, "y": image["height"] / 2})
        page.locator("#words").filter(has_text="mean of all heads").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert problems == []
        page.close()


def test_masks_of_objects_are_drawn_where_they_are(
    objects: LoadedRun, browser: Any, picture_of: Callable[..., bytes], tmp_path: Path
) -> None:
    file = tmp_path / "noise.png"
    file.write_bytes(picture_of(size=(120, 80)))
    with served(objects) as url, Image.open(file) as image:
        page, problems = watched(browser, 1200, 800, url)
        page.goto(url)
        page.locator("#model").filter(has_text="pvt_v2_b0").wait_for()
        page.get_by_label("Choose a picture").set_input_files(str(file))
        page.locator("#classes li").first.wait_for()
        page.get_by_label("Least score").fill("0.1")
        alpha = page.evaluate(
            """() => {
                const canvas = document.querySelector("#boxes .tint");
                const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                return [canvas.width, canvas.height, Array.from(pixels.filter((_, index) => index % 4 === 3))];
            }"""
        )
        boxes, masks = predict_objects(objects, image.convert("RGB"), Looking(threshold=0.1))
        assert masks is not None and len(boxes) == page.locator("#boxes .box").count()
        union = torch.stack([decode_runs(mask, (80, 120)) for mask in masks]).any(0)
        assert alpha[:2] == [120, 80] and 0 < int(union.sum()) < union.numel()
        drawn = torch.tensor(alpha[2]).view(80, 120) > 0
        assert float((drawn == union).float().mean()) > 0.999
        shot(page, "objects")
        assert problems == []
        page.close()
