"""What a service answers of masks and boxes, beside what `srattn predict` does."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srattn.data.preprocess import to_tensor
from srattn.engine.embed import Vectors, body_of
from srattn.engine.scene_predict import Looking, predict_boxes, predict_mask, predict_objects, shares
from srattn.engine.weights import LoadedRun
from srattn.explain import attention
from srattn.export import Options as ExportOptions
from srattn.export import export_model
from srattn.export.opened import open_export
from srattn.ops.run_lengths import decode_runs, read_runs
from srattn.serve import Options, make_app

PNG = {"content-type": "image/png"}
SIZES = [(60, 40), (33, 90), (64, 64)]


@pytest.fixture
def files() -> list[bytes]:
    """Pictures of soft blots."""
    found = []
    for seed, size in enumerate(SIZES):
        noise = torch.randint(0, 256, (9 * 7 * 3,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        file = io.BytesIO()
        Image.frombytes("RGB", (9, 7), noise.numpy().tobytes()).resize(size).save(file, "PNG")
        found.append(file.getvalue())
    return found


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def posted(app: Any, talk: Callable[..., Any], files: list[bytes], query: str = "") -> dict[str, Any]:
    sent = [("image", (f"{number}.png", data)) for number, data in enumerate(files)]
    response = talk(app, lambda client: client.post(f"/predict{query}", files=sent))
    assert response.status_code == 200, response.text
    return response.json()


def test_masks(scenes: dict[str, LoadedRun], talk: Callable[..., Any], files: list[bytes]) -> None:
    run = scenes["segmentation"]
    told = posted(make_app(run, Options(max_wait_ms=1)), talk, files)
    assert told["task"] == "segmentation"
    for data, answer in zip(files, told["answers"], strict=True):
        mask = predict_mask(run, opened(data))
        with Image.open(io.BytesIO(base64.b64decode(answer["mask"]))) as picture:
            assert (picture.mode, picture.size) == ("P", (answer["width"], answer["height"]))
            assert picture.getpalette()[:9] == [0, 0, 0, 200, 0, 0, 0, 0, 200]
            found = to_tensor(picture)[0]
        assert len(mask.unique()) > 1
        # The same sums in batches of other sizes.
        assert float((found == mask).float().mean()) > 0.999
        expected = shares(mask, run.classes)
        assert {each["name"]: each["share"] for each in answer["shares"]} == pytest.approx(expected, abs=1e-3)


def test_boxes(scenes: dict[str, LoadedRun], talk: Callable[..., Any], files: list[bytes]) -> None:
    run = scenes["detection"]
    told = posted(make_app(run, Options(max_wait_ms=1)), talk, files, "?threshold=0.1")
    assert told["task"] == "detection"
    for data, answer in zip(files, told["answers"], strict=True):
        expected = predict_boxes(run, opened(data), Looking(threshold=0.1)).tolist()
        assert len(answer["boxes"]) == len(expected) > 3
        for found, (*box, score, number) in zip(answer["boxes"], expected, strict=True):
            assert found["name"] == run.classes[int(number)]
            assert found["score"] == pytest.approx(score, abs=1e-4)
            assert found["box"] == pytest.approx(box, abs=1e-2)
    few = posted(make_app(run), talk, files[:1], "?threshold=0.9")["answers"][0]["boxes"]
    assert len(few) < len(told["answers"][0]["boxes"])


def test_objects_with_their_masks(objects: LoadedRun, talk: Callable[..., Any], files: list[bytes]) -> None:
    told = posted(make_app(objects, Options(max_wait_ms=1)), talk, files, "?threshold=0.1")
    for data, answer in zip(files, told["answers"], strict=True):
        image = opened(data)
        boxes, masks = predict_objects(objects, image, Looking(threshold=0.1))
        assert masks is not None and len(answer["boxes"]) == len(boxes) > 0
        for found, box, mask in zip(answer["boxes"], boxes.tolist(), masks, strict=True):
            assert found["name"] == objects.classes[int(box[5])] and found["box"] == pytest.approx(box[:4], abs=1e-2)
            assert found["segmentation"]["size"] == [image.height, image.width]
            runs = torch.tensor(read_runs(found["segmentation"]["counts"], image.height * image.width))
            size = (image.height, image.width)
            same = decode_runs(runs, size) == decode_runs(mask, size)
            assert float(same.float().mean()) > 0.999  # the same sums in batches of other sizes


@pytest.mark.slow
def test_an_exported_file(
    scenes: dict[str, LoadedRun], talk: Callable[..., Any], files: list[bytes], tmp_path: Path
) -> None:
    run = scenes["detection"]
    options = ExportOptions("torch", (64, 64), task="detect", preprocess=True)
    given: dict[str, Any] = {"labels": run.classes, "palette": run.palette, "preprocess": run.preprocess}
    opened_run = open_export(export_model(run.model, tmp_path / "boxes.pt2", options, **given).path)
    app = make_app(opened_run, Options(max_wait_ms=0), attention)
    answers = posted(app, talk, files, "?threshold=0.1")["answers"]
    for data, answer in zip(files, answers, strict=True):
        expected = predict_boxes(opened_run, opened(data), Looking(threshold=0.1)).tolist()
        assert len(expected) > 3
        assert [each["box"] for each in answer["boxes"]] == [pytest.approx(row[:4], abs=1e-2) for row in expected]
    assert not app.state.service.embeds and app.state.service.stages == []


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_facts_vectors_and_maps_of_the_backbone(
    task: str, scenes: dict[str, LoadedRun], talk: Callable[..., Any], files: list[bytes]
) -> None:
    run = scenes[task]
    app = make_app(run, Options(max_wait_ms=0), attention)

    async def work(client: Any) -> list[Any]:
        asked = ["/embed", "/explain?x=0.5&y=0.5&stage=1", "/explain?format=png", "/predict?top=3"]
        found = [await client.post(path, content=files[1], headers=PNG) for path in asked]
        return [await client.get("/model"), await client.get("/openapi.json"), *found]

    facts, described, vector, weights, picture, wrong = talk(app, work)
    assert facts.json()["task"] == task and facts.json()["colours"] == ["#000000", "#c80000", "#0000c8"]
    assert facts.json()["embeds"] and len(facts.json()["stages"]) == len(run.model.backbone.stages)
    body = body_of(run)
    inputs = body.preprocess.normalise(body.preprocess.pixels(opened(files[1]))[None].float() / 255)
    (expected,) = Vectors(body).compute(inputs)
    assert vector.json()["answers"][0]["vector"] == pytest.approx(expected[0].tolist(), rel=1e-4, abs=1e-5)
    assert weights.status_code == picture.status_code == 200
    assert sum(map(sum, weights.json()["weights"])) == pytest.approx(1, abs=1e-4)
    assert wrong.status_code == 422 and "unknown option 'top'" in wrong.json()["error"]
    name = {"segmentation": "Masks", "detection": "Boxes"}[task]
    route = described.json()["paths"]["/predict"]["post"]
    assert route["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(name)
    assert [each["name"] for each in route.get("parameters", [])] == (["threshold"] if task == "detection" else [])
