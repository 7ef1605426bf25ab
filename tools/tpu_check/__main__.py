"""Shows which batches fit a TPU v5e, without a TPU: docs/tpu.md.

Compiles one replica's training step with libtpu on the CPU, and prints the memory that it needs.

make tpu-check
make tpu-check ARGS='--backbone=resnet50 --dtype=bfloat16 --batch=128,256 --replicas=8'
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from tools.tpu_check import cases
from tools.tpu_check.cases import Case
from tools.tpu_check.compile import Compiled
from tripletmill.cli.arguments import Parser, positive
from tripletmill.errors import UsageError

_COLUMNS = (
    ("backbone", 18),
    ("loss", 9),
    ("dtype", 9),
    ("matmul", 8),
    ("px", 4),
    ("batch", 8),
    ("replicas", 9),
    ("global", 8),
    ("compiled", 9),
    ("memory", 11),
)


class _ProcessError(Exception):
    """A child process failed, and the reason is not a mistake of the user."""


def _list_of(kind: Callable[[str], object]) -> Callable[[str], list[object]]:
    def parse(text: str) -> list[object]:
        return [kind(part) for part in text.split(",")]

    return parse


def _one_of(known: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(known)}")
        return text

    return parse


def _arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.tpu_check",
        description="Compiles one replica's training step for a TPU v5e and prints the memory that"
        " it needs. A value may be a list, as in --batch=128,256; every combination is compiled.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, kind, text in (
        ("backbone", str, "small_conv, efficientnet_lite0 or a network of keras.applications"),
        ("loss", _one_of(cases.LOSSES), f"the triplet loss: {', '.join(cases.LOSSES)}"),
        ("dtype", _one_of(cases.DTYPES), f"dtype of the backbone: {', '.join(cases.DTYPES)}"),
        ("matmul", _one_of(cases.PRECISIONS), "precision of float32 matmuls: default, highest"),
        ("batch", positive, "images per replica"),
        ("replicas", positive, "number of replicas; with 2 or more, the batch is gathered"),
        ("image_size", positive, "image size in pixels"),
        ("embedding_dim", positive, "dimensions of an embedding"),
    ):
        parser.add_argument(f"--{name}", type=_list_of(kind), help=text)
    parser.add_argument(
        "--jax_python",
        default=sys.executable,
        help="the Python of an environment with jax and libtpu",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        default=os.cpu_count(),
        help="cases that run at a time (number of cores)",
    )
    return parser.parse_args()


def _check_jax(python: str) -> None:
    code = "from importlib.util import find_spec as f; exit(not (f('jax') and f('libtpu')))"
    try:
        missing = subprocess.run([python, "-c", code], check=False).returncode
    except OSError as error:
        raise UsageError(f"--jax_python {python}: {error.strerror}") from error
    if missing:
        raise UsageError(
            "jax and libtpu are not installed: run `make tpu-check`, or pip install '.[tpu-check]'"
        )


def _run(command: Sequence[str]) -> str:
    """Runs a child process and returns what it printed.

    Raises:
      UsageError: its exit code is 2, a mistake of the user.
      _ProcessError: any other failure.
    """
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode == 2:
        raise UsageError(process.stderr.strip().splitlines()[-1].removeprefix("error: "))
    if process.returncode:
        last_line = (process.stderr.strip() or "no message").splitlines()[-1]
        raise _ProcessError(f"{command[2]}: exit status {process.returncode}: {last_line[:200]}")
    return process.stdout


def _check(case: Case, jax_python: str, file: str) -> Compiled:
    """Exports a case to a file and compiles the file; each in its own process."""
    try:
        _run([sys.executable, "-m", "tools.tpu_check.export", case.to_json(), file])
        output = _run([jax_python, "-m", "tools.tpu_check.compile", file])
        return Compiled(**json.loads(output.splitlines()[-1]))
    except _ProcessError as error:  # libtpu may end the process instead of raising an error
        return Compiled(0.0, error=str(error))


def _row(case: Case, compiled: Compiled) -> str:
    memory = f"{compiled.memory / 2**30:.2f} GiB" if not compiled.error else "?"
    values = (
        *(case.backbone, case.loss, case.dtype, case.matmul, case.image_size),
        *(f"{n:,}" for n in (case.batch, case.replicas, case.global_batch)),
        f"{compiled.seconds:.0f} s",
        memory,
    )
    if compiled.error:
        verdict = f"refused: {compiled.error}"
    else:
        verdict = "fits" if compiled.fits else "too large"
    return f"{_cells(values)}  {verdict}"


def _cells(values: Sequence[object]) -> str:
    cells = (
        f"{value:{'<' if name in ('backbone', 'loss', 'dtype', 'matmul') else '>'}{width}}"
        for (name, width), value in zip(_COLUMNS, map(str, values), strict=True)
    )
    return "".join(cells)


def check_all(chosen: Sequence[Case], *, jax_python: str, jobs: int) -> bool:
    """Compiles all cases and prints one line for each, as soon as it has ended.

    Args:
      chosen: the cases.
      jax_python: the Python of an environment with jax and libtpu.
      jobs: how many cases run at a time.

    Returns:
      Whether each case was compiled, or was refused only because it needs too much memory.
    """
    print(_cells([name for name, _ in _COLUMNS]), flush=True)
    succeeded = True
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(jobs) as pool,
    ):
        running = {
            pool.submit(_check, case, jax_python, os.path.join(folder, f"{i}.hlo")): case
            for i, case in enumerate(chosen)
        }
        try:
            for future in concurrent.futures.as_completed(running):
                compiled = future.result()
                print(_row(running[future], compiled), flush=True)
                succeeded &= not compiled.error
        finally:
            pool.shutdown(cancel_futures=True)
    return succeeded


def main() -> None:
    try:
        arguments = vars(_arguments())
        jax_python, jobs = arguments.pop("jax_python"), arguments.pop("jobs")
        _check_jax(jax_python)
        chosen = cases.product(arguments) if arguments else cases.DEFAULTS
        sys.exit(0 if check_all(chosen, jax_python=jax_python, jobs=jobs) else 1)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
