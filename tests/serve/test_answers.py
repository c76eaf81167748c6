"""What a service answers, beside what the model itself says."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from srattn.data.preprocess import Preprocess, to_tensor
from srattn.engine.predict import classify
from srattn.engine.rows.base import Source
from srattn.engine.weights import LoadedRun
from srattn.explain import attention
from srattn.serve import Options, make_app
from srattn.serve.picture import seen_box

JSON = {"content-type": "application/json"}
PNG = {"content-type": "image/png"}


@pytest.fixture
def app(tiny: LoadedRun) -> Any:
    return make_app(tiny, Options(max_wait_ms=1), attention)


def inputs_of(run: LoadedRun, data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        pixels = run.preprocess.pixels(image.convert("RGB"))
    return run.preprocess.normalise(pixels[None].float() / 255)


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_every_form_of_a_request_gets_the_answer_of_predict(
    app: Any, tiny: LoadedRun, talk: Callable[..., Any], picture_of: Callable[..., bytes]
) -> None:
    files = {
        "b.png": picture_of(seed=1),
        "a.jpg": picture_of(seed=2, kind="JPEG"),
        "c.bmp": picture_of("red", (9, 200)),
    }
    expected = list(classify(tiny, [Source(name, data) for name, data in files.items()], batch_size=1))

    async def work(client: Any) -> list[Any]:
        as_files = [("image", (name, data)) for name, data in files.items()]
        as_text = [text_of(data) for data in files.values()]
        url = f"data:image/png;base64,{as_text[0]}"
        return [
            await client.post("/predict?top=3", files=as_files),
            await client.post("/predict?top=3", json={"images": as_text}),
            await client.post("/predict?top=3", json={"image": url}),
            await client.post("/predict?top=99", content=files["b.png"], headers=PNG),
        ]

    multipart, several, one, raw = (response.json() for response in talk(app, work))
    assert multipart["task"] == "classification" and multipart["model"] == "pvt_v2_b0"
    assert [answer["name"] for answer in multipart["answers"]] == list(files)
    assert [answer["name"] for answer in several["answers"]] == ["image 1", "image 2", "image 3"]
    assert [(a["width"], a["height"]) for a in multipart["answers"]] == [(60, 40), (60, 40), (9, 200)]
    for answers in (multipart["answers"], several["answers"]):
        for answer, true in zip(answers, expected, strict=True):
            assert [each["name"] for each in answer["classes"]] == list(true.classes[:3])
            # The same sums in batches of other sizes: float32 with a few hundred addends.
            shares = [each["probability"] for each in answer["classes"]]
            assert shares == pytest.approx(true.probabilities[:3], rel=1e-4)
    assert [each["name"] for each in one["answers"][0]["classes"]] == list(expected[0].classes[:3])
    assert [each["name"] for each in raw["answers"][0]["classes"]] == list(expected[0].classes)


def test_vectors_are_what_the_classifier_reads(
    app: Any, tiny: LoadedRun, talk: Callable[..., Any], picture_of: Callable[..., bytes]
) -> None:
    data = picture_of()
    answer = talk(app, lambda client: client.post("/embed", content=data, headers=PNG)).json()
    with torch.no_grad():
        features = tiny.model.forward_features(inputs_of(tiny, data))
        expected = tiny.model.forward_head(features, pre_logits=True)[0]
    assert answer["length"] == len(expected) == 16
    assert answer["answers"][0]["vector"] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)


def test_maps_are_those_of_the_definition(
    app: Any, tiny: LoadedRun, talk: Callable[..., Any], picture_of: Callable[..., bytes]
) -> None:
    data = picture_of()

    async def work(client: Any) -> list[Any]:
        asked = ["stage=1&block=1", "stage=2&head=1", "stage=2&head=2", ""]
        return [
            (await client.post(f"/explain?x=0.31&y=0.71&{query}", content=data, headers=PNG)).json() for query in asked
        ]

    first, *heads, mean = talk(app, work)
    # 60x40 pixels, of which the model sees the middle 48x32 at their own size.
    assert first["box"] == pytest.approx([0.1, 0.1, 0.9, 0.9])
    point = (int((0.71 - 0.1) / 0.8 * 32), int((0.31 - 0.1) / 0.8 * 48))
    for answer, block, head in (
        (first, (0, 0), None),
        (heads[0], (1, 0), 0),
        (heads[1], (1, 0), 1),
        (mean, (1, 0), None),
    ):
        (found,) = attention.attention_maps(tiny.model, inputs_of(tiny, data), [block])
        overlay = attention.query_overlay(found, point, (32, 48), head)[0]
        rows, columns = found.grid
        assert answer["grid"] == [rows, columns] and answer["token"] == [
            point[0] // found.stride,
            point[1] // found.stride,
        ]
        for row in range(rows):
            for column in range(columns):
                here = overlay[row * found.stride :, column * found.stride :][: found.stride, : found.stride]
                assert answer["weights"][row][column] == pytest.approx(float(here.sum()), rel=1e-3, abs=1e-6)
        assert sum(map(sum, answer["weights"])) == pytest.approx(1, abs=1e-4)
    assert (first["stage"], first["block"], first["head"]) == (1, 1, None)
    assert (mean["stage"], mean["block"], mean["head"]) == (2, 1, None)
    assert heads[0]["weights"] != heads[1]["weights"]


def test_a_map_as_a_picture(app: Any, talk: Callable[..., Any], picture_of: Callable[..., bytes]) -> None:
    data = picture_of("black")
    query = "x=0.2&y=0.2&stage=2"

    async def work(client: Any) -> tuple[Any, Any]:
        shares = await client.post(f"/explain?{query}", content=data, headers=PNG)
        return shares.json(), await client.post(f"/explain?{query}&format=png", content=data, headers=PNG)

    shares, response = talk(app, work)
    assert response.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(response.content)) as image:
        levels = to_tensor(image.convert("RGB"))[0].float()  # orange on black: its red is the map
    factor = levels.shape[0] // 32
    assert levels.shape == (32 * factor, 48 * factor) and levels.shape[0] >= 448
    rows, columns = shares["grid"]
    weights = torch.tensor(shares["weights"])
    middles = levels[16 * factor // rows :: 32 * factor // rows, 24 * factor // columns :: 48 * factor // columns]
    far = torch.ones(rows, columns, dtype=torch.bool)
    far[shares["token"][0], shares["token"][1]] = False  # there is the ring
    assert torch.allclose(middles[far], (0.75 * 255 * weights / weights.max())[far], atol=1)


@pytest.mark.parametrize("fit", ["crop", "centre", "inside", "squash"])
@pytest.mark.parametrize("size", [(300, 90), (90, 300), (128, 128)])
def test_the_box_says_where_the_model_looks(fit: str, size: tuple[int, int]) -> None:
    width, height = size
    preprocess = Preprocess(size=(32, 64), fit=fit, crop_fraction=0.7)
    across = torch.linspace(0, 255, width).expand(height, width)
    down = torch.linspace(0, 255, height)[:, None].expand(height, width)
    levels = torch.stack([across, down, torch.zeros(height, width)], dim=2).round().to(torch.uint8)
    pixels = preprocess.pixels(Image.frombytes("RGB", size, bytes(levels.flatten().tolist()))).float() / 255
    left, top, right, bottom = seen_box(preprocess, height, width)
    seen = 0
    for row in range(32):
        for column in range(64):
            x, y = left + (right - left) * (column + 0.5) / 64, top + (bottom - top) * (row + 0.5) / 32
            if 0.1 < x < 0.9 and 0.1 < y < 0.9:
                seen += 1
                assert pixels[0, row, column] == pytest.approx(x, abs=0.03)
                assert pixels[1, row, column] == pytest.approx(y, abs=0.03)
    assert seen > 100


def test_a_point_that_the_model_does_not_see(
    app: Any, talk: Callable[..., Any], picture_of: Callable[..., bytes]
) -> None:
    response = talk(app, lambda client: client.post("/explain?x=0.05", content=picture_of(), headers=PNG))
    assert response.status_code == 422 and "sees x from 0.100 to 0.900" in response.json()["error"]


def test_facts_of_the_model(app: Any, tiny: LoadedRun, talk: Callable[..., Any]) -> None:
    facts = talk(app, lambda client: client.get("/model")).json()
    assert facts["task"] == "classification" and facts["classes"] == tiny.classes and facts["size"] == [32, 48]
    assert facts["stages"] == [
        {"stage": 1, "blocks": 2, "heads": 1, "grid": [8, 12]},
        {"stage": 2, "blocks": 1, "heads": 2, "grid": [4, 6]},
    ]
    assert talk(app, lambda client: client.get("/health")).json() == {"status": "ok"}
    asked = talk(app, lambda client: client.head("/health"))
    assert (asked.status_code, asked.content) == (200, b"")


def test_a_model_without_maps(tiny: LoadedRun, talk: Callable[..., Any], picture_of: Callable[..., bytes]) -> None:
    app = make_app(tiny)
    response = talk(app, lambda client: client.post("/explain", content=picture_of(), headers=PNG))
    assert response.status_code == 404 and "no attention maps" in response.json()["error"]


def test_figures(app: Any, talk: Callable[..., Any], picture_of: Callable[..., bytes]) -> None:
    async def work(client: Any) -> Any:
        for content in (picture_of(), picture_of(), b"no picture"):
            await client.post("/predict", content=content, headers=PNG)
        await client.get("/nowhere/at/all")
        return await client.get("/metrics")

    response = talk(app, work)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    for line in (
        'srattn_requests_total{path="/predict",code="200"} 2',
        'srattn_requests_total{path="/predict",code="422"} 1',
        'srattn_requests_total{path="other",code="404"} 1',
        'srattn_request_seconds_count{path="/predict"} 3',
        'srattn_request_seconds_bucket{path="/predict",le="+Inf"} 3',
        'srattn_batch_size_bucket{le="1"} 3',  # the first is that of the start
        "srattn_queue_length 0",
    ):
        assert line in lines
    sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)


def test_the_page_needs_nothing_from_elsewhere(app: Any, talk: Callable[..., Any]) -> None:
    async def work(client: Any) -> list[Any]:
        return [await client.get(path) for path in ("/", "/page.css", "/page.js")]

    page, style, script = talk(app, work)
    assert page.status_code == style.status_code == script.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    for part in (page, style, script):
        assert not re.search(r"https?://|//[a-z]", part.text.replace("// ", ""))
    assert " style=" not in page.text and "onclick" not in page.text  # the policy would forbid them
    asked = set(re.findall(r'part\("([\w-]+)"\)', script.text))
    assert asked and asked <= set(re.findall(r'id="([\w-]+)"', page.text))


def test_openapi_tells_it_all(app: Any, talk: Callable[..., Any]) -> None:
    told = talk(app, lambda client: client.get("/openapi.json")).json()
    assert set(told["paths"]) == {"/predict", "/embed", "/explain", "/model", "/health", "/metrics"}
    for path in ("/predict", "/embed", "/explain"):
        post = told["paths"][path]["post"]
        assert set(post["requestBody"]["content"]) >= {"multipart/form-data", "application/json", "image/*"}
        assert {"200", "400", "413", "415", "422", "503", "504"} <= set(post["responses"])
        assert post["responses"]["422"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/Error"
        }
