"""Writes a manifest of the Omniglot drawings, which assigns each drawing to train, val or test.

python -m demo.omniglot --input=omniglot --output=omniglot.csv

test: all characters of images_evaluation, whose alphabets training never sees.
val: every tenth character of images_background, in sorted order.
train: the other characters of images_background.
"""

import csv
import sys
from pathlib import Path

from tripletmill.cli.arguments import Parser

BACKGROUND, EVALUATION = "images_background", "images_evaluation"
VAL_EVERY = 10


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Returns path, label and split of every drawing below a folder.

    A label is ALPHABET__CHARACTER. The list is empty if there are no drawings.
    """
    drawings = []
    for part in (BACKGROUND, EVALUATION):
        characters: dict[str, list[Path]] = {}
        for path in sorted((folder / part).rglob("*.png")):
            # Published as ALPHABET/CHARACTER, and also found as one folder ALPHABET__CHARACTER.
            label = "__".join(path.relative_to(folder / part).parts[:-1])
            characters.setdefault(label, []).append(path)
        for number, label in enumerate(sorted(characters)):
            background_split = "val" if number % VAL_EVERY == VAL_EVERY - 1 else "train"
            split = "test" if part == EVALUATION else background_split
            drawings += [(str(path.resolve()), label, split) for path in characters[label]]
    return drawings


def main() -> None:
    parser = Parser(prog="python -m demo.omniglot", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input", type=Path, required=True, help="the folder with the unpacked archives"
    )
    parser.add_argument("--output", type=Path, required=True, help="the manifest, a .csv file")
    flags = parser.parse_args()
    for part in (BACKGROUND, EVALUATION):
        if not (flags.input / part).is_dir():
            parser.error(f"--input {flags.input}: there is no folder {part}")
    drawings = rows(flags.input)
    if not drawings:
        parser.error(f"--input {flags.input}: no .png below {BACKGROUND} and {EVALUATION}")
    with flags.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        writer.writerows(drawings)
    print(f"wrote {flags.output}: {len(drawings):,} drawings", file=sys.stderr)


if __name__ == "__main__":
    main()
