"""What the programs of the two Beam jobs share: their common flags, and how a job is run."""

from collections.abc import Sequence
from typing import Any

from tripletmill.cli.commandline import GinParser

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


def input_bindings(job: str) -> list[str]:
    """Returns the gin bindings by which a job gets the settings of its inputs."""
    names = {"folder": "Folder", "manifest": "Manifest", "records": "Records", "tfds": "Tfds"}
    return [f"{job}.{parameter} = @{name}Input()" for parameter, name in names.items()]


def run_job(job: str, beam_flags: Sequence[str], *, output_is: str) -> Any:
    """Runs a job with what gin has for it.

    Args:
      job: name of the configurable that runs the job.
      beam_flags: options of Apache Beam.
      output_is: how to name the output of a job that goes on elsewhere, such as "its data set is".

    Returns:
      The outcome of the job. None if the options of Beam ask for something else than a finished
      job, such as a template; what came of it is printed.
    """
    # Imported late, so that --help does not wait for Apache Beam.
    import gin

    from pipeline.beam import runners

    runner, options = runners.runner_and_options(beam_flags)
    runners.stop_at_once_on_interrupt(runner)
    with runners.clean_errors():
        outcome = gin.get_configurable(job)(runner=runner, options=options)
    if outcome is None:
        print(runners.instead_of_output(options, output_is))
    return outcome
