"""What a service refuses, and how it says so."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from PIL import Image

from srattn.errors import SrattnError
from srattn.explain import attention
from srattn.serve import Options, make_app
from tests.serve.fake import Levels, levels_run

PNG = {"content-type": "image/png"}
GREY = (7, 7, 7)


def error_of(response: Any) -> str:
    """The line of an error, which has one shape."""
    assert response.headers["content-type"] == "application/json"
    (name,) = response.json()
    assert name == "error"
    line = response.json()["error"]
    assert line and "\n" not in line and "Traceback" not in line and "/work" not in line and " at 0x" not in line
    return line


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with a few bytes behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("path", "content", "kind", "status", "words"),
    [
        ("/predict", b"", "image/png", 422, "image 1: empty"),
        ("/predict", b"plain text", "image/png", 422, "not an image of the formats"),
        ("/predict", b"x", "text/plain", 415, "got text/plain"),
        ("/predict", b"x", None, 415, "no content-type"),
        ("/predict", b"{", "application/json", 400, "no JSON"),
        ("/predict", b"[" * 100_000, "application/json", 400, "no JSON"),
        ("/predict", b"\xff\xfe", "application/json", 400, "no JSON"),
        ("/predict", b"[]", "application/json", 400, "JSON is"),
        ("/predict", b'{"images": []}', "application/json", 400, "no picture"),
        ("/predict", b'{"images": ["AAAA"], "top": 3}', "application/json", 400, "JSON is"),
        ("/predict", b'{"images": "AAAA"}', "application/json", 400, "a list"),
        ("/predict", b'{"images": [7]}', "application/json", 400, "image 1 is no base64 text"),
        ("/predict", b'{"image": "?"}', "application/json", 400, "image 1 is no base64 text"),
        ("/predict", b'{"image": "\\u00e9"}', "application/json", 400, "image 1 is no base64 text"),
        ("/predict", b"x", "multipart/form-data", 400, "boundary"),
        ("/predict", b"--b\r\n\r\n\r\n--b--\r\n", "multipart/form-data; boundary=b", 400, "name"),
        ("/predict", b"--b--\r\n", "multipart/form-data; boundary=b", 400, "no picture"),
        ("/predict?top=0", b"x", "image/png", 422, "top: "),
        ("/predict?top=many", b"x", "image/png", 422, "top: "),
        ("/predict?tpo=3", b"x", "image/png", 422, "unknown option 'tpo'; did you mean 'top'?"),
        ("/explain?x=2", b"x", "image/png", 422, "x: "),
        ("/explain?x=nan", b"x", "image/png", 422, "x: "),
        ("/explain?format=gif", b"x", "image/png", 422, "format: "),
        ("/nowhere", b"x", "image/png", 404, "Not Found"),
        ("/health", b"x", "image/png", 405, "Not Allowed"),
        ("/predict", png_header(100_000, 100_000), "image/png", 413, "more than the 10,000 pixels"),
        ("/predict", png_header(200, 60), "image/png", 413, "200x60 is more than the 10,000 pixels"),
        ("/predict", bytes(5001), "image/png", 413, "more than the 5,000 bytes"),
    ],
)
def test_mistakes(
    talk: Callable[..., Any], path: str, content: bytes, kind: str | None, status: int, words: str
) -> None:
    app = make_app(levels_run(), Options(max_bytes=200_000 if content[:1] == b"[" else 5000, max_pixels=10_000))
    headers = {} if kind is None else {"content-type": kind}
    response = talk(app, lambda client: client.post(path, content=content, headers=headers))
    assert response.status_code == status and words in error_of(response)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("stage=3", "stage 3 does not exist; the model has 2 stages"),
        ("stage=2&block=2", "block 2 does not exist; stage 2 has 1 block(s)"),
        ("stage=1&head=2", "head 2 does not exist; stage 1 has 1 head(s)"),
    ],
)
def test_maps_that_do_not_exist(
    tiny: Any, talk: Callable[..., Any], picture_of: Callable[..., bytes], query: str, words: str
) -> None:
    app = make_app(tiny, attention=attention)
    response = talk(app, lambda client: client.post(f"/explain?{query}", content=picture_of(), headers=PNG))
    assert response.status_code == 422 and words in error_of(response)


def test_one_bad_picture_names_itself(talk: Callable[..., Any], picture_of: Callable[..., bytes]) -> None:
    app = make_app(levels_run(), Options(max_images=3))
    good = picture_of(GREY)

    async def work(client: Any) -> list[Any]:
        bad = [("image", ("a.png", good)), ("image", ("b\x1b[31m.png", good[:60]))]
        return [
            await client.post("/predict", files=bad),
            await client.post("/predict", files=[("image", ("a.png", good))] * 4),
            await client.post("/predict", files=[("image", ("a.png", good))] * 9),
            await client.post("/predict", json={"images": [base64.b64encode(good).decode()] * 4}),
            await client.post("/explain", files=[("image", ("a.png", good))] * 2),
            await client.post("/predict", files=[("image", ("a.png", good))], data={"top": "3"}),
        ]

    bad, more, many, texts, two, field = talk(app, work)
    assert bad.status_code == 422 and error_of(bad).startswith("b [31m.png: ")
    assert more.status_code == 413 and "at most 3 picture(s)" in error_of(more)
    assert many.status_code == 413 and "at most 3 picture(s) in a request here, got more" in error_of(many)
    assert texts.status_code == 413
    assert two.status_code == 413 and "at most 1 picture(s)" in error_of(two)
    assert field.status_code == 400 and "'top' is no file" in error_of(field)


def test_a_body_without_length_is_cut_off(talk: Callable[..., Any]) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100_000:
            sent += 1000
            yield bytes(1000)

    app = make_app(levels_run(), Options(max_bytes=10_000))
    response = talk(app, lambda client: client.post("/predict", content=endless(), headers=PNG))
    assert response.status_code == 413 and "10,000 bytes" in error_of(response)
    # Twice the limit is thrown away after it, for clients that read the answer only at their end.
    assert sent <= 35_000


def test_a_line_is_not_made_a_map_without_end(tiny: Any, talk: Callable[..., Any]) -> None:
    import dataclasses

    run = dataclasses.replace(tiny, preprocess=dataclasses.replace(tiny.preprocess, fit="shorter"))
    file = io.BytesIO()
    Image.new("RGB", (20_000, 1)).save(file, "PNG")
    response = talk(make_app(run), lambda client: client.post("/predict", content=file.getvalue(), headers=PNG))
    assert response.status_code == 413 and "20000x1 is too long" in error_of(response)


def test_tokens(talk: Callable[..., Any], picture_of: Callable[..., bytes]) -> None:
    app = make_app(levels_run(), Options(token="s3cret"))
    content = picture_of(GREY)

    async def work(client: Any) -> list[Any]:
        found = []
        for given in (None, "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "Bearer é", "Bearer s3cret"):
            headers = PNG if given is None else PNG | {"authorization": given.encode()}
            found.append(await client.post("/predict", content=content, headers=headers))
        return found

    *refused, taken = talk(app, work)
    for response in refused:
        assert response.status_code == 401 and error_of(response)
        assert response.headers["www-authenticate"] == "Bearer"
    assert taken.status_code == 200

    async def others(client: Any) -> dict[str, int]:
        return {
            path: (await client.get(path)).status_code
            for path in ("/", "/health", "/openapi.json", "/model", "/metrics")
        }

    assert talk(app, others) == {"/": 200, "/health": 200, "/openapi.json": 200, "/model": 401, "/metrics": 401}
    assert "s3cret" not in repr(Options(token="s3cret"))


def test_a_full_queue(talk: Callable[..., Any], picture_of: Callable[..., bytes]) -> None:
    run = levels_run()
    model: Levels = run.model  # type: ignore[assignment]
    app = make_app(run, Options(queue=4, max_batch=1, max_wait_ms=0))
    gate = app.state.service.gate
    content = picture_of(GREY)

    async def work(client: Any) -> tuple[list[Any], Any, Any]:
        model.open.clear()
        first = [asyncio.create_task(client.post("/predict", content=content, headers=PNG)) for _ in range(3)]
        while gate.images < 3:
            await asyncio.sleep(0)
        refused = await client.post("/predict", files=[("image", ("a.png", content))] * 2)
        last = asyncio.create_task(client.post("/predict", content=content, headers=PNG))
        while gate.images < 4:
            await asyncio.sleep(0)
        full = await client.post("/predict", content=content, headers=PNG)
        model.open.set()
        return await asyncio.gather(*first, last), refused, full

    answered, refused, full = talk(app, work)
    assert [response.status_code for response in answered] == [200] * 4
    for response in (refused, full):
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert "queue of 4" in error_of(response)
    assert (gate.images, gate.bytes) == (0, 0)


def test_bytes_that_are_held(talk: Callable[..., Any], picture_of: Callable[..., bytes]) -> None:
    run = levels_run()
    model: Levels = run.model  # type: ignore[assignment]
    content = picture_of(size=(30, 30))  # noise, which stays large
    app = make_app(run, Options(queue=20, max_bytes=len(content), max_batch=1))
    gate = app.state.service.gate

    async def work(client: Any) -> tuple[Any, list[Any]]:
        model.open.clear()
        held = [asyncio.create_task(client.post("/predict", content=content, headers=PNG)) for _ in range(16)]
        while gate.bytes < 16 * len(content):
            await asyncio.sleep(0)
        refused = await client.post("/predict", content=content, headers=PNG)
        model.open.set()
        return refused, await asyncio.gather(*held)

    refused, held = talk(app, work)
    assert refused.status_code == 503 and "bytes" in error_of(refused)
    assert {response.status_code for response in held} == {200} and gate.bytes == 0


def test_time_outs(talk: Callable[..., Any], picture_of: Callable[..., bytes]) -> None:
    run = levels_run()
    model: Levels = run.model  # type: ignore[assignment]
    app = make_app(run, Options(timeout_s=0.5, max_batch=1, max_wait_ms=0))  # enough for a busy machine

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(1)
        yield b"y"

    async def work(client: Any) -> list[Any]:
        late = await client.post("/predict", content=slow(), headers=PNG)
        model.open.clear()
        before = len(model.batches)
        asked = [client.post("/predict", content=picture_of(GREY), headers=PNG) for _ in range(3)]
        stuck = await asyncio.gather(*asked)
        model.open.set()
        fine = await client.post("/predict", content=picture_of(GREY), headers=PNG)
        # One was begun; the other two were given up before the model saw them.
        assert len(model.batches) - before == 2
        return [late, *stuck, fine]

    late, *stuck, fine = talk(app, work)
    assert late.status_code == 408 and error_of(late)
    assert [response.status_code for response in stuck] == [504] * 3 and error_of(stuck[0])
    assert fine.status_code == 200
    assert app.state.service.gate.images == 0


def test_a_defect_shows_nothing_of_the_inside(
    talk: Callable[..., Any], picture_of: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A handler of its own: which stream the root logger writes to depends on what else has run.
    log = io.StringIO()
    monkeypatch.setattr(logging.getLogger("srattn.serve"), "handlers", [logging.StreamHandler(log)])
    run = levels_run()
    model: Levels = run.model  # type: ignore[assignment]
    app = make_app(run)

    async def work(client: Any) -> list[Any]:
        model.fails = True
        broken = await client.post("/predict", content=picture_of(GREY), headers=PNG)
        model.fails = False
        return [broken, await client.post("/predict", content=picture_of(GREY), headers=PNG)]

    broken, fine = talk(app, work)
    assert broken.status_code == 500 and error_of(broken) == "the service failed on this request"
    assert "secret words" in log.getvalue()
    assert fine.status_code == 200


def test_a_model_that_fails_at_the_start_says_so() -> None:
    run = levels_run()
    model: Levels = run.model  # type: ignore[assignment]
    model.fails = True
    with pytest.raises(RuntimeError, match="secret words"):
        make_app(run).state.service.start()


@pytest.mark.parametrize(
    "given",
    [
        {"max_batch": 0},
        {"queue": 0},
        {"max_wait_ms": -1},
        {"max_wait_ms": float("nan")},
        {"timeout_s": 0},
        {"max_pixels": 10**9},
        {"token": ""},
        {"token": "a\nb"},
    ],
)
def test_bounds_of_the_options(given: dict[str, Any]) -> None:
    with pytest.raises(SrattnError):
        Options(**given)


def test_a_model_without_classes_is_refused() -> None:
    run = levels_run()
    run.classes = []
    with pytest.raises(SrattnError, match="no classifier"):
        make_app(run)


def test_tasks_without_an_answer_are_refused() -> None:
    run = levels_run()
    run.task = "sorting"
    words = "answers classification, segmentation, detection, depth, pose; levels is a model of the task 'sorting'"
    with pytest.raises(SrattnError, match=words):
        make_app(run)


def test_errors_are_json_of_one_line(talk: Callable[..., Any]) -> None:
    name = json.dumps("x" * 1000)
    app = make_app(levels_run())
    response = talk(app, lambda client: client.post(f"/predict?{name}=1", content=b"x", headers=PNG))
    assert len(error_of(response)) <= 300
