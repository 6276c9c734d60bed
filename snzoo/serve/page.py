"""The page of the server, and the bundled photos that it offers as examples."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

FILES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "elements.js": "text/javascript; charset=utf-8",
    "models.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
FOLDER = Path(__file__).with_name("static")
PHOTOS = Path(__file__).parents[1] / "demo" / "photos"
EXAMPLES_PER_CLASS = 2

# The page asks no other host, runs no script but its own, and is shown in no frame.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a browser keeps the file, and asks whether its ETag is current
}


class Example(BaseModel):
    """A bundled photo, named after its class, and where it is."""

    name: str
    url: str


class ExampleList(BaseModel):
    """The bundled photos."""

    examples: list[Example]


def make_router() -> APIRouter:
    """Return the routes of the page, its files and the examples."""
    router = APIRouter(include_in_schema=False)
    examples = find_examples(PHOTOS)

    @router.api_route("/", methods=["GET", "HEAD"])
    def page(request: Request) -> Response:
        return _answer_file(request, FOLDER / "index.html", FILES["index.html"])

    @router.get("/page/{name}")
    def page_file(request: Request, name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404, "the page has no such file")
        return _answer_file(request, FOLDER / name, FILES[name])

    @router.get("/examples")
    def list_examples() -> ExampleList:
        return ExampleList(
            examples=[Example(name=name, url=f"/examples/{name}") for name in examples]
        )

    @router.get("/examples/{name}")
    def example(request: Request, name: str) -> Response:
        if name not in examples:
            raise HTTPException(404, "no example has this name; see: /examples")
        return _answer_file(request, examples[name], "image/jpeg")

    return router


def find_examples(folder: Path) -> dict[str, Path]:
    """Return the first photos of each class folder, by names such as ``hat-1.jpg``."""
    labels = sorted(path for path in folder.iterdir() if path.is_dir())
    photos = {label.name: sorted(label.glob("*.jpg")) for label in labels}
    return {
        f"{label}-{i + 1}.jpg": photos[label][i]
        for i in range(EXAMPLES_PER_CLASS)
        for label in photos
        if i < len(photos[label])
    }


def _answer_file(request: Request, path: Path, media_type: str) -> Response:
    """Return a file, or 304 if the client has it."""
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | {"ETag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
