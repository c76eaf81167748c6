"""What a client did wrong, or what the service cannot do now: a status code and one line."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse


class Fault(Exception):
    """Becomes the answer `{"error": message}` with `status`."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})

    def response(self) -> JSONResponse:
        return JSONResponse({"error": one_line(str(self))}, self.status, headers=self.headers)


def busy(reason: str) -> Fault:
    """503, to be tried again in a second."""
    return Fault(503, reason, {"Retry-After": "1"})


def one_line(text: str, most: int = 300) -> str:
    """Text without line breaks and control characters, of at most `most` characters."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return plain if len(plain) <= most else plain[: most - 3] + "..."
