"""The server over HTTP, and its command line."""

import io
import re
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import uvicorn
from PIL import Image

from tests.fixtures.embedded import unit_vectors, write_embeddings
from tests.fixtures.project import ROOT
from tests.trainer.serve.conftest import CLASSES, IMAGES, NASTY, PATIENCE, Server, ask
from trainer.pictures.source_images import FilePictures
from trainer.search.build import build
from trainer.search.index import SearchIndex
from trainer.serve.__main__ import main
from trainer.serve.app import MAX_NEIGHBOURS, MAX_UPLOAD, make_app
from trainer.serve.finder import EXAMPLES, SIDE, Finder
from trainer.serve.guard import HEADERS, is_own_host

NEIGHBOURS = "/api/neighbours"


def neighbours(answer) -> list[tuple[str, float]]:
    assert answer.status == 200, answer.body
    return [(each["source_id"], each["distance"]) for each in answer.json["neighbours"]]


def assert_nearest(answer, distances: dict[str, float], number: int) -> None:
    """Asserts the first of the expected results, as many as there are; ties in any order."""
    names = [name for name, _ in neighbours(answer)]
    assert len({*names}) == len(names) == min(number, len(distances))
    got = [distance for _, distance in neighbours(answer)]
    # The tolerance covers float32 embeddings and TensorFlow's JPEG decoder.
    np.testing.assert_allclose(got, [distances[name] for name in names], atol=2e-5)
    np.testing.assert_allclose(got, [*distances.values()][:number], atol=2e-5)


def test_info_classes_and_examples(server, collection):
    info = server.ask("/api/info").json
    assert info["images"] == CLASSES * IMAGES
    assert info["splits"] == ["test", "train"]
    assert info["max_upload_bytes"] == MAX_UPLOAD
    assert server.ask("/api/classes").json == {
        "classes": sorted({collection.class_of(each) for each in collection.source_ids})
    }
    examples = server.ask("/api/examples").json["images"]
    assert len(examples) == len({each["source_id"] for each in examples}) == EXAMPLES
    last = {"source_id": f"{NASTY}/04.png", "class": NASTY, "label": len(NASTY), "split": "test"}
    assert examples[-1] == last


def test_neighbours_of_an_upload(server, collection):
    asked = collection.source_ids[7]
    answer = server.ask(NEIGHBOURS, collection.image(asked))
    assert_nearest(answer, collection.distances(asked, collection.source_ids), 10)
    assert neighbours(answer)[0][0] == asked
    assert answer.json["query"] is None


def test_neighbours_of_an_image_of_the_index(server, collection):
    asked = f"{NASTY}/02.png"
    others = [each for each in collection.source_ids if each != asked]
    answer = server.ask(NEIGHBOURS, source_id=asked, neighbours=7)
    assert_nearest(answer, collection.distances(asked, others), 7)
    assert answer.json["query"]["source_id"] == asked
    assert answer.json["query"]["class"] == NASTY


@pytest.mark.parametrize("of", ["upload", "source_id"])
def test_filters(server, collection, of):
    asked = "class_01/00.png"
    others = [each for each in collection.source_ids if of == "upload" or each != asked]

    query = {"body": collection.image(asked)} if of == "upload" else {"source_id": asked}

    def ask(**filters):
        return server.ask(NEIGHBOURS, neighbours=50, **query, **filters)

    of_class = [each for each in others if collection.class_of(each) == NASTY]
    of_split = [each for each in others if collection.split_of(each) == "test"]
    assert 0 < len(of_class) < len(of_split) < len(others)
    for filters, left in (
        ({"class": NASTY}, of_class),
        ({"split": "test"}, of_split),
        ({"class": NASTY, "split": "test"}, of_class),
        ({"class": "", "split": ""}, others),
    ):
        assert_nearest(ask(**filters), collection.distances(asked, left), 50)
    assert ask(**{"class": NASTY, "split": "train"}).json["neighbours"] == []
    for name in ("class", "split"):
        answer = ask(**{name: "clas_01"})
        assert answer.status == 400
        assert f"{name} 'clas_01'" in answer.json["error"]


