"""Which batches fit a TPU v5e: compiles training steps with libtpu and prints a table.

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

from preprocessing.arguments import Parser, positive
from preprocessing.errors import UsageError
from tools.tpu_check import cases
from tools.tpu_check.cases import Case
from tools.tpu_check.compile import Compiled

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
    """A process ended otherwise than by a mistake of the user."""


def _list_of(kind: Callable[[str], object]) -> Callable[[str], list[object]]:
    def parse(text: str) -> list[object]:
        return [kind(part) for part in text.split(",")]

    return parse


def _one_of(known: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r}: of {', '.join(known)}")
        return text

    return parse


def _arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.tpu_check",
        description="Compiles a replica's training step for a TPU v5e and prints the memory it"
        " takes. Values may be lists, as in --batch=128,256: every combination is compiled.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, kind, text in (
        ("backbone", str, "small_conv, efficientnet_lite0 or a network of keras.applications"),
        ("loss", _one_of(cases.LOSSES), ", ".join(cases.LOSSES)),
        ("dtype", _one_of(cases.DTYPES), f"of the backbone: {', '.join(cases.DTYPES)}"),
        ("matmul", _one_of(cases.PRECISIONS), "precision of float32 matmuls: default, highest"),
        ("batch", positive, "images a replica"),
        ("replicas", positive, "how many there are; 2 or more for a gathered batch"),
        ("image_size", positive, "pixels"),
        ("embedding_dim", positive, "of the head"),
    ):
        parser.add_argument(f"--{name}", type=_list_of(kind), help=text)
    parser.add_argument(
        "--jax_python", default=sys.executable, help="Python of an environment with jax and libtpu"
    )
    parser.add_argument(
        "--jobs", type=positive, default=os.cpu_count(), help="cases at a time; default: cores"
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
    """What a process printed; UsageError for its exit code 2."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 2:
        raise UsageError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise _ProcessError(f"{command[2]} ended with {done.returncode}: {last[:200]}")
    return done.stdout


def _check(case: Case, jax_python: str, file: str) -> Compiled:
    """Exports a case to a file and compiles it, in a process each."""
    try:
        _run([sys.executable, "-m", "tools.tpu_check.export", case.to_json(), file])
        output = _run([jax_python, "-m", "tools.tpu_check.compile", file])
        return Compiled(**json.loads(output.splitlines()[-1]))
    except _ProcessError as error:  # libtpu may end its process instead of raising
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
    """Prints a line a case, when it has ended.

    Returns:
      Whether every case was compiled, or refused for its memory only.
    """
    print(_cells([name for name, _ in _COLUMNS]), flush=True)
    good = True
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(jobs) as pool,
    ):
        running = {
            pool.submit(_check, case, jax_python, os.path.join(folder, f"{i}.hlo")): case
            for i, case in enumerate(chosen)
        }
        try:
            for done in concurrent.futures.as_completed(running):
                compiled = done.result()
                print(_row(running[done], compiled), flush=True)
                good &= not compiled.error
        finally:
            pool.shutdown(cancel_futures=True)
    return good


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
