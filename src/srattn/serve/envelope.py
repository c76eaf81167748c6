"""Around every answer: its time and code are counted, its headers are safe, and an error has one shape."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srattn.serve.fault import Fault
from srattn.serve.metrics import Metrics

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_DRAIN_SECONDS = 5.0
_log = logging.getLogger("srattn.serve")


class Envelope:
    """ASGI middleware.

    Args:
        paths: those that are counted by name; all others are "other".
        drain: bytes of a refused body that are read and thrown away before the answer, since many clients read it only
            when they have sent everything.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str], drain: int) -> None:
        self._app, self._metrics, self._paths, self._drain = app, metrics, frozenset(paths), drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, code = time.perf_counter(), 0
        request = Headers(scope=scope)
        # Nothing more comes where there is no body, and nothing without being asked for ("100 Continue").
        has_body = request.get("content-length", "0") != "0" or "transfer-encoding" in request
        more, asked = has_body, "expect" not in request

        async def receive_noted() -> Message:
            nonlocal more, asked
            asked = True
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def send_safe(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if code >= 400 and more and asked:
                    await _throw_away(receive_noted, self._drain)
            await send(message)

        try:
            await self._app(scope, receive_noted, send_safe)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if code:
                raise  # the answer has begun: all that is left is to break it off
            await Fault(500, "the service failed on this request").response()(scope, receive_noted, send_safe)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.request(path, code or 499, time.perf_counter() - started)


async def _throw_away(receive: Receive, most: int) -> None:
    """Reads what is left of a body, up to `most` bytes and for some seconds."""

    async def rest() -> None:
        left, more = most, True
        while more and left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(rest(), _DRAIN_SECONDS)
