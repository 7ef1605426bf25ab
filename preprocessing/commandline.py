"""What every main.py does around its one call: flags, gin, and errors in one line."""

import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence

import gin
import gin.resource_reader
from absl import flags

from preprocessing.errors import UsageError

# gin also looks for an include among Python packages; any folder of the same name where the command
# is run, such as data/, passes for one, and breaks it. Nothing here includes from packages.
gin.config._FILE_READERS.remove(
    (gin.resource_reader.system_path_reader, gin.resource_reader.system_path_file_exists)
)

# What any file may include.
SHIPPED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "gin")
PLAIN_KINDS = {int, float, bool, str, type(None)}

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
        rest = flags.FLAGS(sys.argv, known_only=other_flags)[1:]
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
    return "\n".join(f"  --{flag.name:11} {flag.help.split(';')[0]}" for flag in shown)


def one_line(error: Exception) -> str:
    """What an exception says, as an error is shown."""
    # Gin appends the call that an exception passed through.
    return " ".join(str(error).split("\n  In call to configurable")[0].split())


def parse_gin(
    configurables: Sequence[Callable],
    flag_bindings: Sequence[str],
    *,
    required: Mapping[str, str],
    defaults: Sequence[str] = (),
) -> None:
    """Applies defaults, then --gin_file, then --gin_param, then bindings that come from flags.

    Args:
      configurables: functions and classes whose parameters gin may set.
      flag_bindings: such as "preprocess.input = 'photos'".
      defaults: bindings that all others win over.
      required: parameters or %MACROS that must be set, with the flag that sets each.

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
            if not _is_set(parameter) or not _value(parameter):
                raise UsageError(f"--{flag} is missing; see --help")
        gin.finalize()
    except (ValueError, SyntaxError, OSError, AttributeError, ImportError, TypeError) as error:
        # Some of gin's messages end in the whole configuration.
        raise UsageError(f"gin: {str(error).split(' in config string')[0]}") from error
    for configurable in configurables:
        _check_kinds(configurable)


def _check_kinds(configurable: Callable) -> None:
    """Raises UsageError where a parameter has another kind of value than it is annotated with.

    Looks at numbers, texts, truth values and functions; whatever else checks itself.
    """
    init = vars(configurable).get("__init__", configurable)
    for name, hint in typing.get_type_hints(init).items():
        parameter = f"{configurable.__name__}.{name}"
        if not _is_set(parameter):
            continue
        value = _value(parameter)
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if typing.get_origin(hint) is Callable:
            reference = isinstance(value, gin.config.ConfigurableReference)
            fits, expected = reference and not value.evaluate, "an @reference, without ()"
        elif set(kinds) <= PLAIN_KINDS:
            fits = type(value) in kinds or (type(value) is int and float in kinds)
            fits = fits or isinstance(value, gin.config.ConfigurableReference)
            expected = " or ".join(kind.__name__ for kind in kinds).replace("NoneType", "None")
        else:
            continue
        if not fits:
            raise UsageError(f"gin: {parameter} = {value!r}: must be {expected}")


def _value(parameter: str) -> typing.Any:
    """What gin has for a parameter, looking through macros."""
    value = gin.query_parameter(parameter)
    while isinstance(value, gin.config.ConfigurableReference) and value.selector == "gin.macro":
        value = gin.query_parameter(f"%{value.scoped_selector.removesuffix('/gin.macro')}")
    return value


def _is_set(parameter: str) -> bool:
    try:
        gin.query_parameter(parameter)
    except ValueError:
        return False
    return True


def bindings(configurable: str, *names: str) -> list[str]:
    """Gin bindings of the flags of these names that the command line sets."""
    given = [name for name in names if flags.FLAGS[name].present]
    return [f"{configurable}.{name} = {flags.FLAGS[name].value!r}" for name in given]
