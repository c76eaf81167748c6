"""What a service answers of depths and joints, beside what `srattn predict` does."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from srattn.data.depth_files import read_depth
from srattn.data.preprocess import to_tensor
from srattn.engine.scene_predict import predict_depth, predict_joints
from srattn.engine.weights import LoadedRun
from srattn.explain import attention
from srattn.serve import Options, make_app

pytest.importorskip("kornia", reason="windows around people are kornia's")
SIZES = [(60, 40), (33, 90), (1, 50), (700, 3)]


@pytest.fixture
def files(picture_of: Callable[..., bytes]) -> list[bytes]:
    return [picture_of(size=size, seed=seed) for seed, size in enumerate(SIZES)]


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def posted(app: Any, talk: Callable[..., Any], files: list[bytes], query: str = "") -> Any:
    sent = [("image", (f"{number}.png", data)) for number, data in enumerate(files)]
    return talk(app, lambda client: client.post(f"/predict{query}", files=sent))


def test_depths(deep: dict[str, LoadedRun], talk: Callable[..., Any], files: list[bytes]) -> None:
    run = deep["depth"]
    app = make_app(run, Options(max_wait_ms=1))
    told = posted(app, talk, files, "?drawing=true").json()
    assert told["task"] == "depth"
    for data, answer in zip(files, told["answers"], strict=True):
        wanted = predict_depth(run, opened(data))
        found = read_depth(base64.b64decode(answer["depth"]), answer["depth_scale"])
        assert found.shape == wanted.shape == (answer["height"], answer["width"])
        assert float((found - wanted).abs().max()) <= answer["depth_scale"]
        said = {"least": wanted.min(), "median": wanted.median(), "most": wanted.max()}
        assert answer["metres"] == pytest.approx({key: float(value) for key, value in said.items()}, rel=1e-3)
        with Image.open(io.BytesIO(base64.b64decode(answer["drawing"]))) as drawing:
            shades = to_tensor(drawing)[0]
        assert int(shades.flatten()[wanted.argmin()]) == 255 and int(shades.flatten()[wanted.argmax()]) == 0
    plain = posted(make_app(run), talk, files[:1]).json()["answers"][0]
    assert "drawing" not in plain and plain["depth"] == told["answers"][0]["depth"]


def test_joints(deep: dict[str, LoadedRun], talk: Callable[..., Any], files: list[bytes]) -> None:
    run = deep["pose"]
    app = make_app(run, Options(max_wait_ms=1))
    told = posted(app, talk, files).json()
    for data, answer in zip(files, told["answers"], strict=True):
        wanted = predict_joints(run, opened(data))
        (person,) = answer["people"]
        assert person["box"] == [0, 0, answer["width"], answer["height"]]
        assert [joint["name"] for joint in person["joints"]] == run.classes
        found = torch.tensor([[joint["x"], joint["y"], joint["score"]] for joint in person["joints"]])
        torch.testing.assert_close(found, wanted[0], rtol=1e-4, atol=1e-3)
    two = posted(make_app(run), talk, files[:1], "?people=3,4,30,38;20,0,75,30.5").json()["answers"][0]["people"]
    assert [person["box"] for person in two] == [[3, 4, 30, 38], [20, 0, 60, 30.5]]  # cut at the picture's edge
    wanted = predict_joints(run, opened(files[0]), torch.tensor([person["box"] for person in two]))
    found = torch.tensor([[[joint["x"], joint["y"], joint["score"]] for joint in person["joints"]] for person in two])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("people", "code", "words"),
    [
        ("1,2,3", 422, "boxes x1,y1,x2,y2"),
        ("1,2,3,nan", 422, "boxes x1,y1,x2,y2"),
        ("a,b,c,d", 422, "boxes x1,y1,x2,y2"),
        ("", 422, "from one to 3 boxes, got 0"),
        (";".join(["0,0,9,9"] * 4), 422, "from one to 3 boxes, got 4"),
        ("70,0,90,20", 422, "on the picture of 60x40 pixels"),
        ("9,9,3,20", 422, "on the picture of 60x40 pixels"),
    ],
)
def test_wrong_boxes_of_people(
    deep: dict[str, LoadedRun], talk: Callable[..., Any], files: list[bytes], people: str, code: int, words: str
) -> None:
    app = make_app(deep["pose"], Options(max_images=3))
    response = posted(app, talk, files[:1], f"?people={people}")
    assert response.status_code == code and words in response.json()["error"]


def test_boxes_are_of_one_picture(deep: dict[str, LoadedRun], talk: Callable[..., Any], files: list[bytes]) -> None:
    response = posted(make_app(deep["pose"]), talk, files, "?people=0,0,9,9")
    assert response.status_code == 413 and "at most 1 picture" in response.json()["error"]


@pytest.mark.parametrize(("task", "name", "option"), [("depth", "Depths", "drawing"), ("pose", "Poses", "people")])
def test_facts_vectors_and_maps(
    task: str, name: str, option: str, deep: dict[str, LoadedRun], talk: Callable[..., Any], files: list[bytes]
) -> None:
    app = make_app(deep[task], Options(max_wait_ms=0), attention)

    async def work(client: Any) -> list[Any]:
        png = {"content-type": "image/png"}
        asked = ["/embed", "/explain?x=0.5&y=0.5&stage=1", "/predict?top=3"]
        found = [await client.post(path, content=files[1], headers=png) for path in asked]
        return [await client.get("/model"), await client.get("/openapi.json"), *found]

    facts, described, vector, weights, wrong = talk(app, work)
    assert facts.json()["task"] == task and facts.json()["embeds"]
    assert facts.json().get("bones") == ([[1, 2], [0, 1], [0, 2]] if task == "pose" else None)
    assert vector.status_code == weights.status_code == 200 and wrong.status_code == 422
    route = described.json()["paths"]["/predict"]["post"]
    assert route["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(name)
    assert [each["name"] for each in route["parameters"]] == [option]
