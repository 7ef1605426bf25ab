"""python -m trainer.search build, add or query: finds the images most similar to an image."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from trainer.search.arguments import parse
from tripletmill.cli.arguments import exit_code


def _change(flags: argparse.Namespace) -> None:
    from trainer.search.build import add, build
    from trainer.search.summary import summary

    if flags.command == "add":
        info = add(directory=flags.index_dir, embeddings_dirs=flags.embeddings)
    else:
        info = build(
            directory=flags.index_dir,
            embeddings_dirs=flags.embeddings,
            kind=flags.kind,
            target=flags.recall,
            overwrite=flags.overwrite,
        )
    print("\n".join(summary(info, len(flags.embeddings))))
    index = shlex.quote(flags.index_dir)
    print(f"next: python -m trainer.search query --index_dir={index} --model_dir=RUN IMAGE")


def _query(flags: argparse.Namespace) -> None:
    from trainer.search.queries import Wanted
    from trainer.search.query_command import query

    query(
        directory=flags.index_dir,
        images=flags.image,
        source_ids=flags.source_id,
        model=flags.model_dir,
        wanted=Wanted(flags.neighbours, flags.class_name, flags.split),
        format=flags.format,
        output=flags.output,
        data_dir=flags.data_dir,
        images_dir=flags.images,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code; the arguments are those of the command line."""
    flags = parse(arguments)
    work = _query if flags.command == "query" else _change
    return exit_code(lambda: work(flags), path=flags.index_dir)


if __name__ == "__main__":
    sys.exit(main())
