"""What all command lines share."""

import os
from pathlib import Path

import gin
import pytest

from tripletmill.cli.arguments import Parser, at_home, exit_code
from tripletmill.errors import UsageError


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


def parser(**options) -> Parser:
    made = Parser("program", **options)
    made.add_argument("--data_dir")
    made.add_argument("--overwrite", action="store_true")
    return made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--data=x", "unrecognized arguments: --data=x (did you mean --data_dir?)"),
        ("--overwirte", "unrecognized arguments: --overwirte (did you mean --overwrite?)"),
        ("--zebra", "unrecognized arguments: --zebra"),
        ("x", "unrecognized arguments: x"),
    ],
)
def test_an_unknown_argument_is_one_line(capsys, given, message):
    with pytest.raises(SystemExit) as exit:
        parser().parse_args([given])
    assert exit.value.code == 2
    assert capsys.readouterr() == ("", f"error: {message}; see --help\n")


def test_a_program_may_pass_unknown_arguments_on():
    given = ["--runner=x", "--data_dir=~", "--over", "y"]
    flags, others = parser(passes_on=True).parse_known_args(given)
    assert flags.data_dir == os.path.expanduser("~")
    assert not flags.overwrite
    assert others == ["--runner=x", "--over", "y"]


def raising(error: BaseException):
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("no such\nfolder"), 2, "error: no such folder\n"),
        (FileNotFoundError(2, "No such file", "a"), 2, "error: a: No such file\n"),
        (OSError(28, "No space left"), 2, "error: the index: No space left\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(capsys, error, code, message):
    assert exit_code(raising(error), path="the index") == code
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError("of another kind")])
def test_a_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        exit_code(raising(error))


def test_an_error_of_the_system_that_passed_through_gin_is_one_line(capsys):
    def read_missing_file() -> None:
        Path("/dev/null/x").read_bytes()

    assert exit_code(gin.external_configurable(read_missing_file)) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: Not a directory: '/dev/null/x'\n")


def test_flags_from_a_file(tmp_path, capsys):
    parser = Parser("prog")
    parser.add_argument("--mode")
    parser.add_argument("--data_dir")
    (tmp_path / "flags").write_text("--mode=train\n# a comment\n--data_dir=there\n")
    parsed = parser.parse_args([f"--flagfile={tmp_path / 'flags'}", "--data_dir=here"])
    assert (parsed.mode, parsed.data_dir) == ("train", "here")
    with pytest.raises(SystemExit) as raised:
        parser.parse_args([f"--flagfile={tmp_path / 'none'}"])
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Unable to open flagfile" in error