def half_an_upload(server, header: str = "Content-Length: 1000", body: str = "x") -> socket.socket:
    """A connection that has sent only a part of its body."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    head = f"POST {NEIGHBOURS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    connection.sendall(f"{head}{header}\r\n\r\n{body}".encode())
    return connection


def test_many_at_once(server, collection):
    """Uploads, searches and pictures at once; some uploads hang and one is given up."""
    half_an_upload(server).close()
    slow = [half_an_upload(server) for _ in range(50)]  # more than the server has threads
    source_ids = collection.source_ids

    def upload(source_id):
        return neighbours(server.ask(NEIGHBOURS, collection.image(source_id), neighbours=1))[0][0]

    def search(source_id):
        return server.ask(NEIGHBOURS, source_id=source_id).json["query"]["source_id"]

    with ThreadPoolExecutor(16) as pool:
        uploaded = pool.map(upload, source_ids)
        searched = pool.map(search, source_ids)
        pictures = pool.map(lambda each: server.ask("/api/picture", source_id=each), source_ids)
        assert list(uploaded) == source_ids
        assert list(searched) == source_ids
        assert {each.status for each in pictures} == {200}
    for each in slow:
        each.close()


class Slow:
    """An embedder that waits for permission, except for the first image."""

    def __init__(self, vector: np.ndarray) -> None:
        self.entered, self.go_on = threading.Semaphore(0), threading.Event()
        self.go_on.set()
        self._vector = vector

    def embed(self, image: bytes) -> np.ndarray:
        self.entered.release()
        assert self.go_on.wait(PATIENCE)
        return self._vector


def test_searches_do_not_wait_for_images_that_are_embedded(server, collection):
    """Searches go on, also with more waiting images than threads."""
    index = SearchIndex.load(str(collection.folder / "index"))
    pictures = FilePictures(str(collection.folder / "images"))
    slow = Slow(collection.vectors[0])
    finder = Finder(index, slow, pictures)
    slow.entered.acquire()
    slow.go_on.clear()
    app = make_app(finder, names={"localhost"})
    running = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    port, asked = listening.getsockname()[1], collection.source_ids[0]
    with ThreadPoolExecutor(50) as pool:
        try:
            uploads = [pool.submit(ask, port, NEIGHBOURS, b"image") for _ in range(50)]
            assert slow.entered.acquire(timeout=PATIENCE)
            assert ask(port, NEIGHBOURS, source_id=asked).status == 200
            assert ask(port, "/api/picture", source_id=asked).status == 200
            assert not any(each.done() for each in uploads)
            slow.go_on.set()
            assert {each.result().status for each in uploads} == {200}
        finally:
            slow.go_on.set()
            running.should_exit = True
    thread.join()


def png(width: int, height: int) -> bytes:
    """A PNG file of one pixel that declares this size."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    whole = file.getvalue()
    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (b"", "empty file"),
        (b"<svg onload='alert(1)'/>", "not a JPEG, PNG, WebP, GIF, BMP or TIFF image"),
        (png(10, 10)[:45], "damaged"),
        (png(10_000, 10_000), "more than 50000000 pixels"),
        (png(65_000, 65_000), "more than 50000000 pixels"),
        (png(3_000, 10), "aspect ratio"),
    ],
    ids=["empty", "text", "truncated", "large", "bomb", "long"],
)
def test_bad_images(server, file, problem):
    answer = server.ask(NEIGHBOURS, file)
    assert answer.status == 422
    assert problem in answer.json["error"]


def test_too_large_a_file_is_refused_unread(server):
    with half_an_upload(server, f"Content-Length: {MAX_UPLOAD + 1}", body="") as connection:
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 20 MB" in answer


