"""Changes to command-line arguments before they are parsed."""

import pytest

from tripletmill.cli.arguments import Parser, at_home


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--output=~/data", "--output=/home/me/data"),
        ("--output=~", "--output=/home/me"),
        ("--output=~nobody-at-all/x", "--output=~nobody-at-all/x"),
        ("--output=a~/b", "--output=a~/b"),
        ("--gin_param=a.b = '~'", "--gin_param=a.b = '~'"),
        ("~/data", "~/data"),  # every shell expands this one
        ("--overwrite", "--overwrite"),
    ],
)
def test_at_home(monkeypatch, given, expected):
    monkeypatch.setenv("HOME", "/home/me")
    assert at_home(given) == expected
    parser = Parser()
    parser.add_argument("--output")
    parser.add_argument("--gin_param")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("rest", nargs="*")
    found = vars(parser.parse_args([given]))
    assert expected.partition("=")[2] in (found["output"], found["gin_param"], "")
