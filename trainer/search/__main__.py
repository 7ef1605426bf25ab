"""python -m trainer.search build, add or query: finds the images most like another."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from tripletmill.cli.arguments import Parser, exit_code, positive

DESCRIPTION = """
Finds, in a collection that `python -m pipeline.embed` embedded, the images most like another. Exit
codes: 0; 2 for a mistake in the command line, or where no query could be answered, said in one
line; 130 after Ctrl+C. Distances are squared Euclidean ones of unit-length embeddings, 0 to 4.
"""
FORMATS = ("table", "jsonl", "sheet")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: above 0, at most 1")
    return value


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m trainer.search", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="build|add|query")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--index", metavar="DIR", required=True, help="folder of the index")
        return added

    build = command("build", "makes an index of embeddings")
    add = command("add", "adds embeddings to an index; what is in it by source id stays as it is")
    for each in (build, add):
        text = "folders of embeddings, all of one model"
        each.add_argument(
            "--embeddings", metavar="DIR", nargs="+", action="extend", required=True, help=text
        )
    text = "flat (exact), hnsw or ivfpq (approximate); by default, by the number of images"
    build.add_argument("--kind", choices=("flat", "hnsw", "ivfpq"), help=text)
    text = "share of the true 10 nearest that an approximate index must find (0.95)"
    build.add_argument("--recall", metavar="R", type=_share, default=0.95, help=text)
    build.add_argument("--overwrite", action="store_true", help="replaces an index that is there")

    query = command("query", "the images nearest to image files, or to images of the index")
    query.add_argument("image", nargs="*", help="image file, or a folder of them")
    text = "of an image in the index, in place of image files; may be repeated"
    query.add_argument("--source_id", metavar="ID", action="append", default=[], help=text)
    text = "the exported model that the index was made with, or its run; for image files"
    query.add_argument("--model", metavar="DIR", help=text)
    query.add_argument("--neighbours", metavar="N", type=positive, default=10, help="at most (10)")
    query.add_argument("--class", dest="class_name", metavar="NAME", help="only of this class")
    query.add_argument("--split", metavar="NAME", help="only of this split")
    query.add_argument("--format", choices=FORMATS, default="table", help="of the answer (table)")
    query.add_argument("--output", metavar="FILE.png", help="the sheet")
    query.add_argument("--data", metavar="DIR", help="data set with the sheet's pictures")
    text = "in its place: the folder, or list, that was embedded"
    query.add_argument("--images", metavar="PATH", help=text)
    return parser.parse_args(arguments)


def _change(flags: argparse.Namespace) -> None:
    from trainer.search.build import add, build, summary

    if flags.command == "add":
        info = add(directory=flags.index, embeddings_dirs=flags.embeddings)
    else:
        info = build(
            directory=flags.index,
            embeddings_dirs=flags.embeddings,
            kind=flags.kind,
            target=flags.recall,
            overwrite=flags.overwrite,
        )
    print("\n".join(summary(info, len(flags.embeddings))))
    index = shlex.quote(flags.index)
    print(f"next: python -m trainer.search query --index={index} --model=RUN IMAGE")


def _query(flags: argparse.Namespace) -> None:
    from trainer.search.queries import Wanted
    from trainer.search.query_command import query

    query(
        directory=flags.index,
        images=flags.image,
        source_ids=flags.source_id,
        model=flags.model,
        wanted=Wanted(flags.neighbours, flags.class_name, flags.split),
        format=flags.format,
        output=flags.output,
        data_dir=flags.data,
        images_dir=flags.images,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code; the command line by default."""
    flags = _arguments(arguments)
    work = _query if flags.command == "query" else _change
    return exit_code(lambda: work(flags), path=flags.index)


if __name__ == "__main__":
    # A console that cannot show a name shows it escaped.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
