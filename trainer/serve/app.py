"""The HTTP routes: the page, and the JSON API that the page uses (docs/serve.md)."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from trainer.search.answers import entry_content, neighbours_content
from trainer.search.queries import Wanted
from trainer.serve.finder import Finder
from trainer.serve.guard import guarded
from tripletmill.errors import UsageError, one_line
from tripletmill.images import BadImage

STATIC = Path(__file__).parent / "static"
MAX_UPLOAD = 20_000_000  # bytes
MAX_NEIGHBOURS = 100
PICTURE_MAX_AGE = 86_400  # seconds that a browser may keep a picture: a day


def make_app(finder: Finder, *, names: Collection[str]) -> ASGIApp:
    """Makes the web application.

    Args:
      finder: finds neighbours and pictures.
      names: host names, in lower case, for which the application answers. It always answers for IP
        addresses.
    """
    # Starlette runs endpoints without `async` in threads.
    api = Api(finder)
    routes = [
        Route("/", _page),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/api/info", api.info),
        Route("/api/classes", api.classes),
        Route("/api/examples", api.examples),
        Route("/api/neighbours", api.search_source_id, methods=["GET"]),
        Route("/api/neighbours", api.search_upload, methods=["POST"]),
        Route("/api/picture", api.picture),
    ]
    handlers = dict.fromkeys((UsageError, BadImage, HTTPException), _refuse)
    handlers[Exception] = _server_error
    return guarded(Starlette(routes=routes, exception_handlers=handlers), names)


def _page(request: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})


def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    status = 422 if isinstance(error, BadImage) else 400
    return JSONResponse({"error": one_line(error)}, status)


def _server_error(request: Request, error: Exception) -> Response:
    """Answers after a defect. Starlette raises the error again, so that its traceback is logged."""
    return JSONResponse({"error": "the server failed; its output shows the error"}, 500)


class Api:
    """The endpoints under /api."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder
        # Uploads have threads of their own, so that pictures and searches by source id do not wait
        # for images that are being embedded.
        self._upload_threads = anyio.CapacityLimiter(os.cpu_count() or 1)
        # This is part of the URLs of pictures. After a restart with another data set, the browser
        # then does not show the pictures that it has kept.
        self._start = secrets.token_hex(4)

    def info(self, request: Request) -> Response:
        """Describes the index, and states the limits of requests."""
        index = self._finder.index
        content = {
            "images": len(index),
            "splits": index.splits,
            "model": index.info.model,
            "start": self._start,
            "max_neighbours": MAX_NEIGHBOURS,
            "max_upload_bytes": MAX_UPLOAD,
        }
        return _json(content)

    def classes(self, request: Request) -> Response:
        """Lists the names of all classes."""
        return _json({"classes": self._finder.index.class_names})

    def examples(self, request: Request) -> Response:
        """Lists some images from which a search can begin."""
        return _json({"images": [entry_content(each) for each in self._finder.examples()]})

    def search_source_id(self, request: Request) -> Response:
        """Finds the neighbours of an image of the index."""
        source_id, wanted = _source_id(request), _wanted(request)
        entry = self._finder.index.find(source_id)
        if entry is None:
            raise HTTPException(404, f"no image {source_id!r} in the index")
        neighbours = self._finder.index.nearest_of(source_id, **dataclasses.asdict(wanted))
        content = {"query": entry_content(entry), "neighbours": neighbours_content(neighbours)}
        return _json(content)

    async def search_upload(self, request: Request) -> Response:
        """Finds the neighbours of the image file that is the request's body."""
        wanted = _wanted(request)
        kind = request.headers.get("content-type", "")
        # A page of another site can send these types only if this server permits it first, which
        # the server never does.
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise HTTPException(415, "Content-Type: image/... or application/octet-stream")
        try:
            image = await _body(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody receives it
        neighbours = await to_thread.run_sync(
            self._finder.search_image, image, wanted, limiter=self._upload_threads
        )
        return _json({"query": None, "neighbours": neighbours_content(neighbours)})

    def picture(self, request: Request) -> Response:
        """Returns a small JPEG of an image of the index."""
        source_id = _source_id(request)
        jpeg = self._finder.picture(source_id)
        if jpeg is None:
            raise HTTPException(404, f"no picture of {source_id!r}")
        is_current = request.query_params.get("start") == self._start
        cache = f"private, max-age={PICTURE_MAX_AGE}, immutable" if is_current else "no-store"
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": cache})


def _json(content: Mapping[str, object]) -> Response:
    # JSON escapes all but ASCII here, so that UTF-8 can encode every name that an index can hold.
    body = json.dumps(content, allow_nan=False)
    return Response(body, media_type="application/json", headers={"cache-control": "no-store"})


def _source_id(request: Request) -> str:
    source_id = request.query_params.get("source_id")
    if source_id is None:
        raise HTTPException(400, "source_id is missing")
    return source_id


def _wanted(request: Request) -> Wanted:
    """The parameters of the query string. An empty value stands for no value."""
    given = {name: value for name, value in request.query_params.items() if value}
    number = given.get("neighbours", "10")
    is_number = number.isascii() and number.isdecimal() and len(number) <= 9
    if not (is_number and 1 <= int(number) <= MAX_NEIGHBOURS):
        text = f"neighbours {number!r}: must be a whole number, 1 to {MAX_NEIGHBOURS}"
        raise HTTPException(400, text)
    return Wanted(int(number), given.get("class"), given.get("split"))


async def _body(request: Request) -> bytes:
    """The body of a request. Reading stops when the body exceeds MAX_UPLOAD.

    Raises:
      HTTPException: the body is too large.
    """
    text = f"the file is larger than {MAX_UPLOAD / 1e6:g} MB"
    too_large = HTTPException(413, text, headers={"connection": "close"})
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_UPLOAD:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_UPLOAD:
            raise too_large
    return bytes(body)
