"""What the programs with a gin configuration share: the gin flags, their help, and the parsing."""

import argparse
import os
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import gin
import gin.resource_reader

from tripletmill.cli.arguments import Parser
from tripletmill.cli.bindings import check, is_set, value_of
from tripletmill.cli.gin_help import gin_help, source_and_gin_name
from tripletmill.errors import UsageError

# gin also looks for an included file among Python packages. There it would take any folder of the
# same name in the current folder, such as data/, for a package, and fail. No configuration here
# includes a file of a package.
gin.config._FILE_READERS.remove(
    (gin.resource_reader.system_path_reader, gin.resource_reader.system_path_file_exists)
)

# Any configuration may include the files of this folder.
SHIPPED = str(Path(__file__).parents[2] / "gin")


class GinParser(Parser):
    """A parser with --gin_file and --gin_param, whose --help lists the gin parameters.

    Args:
      prog: how the program is started.
      description: what --help prints above the flags.
      configurables: "module:name" of each function and class whose parameters gin may set. The
        modules are read, but not imported, for --help.
      set_by_program: parameters such as "preprocess.runner" that the program sets itself.
      passes_on: as in `Parser`.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        configurables: Sequence[str],
        set_by_program: Sequence[str],
        *,
        passes_on: bool = False,
    ) -> None:
        super().__init__(prog, description=description, passes_on=passes_on)
        self._configurables = configurables
        self._set_by_program = set_by_program
        group = self.add_argument_group("configuration")
        text = "gin file; may be repeated"
        group.add_argument("--gin_file", metavar="FILE", action="append", default=[], help=text)
        text = "gin binding, such as 'NAME.parameter = value'; may be repeated"
        group.add_argument("--gin_param", metavar="BINDING", action="append", default=[], help=text)

    def format_help(self) -> str:
        """Returns the help of the flags, followed by that of the gin parameters."""
        return f"{super().format_help()}\n{gin_help(self._configurables, self._set_by_program)}"


def parse_gin(
    configurables: Sequence[str],
    *,
    files: Sequence[str],
    bindings: Sequence[str],
    required: Mapping[str, str],
    defaults: Sequence[str] = (),
    called: Sequence[str] = (),
) -> None:
    """Applies first the defaults, then the files, then the bindings. The last value wins.

    Args:
      configurables: functions and classes whose parameters gin may set, as "module:name" or
        "module:name as GIN_NAME". They are imported here.
      files: the values of --gin_file.
      bindings: the values of --gin_param, then the bindings of other flags, such as
        "preprocess.input = 'photos'".
      required: parameters or %MACROS that must be set, with the flag that sets each.
      defaults: bindings.
      called: names of the configurables that are called with nothing more than what gin sets.

    Raises:
      UsageError: a file is missing, a name or parameter does not exist, the syntax is wrong, a
        required value is not set, or a value is of the wrong kind.
    """
    by_name = {}
    for source, name in map(source_and_gin_name, configurables):
        by_name[name] = pkgutil.resolve_name(source)
        gin.external_configurable(by_name[name], name)
    for file in files:
        if not os.path.isfile(file):
            raise UsageError(f"--gin_file {file}: no such file")
        # A file can include a file of its own folder, wherever the program is started.
        gin.add_config_file_search_path(os.path.dirname(os.path.abspath(file)))
    gin.add_config_file_search_path(SHIPPED)
    try:
        gin.parse_config(list(defaults))
        gin.parse_config_files_and_bindings(list(files), list(bindings), finalize_config=False)
        for parameter, flag in required.items():
            if not is_set(parameter) or not value_of(parameter):
                raise UsageError(f"--{flag} is missing; see --help")
        gin.finalize()
    except (ValueError, SyntaxError, OSError, AttributeError, ImportError, TypeError) as error:
        # Some messages of gin end in the whole configuration.
        raise UsageError(f"gin: {str(error).split(' in config string')[0]}") from error
    check(by_name.values(), [by_name[name] for name in called])


def flag_bindings(configurable: str, flags: argparse.Namespace) -> list[str]:
    """Returns the bindings of --gin_param, followed by one for each other flag that was given.

    Args:
      configurable: whose parameters the flags set; each has the name that the flag is stored by.
      flags: parsed by a `GinParser`; None where a flag was not given.
    """
    bindings = [*flags.gin_param]
    for name, value in vars(flags).items():
        if value is not None and not name.startswith("gin_"):
            bindings.append(f"{configurable}.{name} = {value!r}")
    return bindings
