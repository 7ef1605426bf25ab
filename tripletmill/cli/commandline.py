"""What every main.py does around its one call: flags, gin, and errors in one line."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gin
import gin.resource_reader
from absl import flags

from tripletmill.cli.arguments import at_home
from tripletmill.cli.bindings import check, is_set, value_of
from tripletmill.errors import UsageError, one_line

# gin also looks for an include among Python packages; any folder of the same name where the command
# is run, such as data/, passes for one, and breaks it. Nothing here includes from packages.
gin.config._FILE_READERS.remove(
    (gin.resource_reader.system_path_reader, gin.resource_reader.system_path_file_exists)
)

ABSL_ADDS = ";\n"  # to what a flag's help says

# What any file may include.
SHIPPED = str(Path(__file__).parents[2] / "gin")

flags.DEFINE_multi_string("gin_file", [], "Gin configuration file, may be repeated")
flags.DEFINE_multi_string(
    "gin_param", [], "One gin binding, such as 'NAME.param = value', may be repeated"
)
flags.DEFINE_bool("help", False, "Shows this text", short_name="h")


def run(
    main: Callable[[list[str]], None],
    *,
    description: str,
    other_flags: bool = False,
) -> None:
    """Parses the command line, calls main, and ends the process.

    Exit codes: 0; 2 for a mistake of the user, said in one line; 130 after Ctrl+C. Any other
    exception is a defect and keeps its traceback.

    Args:
      main: called with the arguments that are no flags of ours.
      description: what --help prints above the flags.
      other_flags: whether such arguments are passed on to main; otherwise they are an error.
    """
    try:
        given = [at_home(argument) for argument in sys.argv]
        rest = flags.FLAGS(given, known_only=other_flags)[1:]
        if flags.FLAGS["help"].value:
            print(f"{description.strip()}\n\n{_flag_help()}")
            sys.exit(0)
        if rest and not other_flags:
            raise UsageError(f"unexpected argument {rest[0]!r}; see --help")
        main(rest)
    except (UsageError, flags.Error) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # A file or folder that cannot be had; others carry no number.
        if not str(error).startswith("[Errno"):
            raise
        print(f"error: {one_line(error).partition('] ')[2]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _flag_help() -> str:
    ours = flags.FLAGS.flags_by_module_dict()
    shown = [flag for module in (sys.argv[0], __name__) for flag in ours[module]]
    return "\n".join(f"  --{flag.name:11} {flag.help.split(ABSL_ADDS)[0]}" for flag in shown)


def parse_gin(
    configurables: Sequence[Callable],
    flag_bindings: Sequence[str],
    *,
    required: Mapping[str, str],
    defaults: Sequence[str] = (),
    called: Sequence[Callable] = (),
) -> None:
    """Applies defaults, then --gin_file, then --gin_param, then bindings that come from flags.

    Args:
      configurables: functions and classes whose parameters gin may set.
      flag_bindings: such as "preprocess.input = 'photos'".
      defaults: bindings that all others win over.
      required: parameters or %MACROS that must be set, with the flag that sets each.
      called: those of the configurables that are called with nothing more than gin gives.

    Raises:
      UsageError: a file that is missing, a name or parameter that does not exist, bad syntax, a
        required value that is not set, a value of the wrong kind.
    """
    for configurable in configurables:
        gin.external_configurable(configurable)
    files = flags.FLAGS["gin_file"].value
    for file in files:
        if not os.path.isfile(file):
            raise UsageError(f"--gin_file {file}: no such file")
        # A file includes its neighbours by name, wherever the command is run from.
        gin.add_config_file_search_path(os.path.dirname(os.path.abspath(file)))
    gin.add_config_file_search_path(SHIPPED)
    bindings = [*flags.FLAGS["gin_param"].value, *flag_bindings]
    try:
        gin.parse_config(list(defaults))
        gin.parse_config_files_and_bindings(files, bindings, finalize_config=False)
        for parameter, flag in required.items():
            if not is_set(parameter) or not value_of(parameter):
                raise UsageError(f"--{flag} is missing; see --help")
        gin.finalize()
    except (ValueError, SyntaxError, OSError, AttributeError, ImportError, TypeError) as error:
        # Some of gin's messages end in the whole configuration.
        raise UsageError(f"gin: {str(error).split(' in config string')[0]}") from error
    check(configurables, called)


def bindings(configurable: str, *names: str) -> list[str]:
    """Gin bindings of the flags of these names that the command line sets."""
    given = [name for name in names if flags.FLAGS[name].present]
    return [f"{configurable}.{name} = {flags.FLAGS[name].value!r}" for name in given]
