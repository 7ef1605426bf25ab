"""The routes: the page, and the JSON under /api that it lives on (docs/serve.md)."""

from __future__ import annotations

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
from trainer.serve.guard import Guard
from tripletmill.errors import UsageError, one_line
from tripletmill.images import BadImage

STATIC = Path(__file__).parent / "static"
MAX_UPLOAD = 20_000_000  # bytes
MAX_NEIGHBOURS = 100
A_DAY = 86_400  # seconds


def make_app(finder: Finder, *, names: Collection[str]) -> ASGIApp:
    """The application.

    Args:
      finder: that answers.
      names: of the hosts that it may be reached by, besides IP addresses.
    """
    # Endpoints without `async` run in threads.
    api = Api(finder)
    routes = [
        Route("/", _page),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/api/info", api.info),
        Route("/api/classes", api.classes),
        Route("/api/examples", api.examples),
        Route("/api/neighbours", api.of_source_id, methods=["GET"]),
        Route("/api/neighbours", api.of_upload, methods=["POST"]),
        Route("/api/picture", api.picture),
    ]
    handlers = {
        UsageError: _wrong,
        BadImage: _wrong,
        HTTPException: _refused,
        Exception: _broken,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), names)


def _page(request: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})


def _wrong(request: Request, error: Exception) -> Response:
    status = 422 if isinstance(error, BadImage) else 400
    return JSONResponse({"error": one_line(error)}, status)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _broken(request: Request, error: Exception) -> Response:
    """A defect: its traceback is on the server's standard error."""
    return JSONResponse({"error": "the server failed; its output says why"}, 500)


class Api:
    """The endpoints under /api."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder
        # Pictures and searches by source id do not wait for images that are embedded.
        self._embedding = anyio.CapacityLimiter(os.cpu_count() or 1)
        # Part of the pictures' addresses: another start may serve another data set.
        self._start = secrets.token_hex(4)

    def info(self, request: Request) -> Response:
        """What is served, and the limits."""
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
        """Names of all classes."""
        return _json({"classes": self._finder.index.class_names})

    def examples(self, request: Request) -> Response:
        """Some images to begin with."""
        return _json({"images": [entry_content(each) for each in self._finder.examples()]})

    def of_source_id(self, request: Request) -> Response:
        """Neighbours of an image of the index."""
        source_id = _source_id(request)
        found = self._finder.of_source_id(source_id, _wanted(request))
        if found is None:
            raise HTTPException(404, f"no image {source_id!r} in the index")
        entry, neighbours = found
        content = {"query": entry_content(entry), "neighbours": neighbours_content(neighbours)}
        return _json(content)

    async def of_upload(self, request: Request) -> Response:
        """Neighbours of the image file that is the request's body."""
        wanted = _wanted(request)
        kind = request.headers.get("content-type", "")
        # Neither can another site's page send without asking first, which is not answered.
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise HTTPException(415, "Content-Type: image/... or application/octet-stream")
        try:
            image = await _body(request)
        except ClientDisconnect:  # nobody is there to read an answer
            return Response(status_code=400)
        of_image = self._finder.of_image
        found = await to_thread.run_sync(of_image, image, wanted, limiter=self._embedding)
        return _json({"query": None, "neighbours": neighbours_content(found)})

    def picture(self, request: Request) -> Response:
        """A small JPEG of an image of the index."""
        source_id = _source_id(request)
        jpeg = self._finder.picture(source_id)
        if jpeg is None:
            raise HTTPException(404, f"no picture of {source_id!r}")
        known = request.query_params.get("start") == self._start
        cache = f"private, max-age={A_DAY}, immutable" if known else "no-store"
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": cache})


def _json(content: Mapping[str, object]) -> Response:
    # Escaped to ASCII, so that every name that an index can hold comes through.
    body = json.dumps(content, allow_nan=False)
    return Response(body, media_type="application/json", headers={"cache-control": "no-store"})


def _source_id(request: Request) -> str:
    source_id = request.query_params.get("source_id")
    if source_id is None:
        raise HTTPException(400, "source_id is missing")
    return source_id


def _wanted(request: Request) -> Wanted:
    """From the query string; an empty value is none."""
    given = {name: value for name, value in request.query_params.items() if value}
    number = given.get("neighbours", "10")
    is_number = number.isascii() and number.isdecimal() and len(number) <= 9
    if not (is_number and 1 <= int(number) <= MAX_NEIGHBOURS):
        raise HTTPException(400, f"neighbours {number!r}: whole numbers, 1 to {MAX_NEIGHBOURS}")
    return Wanted(int(number), given.get("class"), given.get("split"))


async def _body(request: Request) -> bytes:
    """All of it; what is too large is not read to its end.

    Raises:
      HTTPException: it is too large.
    """
    declared = request.headers.get("content-length", "")
    chunks = bytearray()
    if not (declared.isdecimal() and int(declared) > MAX_UPLOAD):
        async for chunk in request.stream():
            chunks += chunk
            if len(chunks) > MAX_UPLOAD:
                break
        else:
            return bytes(chunks)
    text = f"the file is larger than {MAX_UPLOAD / 1e6:g} MB"
    raise HTTPException(413, text, headers={"connection": "close"})
