"""Read the bodies of requests: one image, several parts, or JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import HTTPException
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from snzoo.errors import printable
from snzoo.serve.limits import Limits
from snzoo.serve.types import PredictRequest

NAME = 255  # the most characters of a photo's name in an answer


@dataclass(frozen=True)
class Upload:
    """A photo of a request: its content, or its URL, or the error that it has."""

    name: str
    content: bytes = b""
    url: str | None = None
    error: str | None = None


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises:
        HTTPException: 413 for a body over the limit, 408 for one that does not arrive in time.
        ClientDisconnect: the client has gone.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.body:
        raise _too_large(limits)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(limits.timeout):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.body:
                    raise _too_large(limits)
                chunks.append(chunk)
    except TimeoutError:
        message = f"the body did not arrive within {limits.timeout:g} s"
        raise HTTPException(408, message, {"Connection": "close"}) from None
    return b"".join(chunks)


def parse_body(content_type: str, body: bytes, limits: Limits) -> PredictRequest | list[Upload]:
    """Return the photos of a body, or the request if it is JSON.

    Raises:
        HTTPException: 400 for a body that cannot be read, 413 for too many photos, 415 for a type
            that is not accepted.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        return _parse_parts(body, options.get(b"boundary", b""), limits)
    if kind == b"application/json":
        return _parse_json(body)
    if kind.startswith(b"image/") or kind == b"application/octet-stream":
        return [Upload("image 0", body)]
    accepted = "multipart/form-data, application/json, image/* or application/octet-stream"
    raise HTTPException(415, f"the body must be {accepted}")


def check_count(photos: int, limits: Limits) -> None:
    """Raise an HTTPException if a request has no photo, or more than the limit."""
    if not photos:
        raise HTTPException(400, "the request has no photo")
    if photos > limits.photos:
        raise HTTPException(413, f"more than {limits.photos} photos in a request")


def list_uploads(request: PredictRequest) -> list[Upload]:
    """Return the photos of a JSON request."""
    uploads = []
    for i, image in enumerate(request.images):
        name = _clean(image.name or image.url or f"image {i}")
        if (image.base64 is None) == (image.url is None):
            raise HTTPException(400, f"images[{i}] must have either base64 or url")
        if image.url is not None:
            uploads.append(Upload(name, url=image.url))
            continue
        try:
            content = base64.b64decode(image.base64 or "", validate=True)
            uploads.append(Upload(name, content))
        except (binascii.Error, ValueError):
            uploads.append(Upload(name, error=f"can't read {name}: not base64"))
    return uploads


def _parse_json(body: bytes) -> PredictRequest:
    try:
        return PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(400, f"the JSON is wrong: {describe(error.errors())}") from None


def describe(errors: Any) -> str:
    """Return the first of pydantic's errors in one line."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("query", "body"))
    return printable(f"{place}: {first['msg']}" if place else first["msg"])


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: bytes = b""
    value: bytes = b""
    content: list[bytes] = field(default_factory=list)


def _parse_parts(body: bytes, boundary: bytes, limits: Limits) -> list[Upload]:
    parts: list[_Part] = []
    ended = []

    def begin() -> None:
        if len(parts) >= limits.photos:
            raise HTTPException(413, f"more than {limits.photos} photos in a request")
        parts.append(_Part())

    def header_name(data: bytes, start: int, end: int) -> None:
        parts[-1].name += data[start:end]

    def header_value(data: bytes, start: int, end: int) -> None:
        parts[-1].value += data[start:end]

    def header_end() -> None:
        part = parts[-1]
        part.headers[part.name.lower()] = part.value
        part.name = part.value = b""

    def content(data: bytes, start: int, end: int) -> None:
        parts[-1].content.append(data[start:end])

    callbacks: dict[str, Callable[..., None]] = {
        "on_part_begin": begin,
        "on_header_field": header_name,
        "on_header_value": header_value,
        "on_header_end": header_end,
        "on_part_data": content,
        "on_end": lambda: ended.append(True),
    }
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, f"the multipart body is wrong: {printable(str(error))}") from None
    if not ended:
        raise HTTPException(400, "the multipart body is cut short")
    return [_to_upload(part, i) for i, part in enumerate(parts)]


def _to_upload(part: _Part, i: int) -> Upload:
    _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
    file = options.get(b"filename")
    if file is None:
        field_name = printable(options.get(b"name", b"").decode("utf-8", "replace"))[:NAME]
        raise HTTPException(
            400, f"the part {field_name!r} is no file; options belong to the query (?topk=3)"
        )
    return Upload(_clean(file.decode("utf-8", "replace") or f"image {i}"), b"".join(part.content))


def _clean(name: str) -> str:
    return printable(name)[:NAME]


def _too_large(limits: Limits) -> HTTPException:
    message = f"the body has more than {limits.body / (1 << 20):g} MiB"
    return HTTPException(413, message, {"Connection": "close"})


__all__ = [
    "ClientDisconnect",
    "Upload",
    "check_count",
    "describe",
    "list_uploads",
    "parse_body",
    "read_body",
]
