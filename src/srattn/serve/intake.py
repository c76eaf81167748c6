"""The pictures of a request: raw bytes, multipart files, or base64 in JSON; never more than the options allow."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import string
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from srattn.serve.fault import Fault, one_line
from srattn.serve.gate import Ticket
from srattn.serve.options import Options
from srattn.serve.picture import Picture

_RAW = "application/octet-stream"
_SPACE = string.whitespace.encode()


async def read_pictures(request: Request, options: Options, ticket: Ticket, most: int | None = None) -> list[Picture]:
    """All pictures of a request, at least one; `ticket` then holds a place for each.

    Args:
        most: how many may come, where that is fewer than the options allow.

    Raises:
        Fault: 400 for a body that is none of these, 413, 415, or 503.
    """
    most = options.images if most is None else most
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    bounded = _bounded(request, options.max_bytes, ticket)
    try:
        if kind == "multipart/form-data":
            pictures = await _multipart(bounded, most)
        elif kind == "application/json":
            pictures = await asyncio.to_thread(_from_json, await bounded.body(), most)
        elif kind == _RAW or kind.startswith("image/"):
            pictures = [Picture("image 1", await bounded.body())]
        else:
            raise Fault(
                415,
                f"send image/*, {_RAW}, multipart/form-data or application/json, got "
                f"{kind or 'no content-type'}; curl has -F image=@FILE",
            )
    except ClientDisconnect:
        raise Fault(400, "the body ended early") from None
    if not pictures:
        raise Fault(400, "the request has no picture")
    if len(pictures) > most:
        raise _too_many(most, len(pictures))
    for picture in pictures:
        if not picture.data:
            raise Fault(422, f"{picture.name}: empty")
    ticket.add_images(len(pictures) - 1)
    return pictures


def _too_many(most: int, count: int | str) -> Fault:
    return Fault(413, f"at most {most} picture(s) in a request here, got {count}")


def _bounded(request: Request, most: int, ticket: Ticket) -> Request:
    """The request, with a body that raises `Fault` where it becomes too long."""
    too_large = Fault(413, f"the body has more than the {most:,} bytes that are accepted")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        count = len(message.get("body", b""))
        received += count
        if received > most:
            raise too_large
        ticket.add_bytes(count)
        return message

    return Request(request.scope, receive)


async def _multipart(request: Request, most: int) -> list[Picture]:
    pictures = []
    await request.body()  # all of it first, so that a refusal leaves no half-written part behind
    # One more than may come, so that the complaint about too many is ours.
    try:
        async with request.form(max_files=most + 1, max_fields=8, max_part_size=1024) as form:
            for field, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    raise Fault(400, f"the field {field!r} is no file; options stand in the address, as in ?top=3")
                name = one_line(value.filename or "", 120) or f"image {len(pictures) + 1}"
                pictures.append(Picture(name, await value.read()))
    except HTTPException as error:
        if error.detail.startswith("Too many files"):  # starlette has one code for all that is wrong with a form
            raise _too_many(most, "more") from None
        raise
    return pictures


def _from_json(body: bytes, most: int) -> list[Picture]:
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise Fault(400, "the body is no JSON") from None
    if not isinstance(content, dict) or len(content) != 1 or not content.keys() <= {"image", "images"}:
        raise Fault(400, 'JSON is {"image": BASE64} or {"images": [BASE64, ...]}')
    texts = content["images"] if "images" in content else [content["image"]]
    if not isinstance(texts, list):
        raise Fault(400, '"images" is a list of base64 texts')
    if len(texts) > most:
        raise _too_many(most, len(texts))
    return [Picture(f"image {number}", _from_base64(text, number)) for number, text in enumerate(texts, 1)]


def _from_base64(text: Any, number: int) -> bytes:
    if not isinstance(text, str):
        raise Fault(400, f"image {number} is no base64 text")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text.encode("ascii").translate(None, _SPACE), validate=True)
    except (binascii.Error, ValueError):
        raise Fault(400, f"image {number} is no base64 text") from None
