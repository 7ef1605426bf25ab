"""Progress is one line that is updated on a terminal, and a few plain lines in a log."""

import io

import pytest

from tripletmill.cli import progress
from tripletmill.cli.progress import Progress, duration


class Unread(io.StringIO):
    """A pipe whose other end is closed."""

    tries = 0

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        self.tries += 1
        raise BrokenPipeError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal(monkeypatch):
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0)
    stream = Terminal()
    with Progress(stream) as shown:
        shown.update("one")
        shown.update("two")
        shown.line("stays")
        shown.update("three")
    clear = "\r\x1b[2K"
    assert stream.getvalue() == f"{clear}one{clear}two{clear}stays\n{clear}three\n"


def test_log():
    stream = io.StringIO()
    with Progress(stream) as shown:
        for step in range(1000):
            shown.update(f"step {step}")
        shown.update("last", force=True)
    assert stream.getvalue() == "last\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_nobody_reads_any_more(monkeypatch, terminal):
    """Ctrl+C also ends `tee`; a closed output must not end the work."""
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0)
    stream = Unread()
    stream.terminal = terminal
    with Progress(stream) as shown:
        shown.update("one", force=True)
        shown.line("two")
    assert stream.tries == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
