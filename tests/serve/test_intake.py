"""base64 in JSON is read beside the event loop, in few copies, and not at all where there are too many pictures."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import tracemalloc
from typing import Any

import pytest
from starlette.requests import Request

from srattn.serve import intake
from srattn.serve.fault import Fault
from srattn.serve.gate import Gate
from srattn.serve.options import Options


def read(content: Any, most: int | None = None) -> list[bytes]:
    body = json.dumps(content).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def run() -> list[bytes]:
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
        with Gate(9, 1 << 30).enter() as ticket:
            return [each.data for each in await intake.read_pictures(Request(scope, receive), Options(), ticket, most)]

    return asyncio.run(run())


def test_spaces_between_are_left_out_in_few_copies() -> None:
    data = bytes(range(256)) * 1024
    text = " ".join(base64.b64encode(data).decode())
    tracemalloc.start()
    try:
        assert intake._from_base64(text, 1) == data
        assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
    finally:
        tracemalloc.stop()
    assert read({"image": f"data:image/png;base64,{text}\r\n\t"}) == [data]


def test_the_event_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    decode = intake._from_base64

    def told(*given: Any) -> bytes:
        threads.append(threading.current_thread())
        return decode(*given)

    monkeypatch.setattr(intake, "_from_base64", told)
    assert read({"images": ["AAAA", "AAAA"]}) == [bytes(3)] * 2
    assert threading.main_thread() not in threads


def test_too_many_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_from_base64", None)
    with pytest.raises(Fault, match=r"at most 2 picture\(s\) in a request here, got 3"):
        read({"images": ["AAAA"] * 3}, most=2)
