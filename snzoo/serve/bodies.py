"""Read the photos in the body of a request: one image, several parts, or JSON."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any, NamedTuple

from fastapi import HTTPException
from pydantic import ValidationError
from starlette.requests import Request

from snzoo.errors import first_line, printable, suggest
from snzoo.serve.limits import RETRY, STOPPING, Limits
from snzoo.serve.types import ImageInput, PredictRequest

LONGEST_NAME = 255  # characters of a photo's name in an answer
LONGEST_TYPE = 1000  # characters of a Content-Type; the parser needs long for longer ones
LARGEST_HEADERS = 8192  # bytes of the headers of a part
QUERY = ("model", "topk", "embeddings")
# A photo needs at most three fields and a pair of braces in JSON. Names may have such marks too.
MARKS, MARKS_PER_PHOTO = (b",", b"{", b"["), 64
DATA_URI = re.compile(r"data:[^,]{0,255};base64,")  # may precede base64
STANDARD, BLANKS = bytes.maketrans(b"-_", b"+/"), b" \t\r\n"
TYPES = "multipart/form-data, application/json, image/* or application/octet-stream"


@dataclass(frozen=True)
class Upload:
    """A photo of a request: its content, or its URL, or the error that it has."""

    name: str
    content: bytes = b""
    url: str | None = None
    error: str | None = None


class Options(NamedTuple):
    """What is asked about the photos of a request. No models means all models."""

    models: Sequence[str]
    topk: int
    embeddings: bool


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises:
        HTTPException: 413 for a body over the limit, 408 for one that does not arrive in time, 503
            for one that the server does not wait for because it stops.
        ClientDisconnect: the client has gone.
    """
    too_large = HTTPException(413, f"the body has more than {limits.body / (1 << 20):g} MiB")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.body:
        raise too_large
    chunks, size = [], 0
    state, clock = request.app.state, asyncio.timeout(limits.timeout)
    try:
        async with clock:
            state.arriving.add(clock)
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.body:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        if state.stopping:
            raise HTTPException(503, STOPPING, RETRY) from None
        message = f"the body did not arrive within {limits.timeout:g} s"
        raise HTTPException(408, message) from None
    finally:
        state.arriving.discard(clock)
    return b"".join(chunks)


def check_query(names: Sequence[str]) -> None:
    """Check the names of the options in a query, in their order.

    Raises:
        HTTPException: 400 for an unknown option, and for a repeated one except ``model``.
    """
    for name in names:
        if name not in QUERY:
            hint = suggest(name, QUERY, otherwise="the options are")
            raise HTTPException(400, printable(f"unknown option {name[:LONGEST_NAME]}; {hint}"))
        if name != "model" and names.count(name) > 1:
            raise HTTPException(400, f"{name} is given more than once")


def parse_body(
    body: bytes, content_type: str, options: Options, limits: Limits
) -> tuple[list[Upload], Options]:
    """Return the photos of a body and what is asked about them.

    Args:
        body: the body.
        content_type: its Content-Type header.
        options: the options of the query, which fields in JSON override.
        limits: the limit of photos.

    Raises:
        HTTPException: 400 for a body that cannot be read, 413 for too many photos, 415 for a type
            that is not accepted.
    """
    header = Message()
    header["content-type"] = content_type[:LONGEST_TYPE]
    kind = header.get_content_type() if content_type else ""
    if kind == "multipart/form-data":
        uploads = _split_parts(body, header.get_boundary() or "", limits)
    elif kind == "application/json":
        request = _parse_json(body, limits)
        uploads = [_decode_image(image, i) for i, image in enumerate(request.images)]
        options = Options(
            request.models or options.models,
            request.topk or options.topk,
            options.embeddings if request.embeddings is None else request.embeddings,
        )
    elif kind.startswith("image/") or kind == "application/octet-stream":
        uploads = [Upload("image 0", body)]
    else:
        raise HTTPException(415, f"the type of the body must be {TYPES}")
    if not uploads:
        raise HTTPException(400, "the body has no photo")
    if len(uploads) > limits.photos:
        raise _too_many(limits)
    return uploads, options


def describe_invalid(errors: Sequence[Any]) -> str:
    """Return the first of pydantic's errors in one line."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part != "query")
    return printable(f"{place}: {first['msg']}" if place else str(first["msg"]))


def _split_parts(body: bytes, boundary: str, limits: Limits) -> list[Upload]:
    """Return the files of a multipart body (RFC 2046). Searching it takes no loop over bytes."""
    if not boundary or not boundary.isascii() or len(boundary) > 70:
        raise HTTPException(400, "the multipart body has no valid boundary")
    delimiter = b"\r\n--" + boundary.encode()
    _, *parts = (b"\r\n" + body).split(delimiter, limits.photos + 2)
    if len(parts) > limits.photos + 1:
        raise _too_many(limits)
    if not parts or not parts[-1].startswith(b"--"):
        raise HTTPException(400, "the multipart body is cut short")
    return [_read_part(part, i) for i, part in enumerate(parts[:-1])]


def _read_part(part: bytes, i: int) -> Upload:
    end = part.find(b"\r\n\r\n", 0, LARGEST_HEADERS)
    # Blanks may follow a boundary on its line.
    if end < 0 or part[: part.find(b"\r\n")].strip(b" \t"):
        raise HTTPException(400, f"part {i} of the multipart body has no valid headers")
    header = Message()
    for line in part[:end].decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            header["content-disposition"] = value.strip()
    file = header.get_filename()
    if file is None:
        message = f"part {i} of the multipart body is no file; options belong in the URL: ?topk=3"
        raise HTTPException(400, message)
    return Upload(_clean(file or f"image {i}"), part[end + 4 :])


def _parse_json(body: bytes, limits: Limits) -> PredictRequest:
    # Counting is cheap, while a parser would fill the memory with millions of empty values.
    if sum(map(body.count, MARKS)) > MARKS_PER_PHOTO * (limits.photos + 1):
        raise _too_many(limits)
    try:
        return PredictRequest.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        raise HTTPException(400, f"the JSON is wrong: {describe_invalid(errors)}") from None


def _decode_image(image: ImageInput, i: int) -> Upload:
    name = _clean(image.name or image.url or f"image {i}")
    if (image.base64 is None) == (image.url is None):
        raise HTTPException(400, f"images.{i} must have either base64 or url")
    if image.base64 is None:
        return Upload(name, url=image.url)
    prefix = DATA_URI.match(image.base64)
    text = image.base64[prefix.end() if prefix else 0 :]
    try:
        return Upload(name, base64.b64decode(_plain(text), validate=True))
    except ValueError as error:
        return Upload(name, error=f"can't read {name}: its base64 is wrong: {first_line(error)}")


def _plain(text: str) -> bytes:
    """Return base64 in the standard alphabet and in one line."""
    return text.encode("ascii").translate(STANDARD, BLANKS)


def _clean(name: str) -> str:
    return printable(name[:LONGEST_NAME])


def _too_many(limits: Limits) -> HTTPException:
    return HTTPException(413, f"more than {limits.photos} photos in a request")
