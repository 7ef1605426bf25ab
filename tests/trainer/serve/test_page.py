"""The page in Chromium, used as a person uses it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from tests.fixtures.browser import CHROMIUM, MISSING, Page, browser
from tests.trainer.serve.conftest import NASTY

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

API = "/api/neighbours"
QUERY = 'document.getElementById("query-name").textContent'
STATUS = 'document.getElementById("status").textContent'
ERROR = 'document.getElementById("error").textContent'
RESULTS = '[...document.querySelectorAll("#results a")]'
NAMES = f"{RESULTS}.map((each) => each.dataset.sourceId)"
SETTLED = 'document.getElementById("results").ariaBusy === "false"'
LOADED = "[...document.images].every((each) => !each.src || each.naturalWidth > 0)"


@pytest.fixture
def page(server, tmp_path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as opened:
        opened.resize(375, 2000, phone=True)
        opened.open(server.url)
        opened.wait_for(f"{SETTLED} && {LOADED}")
        yield opened


def until(page: Page, **facts: object) -> None:
    """Waits until the page shows this query name, these result names, or other given values."""
    scripts = {"query": QUERY, "names": NAMES, "status": STATUS, "error": ERROR}
    for name, value in facts.items():
        expected = f"JSON.stringify({json.dumps(value)})"
        page.wait_for(f"JSON.stringify({scripts[name]}) === {expected}")
    page.wait_for(f"{SETTLED} && {LOADED}")


def fits(page: Page) -> None:
    """Asserts that nothing is wider than the screen of the phone."""
    assert page.run("document.documentElement.scrollWidth") == 375


def set_field(page: Page, name: str, value: str) -> None:
    """Changes a field and leaves it, as a person does."""
    field = f"document.getElementById({json.dumps(name)})"
    page.run(
        f"{field}.value = {json.dumps(value)};"
        f" {field}.dispatchEvent(new Event('change', {{ bubbles: true }}))"
    )


def names_of(answer) -> list[str]:
    """The names that the API returns, in the API's order; test_serve.py checks them."""
    return [each["source_id"] for each in answer.json["neighbours"]]


def test_from_a_file_by_way_of_neighbours_and_back(page, server, collection):
    path = collection.folder / "images" / NASTY / "01.png"
    fits(page)
    assert len(page.run(NAMES)) == 12  # to begin with

    of_file = names_of(server.ask(API, path.read_bytes(), neighbours=12))
    page.choose_file("#file", path)
    until(page, query="01.png", names=of_file, status="The 12 nearest images")
    assert page.run("location.search") == ""
    assert page.run(f"{RESULTS}[0].innerText").split() == ["1.", "0.000", *NASTY.split()]
    fits(page)

    # This goes to the second result with the keyboard alone.
    clicked = of_file[1]
    page.run(f"{RESULTS}[0].focus()")
    page.press("Tab")
    page.press("Enter")
    of_clicked = names_of(server.ask(API, source_id=clicked, neighbours=12))
    same = sum(collection.class_of(each) == NASTY for each in of_clicked)
    status = f"The 12 nearest images, {same} of its class"
    until(page, query=clicked, names=of_clicked, status=status)
    page.wait_for('document.activeElement.id === "results-title"')
    shared = page.run("location.href")
    assert "source_id=" in shared
    assert page.run('document.querySelectorAll("#results .same").length') == same
    assert page.run("document.title").startswith(clicked)
    assert page.run('document.querySelector("#query-of").textContent') == f"{NASTY}, test"
    fits(page)

    # The search is changed: other classes, other splits, more or fewer results.
    set_field(page, "class", "class_01")
    of_class = {"class": "class_01", "neighbours": 12}
    until(page, query=clicked, names=names_of(server.ask(API, source_id=clicked, **of_class)))
    assert "class=class_01" in page.run("location.search")
    set_field(page, "class", "")
    set_field(page, "split", "train")
    set_field(page, "neighbours", "3")
    of_split = server.ask(API, source_id=clicked, split="train", neighbours=3)
    until(page, query=clicked, names=names_of(of_split))

    # This goes back over four changes to the search, then to the file, and to the beginning.
    page.run("history.go(-4)")
    until(page, query=clicked, names=of_clicked)
    assert page.run('document.getElementById("class").value') == ""
    page.run("history.back()")
    until(page, query="01.png", names=of_file)
    page.run("history.back()")
    until(page, status="")
    page.wait_for('document.getElementById("query").hidden')
    page.run("history.go(2)")
    until(page, query=clicked, names=of_clicked)

    # Another person opens the link.
    page.open("about:blank")
    page.open(shared)
    until(page, query=clicked, names=of_clicked)
    assert page.complaints == []


def test_mistakes_are_said_and_announced(page, server, tmp_path):
    text = tmp_path / "no <i>image.png"
    text.write_text("text")
    page.choose_file("#file", text)
    problem = "not a JPEG, PNG, WebP, GIF, BMP or TIFF image"
    until(page, error=f"no <i>image.png: {problem}", status="", names=[])
    fits(page)
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(20_000_001)
    page.choose_file("#file", large)
    until(page, error="large.png: the file is larger than 20 MB")
    page.open(f"{server.url}?source_id={'x' * 200}")
    page.wait_for(f"{ERROR} === \"no image '{'x' * 200}' in the index\"")
    fits(page)
    page.open(f"{server.url}?source_id=class_00/00.png&class=none")
    page.wait_for(f"{ERROR}.startsWith(\"class 'none': no image\")")
    page.run('document.getElementById("home").click()')
    until(page, error="")
    assert len(page.run(NAMES)) == 12
    # Chromium logs each refused request.
    assert [each.split(":")[0] for each in page.complaints] == ["Failed to load resource"] * 3


def test_dropped_and_pasted(page, server, collection):
    asked = "class_02/03.png"
    image = base64.b64encode(collection.image(asked)).decode()
    make = f"""const bytes = Uint8Array.from(atob("{image}"), (each) => each.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], NAME, {{ type: "image/png" }}));"""
    names = names_of(server.ask(API, collection.image(asked), neighbours=12))
    dropped = make.replace("NAME", '"dropped.png"')
    drop = "new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true })"
    # False means that the browser is kept from opening the file by itself.
    assert page.run(f"{{ {dropped} document.body.dispatchEvent({drop}) }}") is False
    until(page, query="dropped.png", names=names)
    page.run('document.getElementById("home").click()')
    until(page, status="")
    pasted = make.replace("NAME", '"pasted.png"')
    paste = "new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true })"
    page.run(f"{{ {pasted} document.body.dispatchEvent({paste}) }}")
    until(page, query="pasted.png", names=names)
    assert page.complaints == []


def test_what_a_screen_reader_finds(page, collection):
    page.choose_file("#file", collection.folder / "images/class_00/00.png")
    until(page, query="00.png")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    for role in ("image", "link", "button", "combobox", "spinbutton"):
        names = [name for found_role, name in found if found_role == role]
        assert names, (role, found)
        assert all(names), (role, names)
    assert {"Class", "Split", "Neighbours"} <= {name for _, name in found}
    assert any(role == "button" and name.startswith("Choose an image") for role, name in found)
    assert {"alert", "status", "main", "list"} <= {role for role, _ in found}
    assert [name for role, name in found if role == "heading"] == [
        *("Similar images", "Query", "Nearest images")
    ]
    # The file button can be reached by keyboard and is visible then.
    page.run('document.getElementById("home").focus()')
    page.press("Tab")
    assert page.run("document.activeElement.id") == "file"
    assert page.run('getComputedStyle(document.querySelector(".drop label")).outlineStyle') == (
        "solid"
    )
