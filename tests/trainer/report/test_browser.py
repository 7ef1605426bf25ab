"""The report in a browser: no errors, and no horizontal scrolling on a phone."""

import html
import re
import subprocess

import pytest

from tests.fixtures.browser import CHROMIUM, MISSING

PHONE = 375  # CSS pixels; a browser window cannot be this narrow, but a frame can

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

MEASURE = """
<!DOCTYPE html><p id="said">nothing</p>
<iframe id="phone" style="width: {width}px; height: 800px; border: 0" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.getElementById("phone").contentDocument;
  const broken = [...page.images].filter(image => !image.naturalWidth).length;
  document.getElementById("said").textContent =
    `${{page.documentElement.scrollWidth}} wide, ${{broken}} of ${{page.images.length}} broken`;
}});
</script>
"""


def opened(page: str, tmp_path) -> tuple[int, int, int, list[str]]:
    """The page's width in CSS pixels, its broken and all pictures, and the console's messages."""
    outer = tmp_path / "outer.html"
    outer.write_text(MEASURE.format(width=PHONE, page=html.escape(page)), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--disable-dev-shm-usage", "--hide-scrollbars"]
    command += ["--dump-dom", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'browser'}"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=10000", outer.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    measured = re.search(r"(\d+) wide, (\d+) of (\d+) broken", done.stdout)
    assert measured, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return *map(int, measured.groups()), console


def test_phone(reported, tmp_path):
    width, broken, pictures, console = opened(reported.html, tmp_path)
    assert width == PHONE
    assert pictures > 20
    assert broken == 0
    assert console == []


def test_what_is_wrong_is_seen(tmp_path):
    """The test above notices an error."""
    page = "<img src='data:image/jpeg;base64,AAAA'><pre>" + "wide " * 200 + "</pre>"
    page += "<script>nothing.at.all</script>"
    width, broken, _, console = opened(page, tmp_path)
    assert width > PHONE
    assert broken == 1
    assert len(console) == 1
