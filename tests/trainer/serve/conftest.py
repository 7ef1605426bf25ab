"""One server for all tests: a real process that Ctrl+C stops at the end."""

from __future__ import annotations

import dataclasses
import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from tests.fixtures.datasets import make_data_set
from tests.fixtures.embedded import write_embeddings
from tests.fixtures.exported import CARD, SIDE, expected, export_model
from tests.fixtures.folders import class_folder
from tests.fixtures.project import ROOT
from trainer.search.build import build
from tripletmill.images import ImageSettings, canonical_jpeg

CLASSES, IMAGES = 4, 5
SPLITS = ("train", "test")  # the classes have these splits in turn
NASTY = "class_03 <img src=x onerror=document.title=1> & \"'"  # the name of class_03
PATIENCE = 60  # seconds to wait before a test fails


@dataclasses.dataclass
class Collection:
    """The images that are served.

    Attributes:
      folder: a folder with images/, data/, export/ and index/.
      source_ids: the source ids of all images, in the order of the index.
      vectors: the images' embeddings, computed by NumPy.
    """

    folder: Path
    source_ids: list[str]
    vectors: np.ndarray

    def class_of(self, source_id: str) -> str:
        return source_id.split("/")[0]

    def split_of(self, source_id: str) -> str:
        return SPLITS[int(source_id[len("class_") :][:2]) % 2]

    def image(self, source_id: str) -> bytes:
        return (self.folder / "images" / source_id).read_bytes()

    def distances(self, source_id: str, among: list[str]) -> dict[str, float]:
        """Distances by brute force from the images themselves, nearest first."""
        vector = self.vectors[self.source_ids.index(source_id)]
        distances = ((self.vectors - vector) ** 2).sum(axis=1)
        distance_of = {each: float(distances[self.source_ids.index(each)]) for each in among}
        return dict(sorted(distance_of.items(), key=lambda item: item[1]))


@pytest.fixture(scope="session")
def collection(tmp_path_factory) -> Collection:
    folder = tmp_path_factory.mktemp("served")
    images = class_folder(folder / "images", classes=CLASSES, images=IMAGES)
    (images / "class_03").rename(images / NASTY)
    make_data_set(folder, short_side=SIDE, cycle=SPLITS)
    export_model(folder / "export")
    source_ids = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    settings = ImageSettings(short_side=SIDE, quality=CARD["preprocessing"]["quality"])
    jpegs = [canonical_jpeg((images / each).read_bytes(), settings).jpeg for each in source_ids]
    made = Collection(folder, source_ids, np.stack([expected(jpeg) for jpeg in jpegs]))
    write_embeddings(
        folder / "embeddings",
        made.vectors.astype(np.float32),
        source_id=source_ids,
        split=[made.split_of(each) for each in source_ids],
        class_name=[made.class_of(each) for each in source_ids],
        model=CARD["fingerprint"],
    )
    build(directory=str(folder / "index"), embeddings_dirs=[str(folder / "embeddings")])
    return made


@dataclasses.dataclass
class Answer:
    """An answer of the server."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int,
    path: str,
    body: bytes | None = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    **query: object,
) -> Answer:
    """Sends a GET request, or a POST request with a body as a file."""
    kind = {"Content-Type": "application/octet-stream"} if body is not None else {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(
        method or ("GET" if body is None else "POST"),
        f"{path}?{urlencode(query)}" if query else path,
        body,
        {**kind, **(headers or {})},
    )
    answer = connection.getresponse()
    received = Answer(answer.status, dict(answer.getheaders()), answer.read())
    connection.close()
    return received


class Server:
    """A running server.

    Attributes:
      url: the URL of the page, with a slash at its end.
    """

    def __init__(self, collection: Collection) -> None:
        folder = collection.folder
        flags = {"model": folder, "index": folder / "index", "data": folder / "data"}
        given = [*(f"--{name}_dir={path}" for name, path in flags.items()), "--port=0"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trainer.serve", *given],
            cwd=ROOT,
            # Ctrl+C has Python's default effect here, also when the tests run in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self.said = [self._process.stdout.readline() for _ in range(2)]
        assert self.said[1], self._process.communicate()
        self.url = self.said[1].split()[1]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def ask(self, path: str, body: bytes | None = None, **more: Any) -> Answer:
        """Calls `ask` with the server's port."""
        return ask(self.port, path, body, **more)

    def interrupt(self) -> tuple[int, str]:
        """Sends Ctrl+C; returns the exit code and everything on standard error."""
        self._process.send_signal(signal.SIGINT)
        _, stderr = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, stderr

    def kill(self) -> None:
        """Kills the server if it still runs."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def server(collection) -> Iterator[Server]:
    running = Server(collection)
    try:
        yield running
        assert running.interrupt() == (0, "")
    finally:
        running.kill()
