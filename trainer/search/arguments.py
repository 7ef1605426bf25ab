"""The command line of python -m trainer.search."""

import argparse
from collections.abc import Sequence

from tripletmill.cli.arguments import Parser, positive

DESCRIPTION = """
Finds the images that are most similar to an image, in a collection that `python -m pipeline.embed`
has embedded. Distances are squared Euclidean distances of unit-length embeddings, 0 to 4. Exit
codes: 0; 2 for a mistake in the command line, or if no query could be answered, which is reported
in one line; 130 after Ctrl+C.
"""
FORMATS = ("table", "jsonl", "sheet")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers above 0, up to 1")
    return value


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments of build, add or query; Without arguments, it takes `sys.argv`.

    The result names the values like the arguments of `build`, `add` and `query`.
    """
    parser = Parser("python -m trainer.search", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="build|add|query")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        text = "folder of the index"
        added.add_argument("--index_dir", dest="directory", metavar="DIR", required=True, help=text)
        return added

    build = command("build", "make an index of embeddings")
    add = command("add", "add embeddings to an index, except those whose source id it has")
    for each in (build, add):
        text = "folder of embeddings; may be repeated, with embeddings of the same model"
        each.add_argument(
            "--embeddings", metavar="DIR", nargs="+", action="extend", required=True, help=text
        )
    text = "flat (exact), hnsw or ivfpq (approximate) (chosen by the number of images)"
    build.add_argument("--kind", choices=("flat", "hnsw", "ivfpq"), help=text)
    text = "share of the true 10 nearest images that an approximate index must find (0.95)"
    build.add_argument("--recall", dest="target", metavar="R", type=_share, default=0.95, help=text)
    text = "replace an index that is in the folder"
    build.add_argument("--overwrite", action="store_true", help=text)

    query = command("query", "show the images nearest to image files, or to images of the index")
    text = "image file, or a folder of image files"
    query.add_argument("images", metavar="image", nargs="*", help=text)
    text = "source id of an image in the index, in place of image files; may be repeated"
    query.add_argument(
        "--source_id", dest="source_ids", metavar="ID", action="append", default=[], help=text
    )
    text = "for image files: folder of the export whose embeddings the index has, or of its run"
    query.add_argument("--model_dir", dest="model", metavar="DIR", help=text)
    text = "largest number of neighbours of a query (10)"
    query.add_argument("--neighbours", metavar="N", type=positive, default=10, help=text)
    text = "search only among the images of this class"
    query.add_argument("--class", dest="class_name", metavar="NAME", help=text)
    query.add_argument("--split", metavar="NAME", help="search only among the images of this split")
    query.add_argument("--format", choices=FORMATS, default="table", help="of the answers (table)")
    query.add_argument("--output", metavar="FILE.png", help="the sheet to write")
    text = "data set that has the pictures for the sheet"
    query.add_argument("--data_dir", metavar="DIR", help=text)
    text = "folder or manifest that was embedded, which has the pictures, in place of a data set"
    query.add_argument("--images", dest="images_dir", metavar="PATH", help=text)
    return parser.parse_args(arguments)
