"""What every main.py does around its one call: flags, gin, and errors in one line."""

import logging
import os
import sys
from collections.abc import Callable, Sequence

import gin
from absl import flags

from preprocessing.errors import UsageError

# Gin logs an error for every folder that an include is not in, before it finds it in the next.
logging.getLogger().addFilter(lambda record: not record.getMessage().startswith("Path not found"))

flags.DEFINE_multi_string("gin_file", [], "Gin configuration file; may be repeated.")
flags.DEFINE_multi_string(
    "gin_param", [], "One gin binding, such as 'NAME.param = value'; may be repeated."
)
flags.DEFINE_bool("help", False, "Shows this text.", short_name="h")


def run(main: Callable[[list[str]], None], *, description: str, other_flags: bool = False) -> None:
    """Parses the command line, calls main, and ends the process.

    Exit codes: 0; 2 for a mistake of the user, said in one line; 130 after Ctrl+C. Any other
    exception is a defect and keeps its traceback.

    Args:
      main: called with the arguments that are no flags of ours.
      description: what --help prints above the flags.
      other_flags: whether such arguments are passed on to main; otherwise they are an error.
    """
    try:
        rest = flags.FLAGS(sys.argv, known_only=other_flags)[1:]
        if flags.FLAGS["help"].value:
            print(f"{description.strip()}\n\n{_flag_help()}")
            sys.exit(0)
        if rest and not other_flags:
            raise UsageError(f"unexpected argument {rest[0]!r}; see --help")
        main(rest)
    except (UsageError, flags.Error) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _flag_help() -> str:
    ours = flags.FLAGS.flags_by_module_dict()
    modules = [name for name in ours if name == sys.argv[0] or name.startswith(__name__)]
    return "\n\n".join(flags.FLAGS.module_help(module) for module in modules)


def _one_line(error: Exception) -> str:
    # Gin appends the call that an exception passed through.
    return " ".join(str(error).split("\n  In call to configurable")[0].split())


def parse_gin(flag_bindings: Sequence[str] = ()) -> None:
    """Applies --gin_file, then --gin_param, then bindings that come from flags.

    Raises:
      UsageError: a file that is missing, a name or parameter that does not exist, bad syntax.
    """
    files = flags.FLAGS["gin_file"].value
    for file in files:
        if not os.path.isfile(file):
            raise UsageError(f"--gin_file {file}: no such file")
        # A file includes its neighbours by name, wherever the command is run from.
        gin.add_config_file_search_path(os.path.dirname(os.path.abspath(file)))
    bindings = [*flags.FLAGS["gin_param"].value, *flag_bindings]
    try:
        gin.parse_config_files_and_bindings(files, bindings)
    except (ValueError, SyntaxError, OSError, AttributeError, ImportError, TypeError) as error:
        raise UsageError(f"gin: {error}") from error


def bindings(configurable: str, *names: str) -> list[str]:
    """Gin bindings of the flags of these names that the command line sets."""
    given = [name for name in names if flags.FLAGS[name].present]
    return [f"{configurable}.{name} = {flags.FLAGS[name].value!r}" for name in given]


def require(configurable: str, *names: str) -> None:
    """Raises UsageError for a parameter that neither a flag nor gin has set."""
    for name in names:
        try:
            gin.query_parameter(f"{configurable}.{name}")
        except ValueError:
            raise UsageError(f"--{name} is missing; see --help") from None
