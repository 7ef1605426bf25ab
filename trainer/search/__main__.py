"""python -m trainer.search build, add or query: finds the images most similar to an image."""

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from trainer.search.arguments import parse
from tripletmill.cli.arguments import exit_code


def _change(command: str, directory: str, embeddings: Sequence[str], **options: Any) -> None:
    from trainer.search.build import add, build, summary

    change = add if command == "add" else build
    info = change(directory=directory, embeddings_dirs=embeddings, **options)
    print("\n".join(summary(info, len(embeddings))))
    index = shlex.quote(directory)
    print(f"next: python -m trainer.search query --index_dir={index} --model_dir=RUN IMAGE")


def _query(command: str, neighbours: int, class_name: str, split: str, **options: Any) -> None:
    from trainer.search.queries import Wanted
    from trainer.search.query_command import query

    query(wanted=Wanted(neighbours, class_name, split), **options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code. Without arguments, it takes `sys.argv`."""
    flags = parse(arguments)
    work = _query if flags.command == "query" else _change
    return exit_code(lambda: work(**vars(flags)), path=flags.directory)


if __name__ == "__main__":
    sys.exit(main())