def test_too_large_a_file_of_unknown_size_is_refused(server):
    size = 1_000_000
    with half_an_upload(server, "Transfer-Encoding: chunked", body="") as connection:
        for _ in range(MAX_UPLOAD // size):
            connection.sendall(b"%x\r\n" % size + bytes(size) + b"\r\n")
        connection.sendall(b"1\r\n0\r\n")  # one more byte, and no end
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_file_of_the_largest_size_is_read(server):
    assert server.ask(NEIGHBOURS, bytes(MAX_UPLOAD)).status == 422


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data", "image"])
def test_what_a_form_of_another_site_can_send_is_refused(server, collection, kind):
    image = collection.image(collection.source_ids[0])
    answer = server.ask(NEIGHBOURS, image, headers={"Content-Type": kind})
    assert answer.status == 415
    assert "Content-Type" in answer.json["error"]


@pytest.mark.parametrize("number", ["0", "-1", "101", "1e1", "ten", "٣", "9" * 5000])
def test_numbers_of_neighbours_out_of_range(server, number):
    answer = server.ask(NEIGHBOURS, source_id="class_00/00.png", neighbours=number)
    assert answer.status == 400
    assert f"1 to {MAX_NEIGHBOURS}" in answer.json["error"]


def test_what_is_not_there(server):
    answer = server.ask(NEIGHBOURS, source_id="<b>nobody</b>")
    assert (answer.status, answer.json) == (404, {"error": "no image '<b>nobody</b>' in the index"})
    assert answer.headers["content-type"] == "application/json"
    assert server.ask(NEIGHBOURS).status == 400
    assert server.ask("/api/picture").status == 400
    assert server.ask("/api/nothing").json == {"error": "Not Found"}
    assert server.ask("/api/info", method="DELETE").status == 405


@pytest.mark.parametrize(
    "source_id", ["class_00/no.png", "../export/model_card.json", "/etc/passwd", "\0", "%", ""]
)
def test_no_picture(server, source_id):
    assert server.ask("/api/picture", source_id=source_id).status == 404


def test_pictures(server, collection):
    start = server.ask("/api/info").json["start"]
    for source_id in collection.source_ids[::4]:
        answer = server.ask("/api/picture", source_id=source_id, start=start)
        assert answer.headers["content-type"] == "image/jpeg"
        assert "immutable" in answer.headers["cache-control"]
        picture = Image.open(io.BytesIO(answer.body))
        original = Image.open(io.BytesIO(collection.image(source_id)))
        assert min(picture.size) == SIDE
        means = [np.asarray(each, float).mean((0, 1)) for each in (picture, original)]
        np.testing.assert_allclose(*means, atol=3)
    answer = server.ask("/api/picture", source_id=source_id, start="of another data set")
    assert answer.headers["cache-control"] == "no-store"


def test_every_answer_keeps_other_sites_out(server):
    for path in ("/", "/static/serve.js", "/static/no.js", "/api/info", "/api/nothing", NEIGHBOURS):
        answer = server.ask(path, headers={"Origin": "https://evil.example"})
        assert HEADERS.items() <= answer.headers.items()
        assert not [name for name in answer.headers if name.startswith("access-control")]
    policy = HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_host_names_of_others_are_refused(server):
    answer = server.ask("/api/info", headers={"Host": f"evil.example:{server.port}"})
    assert answer.status == 403
    assert HEADERS.items() <= answer.headers.items()
    assert server.ask("/api/info", headers={"Host": f"LocalHost:{server.port}"}).status == 200


OWN = ["127.0.0.1", "127.0.0.1:8000", "192.168.1.2:80", "localhost:8000", "[::1]:8000", "[::1]"]
OWN += ["MyHost"]
OTHERS = ["evil.example", "evil.example:8000", "localhost.evil.example"]
OTHERS += ["127.0.0.1.evil.example:8000"]
OTHERS += ["", "localhost:8000@evil.example", "[::1].evil.example", "[::1", "[localhost]:80"]


@pytest.mark.parametrize("header", [*OWN, *OTHERS])
def test_own_hosts(header):
    assert is_own_host(header, {"localhost", "myhost"}) == (header in OWN)


def test_page_takes_nothing_from_elsewhere(server):
    page = server.ask("/")
    assert page.headers["content-type"].startswith("text/html")
    used = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    assert len(used) == 4
    for path in used:
        answer = server.ask(path)
        assert answer.status == 200
        text = answer.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text
        assert "innerHTML" not in text


def test_says_when_it_is_ready(server):
    loading, ready = server.said
    assert loading.startswith("loading index ")
    assert re.fullmatch(r"ready: http://127\.0\.0\.1:\d+/ \(20 images\); Ctrl\+C stops\n", ready)


def test_ctrl_c_stops_at_once(collection):
    """Ctrl+C also works while an upload hangs that would never end."""
    server = Server(collection)
    try:
        with half_an_upload(server):
            assert server.ask("/api/info").status == 200  # so the hanging upload has arrived
            assert server.interrupt() == (0, "")
    finally:
        server.kill()


@pytest.fixture
def flags(collection) -> list[str]:
    """The flags of the model, the index and the data set."""
    folder = collection.folder
    return [f"--model_dir={folder}", f"--index_dir={folder}/index", f"--data_dir={folder}/data"]


def error(capsys, *flags: str) -> str:
    """The only line of a command that fails because of a mistake of the user."""
    try:
        code = main(flags)
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert code == 2, err
    [line] = err.splitlines()
    assert "ready" not in out
    return line.removeprefix("error: ")


def test_mistakes_of_the_command_line(capsys, flags, tmp_path):
    (model, index, data), free = flags, "--port=0"
    assert "--model_dir" in error(capsys, index, data)
    assert "--data_dir --images" in error(capsys, model, index)
    assert "not allowed with" in error(capsys, model, index, data, "--images=x")
    assert "0 to 65535" in error(capsys, model, index, data, "--port=65536")
    assert "no such folder" in error(capsys, "--model_dir=nowhere", index, data, free)
    assert "nowhere" in error(capsys, model, "--index_dir=nowhere", data, free)
    assert "nowhere" in error(capsys, model, index, "--data_dir=nowhere", free)
    assert error(capsys, model, index, "--images=nowhere", free) == (
        "images nowhere: no such folder, and no manifest (.csv, .jsonl)"
    )
    assert error(capsys, model, index, data, free, "--host=a..b") == (
        "--host=a..b --port=0: not a host name; choose others, or --port=0 for a free port"
    )
    assert "--host=no.example.invalid --port=0: " in error(
        capsys, model, index, data, free, "--host=no.example.invalid"
    )
    write_embeddings(tmp_path / "embeddings", unit_vectors(5, 12))
    build(directory=str(tmp_path / "other"), embeddings_dirs=[str(tmp_path / "embeddings")])
    other = f"--index_dir={tmp_path}/other"
    assert "search with that one" in error(capsys, model, other, data, free)


def test_a_port_that_is_taken(capsys, server, flags):
    port = f"--port={server.port}"
    line = error(capsys, *flags, port)
    assert line.startswith(f"--host=127.0.0.1 {port}: Address already in use")
    assert line.endswith("; choose others, or --port=0 for a free port")


def test_warns_where_other_machines_reach_it(capsys, flags):
    assert main([*flags[:2], "--images=nowhere", "--port=0", "--host=0.0.0.0"]) == 2
    warning, _ = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: 0.0.0.0 is reached from other machines")


def test_make_serve_names_flags_that_there_are(capsys):
    recipe = (ROOT / "Makefile").read_text().partition("\nserve: ")[2].partition("\n\n")[0]
    with pytest.raises(SystemExit):
        main(["--help"])
    help_text = capsys.readouterr().out
    for flag in [*re.findall(r"--([a-z_]+)=", recipe), *re.findall(r"call flag,([a-z_]+)", recipe)]:
        assert f"--{flag}" in help_text
