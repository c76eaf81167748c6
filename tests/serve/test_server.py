"""A service in a process of its own on a free port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from srattn.errors import SrattnError
from srattn.serve.server import bind, url_of

PNG = {"content-type": "image/png"}
pytest.importorskip("uvicorn", reason="needs the extra serve")


@contextlib.contextmanager
def service(**options: Any) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Address and process of the fake model's service."""
    folder = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "child.py"), json.dumps(options)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.stderr.read()
        try:
            yield url, process
        finally:
            if process.poll() is None:
                process.kill()


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[httpx.AsyncClient]:
    # A connection that is used again may be one that the service closes at that moment, where the machine is busy.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
        yield client


def figure(text: str, name: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(line.split()[-1])


def test_hundreds_at_once_each_get_their_own_answer(picture_of: Callable[..., bytes]) -> None:
    colours = [(number % 256, number // 256, (7 * number) % 256) for number in range(300)]

    async def work(url: str) -> tuple[list[Any], str]:
        async with client_of(url) as client:
            asked = [
                client.post(
                    "/embed" if number % 2 else "/predict?top=1", content=picture_of(colour, (9, 9)), headers=PNG
                )
                for number, colour in enumerate(colours)
            ]
            return await asyncio.gather(*asked), (await client.get("/metrics")).text

    with service(queue=1000, delay=0.01, max_batch=16) as (url, process):
        responses, figures = asyncio.run(work(url))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    for number, (colour, response) in enumerate(zip(colours, responses, strict=True)):
        assert response.status_code == 200, response.text
        (answer,) = response.json()["answers"]
        if number % 2:
            assert answer["vector"] == pytest.approx(colour, abs=1e-3)
        else:
            # What the model makes of a colour: the mean of its three levels, rounded.
            (found,) = answer["classes"]
            assert abs(int(found["name"]) - sum(colour) / 3) <= 0.5 + 1e-3 and found["probability"] == pytest.approx(1)
    # Batches were gathered: far fewer than requests, and none of more than sixteen.
    batches = figure(figures, "srattn_batch_size_count") - 1  # that of the start
    assert figure(figures, "srattn_batch_size_sum") - 1 == len(colours)
    assert batches <= len(colours) / 2
    assert figure(figures, 'srattn_batch_size_bucket{le="16"}') == batches + 1


def test_more_than_the_queue_holds_is_told_to_come_back(picture_of: Callable[..., bytes]) -> None:
    async def work(url: str) -> list[Any]:
        async with client_of(url) as client:
            asked = [client.post("/predict?top=1", content=picture_of((n, n, n)), headers=PNG) for n in range(40)]
            return await asyncio.gather(*asked)

    with service(queue=4, delay=0.2, max_batch=1, max_wait_ms=0) as (url, process):
        responses = asyncio.run(work(url))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    codes = [response.status_code for response in responses]
    assert set(codes) == {200, 503} and codes.count(200) >= 4
    for number, response in enumerate(responses):
        if response.status_code == 503:
            assert response.headers["retry-after"] == "1" and set(response.json()) == {"error"}
        else:
            assert response.json()["answers"][0]["classes"][0]["name"] == str(number)


def test_a_stop_finishes_what_was_accepted(picture_of: Callable[..., bytes]) -> None:
    async def work(url: str, process: subprocess.Popen[str]) -> list[Any]:
        async with client_of(url) as client:
            asked = [
                asyncio.create_task(client.post("/predict?top=1", content=picture_of((n, n, n)), headers=PNG))
                for n in range(8)
            ]
            while figure((await client.get("/metrics")).text, "srattn_queue_length") < 8:
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*asked)

    # Even on a busy machine all eight arrive before the first batch is done.
    with service(delay=0.6, max_batch=4, max_wait_ms=0) as (url, process):
        responses = asyncio.run(work(url, process))
        assert process.wait(30) == 0
        assert process.stderr is not None and process.stderr.read() == ""
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", trust_env=False)
    for number, response in enumerate(responses):
        assert response.status_code == 200
        assert response.json()["answers"][0]["classes"][0]["name"] == str(number)


def test_a_large_body_is_refused_with_an_answer() -> None:
    with service(max_bytes=100_000) as (url, process):
        for content in (bytes(150_000), (bytes(10_000) for _ in range(15))):
            response = httpx.post(f"{url}/predict", content=content, headers=PNG, trust_env=False, timeout=30)
            assert response.status_code == 413 and "100,000 bytes" in response.json()["error"]
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        process.send_signal(signal.SIGINT)
        process.wait(30)


def test_an_address_that_is_taken() -> None:
    with bind("127.0.0.1", 0) as taken:
        host, port = taken.getsockname()
        assert url_of(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(SrattnError, match="give another --port"):
            bind(host, port)
    with pytest.raises(SrattnError, match="give a --host of this machine"):
        bind("203.0.113.9", 0)  # of no network: it is kept for examples
    with pytest.raises(SrattnError, match="no address to listen at"):
        bind("no.such.host.invalid", 80)


def test_an_address_of_ipv6() -> None:
    try:
        bound = bind("::1", 0)
    except SrattnError:
        pytest.skip("this machine has no IPv6")
    with bound:
        assert bound.family == socket.AF_INET6 and url_of(bound).startswith("http://[::1]:")
