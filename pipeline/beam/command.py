"""What the programs of the two Beam jobs share: their common flags, and how a job is run."""

import pkgutil
from collections.abc import Mapping, Sequence

import gin

from tripletmill.cli.arguments import exit_code
from tripletmill.cli.commandline import GinParser, flag_bindings, parse_gin

INPUTS = (
    "preprocessing.sources.folders:FolderInput",
    "preprocessing.sources.manifests:ManifestInput",
    "preprocessing.sources.tfrecords:RecordsInput",
    "preprocessing.sources.tfds:TfdsInput",
)


def job_parser(
    module: str, job: str, *, description: str, configurables: Sequence[str]
) -> GinParser:
    """Returns a parser with the flags that both programs have.

    Args:
      module: the program, such as "pipeline.main".
      job: name of the configurable that runs the job.
      description: what --help prints above the flags.
      configurables: "module:name" of what gin may configure.
    """
    set_by_program = (f"{job}.runner", f"{job}.options")
    parser = GinParser(
        f"python -m {module}", description, configurables, set_by_program, passes_on=True
    )
    parser.add_argument("--output", metavar="DIR", help="folder to write")
    text = "folder in which the data set of tfds:NAME was prepared"
    parser.add_argument("--tfds_dir", metavar="DIR", help=text)
    text = "replace what an earlier job wrote into the output folder"
    parser.add_argument("--overwrite", action="store_true", default=None, help=text)
    return parser


def run_job(
    job: str,
    parser: GinParser,
    arguments: Sequence[str] | None,
    *,
    configurables: Sequence[str],
    required: Mapping[str, str],
    defaults: Sequence[str] = (),
    output_is: str,
    print_summary: str,
) -> int:
    """Runs a job with its flags and with what gin has for it, and prints a summary.

    The summary of a run that ends with something else than a finished job, such as a template, is
    one line.

    Args:
      job: name of the configurable that runs the job.
      parser: parser of the flags of the program.
      arguments: the command line; None for that of this process.
      configurables: "module:name" of what gin may configure.
      required: gin parameters that must be set, with the flag that sets each.
      defaults: gin bindings that flags and files may change.
      output_is: how to name the output of a job that goes on elsewhere, such as "its data set is".
      print_summary: "module:name" of the function that prints the summary of a finished job.

    Returns:
      The exit code.
    """
    flags, beam_flags = parser.parse_known_args(arguments)
    names = {"folder": "Folder", "manifest": "Manifest", "records": "Records", "tfds": "Tfds"}
    inputs = [f"{job}.{parameter} = @{name}Input()" for parameter, name in names.items()]

    def run() -> None:
        parse_gin(
            configurables,
            files=flags.gin_file,
            bindings=flag_bindings(job, flags),
            required=required,
            defaults=[*defaults, *inputs],
        )
        # Imported late, so that --help does not wait for Apache Beam.
        from pipeline.beam import runners

        runner, options = runners.runner_and_options(beam_flags)
        runners.stop_at_once_on_interrupt(runner)
        with runners.clean_errors():
            outcome = gin.get_configurable(job)(runner=runner, options=options)
        if outcome is None:
            print(runners.instead_of_output(options, output_is))
        else:
            pkgutil.resolve_name(print_summary)(outcome)

    return exit_code(run)
